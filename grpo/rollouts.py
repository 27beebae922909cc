"""Rollouts: prompts answered by the policy, scored, and turned into groups with advantages, for the loop to learn from.

The order is sample, score, skip what has no signal, add reference log-probs, add advantages. Everything that a
continued run needs is in `save`: the place in the prompts, the rollout that is still being learned from, where the
reference was moved to, the count of reward faults. Knows neither the loss nor how rewards come to their scores.
"""

import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from groupwise.batch import pack
from groupwise.data.text import TextEncoder
from groupwise.groups import Completion, Group, NotFinite, Unanswered, is_informative
from groupwise.model.engine import LogprobEngine, reference_logprobs
from groupwise.model.sampling import SamplingParams, UnreadablePrompts, sample_completions
from groupwise.rewards.protocol import Answer
from groupwise.rewards.scorer import Fault, Scorer
from groupwise.train.group_file import load_groups, save_groups
from groupwise.train.order import EpochOrder
from groupwise.train.runtime import Runtime
from grpo.advantages import group_advantages
from grpo.config import GrpoConfig
from grpo.dataset_utils import Prompt
from grpo.faults import FaultLog

STATE = "rollout-state.json"
GROUPS = "rollout-groups"


@dataclass(frozen=True, slots=True)
class ScoredGroup:
    """A group as it was scored: `group` holds the completions that have a score, the rest is for the records."""

    group: Group | None
    by_reward: Mapping[str, tuple[float | None, ...]]
    lengths: tuple[int, ...]
    finished: tuple[bool, ...]
    faults: int

    @property
    def skipped(self) -> int:
        """Completions without a score."""
        return len(self.lengths) - (0 if self.group is None else len(self.group.completions))

    @property
    def has_signal(self) -> bool:
        return self.group is not None and is_informative(self.group)


