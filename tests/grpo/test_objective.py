"""Normalisers by hand, and invariant 2: the gradient does not depend on how a step is cut, for every preset."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from groupwise.batch import GroupBatch, pack
from groupwise.groups import Completion, Group
from groupwise.model.engine import LogprobEngine, TokenScores, reference_logprobs
from groupwise.model.policy import Policy
from groupwise.observe.metrics import MetricSums
from groupwise.sections import LoraSection
from groupwise.train.objective import StepTotals
from groupwise.train.runtime import Runtime
from groupwise.train.step import accumulate_gradient
from grpo.config import GrpoLossSection
from grpo.grpo_trainer import GrpoObjective
from tests.conftest import random_groups

RUNTIME = Runtime()
PRESETS = ("grpo", "dr_grpo", "dapo")


def objective(preset: str, *, length: int = 10, **options: object) -> GrpoObjective:
    section = GrpoLossSection.model_validate({"preset": preset, **options})
    return GrpoObjective(section, temperature=0.8, constant_length=length)


def rollout(engine: LogprobEngine, count: int = 6) -> list[Group]:
    """Groups as a rollout leaves them: reference, sampling log-probs a little off policy, advantages."""
    groups = reference_logprobs(engine, random_groups(count, vocabulary=200, completions=4), tokens_per_forward=10_000)
    generator = torch.Generator().manual_seed(5)

    def noise(completion: Completion) -> Tensor:
        return torch.randn(len(completion.token_ids), generator=generator, dtype=torch.float64)

    return [
        group.replace_completions(
            [
                replace(
                    c,
                    sampled_logp=c.reference_logp + 0.3 * noise(c) if c.reference_logp is not None else None,
                    advantage=torch.full((len(c.token_ids),), c.score - 2.5, dtype=torch.float64),
                )
                for c in group.completions
            ]
        )
        for group in groups
    ]


def make_engine(folder: Path) -> LogprobEngine:
    """The tiny model in float64, its adapter away from the start."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    policy = Policy(model, AutoTokenizer.from_pretrained(folder), lora=LoraSection(rank=4))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in policy.trainable().values():
            p.add_(torch.randn(p.shape, generator=generator, dtype=p.dtype) * 0.05)
    return LogprobEngine(policy)


@pytest.fixture
def engine(tiny_model: Path) -> LogprobEngine:
    return make_engine(tiny_model)


def gradient(engine: LogprobEngine, groups: list[Group], preset: str, tokens: int) -> tuple[Tensor, dict[str, float]]:
    sums = accumulate_gradient(objective(preset), groups, engine=engine, runtime=RUNTIME, tokens_per_forward=tokens)
    grads = [p.grad for p in engine.policy.trainable().values() if p.grad is not None]
    flat = torch.cat([grad.flatten() for grad in grads])
    for p in engine.policy.trainable().values():
        p.grad = None
    return flat, sums.means()


@pytest.mark.parametrize("preset", PRESETS)
def test_gradient_and_metrics_do_not_depend_on_cut_or_order(engine: LogprobEngine, preset: str) -> None:
    groups = rollout(engine)
    whole, metrics = gradient(engine, groups, preset, 100_000)
    assert whole.norm() > 0
    for tokens, order in ((1, groups), (60, groups), (100_000, groups[::-1]), (60, groups[3:] + groups[:3])):
        again, other = gradient(engine, list(order), preset, tokens)
        assert torch.allclose(again, whole, rtol=1e-9, atol=1e-12)
        assert other == pytest.approx(metrics, rel=1e-9, abs=1e-12)


def hand_made() -> tuple[GroupBatch, TokenScores, StepTotals]:
    """One group: completions of 1 and 3 tokens with advantages 2 and -1, on policy."""
    short = Completion(
        token_ids=(5,), finished=True, score=1.0, sampled_logp=torch.tensor([-1.0]), advantage=torch.tensor([2.0])
    )
    long = Completion(
        token_ids=(6, 7, 0), finished=True, score=0.0,
        sampled_logp=torch.tensor([-1.0, -2.0, -3.0]), advantage=torch.full((3,), -1.0),
    )  # fmt: skip
    groups = [Group(key="x:1", prompt_ids=(1, 2), completions=(short, long))]
    batch = pack(groups)
    assert batch.sampled_logp_T is not None
    return batch, TokenScores(batch.sampled_logp_T, torch.zeros(4)), StepTotals.of(groups)


@pytest.mark.parametrize(
    ("normaliser", "expected"),
    [("completion", -(2.0 - 1.0) / 2), ("token", -(2.0 - 3.0) / 4), ("constant", -(2.0 - 3.0) / (2 * 10))],
)
def test_normalisers_by_hand(normaliser: str, expected: float) -> None:
    batch, scores, totals = hand_made()
    one = objective("grpo", normaliser=normaliser, kl_coefficient=0.0)
    total = one.loss_sum(batch, scores, MetricSums("cpu"))
    assert (total / one.denominator(totals)).item() == pytest.approx(expected)


def test_twice_the_constant_length_halves_the_loss_of_dr_grpo() -> None:
    batch, scores, totals = hand_made()
    values = [
        (one.loss_sum(batch, scores, MetricSums("cpu")) / one.denominator(totals)).item()
        for one in (objective("dr_grpo", length=10), objective("dr_grpo", length=20))
    ]
    assert values[0] == pytest.approx(2 * values[1]) and values[0] != 0


def test_presets_fill_in_what_is_not_set_and_nothing_else() -> None:
    dapo = GrpoLossSection.model_validate({"preset": "dapo"})
    assert (dapo.normaliser, dapo.clip_low, dapo.clip_high, dapo.kl_coefficient) == ("token", 0.2, 0.28, 0.0)
    assert dapo.advantage_scale == "group_std"
    mine = GrpoLossSection.model_validate({"preset": "dapo", "clip_high": 0.4})
    assert (mine.normaliser, mine.clip_high) == ("token", 0.4)
    doctor = GrpoLossSection.model_validate({"preset": "dr_grpo"})
    assert (doctor.normaliser, doctor.advantage_scale, doctor.kl_coefficient) == ("constant", "none", 0.0)
    paper = GrpoLossSection()
    assert (paper.normaliser, paper.advantage_scale, paper.std_ddof, paper.kl_coefficient) == (
        "completion", "group_std", 0, 0.04,
    )  # fmt: skip


def test_clip_metrics_count_what_the_clip_stops() -> None:
    batch, _, _ = hand_made()
    assert batch.sampled_logp_T is not None
    moved = batch.sampled_logp_T + torch.tensor([0.5, 0.5, -0.5, 0.0])  # ratios 1.65, 1.65, 0.61, 1
    sums = MetricSums("cpu")
    objective("grpo", kl_coefficient=0.0).loss_sum(batch, TokenScores(moved, torch.zeros(4)), sums)
    means = sums.means()
    assert (means["clip_ratio/high"], means["clip_ratio/low"]) == (0.25, 0.25)  # A > 0 and up; A < 0 and down
    assert means["advantages/size"] == pytest.approx((2 + 3) / 4)
