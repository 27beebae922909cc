"""The implicit reward of every objective: what its loss compares, up to a constant per prompt. Knows no model.

Arguments are terms of dpo/terms.py without their side, so that one function serves chosen and rejected completions.
Legend: N completions.
"""

from collections.abc import Callable

from torch import Tensor

from dpo.losses.divergences import alpha_slope, forward_kl_slope, js_slope
from dpo.losses.reference_free import log_odds


def scaled_logratio(logratio: Tensor, *, beta: float) -> Tensor:
    """beta * log-ratio to the reference, [N]: Eq. 5 of arXiv 2305.18290 without its partition function.

    >>> import torch
    >>> scaled_logratio(torch.tensor([2.0, -1.0]), beta=0.5)
    tensor([ 1.0000, -0.5000])
    """
    return beta * logratio


def mean_logratio(logratio: Tensor, length: Tensor, *, beta: float) -> Tensor:
    """beta * mean log-ratio per token, [N]."""
    return beta * logratio / length


def shortened_logratio(head_logratio: Tensor, tail_logratio: Tensor, *, beta: float, tail_weight: float) -> Tensor:
    """beta * log-ratio whose tail counts less, [N]."""
    return beta * (head_logratio + tail_weight * tail_logratio)


def unpenalised_logratio(logratio: Tensor, length: Tensor, *, beta: float, length_penalty: float) -> Tensor:
    """The reward of R-DPO before its length is charged, [N]."""
    return beta * logratio + length_penalty * length


def forward_kl(logratio: Tensor, *, beta: float) -> Tensor:
    """beta f'(pi / pi_ref) of the forward KL, [N]."""
    return beta * forward_kl_slope(logratio)


def js(logratio: Tensor, *, beta: float) -> Tensor:
    """beta f'(pi / pi_ref) of the Jensen-Shannon divergence, [N]."""
    return beta * js_slope(logratio)


def alpha(logratio: Tensor, *, beta: float, divergence_alpha: float) -> Tensor:
    """beta f'(pi / pi_ref) of an alpha-divergence, [N]."""
    return beta * alpha_slope(logratio, divergence_alpha=divergence_alpha)


def scaled_logp(logp: Tensor, *, beta: float) -> Tensor:
    """beta * log-prob, [N]."""
    return beta * logp


def scaled_mean_logp(logp: Tensor, length: Tensor, *, beta: float) -> Tensor:
    """beta * mean log-prob per token, [N]."""
    return beta * logp / length


def odds(logp: Tensor, length: Tensor) -> Tensor:
    """Log odds of the mean log-prob per token, [N]."""
    return log_odds(logp / length)


def plain_logp(logp: Tensor) -> Tensor:
    """The log-prob, [N], nats."""
    return logp


def mean_logp(logp: Tensor, length: Tensor) -> Tensor:
    """The mean log-prob per token, [N], nats per token."""
    return logp / length


REWARDS: dict[str, Callable[..., Tensor]] = {
    reward.__name__: reward
    for reward in (
        scaled_logratio, mean_logratio, shortened_logratio, unpenalised_logratio, forward_kl, js, alpha,
        scaled_logp, scaled_mean_logp, odds, plain_logp, mean_logp,
    )
}  # fmt: skip