class Rollouts:
    """The groups of every step, gathered from the policy as it is when they are needed."""

    def __init__(
        self,
        prompts: Sequence[Prompt],
        *,
        config: GrpoConfig,
        engine: LogprobEngine,
        encoder: TextEncoder,
        scorer: Scorer,
        runtime: Runtime,
        faults: FaultLog,
    ) -> None:
        self._prompts = prompts
        self._config = config
        self._engine = engine
        self._encoder = encoder
        self._scorer = scorer
        self._runtime = runtime
        self._log = faults
        self._order = EpochOrder(len(prompts), seed=config.run.seed)
        self._asked = 0  # prompts so far, over all epochs
        self._groups: list[Group] = []
        self._passed_over: list[tuple[Group, str]] = []
        self._metrics: dict[str, float] = {}
        self._to_check = 2  # rollouts whose log-probs are compared with the engine's
        self._silent_rollouts = 0
        self._faults = 0  # of rewards, over all processes

    @property
    def total_steps(self) -> int:
        return self._config.steps

    def groups(self, step: int) -> list[Group]:
        """The groups with a signal of this step's minibatch; a new rollout is gathered where the last is used up."""
        rollout = self._config.rollout
        place = step % (rollout.minibatches * rollout.updates)
        self._metrics, self._passed_over = {}, []
        if mix := self._config.loss.reference_moves(step):
            self._engine.policy.move_reference(mix)
        if place == 0:
            self._gather(step)
        return self._groups[place % rollout.minibatches :: rollout.minibatches]

    def passed_over(self) -> Sequence[tuple[Group, str]]:
        """Groups of the rollout that the last step gathered from which nothing can be learned."""
        return self._passed_over

    def metrics(self) -> Mapping[str, float]:
        """Numbers of the rollout that the last step gathered; none where it went on with an earlier one."""
        return self._metrics

    def save(self, folder: Path) -> None:
        state = {"asked": self._asked, "silent_rollouts": self._silent_rollouts, "faults": self._faults}
        (folder / STATE).write_text(json.dumps(state) + "\n")
        save_groups(self._groups, folder, GROUPS)
        self._engine.policy.save_reference(folder)

    def restore(self, folder: Path) -> None:
        state = json.loads((folder / STATE).read_text())
        self._asked, self._silent_rollouts, self._faults = state["asked"], state["silent_rollouts"], state["faults"]
        self._groups = load_groups(folder, GROUPS)
        self._engine.policy.restore_reference(folder)

    @property
    def faults(self) -> int:
        """Completions of all rollouts so far that a reward gave no valid score, over all processes."""
        return self._faults

    # --- gathering

    def _gather(self, step: int) -> None:
        """Sample and score until the step is full or the refills are used up, then prepare what has a signal."""
        config = self._config
        wanted = config.run.groups_per_step * config.rollout.minibatches
        times = {"time/sample_s": 0.0, "time/score_s": 0.0}
        scored: list[ScoredGroup] = []
        used: list[Group] = []
        rounds = 0
        while True:
            scored += self._round(wanted - len(used), times)
            used = [one.group for one in scored if one.group is not None and one.has_signal]
            if len(used) >= wanted or rounds == config.rollout.most_refills:
                break
            rounds += 1
        if self._to_check and used:
            self._check(used[:4])
        started = time.perf_counter()
        if config.loss.kl_coefficient > 0:
            used = self._with_reference(used)
            if step == 0 and used:
                _check_reference(self._engine, used[:4])
        times["time/reference_s"] = time.perf_counter() - started
        self._groups = with_advantages(used, config)
        self._passed_over = [
            (one.group, "all rewards are equal") for one in scored if one.group is not None and not one.has_signal
        ]
        self._metrics = {**rollout_metrics(scored), "rollout/refills": rounds, **times}
        self._complain(step, scored, rounds, wanted)

    def _round(self, count: int, times: dict[str, float]) -> list[ScoredGroup]:
        """Answer and score the next `count` prompts; every process does its share, all get everything."""
        numbers = range(self._asked, self._asked + count)
        self._asked += count
        mine = self._runtime.share([(number, self._prompts[self._order[number]]) for number in numbers])
        started = time.perf_counter()
        drawn = self._runtime.together(
            lambda: draw_answers(
                self._engine,
                self._encoder,
                [prompt for _, prompt in mine],
                n=self._config.rollout.completions_per_prompt,
                params=SamplingParams.of(self._config.sampling),
                seed=self._config.run.seed,
                streams=[number for number, _ in mine],
            )
        )
        times["time/sample_s"] += time.perf_counter() - started
        started = time.perf_counter()
        scored, faults = score_answers(self._scorer, self._encoder, [prompt for _, prompt in mine], drawn)
        faults = self._runtime.gather(faults)
        self._faults += len(faults)
        self._log.note(faults, phase="train")
        self._scorer.enforce(self._faults, faults)  # on all processes at once
        times["time/score_s"] += time.perf_counter() - started
        return self._runtime.gather(scored)

    def _with_reference(self, groups: Sequence[Group]) -> list[Group]:
        mine = self._runtime.together(
            lambda: reference_logprobs(
                self._engine,
                self._runtime.share(groups),
                tokens_per_forward=self._config.run.tokens_per_forward,
                temperature=self._config.sampling.temperature,
            )
        )
        return self._runtime.gather(mine)

    def _check(self, groups: Sequence[Group]) -> None:
        """The engine must find the log-probs that the tokens were drawn with, or every ratio would be wrong.

        Done for the first two rollouts of a process: before the first, a fresh adapter changes nothing yet.
        """
        self._to_check -= 1
        for group in groups:
            batch = pack([group.replace_completions(group.completions[:2])]).to(self._engine.policy.device)
            with torch.no_grad():
                logp_T = self._engine.score(batch, temperature=self._config.sampling.temperature).logp_T
            assert batch.sampled_logp_T is not None
            gap = (logp_T.cpu() - batch.sampled_logp_T.cpu()).abs().max().item()
            allowed = self._engine.rounding * max(1.0, logp_T.abs().max().item())
            if not gap <= allowed:
                raise RuntimeError(
                    f"{group.key}: sampler and engine differ by {gap:.3g} nats in a token's log-prob (allowed "
                    f"{allowed:.1g}), so ratios would be wrong; --model.attention repeat avoids the shared prompts, "
                    "which may be the cause"
                )

    def _complain(self, step: int, scored: Sequence[ScoredGroup], rounds: int, wanted: int) -> None:
        """Say when there is nothing, or hardly anything, to learn from; at the first time and then every tenth."""
        with_signal = sum(one.has_signal for one in scored)
        full = with_signal >= wanted
        if full or (not rounds and with_signal > len(scored) // 10):
            return
        self._silent_rollouts += 1
        if self._silent_rollouts % 10 != 1:
            return
        scores = [c.score for one in scored if one.group is not None for c in one.group.completions]
        level = f"rewards {min(scores):g} to {max(scores):g}" if scores else "no completion has a score"
        bound = f", the bound of {rounds} refills was reached with {with_signal} of {wanted}" if rounds else ""
        self._log.say(
            f"warning: step {step + 1}: {with_signal} of {len(scored)} groups have answers of different reward "
            f"({level}){bound}; the others teach nothing. Remedy: {_remedy(scores, self._config.eval.threshold)}"
        )


def _remedy(scores: Sequence[float], threshold: float) -> str:
    """What helps against groups without signal."""
    if not scores:
        return "mend the reward, or the data it reads; its faults are in faults.jsonl"
    if statistics.fmean(scores) > (min(scores) + max(scores)) / 2 or min(scores) >= threshold:
        return "most are right, so this data has little left to teach: stop here, or go on with harder prompts"
    return (
        "easier prompts, a base model that is sometimes right, more completions per prompt or a reward with steps "
        "between 0 and 1 would help"
    )


def _check_reference(engine: LogprobEngine, groups: Sequence[Group]) -> None:
    """A fresh policy is its reference: every KL is 0 before the first step."""
    batch = pack(groups)
    assert batch.sampled_logp_T is not None and batch.reference_logp_T is not None
    gap = (batch.sampled_logp_T - batch.reference_logp_T).abs().max().item()
    allowed = engine.rounding * max(1.0, batch.reference_logp_T.abs().max().item())
    if not gap <= allowed:
        raise RuntimeError(
            f"before the first step policy and reference differ by {gap:.3g} nats in a token's log-prob (allowed "
            f"{allowed:.1g}); the KL would not start at 0"
        )


def draw_answers(
    engine: LogprobEngine,
    encoder: TextEncoder,
    prompts: Sequence[Prompt],
    *,
    n: int,
    params: SamplingParams,
    seed: int,
    streams: Sequence[int],
) -> list[list[Completion]]:
    """Completions of every prompt, no longer than the model has positions. Raises NotFinite naming prompts."""
    positions = engine.policy.positions
    try:
        return sample_completions(
            engine,
            [prompt.prompt_ids for prompt in prompts],
            n=n,
            params=params,
            end_ids=encoder.stop_ids,
            seed=seed,
            streams=streams,
            most_new_tokens=None if positions is None else [positions - len(prompt.prompt_ids) for prompt in prompts],
        )
    except UnreadablePrompts as fault:
        unread = [Unanswered(key=prompts[i].key, prompt_ids=prompts[i].prompt_ids) for i in fault.indices]
        raise NotFinite(fault.what, unread) from fault


def as_answers(
    encoder: TextEncoder, prompts: Sequence[Prompt], drawn: Sequence[Sequence[Completion]]
) -> tuple[list[Mapping[str, object]], list[Answer]]:
    """All completions as rewards see them, each with its row."""
    rows = [prompt.row for prompt, completions in zip(prompts, drawn, strict=True) for _ in completions]
    answers = [
        Answer(text=encoder.decode(c.token_ids), token_ids=c.token_ids, finished=c.finished, group=index)
        for index, completions in enumerate(drawn)
        for c in completions
    ]
    return rows, answers


def score_answers(
    scorer: Scorer, encoder: TextEncoder, prompts: Sequence[Prompt], drawn: Sequence[Sequence[Completion]]
) -> tuple[list[ScoredGroup], tuple[Fault, ...]]:
    """Score all completions and leave out those without a score; also what rewards did wrong."""
    rows, answers = as_answers(encoder, prompts, drawn)
    result = scorer.score(rows, answers, counted=False)
    faults = [0] * len(answers)
    for fault in result.faults:
        faults[fault.index] += 1
    scored: list[ScoredGroup] = []
    start = 0
    for prompt, completions in zip(prompts, drawn, strict=True):
        part = slice(start, start + len(completions))
        kept = [
            replace(completion, score=total)
            for completion, total in zip(completions, result.totals[part], strict=True)
            if total is not None
        ]
        scored.append(
            ScoredGroup(
                Group(key=prompt.key, prompt_ids=prompt.prompt_ids, completions=tuple(kept)) if kept else None,
                {name: values[part] for name, values in result.by_reward.items()},
                tuple(len(c.token_ids) for c in completions),
                tuple(c.finished for c in completions),
                sum(faults[part]),
            )
        )
        start += len(completions)
    return scored, result.faults


def with_advantages(groups: Sequence[Group], config: GrpoConfig) -> list[Group]:
    """Every completion with the advantage of its outcome at each of its tokens."""
    values = group_advantages(
        [[c.score for c in group.completions] for group in groups],
        scale=config.loss.advantage_scale,
        ddof=config.loss.std_ddof,
    )
    return [
        group.replace_completions(
            [
                replace(completion, advantage=torch.full((len(completion.token_ids),), value))
                for completion, value in zip(group.completions, own, strict=True)
            ]
        )
        for group, own in zip(groups, values, strict=True)
    ]


def rollout_metrics(scored: Sequence[ScoredGroup]) -> dict[str, float]:
    """Numbers over everything that was sampled, whether it is learned from or not."""
    groups = [one.group for one in scored if one.group is not None]
    scores = [[c.score for c in group.completions] for group in groups]
    lengths = [length for one in scored for length in one.lengths]
    finished = [value for one in scored for value in one.finished]
    values: dict[str, float] = {
        "completions/mean_length": statistics.fmean(lengths),
        "completions/clipped_ratio": 1 - statistics.fmean(finished),
        "completions/skipped": sum(one.skipped for one in scored),
        "rewards/faults": sum(one.faults for one in scored),
        "groups/no_signal": sum(not one.has_signal for one in scored),
        "frac_reward_zero_std": statistics.fmean(not one.has_signal for one in scored),
    }
    if scores:
        values["reward"] = statistics.fmean(score for group in scores for score in group)
        values["reward_std"] = statistics.fmean(statistics.pstdev(group) for group in scores)
    for name in scored[0].by_reward:
        opinions = [value for one in scored for value in one.by_reward[name] if value is not None]
        if opinions:
            values[f"rewards/{name}/mean"] = statistics.fmean(opinions)
    return values
