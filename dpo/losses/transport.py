"""Distributional preference losses, which order all pairs of a step. Knows no model and no batch.

AOT (Melnyk et al. 2024, arXiv 2406.05882) asks that the distribution of one quantity dominates that of another: both
are sorted, and values of equal rank make a logistic loss. A pair is handed the value of equal rank, its match, as a
number: that leaves the gradient what sorting both would give, and a step may be cut anywhere.
Legend: K pairs, M all pairs of the step.
"""

import torch
from torch import Tensor

from dpo.losses.pairwise import sigmoid


def matched_by_rank(values_M: Tensor, others_M: Tensor) -> Tensor:
    """For each value the one of the others that has its rank, [M].

    >>> matched_by_rank(torch.tensor([5.0, 1.0, 3.0]), torch.tensor([20.0, 30.0, 10.0]))
    tensor([30., 10., 20.])
    """
    ranked_M = torch.empty_like(others_M)
    ranked_M[values_M.argsort(stable=True)] = others_M.sort().values
    return ranked_M


def aot(
    chosen_logp_K: Tensor,
    rejected_logp_K: Tensor,
    matched_reference_margin_K: Tensor,
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> Tensor:
    """AOT for pairs, [K], nats: margins log pi(y_w) - log pi(y_l) dominate those of the reference.

    >>> aot(torch.tensor([1.0]), torch.tensor([0.0]), torch.tensor([1.0]), beta=0.1)
    tensor([0.6931])
    """
    margin_K = chosen_logp_K - rejected_logp_K
    return sigmoid(margin_K, matched_reference_margin_K, beta=beta, label_smoothing=label_smoothing)


def aot_unpaired(
    chosen_logratio_K: Tensor,
    rejected_logratio_K: Tensor,
    matched_rejected_K: Tensor,
    matched_chosen_K: Tensor,
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> Tensor:
    """AOT over two sets, [K], nats: log-ratios of chosen completions dominate those of rejected ones.

    Every comparison of equal rank appears twice, once for its chosen and once for its rejected completion; each has
    the gradient of its own side, and half of the value.

    >>> one_K = torch.ones(1)
    >>> aot_unpaired(one_K, one_K, one_K, one_K, beta=0.1)
    tensor([0.6931])
    """
    of_chosen_K = sigmoid(chosen_logratio_K, matched_rejected_K, beta=beta, label_smoothing=label_smoothing)
    of_rejected_K = sigmoid(matched_chosen_K, rejected_logratio_K, beta=beta, label_smoothing=label_smoothing)
    both_K = of_chosen_K + of_rejected_K
    return both_K - both_K.detach() / 2
