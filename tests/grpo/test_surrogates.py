"""Surrogates by hand, against finite differences, and the identities that hold between them at ratio 1."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from grpo.losses.masks import entropy_floor, near_policy, sampler_weight
from grpo.losses.surrogates import (
    capped_surrogate,
    clipped_surrogate,
    gamma_surrogate,
    geometric_surrogate,
    masked_surrogate,
    mean_of_completion,
    soft_surrogate,
)

# Completions of 3, 1 and 2 tokens.
ROW = torch.tensor([0, 0, 0, 1, 2, 2])
LENGTH = torch.tensor([3, 1, 2])
OLD = torch.tensor([-1.0, -2.0, -0.5, -3.0, -0.7, -1.2], dtype=torch.float64)
ADVANTAGE = torch.tensor([1.5, 1.5, 1.5, -0.7, -0.8, -0.8], dtype=torch.float64)
SMALL = torch.tensor([0.03, -0.05, 0.02, 0.04, -0.06, 0.01], dtype=torch.float64)
CLIP = {"clip_low": 0.2, "clip_high": 0.2}

Surrogate = Callable[[Tensor], Tensor]
SURROGATES: dict[str, Surrogate] = {
    "grpo": lambda logp: clipped_surrogate((logp - OLD).exp(), ADVANTAGE, **CLIP),
    "gspo": lambda logp: clipped_surrogate(mean_of_completion(logp - OLD, ROW, LENGTH).exp(), ADVANTAGE, **CLIP),
    "cispo": lambda logp: capped_surrogate(logp, (logp - OLD).exp(), ADVANTAGE, ratio_cap=5.0),
    "sapo": lambda logp: soft_surrogate((logp - OLD).exp(), ADVANTAGE, tau_positive=1.0, tau_negative=1.05),
    "gmpo": lambda logp: geometric_surrogate(logp - OLD, ADVANTAGE, ROW, LENGTH, clip_low=0.4, clip_high=0.4),
    "vespo": lambda logp: gamma_surrogate(logp, logp - OLD, ADVANTAGE, ROW, LENGTH),
    "dppo": lambda logp: masked_surrogate(logp, OLD, ADVANTAGE, **CLIP),
    "log_prob": lambda logp: ADVANTAGE * logp,
}
STOPS_GRADIENT = {"cispo", "vespo"}


def gradient(surrogate: Surrogate, logp: Tensor, weight: Tensor) -> Tensor:
    live = logp.clone().requires_grad_()
    (found,) = torch.autograd.grad((surrogate(live) * weight).sum(), live)
    return found


@pytest.mark.parametrize("name", SURROGATES)
@pytest.mark.parametrize("normaliser", ["completion", "sum"])
def test_at_ratio_1_the_coefficient_of_every_surrogate_is_the_advantage(name: str, normaliser: str) -> None:
    """GRPO = GSPO = SAPO = GMPO and DAPO = CISPO: A / |o| with a mean per completion, A with a sum over tokens."""
    weight = 1 / LENGTH[ROW].double() if normaliser == "completion" else torch.ones(6)
    found = gradient(SURROGATES[name], OLD, weight)
    assert torch.allclose(found, ADVANTAGE * weight, atol=1e-12)


@pytest.mark.parametrize("name", sorted(SURROGATES.keys() - STOPS_GRADIENT))
def test_finite_differences(name: str) -> None:
    live = (OLD + SMALL).requires_grad_()
    assert torch.autograd.gradcheck(SURROGATES[name], (live,))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # the ratio of token 0 is e^0.5 = 1.6487; its advantage is 1.5; |o| = 3
        ("cispo", 1.5 * 1.6487212707),
        ("sapo", 1.5 / math.cosh((1.6487212707 - 1) / 2) ** 2 * 1.6487212707),  # sech^2 (tau/2 (rho - 1)), times rho
        ("vespo", 1.5 * math.exp(3 + 2 * 0.5 - 3 * 1.6487212707)),  # phi(w) with k = 2, lambda = 3
        ("grpo", 0.0),  # above 1.2 with a good advantage
        ("gspo", 1.5 * math.exp(0.5 / 3) / 3),  # the geometric mean is 1.18, inside
        ("gmpo", 0.0),  # above 0.4 in the logarithm
        ("dppo", 0.0),  # from e^-1 = 0.37 to 0.61
    ],
)
def test_coefficients_off_policy_by_hand(name: str, expected: float) -> None:
    """Only token 0 has moved, by half a nat."""
    moved = OLD.clone()
    moved[0] += 0.5
    weight = 1 / LENGTH[ROW].double() if name in ("gspo", "gmpo") else torch.ones(6)
    found = gradient(SURROGATES[name], moved, weight)[0].item()
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_a_geometric_mean_clips_token_by_token() -> None:
    """0.6 is clipped to 0.4, the others stay: A exp((0.4 - 0.1 + 0) / 3); a bad token that falls is clipped too."""
    moved = OLD + torch.tensor([0.6, -0.1, 0.0, -0.9, 0.9, 0.0], dtype=torch.float64)
    found = SURROGATES["gmpo"](moved)
    assert found[:3].tolist() == pytest.approx([1.5 * math.exp(0.1)] * 3)
    assert found[3].item() == pytest.approx(-0.7 * math.exp(-0.4))
    assert found[4].item() == pytest.approx(-0.8 * math.exp(0.45))  # against its advantage: not clipped


@pytest.mark.parametrize(("ratio", "coefficient"), [(3.9, -3.9), (4.1, 0.0)])
def test_the_second_side_of_the_clip_stops_bad_tokens_that_became_likely(ratio: float, coefficient: float) -> None:
    live = torch.tensor([math.log(ratio)], dtype=torch.float64, requires_grad=True)
    clipped_surrogate(live.exp(), torch.tensor([-1.0]), **CLIP, ratio_bound=4.0).sum().backward()
    assert live.grad is not None and live.grad.item() == pytest.approx(coefficient)


def test_a_cap_is_absolute_and_drops_no_token() -> None:
    """The peer's default clamps every weight to its epsilon of 0.2; 1 must stay 1."""
    live = torch.tensor([0.0, math.log(9.0)], dtype=torch.float64, requires_grad=True)
    capped_surrogate(live, live.exp(), torch.ones(2), ratio_cap=5.0).sum().backward()
    assert live.grad is not None and live.grad.tolist() == pytest.approx([1.0, 5.0])


