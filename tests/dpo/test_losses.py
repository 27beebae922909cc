"""The DPO loss against closed forms, finite differences and the paper's own gradient."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dpo.losses import dpo_loss, implicit_rewards

PAIR = torch.tensor([[0, 1]])
logratios = st.floats(-20, 20)
betas = st.sampled_from([0.05, 0.1, 0.5, 2.0])


def loss_of(chosen: float, rejected: float, **options: float) -> float:
    logratio = torch.tensor([chosen, rejected], dtype=torch.float64)
    return dpo_loss(logratio, PAIR, **{"beta": 0.1, **options}).item()


def test_policy_equal_to_reference_gives_ln_2() -> None:
    assert loss_of(0.0, 0.0) == pytest.approx(math.log(2), abs=1e-12)
    assert loss_of(-3.0, -3.0) == pytest.approx(math.log(2), abs=1e-12)


@given(logratios, logratios, betas)
def test_closed_form_of_equation_7(chosen: float, rejected: float, beta: float) -> None:
    expected = math.log1p(math.exp(-beta * (chosen - rejected)))
    assert loss_of(chosen, rejected, beta=beta) == pytest.approx(expected, rel=1e-9)


@given(logratios, logratios, betas)
def test_gradient_is_that_of_section_4_and_not_of_appendix_a4(chosen: float, rejected: float, beta: float) -> None:
    """App. A.4 has chosen and rejected swapped inside the sigmoid; section 4 agrees with finite differences."""
    logratio = torch.tensor([chosen, rejected], dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(dpo_loss(logratio, PAIR, beta=beta).sum(), logratio)
    weight = 1 / (1 + math.exp(beta * (chosen - rejected)))  # sigma(r_rejected - r_chosen)
    assert grad.tolist() == pytest.approx([-beta * weight, beta * weight], rel=1e-9)
    step = 1e-5
    difference = (loss_of(chosen + step, rejected, beta=beta) - loss_of(chosen - step, rejected, beta=beta)) / (
        2 * step
    )
    assert grad[0].item() == pytest.approx(difference, rel=1e-4, abs=1e-9)


def test_gradient_weight_at_the_start_is_half_of_beta() -> None:
    logratio = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(dpo_loss(logratio, PAIR, beta=0.3).sum(), logratio)
    assert grad.tolist() == pytest.approx([-0.15, 0.15])


@pytest.mark.parametrize("smoothing", [0.1, 0.25])
def test_conservative_dpo_is_stationary_at_the_log_odds(smoothing: float) -> None:
    """The peer's `sigmoid` loss ignores label smoothing altogether; here it moves the optimum to a known place."""
    beta = 0.2
    optimum = math.log((1 - smoothing) / smoothing) / beta
    logratio = torch.tensor([optimum, 0.0], dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(dpo_loss(logratio, PAIR, beta=beta, label_smoothing=smoothing).sum(), logratio)
    assert grad.tolist() == pytest.approx([0.0, 0.0], abs=1e-12)
    nearby = loss_of(optimum + 1, 0.0, beta=beta, label_smoothing=smoothing)
    assert (
        loss_of(optimum, 0.0, beta=beta, label_smoothing=smoothing)
        < nearby
        < loss_of(optimum + 2, 0.0, beta=beta, label_smoothing=smoothing)
    )


def test_a_group_of_four_counts_every_strict_order_once() -> None:
    logratio = torch.tensor([0.3, -1.0, 2.0, 0.5], dtype=torch.float64)
    pairs = torch.tensor([[2, 0], [2, 1], [2, 3], [3, 0], [3, 1]])
    together = dpo_loss(logratio, pairs, beta=0.1).sum().item()
    apart = sum(loss_of(logratio[w].item(), logratio[r].item()) for w, r in pairs.tolist())
    assert together == pytest.approx(apart, rel=1e-12)


def test_large_margins_stay_finite() -> None:
    for sign in (1, -1):
        logratio = torch.tensor([sign * 1e4, -sign * 1e4], requires_grad=True)
        loss = dpo_loss(logratio, PAIR, beta=1.0).sum()
        (grad,) = torch.autograd.grad(loss, logratio)
        assert torch.isfinite(loss) and torch.isfinite(grad).all()


def test_implicit_reward_is_beta_times_logratio() -> None:
    assert torch.equal(implicit_rewards(torch.tensor([1.0, -4.0]), beta=0.25), torch.tensor([0.25, -1.0]))
