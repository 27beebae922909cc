"""Normalisers by hand, and invariant 2: the gradient does not depend on how a step is cut, for every preset."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

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
from groupwise.train.runtime import Runtime
from groupwise.train.share import StepShare, StepTotals
from groupwise.train.step import accumulate_gradient
from grpo.config import GrpoLossSection
from grpo.objective import EntropyControl, GrpoObjective
from grpo.presets import PRESETS
from tests.conftest import random_groups

RUNTIME = Runtime()
# Every preset, and every key that adds a term, a mask or a weight.
CHOICES: dict[str, dict[str, object]] = {
    **{preset: {"preset": preset} for preset in PRESETS},
    "two-sided": {"ratio_bound": 1.3},
    "k1": {"kl_form": "k1", "kl_ratio": True},
    "k2": {"kl_form": "k2"},
    "exact": {"kl_form": "exact", "kl_coefficient": 0.3},
    "entropy": {"entropy_coefficient": 0.1},
    "top entropy": {"top_entropy": 0.2},
    "off-policy mask": {"off_policy_limit": 0.02},
    "sampler": {"sampler_cap": 1.05},
}


def objective(preset: str, *, length: int = 10, **options: object) -> GrpoObjective:
    section = GrpoLossSection.model_validate({"preset": preset, **options})
    return GrpoObjective(section, temperature=0.8, constant_length=length)


def rollout(engine: LogprobEngine, count: int = 4) -> list[Group]:
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
                    drawn_logp=c.reference_logp + 0.3 * noise(c) if c.reference_logp is not None else None,
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


def gradient(engine: LogprobEngine, groups: list[Group], choice: str, tokens: int) -> tuple[Tensor, dict[str, float]]:
    section = GrpoLossSection.model_validate(CHOICES[choice])
    one = GrpoObjective(section, temperature=0.8, constant_length=10)
    share = StepShare.of(groups, RUNTIME, cut_to=tokens)
    one = one.for_step(share, engine=engine, runtime=RUNTIME, tokens_per_forward=tokens)
    sums = accumulate_gradient(one, share, engine=engine, runtime=RUNTIME, tokens_per_forward=tokens)
    grads = [p.grad for p in engine.policy.trainable().values() if p.grad is not None]
    flat = torch.cat([grad.flatten() for grad in grads])
    for p in engine.policy.trainable().values():
        p.grad = None
    assert sorted(("entropy", "loss", *one.metric_names)) == sorted(sums.names)
    return flat, sums.means()


@pytest.fixture(scope="module")
def shared_engine(tiny_model: Path) -> LogprobEngine:
    return make_engine(tiny_model)


@pytest.mark.parametrize("choice", CHOICES)
def test_gradient_and_metrics_do_not_depend_on_cut_or_order(shared_engine: LogprobEngine, choice: str) -> None:
    groups = rollout(shared_engine)
    whole, metrics = gradient(shared_engine, groups, choice, 100_000)
    assert whole.norm() > 0
    for tokens, order in ((1, groups), (60, groups[2:] + groups[:2])):
        again, other = gradient(shared_engine, list(order), choice, tokens)
        assert torch.allclose(again, whole, rtol=1e-9, atol=1e-12)
        assert other == pytest.approx(metrics, rel=1e-9, abs=1e-12)
    if choice not in PRESETS:
        assert not torch.allclose(whole, gradient(shared_engine, groups, "grpo", 100_000)[0], rtol=1e-3)


def test_a_share_of_the_steps_tokens_is_learned_from(shared_engine: LogprobEngine) -> None:
    groups = rollout(shared_engine)
    tokens = sum(len(c.token_ids) for group in groups for c in group.completions)
    _, metrics = gradient(shared_engine, groups, "top entropy", 60)
    assert metrics["masked/low_entropy"] == pytest.approx(1 - math.ceil(0.2 * tokens) / tokens)


def test_the_entropy_bonus_is_the_gradient_of_the_mean_entropy(shared_engine: LogprobEngine) -> None:
    """With advantages of 0 and a mean over tokens nothing else is left: minus coefficient times its gradient."""
    groups = [
        group.replace_completions(
            [replace(c, advantage=torch.zeros(len(c.token_ids), dtype=torch.float64)) for c in group.completions]
        )
        for group in rollout(shared_engine, 3)
    ]
    section = GrpoLossSection.model_validate({"preset": "dapo", "entropy_coefficient": 0.7})
    one = GrpoObjective(section, temperature=0.8, constant_length=10)
    accumulate_gradient(
        one, StepShare.of(groups, RUNTIME), engine=shared_engine, runtime=RUNTIME, tokens_per_forward=50
    )
    parameters = list(shared_engine.policy.trainable().values())
    found = [p.grad.clone() for p in parameters if p.grad is not None]
    for p in parameters:
        p.grad = None
    scores = shared_engine.score(pack(groups), temperature=0.8, extras=("entropy_gradient",))
    expected = torch.autograd.grad(-0.7 * scores.entropy_T.mean(), parameters)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-12)


def test_an_adaptive_bonus_rises_below_its_target_acts_only_there_and_is_remembered() -> None:
    options: dict[str, Any] = {"entropy_target": 0.5, "entropy_step": 0.01, "entropy_most": 0.025}
    one = objective("grpo", **options)
    assert one.extras == () and one.memory() == {}
    seen: list[tuple[float, bool]] = []
    for entropy in (0.9, 0.4, 0.4, 0.4, 0.6, 0.5):
        one = one.after_step({"entropy": entropy})
        again = objective("grpo", **options).remembering(one.memory())
        assert again == one
        seen.append((round(one.memory()["entropy_coefficient"], 6), one.extras == ("entropy_gradient",)))
    assert seen == [(0.0, False), (0.01, True), (0.02, True), (0.025, True), (0.015, False), (0.025, True)]
    assert isinstance(one.control, EntropyControl)


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
    [
        ("completion", -(2.0 - 1.0) / 2),
        ("token", -(2.0 - 3.0) / 4),
        ("sum", -(2.0 - 3.0) / 2),
        ("constant", -(2.0 - 3.0) / (2 * 10)),
    ],
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


def test_on_policy_the_value_is_minus_the_advantage_and_says_nothing() -> None:
    """Centred advantages make the loss 0 on policy while its gradient is not: the loss is no measure of progress."""
    batch, scores, totals = hand_made()
    batch = replace(batch, advantage_T=torch.tensor([1.5, -0.5, -0.5, -0.5]))
    live = scores.logp_T.clone().requires_grad_()
    one = objective("dapo")
    loss = one.loss_sum(batch, TokenScores(live, torch.zeros(4)), MetricSums("cpu")) / one.denominator(totals)
    loss.backward()
    assert loss.item() == 0.0
    assert live.grad is not None and live.grad.tolist() == [-0.375, 0.125, 0.125, 0.125]


def test_dpo_as_the_paper_writes_it_is_the_same_frame_with_another_coefficient() -> None:
    """Eq. 12 and 14, length-normalised: coefficient +-beta sigmoid(ll - lw), a mean of means over two answers."""
    batch, scores, totals = hand_made()
    beta, reference_T = 0.7, torch.tensor([-1.5, -0.5, -2.5, -2.0])
    length_R = batch.length_R

    def means(logp_T: Tensor) -> Tensor:
        return batch.sum_per_completion(logp_T - reference_T) / length_R

    live = scores.logp_T.clone().requires_grad_()
    better, worse = means(live)
    (direct,) = torch.autograd.grad(-torch.nn.functional.logsigmoid(beta * (better - worse)), live)
    better, worse = means(scores.logp_T)
    coefficient = beta * torch.sigmoid(beta * (worse - better))
    batch = replace(batch, advantage_T=torch.stack([coefficient, -coefficient])[batch.row_T])
    one = objective("online_rft")
    again = scores.logp_T.clone().requires_grad_()
    total = one.loss_sum(batch, TokenScores(again, torch.zeros(4)), MetricSums("cpu")) / one.denominator(totals)
    (framed,) = torch.autograd.grad(total, again)
    assert torch.allclose(2 * framed, direct, atol=1e-7)  # the frame takes the mean of the two answers, DPO their sum
