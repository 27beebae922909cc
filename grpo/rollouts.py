"""Rollouts: prompts answered by the policy, scored, and turned into groups with advantages, for the loop to learn from.

The order is sample, score, skip what has no signal, add reference log-probs, add advantages. Everything that a
continued run needs is in `save`: the place in the prompts, the rollout that is still being learned from, where the
reference was moved to, the count of reward faults. Knows neither the loss nor how rewards come to their scores.
"""

import bisect
import contextlib
import json
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from groupwise.batch import pack
from groupwise.data.text import TextEncoder
from groupwise.errors import RunStopped
from groupwise.groups import Completion, Group, NotFinite, Unanswered, forward_tokens
from groupwise.model.drafts import UnreadablePrompts
from groupwise.model.drawing import SamplingParams
from groupwise.model.engine import LogprobEngine, reference_logprobs
from groupwise.model.sampler import Answers, BuiltinSampler, Sampler
from groupwise.rewards.protocol import Answer
from groupwise.rewards.scorer import Fault, ScoredAnswers, Scorer
from groupwise.train.group_file import load_groups, save_groups
from groupwise.train.order import EpochOrder
from groupwise.train.runtime import Runtime
from grpo.advantages import Steps
from grpo.config import GrpoConfig
from grpo.credit import ScoredGroup, with_advantages, with_outcomes
from grpo.dataset_utils import Prompt
from grpo.faults import FaultLog
from grpo.reward_model import RewardModel

STATE = "rollout-state.json"
GROUPS = "rollout-groups"
JUDGED = "judged-groups"
AHEAD = "ahead-groups"


