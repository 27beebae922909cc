"""The DPO loss as the paper writes it: tensors in, tensors out. Knows no model, no batch and no configuration.

Legend: R completions, K pairs.
"""

from torch import Tensor
from torch.nn.functional import logsigmoid


def dpo_loss(logratio_R: Tensor, pairs_K2: Tensor, *, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """DPO loss of every preference pair, [K], in nats; the caller sums and divides.

    logratio_R is log pi(y|x) - log pi_ref(y|x), summed over completion tokens; pairs_K2 holds (better, worse) indices
    into it; beta in 1/nat. Eq. 7 of Rafailov et al. 2023 (arXiv 2305.18290). Unlike the paper a group may hold N > 2
    completions: each strictly ordered pair counts once. `label_smoothing` is the probability that a label is flipped
    (conservative DPO, Mitchell's note of 2023): the cross-entropy against that soft label, whose minimum lies at
    beta * (difference of log-ratios) = log((1 - e) / e).

    >>> import torch
    >>> dpo_loss(torch.zeros(2), torch.tensor([[0, 1]]), beta=0.1)    # policy == reference
    tensor([0.6931])
    """
    logit_K = beta * (logratio_R[pairs_K2[:, 0]] - logratio_R[pairs_K2[:, 1]])
    return -(1 - label_smoothing) * logsigmoid(logit_K) - label_smoothing * logsigmoid(-logit_K)


def implicit_rewards(logratio_R: Tensor, *, beta: float) -> Tensor:
    """Reward that a policy implies, [R], up to a constant per prompt: Eq. 5 without its partition function.

    >>> import torch
    >>> implicit_rewards(torch.tensor([2.0, -1.0]), beta=0.5)
    tensor([ 1.0000, -0.5000])
    """
    return beta * logratio_R
