"""The group-relative policy gradient, token by token, as pure functions of tensors. Knows no groups and no models.

Legend: T completion tokens.
"""

from typing import Literal

import torch
from torch import Tensor


def clipped_surrogate(ratio_T: Tensor, advantage_T: Tensor, *, clip_low: float, clip_high: float) -> Tensor:
    """min(ratio A, clip(ratio, 1 - clip_low, 1 + clip_high) A) of every token, [T]: what Eq. 3 maximises.

    ratio_T is pi(token) / pi_old(token). Eq. 3 of Shao et al. 2024 (arXiv 2402.03300) has one epsilon; two are
    clip-higher of DAPO (arXiv 2503.14476). The minimum stops the gradient only where the ratio has already moved in the
    advantage's direction beyond the clip.

    >>> clipped_surrogate(torch.tensor([1.5, 1.5]), torch.tensor([1.0, -1.0]), clip_low=0.2, clip_high=0.2)
    tensor([ 1.2000, -1.5000])
    """
    clipped_T = ratio_T.clamp(1 - clip_low, 1 + clip_high)
    return torch.minimum(ratio_T * advantage_T, clipped_T * advantage_T)


def kl_k3(logp_T: Tensor, reference_logp_T: Tensor) -> Tensor:
    """Estimate of KL(pi || pi_ref) from the tokens that pi drew, [T], nats, never negative.

    pi_ref/pi - log(pi_ref/pi) - 1: Eq. 4 of Shao et al. 2024. Its mean under pi is the KL; the mean of its gradient is
    that of KL(pi_ref || pi), and only times the ratio pi/pi_old (arXiv 2512.02556) is it that of KL(pi || pi_ref).

    >>> kl_k3(torch.tensor([-1.0]), torch.tensor([-1.0])), kl_k3(torch.tensor([-1.0]), torch.tensor([-2.0]))
    (tensor([0.]), tensor([0.3679]))
    """
    difference_T = reference_logp_T - logp_T
    return torch.expm1(difference_T) - difference_T


def grpo_token_loss(
    logp_T: Tensor,
    sampled_logp_T: Tensor,
    advantage_T: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    reference_logp_T: Tensor | None = None,
    kl_coefficient: float = 0.0,
    kl_form: Literal["k3", "k3_ratio"] = "k3",
) -> Tensor:
    """The negated term of Eq. 3 for every token, [T]; the caller weighs, sums and divides.

    sampled_logp_T is log pi_old, of the policy that wrote the tokens; on policy the ratio is 1 and the gradient is
    (A + beta (pi_ref/pi - 1)) grad log pi, Eq. 21 of the paper.

    >>> logp_T = torch.tensor([-1.0], requires_grad=True)
    >>> loss_T = grpo_token_loss(logp_T, torch.tensor([-1.0]), torch.tensor([2.0]), clip_low=0.2, clip_high=0.2)
    >>> loss_T.sum().backward()
    >>> loss_T, logp_T.grad
    (tensor([-2.], grad_fn=<NegBackward0>), tensor([-2.]))
    """
    ratio_T = (logp_T - sampled_logp_T).exp()
    loss_T = -clipped_surrogate(ratio_T, advantage_T, clip_low=clip_low, clip_high=clip_high)
    if reference_logp_T is None:
        return loss_T
    kl_T = kl_k3(logp_T, reference_logp_T)
    return loss_T + kl_coefficient * (kl_T * ratio_T if kl_form == "k3_ratio" else kl_T)
