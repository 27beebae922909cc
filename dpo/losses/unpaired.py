"""Losses of single completions that are labelled desirable or not. Knows no model and no batch.

Legend: R completions.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def kto(
    logratio_R: Tensor,
    desirable_R: Tensor,
    kl_baseline: Tensor,
    *,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    """KTO: one minus the value of prospect theory, [R], no unit.

    weight * (1 - sigmoid(beta (l - z0))) for a desirable completion, weight * (1 - sigmoid(beta (z0 - l))) for an
    undesirable one: Eq. 8 of Ethayarajh et al. 2024 (arXiv 2402.01306); the weights are its lambda_D and lambda_U.
    l is the log-ratio, summed over tokens; z0 is `kl_baseline`, a number without gradient, never below 0: how far the
    policy has moved on completions of other prompts, in nats.

    >>> kto(torch.zeros(2), torch.tensor([True, False]), torch.tensor(0.0), beta=0.1)
    tensor([0.5000, 0.5000])
    """
    gain_R = torch.where(desirable_R, logratio_R - kl_baseline, kl_baseline - logratio_R)
    return _weights(desirable_R, gain_R, desirable_weight, undesirable_weight) * (1 - torch.sigmoid(beta * gain_R))


def apo_zero_unpaired(
    logratio_R: Tensor,
    desirable_R: Tensor,
    *,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    """APO-zero on labels: weight * (1 - sigmoid(beta l)) where desirable, weight * sigmoid(beta l) elsewhere, [R].

    The two terms of Eq. 7 of D'Oosterlinck et al. 2024 (arXiv 2408.06266), each on its own: KTO whose z0 is 0. No unit.

    >>> apo_zero_unpaired(torch.zeros(2), torch.tensor([True, False]), beta=0.1)
    tensor([0.5000, 0.5000])
    """
    no_baseline = logratio_R.new_zeros(())
    weights = {"desirable_weight": desirable_weight, "undesirable_weight": undesirable_weight}
    return kto(logratio_R, desirable_R, no_baseline, beta=beta, **weights)


def bco_unpaired(
    logratio_R: Tensor,
    desirable_R: Tensor,
    reward_shift: Tensor,
    *,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    """BCO on thumbs up and down: a binary classifier whose logit is the shifted implicit reward, [R], nats.

    Jung et al. 2024 (arXiv 2404.04656). `reward_shift` is the running mean between the rewards of both kinds, without
    gradient. Weights as in KTO.

    >>> bco_unpaired(torch.zeros(2), torch.tensor([True, False]), torch.tensor(0.0), beta=0.1)
    tensor([0.6931, 0.6931])
    """
    reward_R = beta * logratio_R - reward_shift
    logit_R = torch.where(desirable_R, reward_R, -reward_R)
    return -_weights(desirable_R, logit_R, desirable_weight, undesirable_weight) * logsigmoid(logit_R)


def _weights(desirable_R: Tensor, like_R: Tensor, desirable: float, undesirable: float) -> Tensor:
    return torch.where(desirable_R, like_R.new_tensor(desirable), like_R.new_tensor(undesirable))
