"""Every objective on a tiny model: any cut of the step, its own start, a short training that does what it claims."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from dpo import whole_step
from dpo.catalogue import OBJECTIVES
from dpo.loss_config import DpoLossSection
from dpo.losses import LOSSES
from dpo.losses.pairwise import sigmoid
from dpo.objective import DpoObjective
from dpo.start import check_start
from groupwise.batch import pack
from groupwise.groups import Completion, Group
from groupwise.model.engine import LogprobEngine, TokenScores, reference_logprobs
from groupwise.model.policy import Policy
from groupwise.observe.metrics import MetricSums
from groupwise.sections import LoraSection
from groupwise.train.runtime import Runtime
from groupwise.train.share import StepShare
from groupwise.train.step import accumulate_gradient, optimizer_step
from tests.conftest import random_groups

RUNTIME = Runtime()
NEEDED = {"r_dpo": {"length_penalty": 0.05}, "unlikelihood": {"unlikelihood_weight": 0.5}}
MIXTURES = {
    "mpo": [
        {"objective": "sigmoid", "weight": 0.8}, {"objective": "bco", "weight": 0.2}, {"objective": "sft_per_token"}
    ],
    "pairs and rankings": [{"objective": "sigmoid"}, {"objective": "plackett_luce", "weight": 0.5}],
}  # fmt: skip
NAMES = (*OBJECTIVES, *MIXTURES)


def objective(name: str, **keys: object) -> DpoObjective:
    chosen = {"mixture": MIXTURES[name]} if name in MIXTURES else {"objective": name, **NEEDED.get(name, {})}
    return DpoObjective.of(DpoLossSection.model_validate({**chosen, **keys}))


@pytest.fixture
def engine(tiny_model: Path) -> LogprobEngine:
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float64)
    return LogprobEngine(Policy(model, AutoTokenizer.from_pretrained(tiny_model), lora=LoraSection(rank=4)))


def move(engine: LogprobEngine) -> None:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in engine.policy.trainable().values():
            p.add_(torch.randn(p.shape, generator=generator, dtype=p.dtype) * 0.05)


def step_groups(engine: LogprobEngine, one: DpoObjective, count: int = 6) -> list[Group]:
    """Rankings of three, or single completions of which every second is desirable; with reference where it is read."""
    groups = random_groups(count, vocabulary=200, completions=1 if one.labelled else 3)
    if one.labelled:
        groups = [
            group.replace_completions([replace(group.completions[0], score=float(place % 2))])
            for place, group in enumerate(groups)
        ]
    if not any(part.entry.reference for part in one.parts):
        return groups
    return reference_logprobs(engine, groups, tokens_per_forward=10_000)


def gradient(
    engine: LogprobEngine, one: DpoObjective, groups: list[Group], tokens: int
) -> tuple[Tensor, dict[str, float]]:
    share = StepShare.of(groups, RUNTIME)
    own = one.for_step(share, engine=engine, runtime=RUNTIME, tokens_per_forward=tokens)
    sums = accumulate_gradient(own, share, engine=engine, runtime=RUNTIME, tokens_per_forward=tokens)
    grads = [p.grad for p in engine.policy.trainable().values() if p.grad is not None]
    flat = torch.cat([grad.flatten() for grad in grads])
    for p in engine.policy.trainable().values():
        p.grad = None
    return flat, sums.means()


@pytest.mark.parametrize("name", NAMES)
def test_gradient_and_metrics_do_not_depend_on_cut_or_order(engine: LogprobEngine, name: str) -> None:
    one = replace(objective(name), reward_shift=0.1)
    groups = step_groups(engine, one)
    move(engine)
    whole, metrics = gradient(engine, one, groups, 100_000)
    assert whole.norm() > 0 and metrics.keys() >= set(one.metric_names)
    for tokens, order in ((1, groups), (80, groups), (80, groups[3:] + groups[:3])):
        if order is not groups and "kl_baseline" in metrics:
            continue
        again, other = gradient(engine, one, order, tokens)
        assert torch.allclose(again, whole, rtol=1e-8, atol=1e-8 * whole.abs().max().item())
        assert other == pytest.approx(metrics, rel=1e-8, abs=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_the_start_is_checked(engine: LogprobEngine, name: str) -> None:
    one = objective(name)
    groups = step_groups(engine, one)
    check_start(one, engine, groups, RUNTIME, tokens_per_forward=80)
    wrong = replace(one, reward_shift=0.5)
    if "reward_shift" in "".join(one.memory()) and one.starts_at is not None:
        with pytest.raises(RuntimeError, match=f"the loss of {name}.* its formula gives"):
            check_start(wrong, engine, groups, RUNTIME, tokens_per_forward=80)
    move(engine)
    if any(part.entry.reference for part in one.parts):
        with pytest.raises(RuntimeError, match="policy and reference differ"):
            check_start(one, engine, groups, RUNTIME, tokens_per_forward=80)


# Objectives that need not raise the chosen completion nor the margin of log-probs have their own claim.
CLAIMS = {"apo_down": "chosen falls", "sft": "chosen rises", "sft_per_token": "chosen rises", "cpo": "chosen rises",
          "orpo": "chosen rises", "nca": "chosen rises", "unlikelihood": "chosen rises", "mpo": "chosen rises",
          "rpo": "chosen rises", "iterative_rpo": "chosen rises", "discopop": "loss falls"}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_short_training_does_what_the_objective_claims(engine: LogprobEngine, name: str) -> None:
    """The loss falls on its own data; the margin by the objective's own reward rises, or what else it claims."""
    one = objective(name)
    groups = step_groups(engine, one, count=4)
    optimizer = torch.optim.Adam(engine.policy.trainable().values(), lr=3e-3)
    rows: list[dict[str, float]] = []
    for _ in range(9):
        rows.append(
            optimizer_step(
                one, StepShare.of(groups, RUNTIME), engine=engine, optimizer=optimizer, runtime=RUNTIME,
                tokens_per_forward=10_000, max_grad_norm=None,
            )
        )  # fmt: skip
        one = one.after_step(rows[-1])
    first, last = rows[0], rows[-1]
    # The weights of WPO are no part of what is minimised, and grow while the policy learns the completions.
    assert last["loss"] < first["loss"] or name == "wpo"
    claim = CLAIMS.get(name, "margin rises")
    if claim == "margin rises":
        assert last["rewards/margins"] > first["rewards/margins"]
        assert last["rewards/accuracies"] > max(0.5, first["rewards/accuracies"] - 1e-9)
    elif claim != "loss falls":
        change = last["logps/chosen"] - first["logps/chosen"]
        assert change > 0 if claim == "chosen rises" else change < 0
    assert (one.reward_shift != 0) == ("bco" in name or name == "mpo")


