"""What a policy gradient maximises, token by token: the surrogates of the literature. Knows no KL and no normaliser.

Every function returns what its paper maximises, [T]; the caller negates, weighs, sums and divides. The gradient of each
is coefficient x grad log pi, and at ratio 1 the coefficient of all of them is the advantage.

Legend: T completion tokens, R completions. logratio_T is log pi(token) - log pi_old(token); pi_old wrote it.
"""

import torch
from torch import Tensor

from grpo.losses.ratio import ratio_of


def mean_of_completion(values_T: Tensor, row_T: Tensor, length_R: Tensor) -> Tensor:
    """The mean over its completion, at each token, [T]; differentiable.

    >>> mean_of_completion(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0, 0, 1]), torch.tensor([2, 1]))
    tensor([2., 2., 5.])
    """
    return sum_of_completion(values_T, row_T, length_R) / length_R[row_T]


def sum_of_completion(values_T: Tensor, row_T: Tensor, length_R: Tensor) -> Tensor:
    """The sum over its completion, at each token, [T]; differentiable."""
    return values_T.new_zeros(len(length_R)).index_add(0, row_T, values_T)[row_T]


def clipped_surrogate(
    ratio_T: Tensor, advantage_T: Tensor, *, clip_low: float, clip_high: float, ratio_bound: float | None = None
) -> Tensor:
    """min(ratio A, clip(ratio, 1 - clip_low, 1 + clip_high) A) of every token, [T]: what Eq. 3 maximises.

    ratio_T is pi(token) / pi_old(token), or one number for a whole completion: its geometric mean is GSPO (Eq. 5 and 7
    of arXiv 2507.18071). Eq. 3 of Shao et al. 2024 (arXiv 2402.03300) has one epsilon; two are clip-higher of DAPO
    (arXiv 2503.14476). The minimum stops the gradient only where the ratio has already moved in the advantage's
    direction beyond the clip. `ratio_bound` also stops it where a bad token has become much likelier: the two-sided
    clip of INTELLECT-2 (arXiv 2505.07291), which calls it delta.

    >>> clipped_surrogate(torch.tensor([1.5, 1.5]), torch.tensor([1.0, -1.0]), clip_low=0.2, clip_high=0.2)
    tensor([ 1.2000, -1.5000])
    >>> clipped_surrogate(torch.tensor([9.0]), torch.tensor([-1.0]), clip_low=0.2, clip_high=0.2, ratio_bound=4.0)
    tensor([-4.])
    """
    clipped_T = ratio_T.clamp(1 - clip_low, 1 + clip_high)
    bounded_T = ratio_T if ratio_bound is None else ratio_T.clamp(max=ratio_bound)
    return torch.minimum(bounded_T * advantage_T, clipped_T * advantage_T)


def capped_surrogate(logp_T: Tensor, ratio_T: Tensor, advantage_T: Tensor, *, ratio_cap: float) -> Tensor:
    """stop_gradient(min(ratio, cap)) A log pi of every token, [T]: CISPO (arXiv 2506.13585, Eq. 4 and 5).

    The cap is absolute, 5 is that of ScaleRL (arXiv 2510.13786); there is no lower one. No token loses its gradient.

    >>> logp_T = torch.tensor([-1.0], requires_grad=True)
    >>> capped_surrogate(logp_T, torch.tensor([9.0]), torch.tensor([2.0]), ratio_cap=5.0).sum().backward()
    >>> logp_T.grad
    tensor([10.])
    """
    return ratio_T.detach().clamp(max=ratio_cap) * advantage_T * logp_T


def soft_surrogate(ratio_T: Tensor, advantage_T: Tensor, *, tau_positive: float, tau_negative: float) -> Tensor:
    """A (4 / tau) sigmoid(tau (ratio - 1)) of every token, [T]: SAPO (arXiv 2511.20347).

    A soft gate in place of the clip: the gradient's weight is sech^2(tau (ratio - 1) / 2), 1 at ratio 1. `tau_negative`
    is for tokens whose advantage is not positive.

    >>> soft_surrogate(torch.tensor([1.0]), torch.tensor([3.0]), tau_positive=1.0, tau_negative=1.05)
    tensor([6.])
    """
    tau_T = torch.where(advantage_T > 0, tau_positive, tau_negative)
    return advantage_T * 4 / tau_T * torch.sigmoid(tau_T * (ratio_T - 1))


