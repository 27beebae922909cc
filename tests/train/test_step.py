"""Invariant 2: the gradient of a step does not depend on how the step is cut. And nothing non-finite moves weights."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from dpo.loss_config import DpoLossSection
from dpo.objective import DpoObjective
from groupwise.groups import Completion, Group, NotFinite
from groupwise.model.engine import LogprobEngine, reference_logprobs
from groupwise.model.policy import Policy
from groupwise.sections import LoraSection, OptimizerSection
from groupwise.train.optimizer import learning_rate, make_optimizer
from groupwise.train.runtime import Runtime
from groupwise.train.share import StepShare, StepTotals
from groupwise.train.step import accumulate_gradient, optimizer_step
from grpo.config import GrpoLossSection
from grpo.objective import GrpoObjective
from tests.conftest import random_groups
from tests.grpo import test_objective as relative

RUNTIME = Runtime()


@pytest.fixture
def engine(tiny_model: Path) -> LogprobEngine:
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float64)
    policy = Policy(model, AutoTokenizer.from_pretrained(tiny_model), lora=LoraSection(rank=4))
    return LogprobEngine(policy)


def prepared(engine: LogprobEngine, count: int = 7) -> list[Group]:
    groups = random_groups(count, vocabulary=200, completions=3)
    return reference_logprobs(engine, groups, tokens_per_forward=1000)


def perturb(engine: LogprobEngine) -> None:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in engine.policy.trainable().values():
            p.add_(torch.randn(p.shape, generator=generator, dtype=p.dtype) * 0.05)


def gradient(engine: LogprobEngine, groups: list[Group], tokens_per_forward: int) -> tuple[Tensor, dict[str, float]]:
    sums = accumulate_gradient(
        DpoObjective.of(DpoLossSection(beta=0.1)),
        StepShare.of(groups, RUNTIME),
        engine=engine,
        runtime=RUNTIME,
        tokens_per_forward=tokens_per_forward,
    )
    grads = [p.grad for p in engine.policy.trainable().values()]
    flat = torch.cat([grad.flatten() for grad in grads if grad is not None])
    for p in engine.policy.trainable().values():
        p.grad = None
    return flat, sums.means()


def take_step(
    engine: LogprobEngine, optimizer: torch.optim.Optimizer, groups: list[Group], *, tokens_per_forward: int
) -> None:
    optimizer_step(
        DpoObjective.of(DpoLossSection(beta=0.1)),
        StepShare.of(groups, RUNTIME),
        engine=engine,
        optimizer=optimizer,
        runtime=RUNTIME,
        tokens_per_forward=tokens_per_forward,
        max_grad_norm=None,
    )


def test_step_zero_is_known(engine: LogprobEngine) -> None:
    _, metrics = gradient(engine, prepared(engine), 10_000)
    assert metrics["loss"] == pytest.approx(math.log(2), abs=1e-9)
    assert metrics["rewards/margins"] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("tokens_per_forward", [1, 40, 90])
def test_gradient_and_metrics_do_not_depend_on_the_cut(engine: LogprobEngine, tokens_per_forward: int) -> None:
    """The field's commonest bug: each micro-batch divides by its own count, so the cut changes the gradient."""
    groups = prepared(engine)
    perturb(engine)
    whole, metrics = gradient(engine, groups, 10_000)
    cut, cut_metrics = gradient(engine, groups, tokens_per_forward)
    torch.testing.assert_close(cut, whole, atol=1e-12 * whole.abs().max().item(), rtol=1e-9)
    assert cut_metrics == pytest.approx(metrics, rel=1e-9)


def test_gradient_does_not_depend_on_the_order_of_groups(engine: LogprobEngine) -> None:
    groups = prepared(engine)
    perturb(engine)
    forward, _ = gradient(engine, groups, 60)
    backward, _ = gradient(engine, groups[::-1], 60)
    torch.testing.assert_close(backward, forward, atol=1e-12 * forward.abs().max().item(), rtol=1e-9)


def test_gradient_is_the_mean_over_all_pairs_of_the_step(engine: LogprobEngine) -> None:
    """Against the plain mean over single pairs, each of which is a step of its own."""
    groups = prepared(engine, count=3)
    perturb(engine)
    whole, _ = gradient(engine, groups, 10_000)
    singles: list[Tensor] = []
    for group in groups:
        for better, worse in ((0, 1), (0, 2), (1, 2)):
            pair = group.replace_completions([group.completions[better], group.completions[worse]])
            singles.append(gradient(engine, [pair], 10_000)[0])
    torch.testing.assert_close(whole, torch.stack(singles).mean(0), atol=1e-12, rtol=1e-9)


