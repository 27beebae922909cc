"""Losses of whole rankings of N completions. Knows no model and no batch.

Legend: R completions, B groups (rankings).
"""

import torch
from torch import Tensor


def plackett_luce(logratio_R: Tensor, score_R: Tensor, group_R: Tensor, *, beta: float) -> Tensor:
    """DPO under the Plackett-Luce model, [B], nats: -log probability of the ranking of every group.

    Eq. 20 of Rafailov et al. 2023 (arXiv 2305.18290): from the best to the worst, each completion is drawn from those
    that are left, with weights exp(beta * log-ratio), log-ratios summed over tokens. With two completions this is
    Eq. 7. Beyond the paper there may be ties: a completion competes with those that score strictly less, never with
    its equals, so a tie teaches nothing, and those of the lowest score have a factor of 1.

    >>> zero_R, one_group_R = torch.zeros(3), torch.zeros(3, dtype=torch.long)
    >>> plackett_luce(zero_R, torch.tensor([3.0, 2.0, 1.0]), one_group_R, beta=0.1)    # log 3 + log 2
    tensor([1.7918])
    >>> plackett_luce(zero_R, torch.tensor([3.0, 3.0, 1.0]), one_group_R, beta=0.1)    # log 2 + log 2
    tensor([1.3863])
    """
    reward_R = beta * logratio_R
    below_RR = (group_R[:, None] == group_R) & (score_R[:, None] > score_R)
    left_RR = below_RR | torch.eye(len(reward_R), dtype=torch.bool, device=reward_R.device)
    weights_RR = reward_R.expand_as(left_RR).masked_fill(~left_RR, -torch.inf)
    surprise_R = weights_RR.logsumexp(dim=1) - reward_R
    groups = int(group_R.max()) + 1
    return surprise_R.new_zeros(groups).index_add(0, group_R, surprise_R)