def test_far_away_completions_weigh_nothing_and_nothing_overflows() -> None:
    for shift in (-100.0, 100.0):
        found = gradient(SURROGATES["vespo"], OLD + shift, torch.ones(6))
        assert found.abs().max() < 1e-6


def test_the_sequence_mask_is_for_bad_completions_far_away() -> None:
    """Means of log(pi_old / pi): 0.3, 0.3, 0.5; only the last is bad and beyond 0.4."""
    drift = torch.tensor([-0.3, -0.6, 0.0, -0.3, -0.2, -0.8], dtype=torch.float64)
    assert near_policy(drift, ADVANTAGE, ROW, LENGTH, limit=0.4).tolist() == [1, 1, 1, 1, 0, 0]
    assert near_policy(-drift, ADVANTAGE, ROW, LENGTH, limit=0.01).tolist() == [1] * 6  # likelier than before: near


def test_importance_weights_of_a_sampler_make_expectations_right() -> None:
    """Drawn from a top-2 distribution, weighted, untruncated: the mean over its support is that of the policy."""
    p = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    drawn = p[:2] / p[:2].sum()
    weight = sampler_weight(p[:2].log(), drawn.log(), cap=10.0)
    assert torch.allclose(drawn * weight, p[:2])
    assert sampler_weight(p.log(), p.log(), cap=2.0).tolist() == [1, 1, 1]


@pytest.mark.parametrize(("share", "count"), [(0.2, 2), (0.25, 3), (0.01, 1), (1.0, 10)])
def test_the_share_of_high_entropy_tokens_is_rounded_up(share: float, count: int) -> None:
    entropies = [0.1 * i for i in range(10)]
    floor = entropy_floor(entropies, share)
    assert sum(value >= floor for value in entropies) == count


def test_a_floor_is_found_among_more_entropies_than_a_quantile_takes() -> None:
    """`torch.quantile` refuses more than 2^24 values, which a step of long completions has."""
    many = 2**24 + 8
    assert entropy_floor([0.0] * (many - 8) + [1.0] * 8, 1e-7) == 0.5


def test_equal_entropies_are_in_or_out_together() -> None:
    floor = entropy_floor([1.0, 1.0, 1.0, 0.5], 0.25)
    assert floor == 0.75
