"""The loss of Eq. 3 against the paper's own gradient (Eq. 21), exact expectations, and finite differences."""

import itertools

import pytest
import torch
from torch import Tensor

from grpo.losses import clipped_surrogate, grpo_token_loss, kl_k3

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
        return grpo_token_loss(
            logp, old, advantage, clip_low=0.2, clip_high=0.2, reference_logp_T=ref, kl_coefficient=beta
        ).sum()

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


def test_expectations_of_k3_on_a_policy_that_can_be_enumerated() -> None:
    """Its value is KL(pi || ref); its gradient is that of KL(ref || pi), and times the ratio that of KL(pi || ref)."""
    theta, reference = logits(4), logits(4).log_softmax(-1)
    p = theta.softmax(-1)

    def gradient_of(form: str) -> Tensor:
        live = theta.clone().requires_grad_()
        logp = live.log_softmax(-1)
        if form == "reverse":
            total = (logp.exp() * (logp - reference)).sum()
        elif form == "forward":
            total = (reference.exp() * (reference - logp)).sum()
        else:
            loss = grpo_token_loss(
                logp, logp.detach(), torch.zeros(4, dtype=torch.float64), clip_low=0.2, clip_high=0.2,
                reference_logp_T=reference, kl_coefficient=1.0, kl_form=form,  # type: ignore[arg-type]
            )  # fmt: skip
            total = (p * loss).sum()  # the expectation over draws from the policy as it is
        total.backward()
        assert live.grad is not None
        return live.grad

    value = (p * kl_k3(p.log(), reference)).sum()
    assert value.item() == pytest.approx((p * (p.log() - reference)).sum().item(), rel=1e-12)
    assert torch.allclose(gradient_of("k3"), gradient_of("forward"), atol=1e-12)
    assert torch.allclose(gradient_of("k3_ratio"), gradient_of("reverse"), atol=1e-12)
    assert not torch.allclose(gradient_of("k3"), gradient_of("reverse"), atol=1e-3)


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


def test_on_policy_the_value_is_minus_the_advantage_and_says_nothing() -> None:
    """Centred advantages make the loss 0 on policy while its gradient is not: the loss is no measure of progress."""
    logp = torch.tensor([-1.0, -2.0], requires_grad=True)
    loss = grpo_token_loss(logp, logp.detach(), torch.tensor([1.0, -1.0]), clip_low=0.2, clip_high=0.2).sum()
    loss.backward()
    assert loss.item() == 0.0
    assert logp.grad is not None and logp.grad.tolist() == [-1.0, 1.0]