@dataclass(frozen=True, slots=True)
class _Asked:
    """Prompts of this process, numbered, and their answers, which may still be on their way."""

    prompts: list[tuple[int, Prompt]]
    answers: Answers


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
        sampler: Sampler,
        reward_model: RewardModel | None = None,
    ) -> None:
        """A `reward_model` scores what is learned from; the scorer's rewards then order what it learns from."""
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
        self._sampler = sampler
        self._ahead: _Asked | None = None  # the next step's prompts, where they are asked beforehand
        self._reward_model = reward_model
        self._judged: list[Group] = []  # scored by the rewards since the reward model learned from such groups
        self._passed_over: list[tuple[Group, str]] = []
        self._metrics: dict[str, float] = {}
        self._to_check = 2 if sampler.exact else 0  # rollouts whose log-probs are compared with the engine's
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
        ahead = self._save_ahead(folder)
        state = {
            "asked": self._asked - (0 if self._ahead is None or ahead else len(self._ahead.prompts)),
            "silent_rollouts": self._silent_rollouts,
            "faults": self._faults,
        }
        (folder / STATE).write_text(json.dumps(state) + "\n")
        save_groups(self._groups, folder, GROUPS)
        self._engine.policy.save_reference(folder)
        if self._reward_model is not None:
            self._reward_model.save(folder)
            save_groups(self._judged, folder, JUDGED)

    def restore(self, folder: Path) -> None:
        state = json.loads((folder / STATE).read_text())
        self._asked, self._silent_rollouts, self._faults = state["asked"], state["silent_rollouts"], state["faults"]
        self._groups = load_groups(folder, GROUPS)
        self._restore_ahead(folder)
        self._engine.policy.restore_reference(folder)
        if self._reward_model is not None:
            self._reward_model.restore(folder)
            self._judged = load_groups(folder, JUDGED)

    @property
    def faults(self) -> int:
        """Completions of all rollouts so far that a reward gave no valid score, over all processes."""
        return self._faults

    def _save_ahead(self, folder: Path) -> bool:
        """Write what was asked beforehand, waiting for it; False where nothing is, or where nobody answered it.

        Such prompts are asked again after a restore, of the policy as it is then.
        """
        if self._ahead is None:
            return False
        try:
            drawn = self._ahead.answers()
        except RunStopped as reason:
            self._log.say(f"warning: what was sampled ahead is not in this checkpoint: {reason}")
            return False
        groups = [
            Group(key=prompt.key, prompt_ids=prompt.prompt_ids, completions=tuple(own))
            for (_, prompt), own in zip(self._ahead.prompts, drawn, strict=True)
        ]
        save_groups(groups, folder, AHEAD)
        return True

    def _restore_ahead(self, folder: Path) -> None:
        """Put back what `_save_ahead` wrote: those prompts are the last that were asked."""
        if not (folder / f"{AHEAD}.json").is_file():
            return
        drawn = [list(group.completions) for group in load_groups(folder, AHEAD)]
        numbers = range(self._asked - len(drawn), self._asked)
        self._ahead = _Asked([(number, self._prompts[self._order[number]]) for number in numbers], lambda: drawn)

    # --- gathering

    def _gather(self, step: int) -> None:
        """Sample and score until the step is full or the refills are used up, then prepare what has a signal."""
        config = self._config
        loss = config.loss
        wanted = config.run.groups_per_step * config.rollout.minibatches
        times = {"time/sample_s": 0.0, "time/score_s": 0.0}
        scored: list[ScoredGroup] = []
        teaching: list[ScoredGroup] = []
        rounds = 0
        if self._ahead is None:
            self._publish(times)
        learned = self._teach_reward_model(step, times)
        judged_before = len(self._judged)
        while True:
            scored += self._rewarded(self._round(wanted - len(teaching), times), times)
            teaching = [one for one in scored if one.teaches(loss)]
            if len(teaching) >= wanted or rounds == config.rollout.most_refills:
                break
            rounds += 1
        if config.sampling.ahead and step + 1 < config.steps:
            self._publish(times)
            self._ahead = self._ask(wanted)
        used = [one.group for one in teaching if one.group is not None]
        if self._to_check and used and config.source != "data":
            self._check(used[:4])
        started = time.perf_counter()
        if loss.reads_reference_logp:
            used = self._with_reference(used)
            if step == 0 and used and config.source != "data":
                _check_reference(self._engine, used[:4])
        times["time/reference_s"] = time.perf_counter() - started
        weights = dict(zip(self._scorer.names, (reward.weight for reward in config.rewards), strict=True))
        whole = with_advantages(teaching, used, loss, weights)
        self._groups = [one for group in whole if (one := _uncut(group))] if config.rollout.drop_cut else whole
        silent = "all rewards are 0" if loss.advantage_baseline == "none" else "all rewards are equal"
        self._passed_over = [(one.group, silent) for one in scored if one.group is not None and not one.teaches(loss)]
        self._passed_over += [(group, "all answers were cut") for group in whole if not _uncut(group)]
        self._metrics = {**rollout_metrics(scored, config), **learned, "rollout/refills": rounds, **times}
        self._metrics |= self._sampler.metrics()
        if not self._sampler.exact:
            self._metrics |= sampler_gap(one.group for one in scored if one.group is not None)
        if self._reward_model is not None:
            self._metrics |= _judgement(self._judged[judged_before:], self._metrics)
        if config.rollout.drop_cut:
            self._metrics["completions/dropped_cut"] = sum(not c.finished for group in whole for c in group.completions)
        self._complain(step, scored, rounds, wanted)

    def _round(self, count: int, times: dict[str, float]) -> list[ScoredGroup]:
        """Answer and score the next `count` prompts; every process does its share, all get everything."""
        if self._config.source == "data":
            mine = self._next_prompts(count)
            return self._runtime.gather([_given(prompt) for _, prompt in mine])
        started = time.perf_counter()
        with self._answering():
            asked = self._ahead or self._ask(count)
            self._ahead = None
            drawn = self._runtime.together(asked.answers)
        times["time/sample_s"] += time.perf_counter() - started
        started = time.perf_counter()
        scored, faults = score_answers(self._scorer, self._encoder, [prompt for _, prompt in asked.prompts], drawn)
        faults = self._runtime.gather(faults)
        self._faults += len(faults)
        self._log.note(faults, phase="train")
        self._scorer.enforce(self._faults, faults)  # on all processes at once
        times["time/score_s"] += time.perf_counter() - started
        scored = self._runtime.gather(scored)
        if self._config.loss.sampler_cap is None and self._sampler.exact:
            return [_without_drawn_logp(one) for one in scored]
        return scored

    def _next_prompts(self, count: int) -> list[tuple[int, Prompt]]:
        """This process's share of the next prompts, numbered."""
        numbers = range(self._asked, self._asked + count)
        self._asked += count
        return self._runtime.share([(number, self._prompts[self._order[number]]) for number in numbers])

    def _ask(self, count: int) -> "_Asked":
        """Ask this process's share of the next `count` prompts."""
        mine = self._next_prompts(count)
        of_base = self._config.source == "base"
        answers = ask_answers(
            self._sampler,
            self._engine.policy.positions,
            [prompt for _, prompt in mine],
            n=self._config.rollout.completions_per_prompt,
            params=SamplingParams.of(self._config.sampling),
            seed=self._config.run.seed,
            # The base gives a prompt the same answers in every epoch: they were sampled once.
            streams=[self._order[number] if of_base else number for number, _ in mine],
        )
        return _Asked(mine, answers)

    def _publish(self, times: dict[str, float]) -> None:
        """Let the policy as it is now answer what is asked from here on."""
        started = time.perf_counter()
        self._sampler.publish()
        if not self._sampler.exact:
            times["time/publish_s"] = times.get("time/publish_s", 0.0) + time.perf_counter() - started

    def _teach_reward_model(self, step: int, times: dict[str, float]) -> dict[str, float]:
        """Before the first step, and then after every so many: let the reward model learn what the rewards said."""
        section = self._config.reward_model
        if self._reward_model is None or section is None or step % section.every:
            return {}
        if step == 0:
            self._judge(self._round(section.first_prompts, times))
        started = time.perf_counter()
        update = self._reward_model.update(self._judged, tokens_per_forward=self._config.run.tokens_per_forward)
        times["time/reward_model_s"] = time.perf_counter() - started
        self._judged = []
        if update is None:
            why = "no answers of different reward, so the reward model learned nothing"
            self._log.say(f"warning: step {step + 1}: {why}")
            return {}
        return {
            "reward_model/accuracy": update.accuracy,
            "reward_model/loss": update.loss,
            "reward_model/pairs": update.pairs,
            "reward_model/replayed": update.replayed,
        }

    def _judge(self, scored: Sequence[ScoredGroup]) -> None:
        """Keep what the rewards said for the next lesson of the reward model."""
        self._judged += [one.group for one in scored if one.group is not None]

    def _rewarded(self, scored: list[ScoredGroup], times: dict[str, float]) -> list[ScoredGroup]:
        """The same groups with the scores of the reward model, where there is one."""
        if self._reward_model is None:
            return scored
        self._judge(scored)
        started = time.perf_counter()
        groups = [one.group for one in scored if one.group is not None]
        model, tokens = self._reward_model, self._config.run.tokens_per_forward
        own = iter(
            self._runtime.spread(groups, lambda part: model.score(part, tokens_per_forward=tokens), forward_tokens)
        )
        times["time/score_s"] += time.perf_counter() - started
        return [one if one.group is None else with_outcomes(one, next(own)) for one in scored]

    def _answering(self) -> contextlib.AbstractContextManager[None]:
        """Inside, the active network is the one that answers."""
        return self._engine.policy.base() if self._config.source == "base" else contextlib.nullcontext()

    def _with_reference(self, groups: Sequence[Group]) -> list[Group]:
        return self._runtime.spread(
            groups,
            lambda part: reference_logprobs(
                self._engine,
                part,
                tokens_per_forward=self._config.run.tokens_per_forward,
                temperature=self._config.sampling.temperature,
            ),
            forward_tokens,
        )

    def _check(self, groups: Sequence[Group]) -> None:
        """The engine must find the log-probs that the tokens were drawn with, or every ratio would be wrong.

        Done for the first two rollouts of a process: before the first, a fresh adapter changes nothing yet.
        """
        self._to_check -= 1
        for group in groups:
            batch = pack([group.replace_completions(group.completions[:2])]).to(self._engine.policy.device)
            with torch.no_grad(), self._answering():
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
        loss = self._config.loss
        with_signal = sum(one.teaches(loss) for one in scored)
        full = with_signal >= wanted
        if full or (not rounds and with_signal > len(scored) // 10):
            return
        self._silent_rollouts += 1
        if self._silent_rollouts % 10 != 1:
            return
        scores = [c.score for one in scored if one.group is not None for c in one.group.completions]
        wanted_of_them = "a reward other than 0" if loss.advantage_baseline == "none" else "answers of different reward"
        level = f"rewards {min(scores):g} to {max(scores):g}" if scores else "no completion has a score"
        bound = f", the bound of {rounds} refills was reached with {with_signal} of {wanted}" if rounds else ""
        self._log.say(
            f"warning: step {step + 1}: {with_signal} of {len(scored)} groups have {wanted_of_them} "
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


def ask_answers(
    sampler: Sampler,
    positions: int | None,
    prompts: Sequence[Prompt],
    *,
    n: int,
    params: SamplingParams,
    seed: int,
    streams: Sequence[int],
) -> Answers:
    """Ask for completions of every prompt, no longer than `positions`. Fetching raises NotFinite naming prompts."""
    answers = sampler.ask(
        [prompt.prompt_ids for prompt in prompts],
        n=n,
        params=params,
        seed=seed,
        streams=streams,
        most_new_tokens=None if positions is None else [positions - len(prompt.prompt_ids) for prompt in prompts],
    )

    def fetched() -> list[list[Completion]]:
        try:
            return answers()
        except UnreadablePrompts as fault:
            unread = [Unanswered(key=prompts[i].key, prompt_ids=prompts[i].prompt_ids) for i in fault.indices]
            raise NotFinite(fault.what, unread) from fault

    return fetched


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
    """Completions of every prompt from the active network. Raises NotFinite naming prompts."""
    sampler = BuiltinSampler(engine, encoder.stop_ids)
    return ask_answers(sampler, engine.policy.positions, prompts, n=n, params=params, seed=seed, streams=streams)()


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
    weights = dict(zip(scorer.names, (reward.weight for reward in scorer.sections), strict=True))
    scored: list[ScoredGroup] = []
    start = 0
    for prompt, completions in zip(prompts, drawn, strict=True):
        part = slice(start, start + len(completions))
        places = [place for place in range(part.start, part.stop) if result.totals[place] is not None]
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
                steps=tuple(_steps(result, place, weights, answers[place], encoder) for place in places),
                each={
                    name: tuple(values[place] for place in places)
                    for name, values in result.by_reward.items()
                    if weights[name]
                },
            )
        )
        start += len(completions)
    return scored, result.faults


