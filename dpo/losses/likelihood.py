"""Losses that raise the likelihood of the chosen completion, alone or beside DPO. Knows no model and no batch.

Log-probs and log-ratios are summed over completion tokens, nats; lengths in tokens.
Legend: K pairs.
"""

from torch import Tensor

from dpo.losses.pairwise import sigmoid


def sft(chosen_logp_K: Tensor) -> Tensor:
    """Preferred fine-tuning, [K], nats: -log pi(y_w), summed over tokens; a baseline of arXiv 2305.18290.

    >>> import torch
    >>> sft(torch.tensor([-3.0]))
    tensor([3.])
    """
    return -chosen_logp_K


def sft_per_token(chosen_logp_K: Tensor, chosen_length_K: Tensor) -> Tensor:
    """Preferred fine-tuning, [K], nats per token: every completion counts with its mean.

    >>> import torch
    >>> sft_per_token(torch.tensor([-3.0]), torch.tensor([2.0]))
    tensor([1.5000])
    """
    return -chosen_logp_K / chosen_length_K


def unlikelihood(chosen_logp_K: Tensor, rejected_logp_K: Tensor, *, unlikelihood_weight: float) -> Tensor:
    """Raise log pi(y_w) and lower log pi(y_l), [K], nats: a baseline of arXiv 2305.18290, section 6.

    The paper tries weights (its alpha) of 0.05 to 1. Not bounded below: with nothing to stop the fall of y_l the text
    falls apart, as the paper's Table 3 shows.

    >>> import torch
    >>> unlikelihood(torch.tensor([-3.0]), torch.tensor([-4.0]), unlikelihood_weight=0.5)    # 3 - 2
    tensor([1.])
    """
    return -chosen_logp_K + unlikelihood_weight * rejected_logp_K


def rpo(
    chosen_logratio_K: Tensor,
    rejected_logratio_K: Tensor,
    chosen_logp_K: Tensor,
    *,
    beta: float,
    likelihood_weight: float,
) -> Tensor:
    """RPO: DPO plus likelihood_weight times preferred fine-tuning, summed over tokens, [K], nats.

    Liu et al. 2024 (arXiv 2405.16436), whose eta is our likelihood_weight: 0 is DPO.

    >>> import torch
    >>> rpo(torch.zeros(1), torch.zeros(1), torch.tensor([-10.0]), beta=0.1, likelihood_weight=0.1)    # log 2 + 1
    tensor([1.6931])
    """
    return sigmoid(chosen_logratio_K, rejected_logratio_K, beta=beta) + likelihood_weight * sft(chosen_logp_K)


def iterative_rpo(
    chosen_logratio_K: Tensor,
    rejected_logratio_K: Tensor,
    chosen_logp_K: Tensor,
    chosen_length_K: Tensor,
    *,
    beta: float,
    likelihood_weight: float,
) -> Tensor:
    """Iterative RPO: DPO plus likelihood_weight times preferred fine-tuning per token, [K], nats.

    Eq. 1 of Pang et al. 2024 (arXiv 2404.19733), whose alpha is our likelihood_weight: 0 is DPO.

    >>> import torch
    >>> terms = map(torch.tensor, ([0.0], [0.0], [-10.0], [5.0]))
    >>> iterative_rpo(*terms, beta=0.1, likelihood_weight=1.0)    # log 2 + 2
    tensor([2.6931])
    """
    likelihood_K = sft_per_token(chosen_logp_K, chosen_length_K)
    return sigmoid(chosen_logratio_K, rejected_logratio_K, beta=beta) + likelihood_weight * likelihood_K
