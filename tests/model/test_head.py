"""The chunked head against the plain formula, values and gradients, whatever the chunk."""

import math
from typing import Any

import pytest
import torch

from groupwise.model.head import OutputHead, Reference


def plain(hidden: torch.Tensor, head: OutputHead, target: torch.Tensor, temperature: float) -> torch.Tensor:
    logits = torch.nn.functional.linear(hidden, head.weight_VD, head.bias_V) * head.scale
    if head.softcap is not None:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    return (logits / temperature).log_softmax(-1).gather(1, target[:, None]).squeeze(1)


@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("trains_head", [False, True])
@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_chunks_give_the_plain_log_softmax_and_its_gradient(
    softcap: float | None, trains_head: bool, chunk: int
) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(11, 5, dtype=torch.float64, requires_grad=trains_head)
    bias = torch.randn(11, dtype=torch.float64, requires_grad=trains_head)
    target = torch.randint(11, (7,))
    head = OutputHead(weight, bias, scale=0.6, softcap=softcap)
    inputs = [hidden, weight, bias] if trains_head else [hidden]
    mixture = torch.linspace(-1, 2, 7, dtype=torch.float64)

    logp, entropy, _ = head.token_logprobs(hidden, target, temperature=0.8, chunk=chunk)
    expected = plain(hidden, head, target, 0.8)
    torch.testing.assert_close(logp, expected)
    for ours, theirs in zip(
        torch.autograd.grad((logp * mixture).sum(), inputs),
        torch.autograd.grad((expected * mixture).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)

    every = torch.stack([plain(hidden, head, torch.full((7,), v), 0.8) for v in range(11)], dim=1)
    torch.testing.assert_close(entropy, -(every.exp() * every).sum(1).detach())


def test_finite_differences() -> None:
    torch.manual_seed(1)
    hidden = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    head = OutputHead(torch.randn(6, 3, dtype=torch.float64), None, scale=1.3, softcap=2.0)
    target = torch.tensor([0, 5, 2, 2])
    assert torch.autograd.gradcheck(lambda h: head.token_logprobs(h, target, temperature=1.7, chunk=3)[0], (hidden,))


def test_inputs_are_never_written_to() -> None:
    torch.manual_seed(2)
    hidden, weight = torch.randn(4, 3, requires_grad=True), torch.randn(6, 3)
    before = hidden.detach().clone(), weight.clone()
    OutputHead(weight, None).token_logprobs(hidden, torch.tensor([1, 2, 3, 4]))[0].sum().backward()
    assert torch.equal(hidden.detach(), before[0]) and torch.equal(weight, before[1])


def test_logits_of_all_tokens_never_exist_at_once() -> None:
    """The largest tensor made, forward and backward, is a chunk of logits, not [T, V]."""
    vocabulary, tokens, chunk = 500, 64, 8
    hidden = torch.randn(tokens, 4, requires_grad=True)
    head = OutputHead(torch.randn(vocabulary, 4), None)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):  # pyright: ignore
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple | list) else [out]:
                if isinstance(tensor, torch.Tensor):
                    largest = max(largest, tensor.numel())
            return out

    with Watch():
        head.token_logprobs(hidden, torch.randint(vocabulary, (tokens,)), chunk=chunk)[0].sum().backward()
    assert 0 < largest <= chunk * vocabulary


@pytest.mark.parametrize("chunk", [1, 3, None])
def test_log_collision_is_the_chance_that_two_draws_agree(chunk: int | None) -> None:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(11, 4, generator=generator, dtype=torch.float64)
    hidden = torch.randn(7, 4, generator=generator, dtype=torch.float64)
    head = OutputHead(weight, torch.randn(11, generator=generator, dtype=torch.float64), scale=1.5, softcap=3.0)
    p = torch.softmax(head.logits(hidden) / 0.7, dim=-1)
    assert torch.allclose(head.log_collision(hidden, temperature=0.7, chunk=chunk), (p * p).sum(-1).log(), atol=1e-12)
    certain = OutputHead(torch.eye(3, dtype=torch.float64) * 1e4, None)
    assert certain.log_collision(torch.eye(3, dtype=torch.float64)).abs().max() == 0


@pytest.mark.parametrize("trains_head", [False, True])
def test_finite_differences_of_entropy_and_exact_kl(trains_head: bool) -> None:
    """All three outputs at once, through cap, scale and temperature, by the kept slopes and by the second pass."""
    torch.manual_seed(3)
    hidden = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(7, 3, dtype=torch.float64, requires_grad=trains_head)
    bias = torch.randn(7, dtype=torch.float64, requires_grad=trains_head)
    other = OutputHead(torch.randn(7, 3, dtype=torch.float64), None)
    reference = Reference(other, torch.randn(5, 3, dtype=torch.float64))
    target = torch.tensor([0, 6, 2, 2, 1])

    def outputs(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, ...]:
        head = OutputHead(weight, bias, scale=1.3, softcap=2.0)
        options: dict[str, Any] = {"temperature": 1.7, "chunk": 2, "entropy_gradient": True, "reference": reference}
        return tuple(one for one in head.token_logprobs(hidden, target, **options) if one is not None)

    assert torch.autograd.gradcheck(outputs, (hidden, weight, bias))


def test_exact_kl_by_hand_and_zero_to_itself() -> None:
    """p = (3/4, 1/4) from logits (ln 3, 0), q uniform: KL = 3/4 ln 3/2 + 1/4 ln 1/2."""
    hidden = torch.tensor([[3.0, 1.0]], dtype=torch.float64).log()
    head = OutputHead(torch.eye(2, dtype=torch.float64), None)
    target = torch.tensor([0])
    uniform = Reference(head, torch.zeros_like(hidden))
    found = head.token_logprobs(hidden, target, reference=uniform)[2]
    assert found is not None
    assert found.item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), rel=1e-12)
    same = head.token_logprobs(hidden, target, reference=Reference(head, hidden))[2]
    assert same is not None and same.item() == 0.0


def test_nothing_more_is_computed_than_was_asked_for() -> None:
    """Without extras no tensor is made that the plain log-probs do not need: as many operations as chunks need."""

    def operations(**extras: object) -> int:
        count = 0

        class Count(torch.utils._python_dispatch.TorchDispatchMode):  # pyright: ignore
            def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
                nonlocal count
                count += "mm" in func.__name__
                return func(*args, **(kwargs or {}))

        hidden = torch.randn(4, 3, requires_grad=True)
        head = OutputHead(torch.randn(6, 3), None)
        with Count():
            head.token_logprobs(hidden, torch.tensor([0, 1, 2, 3]), chunk=4, **extras)  # type: ignore[arg-type]
        return count

    assert operations() == 2  # the projection and the slope of the log-probs
    assert operations(entropy_gradient=True) == 3