def _steps(
    result: ScoredAnswers, place: int, weights: Mapping[str, float], answer: Answer, encoder: TextEncoder
) -> Steps:
    """The weighted step rewards of one completion, by token; the outcome rewards are one more step, at the end."""
    steps = [
        (end, weights[name] * value)
        for name, column in result.steps.items()
        for end, value in _by_token(column[place] or (), answer, encoder)
        if weights[name]
    ]
    outcome = result.outcomes[place]
    if outcome is not None or not steps:
        steps.append((len(answer.token_ids) - 1, outcome or 0.0))
    return sorted(steps, key=lambda step: step[0])


def _by_token(steps: Sequence[tuple[int, float]], answer: Answer, encoder: TextEncoder) -> list[tuple[int, float]]:
    """Steps by the token that holds their last character; one that ends with the text ends with the last token.

    So the end token, which has no text, belongs to the last step.
    """
    count = len(answer.token_ids)
    found: list[tuple[int, float]] = []
    for end, value in steps:
        place = count - 1
        if end < len(answer.text):
            lengths = _LengthOfText(answer.token_ids, encoder)
            place = min(bisect.bisect_left(lengths, end, lo=1, hi=count) - 1, count - 1)
        found.append((place, value))
    return found


class _LengthOfText(Sequence[int]):
    """Characters in the text of the first i tokens, decoded when asked for: a search asks for a few."""

    def __init__(self, token_ids: tuple[int, ...], encoder: TextEncoder) -> None:
        self._ids = token_ids
        self._encoder = encoder

    def __len__(self) -> int:
        return len(self._ids) + 1

    def __getitem__(self, index: int) -> int:  # type: ignore[override]
        return len(self._encoder.decode(self._ids[:index]))


