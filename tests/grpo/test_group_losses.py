"""The loss of Eq. 3 against the paper's own gradient (Eq. 21), exact expectations, and finite differences."""

import itertools
from typing import Literal

import pytest
import torch
from torch import Tensor

from grpo.losses.kl import kl_estimate, kl_k1, kl_k3
from grpo.losses.surrogates import clipped_surrogate

GENERATOR = torch.Generator().manual_seed(0)


def logits(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


def test_the_gradient_on_policy_is_equation_21() -> None:
    """(A + beta (pi_ref/pi - 1)) grad log pi, by autograd and by central differences of the loss itself."""
    theta, reference = logits(6, 5), logits(6, 5).log_softmax(-1)
    token = torch.tensor([0, 1, 2, 3, 4, 0])
    advantage = logits(6)
    beta = 0.3
    old = theta.log_softmax(-1).gather(1, token[:, None]).squeeze(1)
    ref = reference.gather(1, token[:, None]).squeeze(1)

    def loss(parameters: Tensor) -> Tensor:
        logp = parameters.log_softmax(-1).gather(1, token[:, None]).squeeze(1)
        gain = clipped_surrogate((logp - old).exp(), advantage, clip_low=0.2, clip_high=0.2)
        return (beta * kl_k3(logp, ref) - gain).sum()

    live = theta.clone().requires_grad_()
    loss(live).backward()
    assert live.grad is not None
    one_hot = torch.nn.functional.one_hot(token, 5).double()
    coefficient = advantage + beta * ((ref - old).exp() - 1)
    expected = -coefficient[:, None] * (one_hot - theta.softmax(-1))
    assert torch.allclose(live.grad, expected, atol=1e-12)
    step = 1e-6
    for i, j in itertools.product(range(6), range(5)):
        nudge = torch.zeros_like(theta)
        nudge[i, j] = step
        slope = (loss(theta + nudge) - loss(theta - nudge)) / (2 * step)
        assert slope.item() == pytest.approx(expected[i, j].item(), abs=1e-7)


def test_k3_is_never_negative_and_zero_only_for_equal_log_probs() -> None:
    a, b = -logits(500).abs(), -logits(500).abs()
    assert (kl_k3(a, b) > 0).all()
    assert (kl_k3(a, a) == 0).all()
    near = kl_k3(a, a + 1e-9)
    assert (near >= 0).all() and near.max() < 1e-17  # the difference of nearly equal numbers once was negative


@pytest.mark.parametrize(
    ("form", "with_ratio", "pulls"),
    [
        ("k1", False, "nowhere"),
        ("k1", True, "reverse"),
        ("k2", False, "reverse"),
        ("k3", False, "forward"),
        ("k3", True, "reverse"),
    ],
)
def test_mean_gradients_of_kl_estimates_on_a_policy_that_can_be_enumerated(
    form: Literal["k1", "k2", "k3"], with_ratio: bool, pulls: str
) -> None:
    """reverse: KL(pi || ref), what the name promises; forward: KL(ref || pi); k1 alone teaches nothing on average."""
    theta, reference = logits(4), logits(4).log_softmax(-1)
    p = theta.softmax(-1)
    live = theta.clone().requires_grad_()
    logp = live.log_softmax(-1)
    values = kl_estimate(form, logp, reference)
    if with_ratio:
        values = values * (logp - logp.detach()).exp()
    # The expectation over draws from the policy as it is: their probabilities are no function of theta.
    (found,) = torch.autograd.grad((p * values).sum(), live)
    logp = live.log_softmax(-1)
    kls = {
        "reverse": (logp.exp() * (logp - reference)).sum(),
        "forward": (reference.exp() * (reference - logp)).sum(),
        "nowhere": 0 * logp.sum(),
    }
    (expected,) = torch.autograd.grad(kls[pulls], live)
    assert torch.allclose(found, expected, atol=1e-12)
    assert expected.norm() > 1e-2 or pulls == "nowhere"


def test_the_mean_of_k1_and_k3_is_the_kl() -> None:
    theta, reference = logits(4), logits(4).log_softmax(-1)
    logp = theta.log_softmax(-1)
    kl = (logp.exp() * (logp - reference)).sum().item()
    for estimate in (kl_k1, kl_k3):
        assert (logp.exp() * estimate(logp, reference)).sum().item() == pytest.approx(kl, rel=1e-12)


@pytest.mark.parametrize(
    ("ratio", "advantage", "moves"),
    [(1.4, 1.0, False), (0.7, -1.0, False), (1.4, -1.0, True), (0.7, 1.0, True), (1.1, 1.0, True), (0.9, -1.0, True)],
)
def test_the_clip_stops_only_what_has_moved_too_far_in_the_right_direction(
    ratio: float, advantage: float, moves: bool
) -> None:
    live = torch.tensor([ratio], dtype=torch.float64, requires_grad=True)
    clipped_surrogate(live, torch.tensor([advantage]), clip_low=0.2, clip_high=0.3).sum().backward()
    assert live.grad is not None
    assert live.grad.item() == (advantage if moves else 0.0)


def test_higher_clip_is_only_above() -> None:
    ratio = torch.tensor([1.25, 0.75, 1.25, 0.75])
    advantage = torch.tensor([1.0, 1.0, -1.0, -1.0])
    found = clipped_surrogate(ratio, advantage, clip_low=0.2, clip_high=0.28)
    assert found.tolist() == pytest.approx([1.25, 0.75, -1.25, -0.8])
