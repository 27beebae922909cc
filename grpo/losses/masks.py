"""Which tokens a surrogate is learned from, and with what weight. Knows no surrogate.

Weights multiply the surrogate alone, never the KL, the entropy bonus or what a sum is divided by.

Legend: T completion tokens, R completions.
"""

import math
from collections.abc import Sequence

from torch import Tensor

from grpo.losses.surrogates import mean_of_completion


def near_policy(logratio_T: Tensor, advantage_T: Tensor, row_T: Tensor, length_R: Tensor, *, limit: float) -> Tensor:
    """1 for tokens that may be learned from, 0 for bad ones of completions that the policy has moved away from, [T].

    Bad is an advantage below 0; away is a mean of log(pi_old / pi) over the completion above `limit`, in nats: the
    off-policy sequence mask of DeepSeek-V3.2 (arXiv 2512.02556, section 3.1). Has no gradient.

    >>> import torch
    >>> logratio_T, row_T, length_R = torch.tensor([-1.0, -2.0]), torch.tensor([0, 0]), torch.tensor([2])
    >>> near_policy(logratio_T, torch.tensor([-1.0, -1.0]), row_T, length_R, limit=1.0)
    tensor([0., 0.])
    >>> near_policy(logratio_T, torch.tensor([1.0, 1.0]), row_T, length_R, limit=1.0)
    tensor([1., 1.])
    """
    away_T = mean_of_completion(-logratio_T.detach(), row_T, length_R)
    return 1 - ((advantage_T < 0) & (away_T > limit)).to(logratio_T.dtype)


def sampler_weight(sampled_logp_T: Tensor, drawn_logp_T: Tensor, *, cap: float) -> Tensor:
    """min(pi_old / pi_sampler, cap) of every token, [T]: truncated importance sampling.

    sampled_logp_T is what the engine that learns says of the tokens, drawn_logp_T what they were drawn with: by another
    program, or from a truncated distribution. https://fengyao.notion.site/off-policy-rl, cap 2 there.

    >>> import torch
    >>> sampler_weight(torch.tensor([-1.0, -1.0]), torch.tensor([-0.5, -3.0]), cap=2.0)
    tensor([0.6065, 2.0000])
    """
    return (sampled_logp_T - drawn_logp_T).exp().clamp(max=cap)


def entropy_floor(entropies: Sequence[float], share: float) -> float:
    """The entropy from which on a token belongs to the `share` of tokens with the highest, in nats.

    ceil(share x count) tokens are at or above it, those of equal entropy being in or out together. It lies half-way to
    the next token below, so that rounding of another forward pass moves no token across. 0.2 is the share of Wang et
    al. 2025 (arXiv 2506.01939).

    >>> entropy_floor([0.1, 0.2, 2.0, 1.0, 0.3], 0.2), entropy_floor([0.1, 0.3], 1.0), entropy_floor([], 0.2)
    (1.5, -inf, -inf)
    """
    ordered = sorted(entropies, reverse=True)
    count = math.ceil(share * len(ordered) - 1e-9)
    if count >= len(ordered):
        return -math.inf
    last = ordered[count - 1]
    below = next((value for value in ordered[count:] if value < last), -math.inf)
    return (last + below) / 2


def above_floor(entropy_T: Tensor, floor: float) -> Tensor:
    """1 for tokens of at least that entropy, else 0, [T]; has no gradient."""
    return (entropy_T.detach() >= floor).to(entropy_T.dtype)