def _given(prompt: Prompt) -> ScoredGroup:
    """A row's own answer as what was learned from it: right by definition."""
    answer = prompt.answer
    if answer is None:
        raise ValueError(f"{prompt.key}: has no answer of its own")
    completion = Completion(token_ids=answer.token_ids, finished=answer.finished, score=1.0)
    length = len(answer.token_ids)
    group = Group(key=prompt.key, prompt_ids=prompt.prompt_ids, completions=(completion,))
    return ScoredGroup(group, {}, (length,), (answer.finished,), 0, steps=(((length - 1, 1.0),),))


def _uncut(group: Group) -> Group | None:
    """The group without completions that were cut; None where none is left."""
    whole = [completion for completion in group.completions if completion.finished]
    return group.replace_completions(whole) if whole else None


def _without_drawn_logp(one: ScoredGroup) -> ScoredGroup:
    """Nothing reads it: it would only be written into checkpoints."""
    if one.group is None:
        return one
    bare = one.group.replace_completions([replace(c, drawn_logp=None) for c in one.group.completions])
    return replace(one, group=bare)


def _judgement(judged: Sequence[Group], values: Mapping[str, float]) -> dict[str, float]:
    """What the rewards said of a rollout that a reward model scored, whose own mean then stands beside."""
    if not judged:
        return {}
    scores = [[completion.score for completion in group.completions] for group in judged]
    return {
        "reward_model/score": values["reward"],
        "reward": statistics.fmean(score for group in scores for score in group),
        "reward_std": statistics.fmean(statistics.pstdev(group) for group in scores),
    }