@pytest.mark.parametrize("name", ["aot", "aot_unpaired"])
def test_matching_gives_the_gradient_of_sorting_the_whole_step(engine: LogprobEngine, name: str) -> None:
    """The formula of the paper, both sides sorted in one batch and differentiated through, against micro-batches."""
    one = objective(name, beta=0.5)
    groups = step_groups(engine, one)
    move(engine)
    ours, metrics = gradient(engine, one, groups, 60)
    batch = pack(groups)
    assert batch.reference_logp_T is not None
    logp_R = batch.sum_per_completion(engine.score(batch).logp_T)
    reference_R = batch.sum_per_completion(batch.reference_logp_T)
    chosen, rejected = batch.pairs_K2.unbind(dim=1)
    if name == "aot":
        sides = (logp_R[chosen] - logp_R[rejected], reference_R[chosen] - reference_R[rejected])
    else:
        sides = ((logp_R - reference_R)[chosen], (logp_R - reference_R)[rejected])
    loss = sigmoid(sides[0].sort().values, sides[1].sort().values, beta=0.5).mean()
    loss.backward()
    plain = torch.cat([p.grad.flatten() for p in engine.policy.trainable().values() if p.grad is not None])
    assert torch.allclose(ours, plain, rtol=1e-6, atol=1e-9)
    assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-9)


def test_a_pair_that_stands_twice_in_a_step_takes_the_mean_of_its_places(engine: LogprobEngine) -> None:
    groups = step_groups(engine, objective("aot"), count=3)
    move(engine)
    match = partial(whole_step.matches_by_rank, engine=engine, runtime=RUNTIME, tokens_per_forward=60)
    once, twice = (match(StepShare.of(own, RUNTIME)) for own in (groups, [*groups, *groups]))
    for key, own in once["matched_reference_margin_K"].items():
        assert twice["matched_reference_margin_K"][key] == pytest.approx(own, rel=1e-9)


def test_the_baseline_of_kto_is_the_mean_log_ratio_behind_other_prompts(engine: LogprobEngine) -> None:
    one = objective("kto")
    groups = step_groups(engine, one, count=4)
    baseline = partial(whole_step.kl_baseline, engine=engine, runtime=RUNTIME, tokens_per_forward=40)
    share = StepShare.of(groups, RUNTIME)
    assert baseline(share) == pytest.approx(0.0, abs=1e-12)
    move(engine)
    ratios: list[float] = []
    for place, group in enumerate(groups):
        other = Group(key="x", prompt_ids=groups[(place + 1) % 4].prompt_ids, completions=group.completions)
        batch = pack([other])
        with torch.no_grad():
            own = engine.score(batch).logp_T.sum().item()
            with engine.policy.reference():
                ratios.append(own - engine.score(batch).logp_T.sum().item())
    expected = sum(ratios) / 4
    assert baseline(share) == pytest.approx(max(0.0, expected), rel=1e-9, abs=1e-12)
    same = [Group(key=str(i), prompt_ids=(5, 6), completions=group.completions) for i, group in enumerate(groups)]
    assert baseline(StepShare.of(same, RUNTIME)) == 0.0