def test_a_step_that_is_not_finite_names_its_groups_and_moves_nothing(engine: LogprobEngine) -> None:
    """The peer logs a filtered loss and goes on with NaN weights, exit code 0."""
    groups = prepared(engine, count=3)
    bad = groups[1].completions[0]
    assert bad.reference_logp is not None
    poisoned = Completion(
        token_ids=bad.token_ids,
        finished=bad.finished,
        score=bad.score,
        reference_logp=torch.full_like(bad.reference_logp, math.nan),
    )
    groups[1] = groups[1].replace_completions([poisoned, *groups[1].completions[1:]])
    parameters = engine.policy.trainable()
    before = {name: p.detach().clone() for name, p in parameters.items()}
    optimizer = make_optimizer(OptimizerSection(learning_rate=0.1), parameters.values())
    for tokens_per_forward in (1, 10_000):  # also where one micro-batch holds healthy groups too
        with pytest.raises(NotFinite) as fault:
            take_step(engine, optimizer, groups, tokens_per_forward=tokens_per_forward)
        assert [group.key for group in fault.value.groups] == ["random:1"]
        assert all(p.grad is None for p in parameters.values())
    assert not optimizer.state_dict()["state"]
    assert all(torch.equal(p, before[name]) for name, p in parameters.items())


def test_base_weights_are_never_written(engine: LogprobEngine) -> None:
    """Invariant 5: the peer merges and unmerges in bf16, and the base drifts 3 % in a thousand steps."""
    groups = prepared(engine)
    fingerprint = engine.policy.base_fingerprint()
    optimizer = make_optimizer(OptimizerSection(learning_rate=0.05), engine.policy.trainable().values())
    for _ in range(3):
        take_step(engine, optimizer, groups, tokens_per_forward=100)
    assert engine.policy.base_fingerprint() == fingerprint


def test_totals_count_the_whole_step() -> None:
    groups = random_groups(4, vocabulary=50, completions=3)
    totals = StepTotals.of(groups)
    assert (totals.groups, totals.completions, totals.pairs) == (4, 12, 12)
    assert totals.tokens == sum(len(c.token_ids) for g in groups for c in g.completions)
    assert totals.prompt_tokens == sum(len(g.prompt_ids) for g in groups)


def test_schedules_end_where_they_should() -> None:
    sections = [
        (OptimizerSection(learning_rate=2.0, warmup_steps=10, schedule="constant"), 2.0, 2.0),
        (OptimizerSection(learning_rate=2.0, warmup_steps=10, schedule="linear"), 1.0, 0.0),
        (OptimizerSection(learning_rate=2.0, warmup_steps=10, schedule="cosine"), 1.0, 0.0),
    ]
    for section, middle, end in sections:
        assert learning_rate(section, 9, 110) == pytest.approx(2.0 * 10 / 11)
        assert learning_rate(section, 60, 110) == pytest.approx(middle)
        assert learning_rate(section, 110, 110) == pytest.approx(end)


@pytest.mark.parametrize("tokens_per_forward", [1, 12, 20])
@pytest.mark.parametrize("name", relative.CHOICES)
def test_a_group_too_long_for_a_micro_batch_is_cut_and_teaches_the_same(
    engine: LogprobEngine, name: str, tokens_per_forward: int
) -> None:
    """64 answers of 2,048 tokens fit in no memory at once; a group's advantages are all that its members share."""
    groups = relative.rollout(engine, 3)
    perturb(engine)
    section = GrpoLossSection.model_validate(relative.CHOICES[name])
    objective = GrpoObjective(section, temperature=0.8, constant_length=10)
    found: list[tuple[Tensor, dict[str, float]]] = []
    for tokens in (10_000, tokens_per_forward):
        share = StepShare.of(groups, RUNTIME, cut_to=tokens)
        own = objective.for_step(share, engine=engine, runtime=RUNTIME, tokens_per_forward=tokens)
        sums = accumulate_gradient(own, share, engine=engine, runtime=RUNTIME, tokens_per_forward=tokens)
        grads = [p.grad for p in engine.policy.trainable().values() if p.grad is not None]
        found.append((torch.cat([grad.flatten() for grad in grads]), sums.means()))
        for p in engine.policy.trainable().values():
            p.grad = None
    (whole, metrics), (cut, cut_metrics) = found
    torch.testing.assert_close(cut, whole, atol=1e-12 * whole.abs().max().item(), rtol=1e-9)
    assert cut_metrics == pytest.approx(metrics, rel=1e-9)


def test_reference_log_probs_do_not_depend_on_the_cut(engine: LogprobEngine) -> None:
    groups = random_groups(3, vocabulary=200, completions=4)
    whole = reference_logprobs(engine, groups, tokens_per_forward=1000)
    cut = reference_logprobs(engine, groups, tokens_per_forward=8)
    for ours, theirs in zip(whole, cut, strict=True):
        assert ours.key == theirs.key and len(ours.completions) == len(theirs.completions)
        for one, other in zip(ours.completions, theirs.completions, strict=True):
            assert one.reference_logp is not None and other.reference_logp is not None
            torch.testing.assert_close(other.reference_logp, one.reference_logp, atol=1e-12, rtol=1e-9)