def sampler_gap(groups: Iterable[Group]) -> dict[str, float]:
    """How far the log-probs that another program drew with are from ours, over tokens, nats.

    Mean and largest size, and the mean of log(pi_sampler / pi_old), an estimate of KL(sampler || engine). With top-k
    and the like it holds what was cut off as well.

    >>> one = Completion(token_ids=(5, 0), finished=True, score=0.0, sampled_logp=torch.tensor([-1.0, -2.0]),
    ...     drawn_logp=torch.tensor([-1.5, -1.75]))
    >>> sampler_gap([Group(key="x:1", prompt_ids=(8,), completions=(one,))])
    {'sampler/gap': 0.375, 'sampler/gap_largest': 0.5, 'sampler/kl': -0.125}
    """
    parts = [
        c.drawn_logp - c.sampled_logp
        for group in groups
        for c in group.completions
        if c.drawn_logp is not None and c.sampled_logp is not None
    ]
    if not parts:
        return {}
    gap_T = torch.cat(parts)
    return {
        "sampler/gap": gap_T.abs().mean().item(),
        "sampler/gap_largest": gap_T.abs().max().item(),
        "sampler/kl": gap_T.mean().item(),
    }


def rollout_metrics(scored: Sequence[ScoredGroup], config: GrpoConfig) -> dict[str, float]:
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
        "groups/no_signal": sum(not one.teaches(config.loss) for one in scored),
        "frac_reward_zero_std": statistics.fmean(not one.teaches(config.loss) for one in scored),
    }
    if scores and config.source != "data":  # whose answers are right by definition
        values["reward"] = statistics.fmean(score for group in scores for score in group)
        values["reward_std"] = statistics.fmean(statistics.pstdev(group) for group in scores)
    for name in scored[0].by_reward:
        opinions = [value for one in scored for value in one.by_reward[name] if value is not None]
        if opinions:
            values[f"rewards/{name}/mean"] = statistics.fmean(opinions)
    return values