def test_the_shift_of_bco_is_a_running_mean_that_the_checkpoint_keeps() -> None:
    one = objective("bco", shift_decay=0.75)
    moved = one.after_step({"bco/reward": 0.4}).after_step({"bco/reward": -0.2})
    assert moved.reward_shift == pytest.approx(0.75 * 0.1 + 0.25 * -0.2)
    assert one.remembering(moved.memory()) == moved
    assert objective("sigmoid").memory() == {}


def test_wpo_weighs_by_certainty_and_only_wpo_asks_for_it(engine: LogprobEngine) -> None:
    assert [name for name in OBJECTIVES if objective(name).extras] == ["wpo"]
    one = objective("wpo")
    batch = pack(step_groups(engine, one, count=1))
    assert engine.score(batch).log_collision_T is None
    scores = engine.score(batch, extras=["collision"])
    assert scores.log_collision_T is not None
    lengths = batch.length_R.tolist()
    ours = [part.mean().exp().item() for part in (scores.logp_T - scores.log_collision_T).split(lengths)]
    expected = sum(ours[c] * ours[r] for c, r in batch.pairs_K2.tolist()) * torch.tensor(2.0).log().item()
    assert one.loss_sum(batch, scores, MetricSums("cpu")).item() == pytest.approx(expected, rel=1e-6)


def test_ld_dpo_cuts_both_completions_at_the_shorter_one() -> None:
    """Lengths 3 and 2: of the chosen one only the third token counts less."""

    def completion(ratios: list[float], score: float) -> Completion:
        return Completion(
            token_ids=tuple(range(1, len(ratios) + 1)), finished=False, score=score,
            reference_logp=-torch.tensor(ratios, dtype=torch.float64),
        )  # fmt: skip

    batch = pack([Group(key="x", prompt_ids=(1,), completions=(completion([1, 2, 4], 1), completion([3, -1], 0)))])
    scores = TokenScores(torch.zeros(5, dtype=torch.float64), torch.zeros(5))
    one = objective("ld_dpo", beta=0.1, tail_weight=0.25)
    expected = torch.tensor(-0.1 * ((1 + 2 + 0.25 * 4) - (3 - 1)), dtype=torch.float64).exp().log1p().item()
    assert one.loss_sum(batch, scores, MetricSums("cpu")).item() == pytest.approx(expected, rel=1e-9)
    assert one.margins(batch, scores).item() == pytest.approx(0.1 * 2)


def test_a_mixture_is_the_weighted_sum_of_its_means(engine: LogprobEngine) -> None:
    """RPO is DPO and summed fine-tuning; means over pairs and over rankings each have their own count."""
    rpo = objective("rpo", beta=0.1, likelihood_weight=0.02)
    mixture = [{"objective": "sigmoid"}, {"objective": "sft", "weight": 0.02}]
    mixed = DpoObjective.of(DpoLossSection.model_validate({"beta": 0.1, "mixture": mixture}))
    groups = step_groups(engine, rpo)
    move(engine)
    (one, _), (other, metrics) = (gradient(engine, each, groups, 50) for each in (rpo, mixed))
    assert torch.allclose(one, other, rtol=1e-9)
    assert metrics["loss"] == pytest.approx(metrics["loss/sigmoid"] + 0.02 * metrics["loss/sft"], rel=1e-9)
    parts = [gradient(engine, objective(name), groups, 50)[1]["loss"] for name in ("sigmoid", "plackett_luce")]
    both = gradient(engine, objective("pairs and rankings"), groups, 50)[1]
    assert both["loss"] == pytest.approx(parts[0] + 0.5 * parts[1], rel=1e-9)


def test_objectives_without_reference_run_on_groups_without_one_and_others_do_not(engine: LogprobEngine) -> None:
    batch = pack(random_groups(2, vocabulary=200))
    scores = engine.score(batch, extras=["collision"])
    for name, entry in OBJECTIVES.items():
        if entry.unit == "pair" and "aot" not in name:
            if entry.reference:
                with pytest.raises(ValueError, match="needs the reference log-probs"):
                    objective(name).loss_sum(batch, scores, MetricSums("cpu"))
            else:
                assert torch.isfinite(objective(name).loss_sum(batch, scores, MetricSums("cpu")))
    assert LOSSES.keys() == OBJECTIVES.keys()
