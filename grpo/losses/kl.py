"""Estimates of KL(pi || pi_ref), in nats, from the tokens that pi drew. Knows no advantages.

Value and gradient of an estimate are different questions: all of these have the KL as their mean (k2 nearly), but the
mean of their gradients differs, see each. The tests enumerate a policy to show it.

Legend: T completion tokens.
"""

from typing import Literal

import torch
from torch import Tensor

from grpo.losses.ratio import bounded


def kl_k1(logp_T: Tensor, reference_logp_T: Tensor) -> Tensor:
    """log pi - log pi_ref of every token, [T], of either sign.

    Its mean is the KL; the mean of its gradient is 0, so it has a place in a reward, or in a loss times the ratio.

    >>> kl_k1(torch.tensor([-1.0]), torch.tensor([-2.0]))
    tensor([1.])
    """
    return logp_T - reference_logp_T


def kl_k2(logp_T: Tensor, reference_logp_T: Tensor) -> Tensor:
    """(log pi - log pi_ref)^2 / 2 of every token, [T], never negative.

    Its mean is the KL to second order; the mean of its gradient is that of KL(pi || pi_ref) exactly, on policy.

    >>> kl_k2(torch.tensor([-1.0]), torch.tensor([-3.0]))
    tensor([2.])
    """
    return (logp_T - reference_logp_T).square() / 2


def kl_k3(logp_T: Tensor, reference_logp_T: Tensor) -> Tensor:
    """pi_ref/pi - log(pi_ref/pi) - 1 of every token, [T], never negative: Eq. 4 of Shao et al. 2024 (2402.03300).

    Its mean is the KL; the mean of its gradient is that of KL(pi_ref || pi), and only times the ratio pi/pi_old
    (DeepSeek-V3.2, arXiv 2512.02556) is it that of KL(pi || pi_ref).

    >>> kl_k3(torch.tensor([-1.0]), torch.tensor([-1.0])), kl_k3(torch.tensor([-1.0]), torch.tensor([-2.0]))
    (tensor([0.]), tensor([0.3679]))
    """
    difference_T = bounded(reference_logp_T - logp_T)
    return torch.expm1(difference_T) - difference_T


def kl_estimate(form: Literal["k1", "k2", "k3"], logp_T: Tensor, reference_logp_T: Tensor) -> Tensor:
    """The estimate of that name, [T]."""
    return {"k1": kl_k1, "k2": kl_k2, "k3": kl_k3}[form](logp_T, reference_logp_T)