def geometric_surrogate(
    logratio_T: Tensor,
    advantage_T: Tensor,
    row_T: Tensor,
    length_R: Tensor,
    *,
    clip_low: float,
    clip_high: float,
) -> Tensor:
    """A times the geometric mean of the completion's clipped ratios, at each token, [T]: GMPO (arXiv 2507.20673).

    Log-ratios are clipped to [-clip_low, clip_high], 0.4 both in the paper, and only where they have moved in the
    advantage's direction, token by token.

    >>> two = torch.tensor([0.6, -0.2])
    >>> geometric_surrogate(
    ...     two, torch.ones(2), torch.tensor([0, 0]), torch.tensor([2]), clip_low=0.4, clip_high=0.4
    ... ).log()
    tensor([0.1000, 0.1000])
    """
    clipped_T = logratio_T.clamp(-clip_low, clip_high)
    kept_T = torch.where(advantage_T > 0, torch.minimum(logratio_T, clipped_T), torch.maximum(logratio_T, clipped_T))
    return advantage_T * ratio_of(mean_of_completion(kept_T, row_T, length_R))


def gamma_surrogate(
    logp_T: Tensor,
    logratio_T: Tensor,
    advantage_T: Tensor,
    row_T: Tensor,
    length_R: Tensor,
    *,
    shape_positive: tuple[float, float] = (2.0, 3.0),
    shape_negative: tuple[float, float] = (3.0, 2.0),
) -> Tensor:
    """stop_gradient(phi(w)) A log pi of every token, [T], phi(w) = e^l w^k e^(-l w): VESPO (arXiv 2602.10693).

    w is the ratio of the whole completion, the product of its tokens' ratios; shapes are (k, l), one for advantages of
    at least 0 and one for the others. phi is 1 at w = 1 and vanishes far from it on both sides.

    >>> logp_T = torch.tensor([-1.0], requires_grad=True)
    >>> args = torch.tensor([2.0]), torch.tensor([0]), torch.tensor([1])
    >>> gamma_surrogate(logp_T, torch.tensor([0.0]), *args).sum().backward()
    >>> logp_T.grad
    tensor([2.])
    """
    logw_T = sum_of_completion(logratio_T.detach(), row_T, length_R).clamp(-18.0, 20.0)
    good_T = advantage_T >= 0
    k_T = torch.where(good_T, shape_positive[0], shape_negative[0])
    l_T = torch.where(good_T, shape_positive[1], shape_negative[1])
    return (l_T + k_T * logw_T - l_T * logw_T.exp()).exp() * advantage_T * logp_T


def masked_surrogate(
    logp_T: Tensor, sampled_logp_T: Tensor, advantage_T: Tensor, *, clip_low: float, clip_high: float
) -> Tensor:
    """ratio A of every token, [T], without gradient where its probability has moved too far: DPPO (arXiv 2602.04879).

    Too far is by more than `clip_high` up with A > 0, or more than `clip_low` down with A < 0, in probability,
    not in ratio: rare tokens may change their ratio freely, which a clip of ratios stops first.

    >>> logp_T = torch.tensor([0.9, 0.02]).log()
    >>> masked_surrogate(logp_T, torch.tensor([0.6, 0.01]).log(), torch.ones(2), clip_low=0.2, clip_high=0.2)
    tensor([0., 2.])
    """
    moved_T = moved_probability(logp_T, sampled_logp_T)
    below_T, above_T = stopped(moved_T, advantage_T, low=-clip_low, high=clip_high)
    return torch.where(below_T | above_T, 0.0, ratio_of(logp_T - sampled_logp_T) * advantage_T)


def moved_probability(logp_T: Tensor, sampled_logp_T: Tensor) -> Tensor:
    """pi(token) - pi_old(token), [T], without gradient."""
    return logp_T.detach().exp() - sampled_logp_T.exp()


def stopped(moved_T: Tensor, advantage_T: Tensor, *, low: float, high: float) -> tuple[Tensor, Tensor]:
    """Which tokens have moved in their advantage's direction below `low`, and above `high`: two masks, [T].

    >>> stopped(torch.tensor([0.7, 1.3, 1.3]), torch.tensor([-1.0, 1.0, -1.0]), low=0.8, high=1.2)
    (tensor([ True, False, False]), tensor([False,  True, False]))
    """
    return (moved_T < low) & (advantage_T < 0), (moved_T > high) & (advantage_T > 0)
