"""Rollouts: prompts answered by the policy, scored, and turned into groups with advantages, for the loop to learn from.

The order is sample, score, skip what has no signal, add advantages, deal to processes, add reference log-probs. A
process answers prompts of its own and holds what it learns from; of the rest it knows counts. Everything that a
continued run needs is in `collect`: the place in the prompts, what is still to be learned from, where the reference was
moved to, the count of reward faults. Knows neither the loss nor how rewards come to their scores.
"""

import contextlib
import json
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from groupwise.data.text import TextEncoder
from groupwise.errors import Interrupted, RunStopped
from groupwise.groups import Group
from groupwise.model.drawing import SamplingParams
from groupwise.model.engine import LogprobEngine, reference_logprobs
from groupwise.model.sampler import Answers, Sampler
from groupwise.rewards.scorer import Scorer
from groupwise.train.order import EpochOrder
from groupwise.train.runtime import Runtime
from groupwise.train.share import Placed, StepShare, StepTotals, packed, sent, unpacked
from grpo.answering import ask_answers, given_answer, score_answers
from grpo.config import GrpoConfig
from grpo.credit import ScoredGroup, with_advantages
from grpo.dataset_utils import Prompt
from grpo.faults import FaultLog
from grpo.lessons import Lessons
from grpo.rollout_metrics import judgement, rollout_metrics, sampler_gap, silence
from grpo.start import check_reference, check_sampler

STATE = "rollout-state.json"


@dataclass(frozen=True, slots=True)
class _Asked:
    """Prompts of this process by their numbers, and their answers, which may still be on their way.

    `count` prompts were asked by all processes together, the last ones so far.
    """

    count: int
    prompts: dict[int, Prompt]
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
        lessons: Lessons | None = None,
    ) -> None:
        """With `lessons` a reward model scores what is learned from; the scorer's rewards order what it learns from."""
        self._prompts = prompts
        self._config = config
        self._engine = engine
        self._encoder = encoder
        self._scorer = scorer
        self._runtime = runtime
        self._log = faults
        self._order = EpochOrder(len(prompts), seed=config.run.seed)
        self._sampler = sampler
        self._asked = 0  # prompts so far, over all epochs and processes
        self._ahead: _Asked | None = None  # the next step's prompts, where they are asked beforehand
        self._minibatches: dict[int, StepShare] = {}  # those of the rollout that are still to be learned from
        self._passed_over: list[tuple[int, Group, str]] = []
        self._lessons = lessons
        self._taught_in_vain = False  # whether the reward model learned for a step that was then stopped
        self._metrics: dict[str, float] = {}
        self._to_check = 2 if sampler.exact else 0  # rollouts whose log-probs are compared with the engine's
        self._silent_rollouts = 0
        self._faults = 0  # of rewards, over all processes

    @property
    def total_steps(self) -> int:
        return self._config.steps

    def share(self, step: int) -> StepShare:
        """This process's groups of this step's minibatch; a new rollout is gathered where the last is used up."""
        count = self._config.rollout.minibatches
        period = count * self._config.rollout.updates
        place = step % period
        self._metrics, self._passed_over = {}, []
        with self._undone_if_stopped():
            if mix := self._config.loss.reference_moves(step):
                self._engine.policy.move_reference(mix)
            if place == 0:
                self._gather(step)
        share = self._minibatches[place % count]
        if place + count >= period:  # no later update needs it
            del self._minibatches[place % count]
        return share

    @contextlib.contextmanager
    def _undone_if_stopped(self) -> Generator[None, None, None]:
        """What is begun inside and stopped, for want of servers or by a signal, is as if it had not been begun.

        But for what a reward model has learned in between: then nothing can be collected any more.
        """
        policy, lessons = self._engine.policy, self._lessons
        before = (self._asked, self._ahead, dict(self._minibatches), self._silent_rollouts, self._faults)
        reference, judged, taught = policy.moved_reference, lessons and lessons.judged, lessons and lessons.updates
        try:
            yield
        except (RunStopped, Interrupted):
            self._asked, self._ahead, self._minibatches, self._silent_rollouts, self._faults = before
            policy.moved_reference = reference
            if lessons is not None:
                lessons.judged = judged or ()
                self._taught_in_vain = lessons.updates != taught
            raise

    def passed_over(self, count: int) -> Sequence[tuple[Group, str]]:
        """The first groups of the rollout that the last step gathered from which nothing can be learned."""
        mine = sorted(self._passed_over, key=lambda one: one[0])[:count]
        every = sorted(self._runtime.gather(mine), key=lambda one: one[0])
        return [(group, reason) for _, group, reason in every[:count]]

    def metrics(self) -> Mapping[str, float]:
        """Numbers of the rollout that the last step gathered; none where it went on with an earlier one."""
        return self._metrics

    @property
    def faults(self) -> int:
        """Completions of all rollouts so far that a reward gave no valid score, over all processes."""
        return self._faults

    # --- in checkpoints

    def collect(self) -> Callable[[Path], None] | None:
        """Collect on the main process what others hold of the rollout; None after a reward model learned in vain."""
        if self._taught_in_vain:
            return None
        files: dict[str, bytes] = {}
        for number, share in self._minibatches.items():
            files |= _named(f"rollout-{number}", self._runtime.to_main(packed(share.parts)))
        ahead = self._kept_ahead()
        if ahead is not None:
            files |= _named("ahead", self._runtime.to_main(packed(ahead)))
        lost = 0 if self._ahead is None or ahead is not None else self._ahead.count
        state = {
            "asked": self._asked - lost,
            "ahead": 0 if self._ahead is None or ahead is None else self._ahead.count,
            "minibatches": {number: asdict(share.totals) for number, share in self._minibatches.items()},
            "silent_rollouts": self._silent_rollouts,
            "faults": self._faults,
        }

        def write(folder: Path) -> None:
            for name, content in files.items():
                (folder / name).write_bytes(content)
            (folder / STATE).write_text(json.dumps(state) + "\n")
            self._engine.policy.save_reference(folder)
            if self._lessons is not None:
                self._lessons.save(folder)

        return write

    def restore(self, folder: Path) -> None:
        """Put back what `collect` had written; every process reads a part of the groups, and gets its own."""
        state: dict[str, Any] = json.loads((folder / STATE).read_text())
        self._asked, self._silent_rollouts, self._faults = state["asked"], state["silent_rollouts"], state["faults"]
        self._minibatches = {}
        for number, totals in state["minibatches"].items():
            parts = self._read(folder, f"rollout-{number}")
            self._minibatches[int(number)] = StepShare.restored(parts, StepTotals(**totals), self._runtime)
        if state["ahead"]:
            self._ahead = self._restored_ahead(state["ahead"], self._read(folder, "ahead"))
        self._engine.policy.restore_reference(folder)
        if self._lessons is not None:
            self._lessons.restore(folder)

    def _read(self, folder: Path, name: str) -> list[Placed]:
        """This process's share of the files that as many processes as there were have left."""
        files = self._runtime.in_turn(sorted(folder.glob(f"{name}-*.safetensors")))
        return [part for file in files for part in unpacked(file.read_bytes())]

    def _kept_ahead(self) -> list[Placed] | None:
        """What this process asked beforehand, when it is there; None where nothing was, or nobody answers.

        Such prompts are asked again after a restore, of the policy as it is then.
        """
        if self._ahead is None:
            return None
        try:
            drawn = self._runtime.together(self._ahead.answers)
        except (RunStopped, Interrupted) as reason:  # what is not finite among them: those prompts are asked again too
            self._log.say(f"warning: what was sampled ahead is not in this checkpoint: {reason}")
            return None
        return [
            ((number, 0), Group(key=prompt.key, prompt_ids=prompt.prompt_ids, completions=tuple(own)))
            for (number, prompt), own in zip(self._ahead.prompts.items(), drawn, strict=True)
        ]

    def _restored_ahead(self, count: int, parts: Sequence[Placed]) -> _Asked:
        """The last prompts that were asked, each with its answers on the process whose share it now is."""
        first = self._asked - count
        parcels: list[list[Placed]] = [[] for _ in range(self._runtime.processes)]
        for place, group in parts:
            parcels[(place[0] - first) % self._runtime.processes].append((place, group))
        answered = {place[0]: list(group.completions) for place, group in sent(parcels, self._runtime)}
        prompts = self._numbered(first, count)
        drawn = [answered[number] for number in prompts]
        return _Asked(count, prompts, lambda: drawn)

    # --- gathering

    def _gather(self, step: int) -> None:
        """Sample and score until the step is full or the refills are used up, then prepare what has a signal."""
        config = self._config
        wanted = config.run.groups_per_step * config.rollout.minibatches
        times = {"time/sample_s": 0.0, "time/score_s": 0.0, "time/reference_s": 0.0}
        if self._ahead is None:
            self._publish(times)
        learned = self._teach(step, times)
        judged_before = 0 if self._lessons is None else len(self._lessons.judged)
        scored: dict[int, ScoredGroup] = {}
        teaching, refills = 0, 0
        while True:
            scored |= self._judged(self._round(wanted - teaching, times), times)
            (teaching,) = map(int, self._runtime.sums([sum(one.teaches(config.loss) for one in scored.values())]))
            if teaching >= wanted or refills == config.rollout.most_refills:
                break
            refills += 1
        if config.sampling.ahead and step + 1 < config.steps:
            self._publish(times)
            self._ahead = self._ask(wanted)
        self._check_sampler(scored)
        self._deal(self._with_advantages(scored, times), times, fresh=step == 0)
        everything = list(scored.values())
        self._metrics |= rollout_metrics(everything, self._scorer.names, config, self._runtime)
        self._metrics |= {**learned, "rollout/refills": refills, **times, **self._sampler.metrics()}
        if not self._sampler.exact:
            groups = (one.group for one in everything if one.group is not None)
            self._metrics |= sampler_gap(groups, self._runtime)
        if self._lessons is not None:
            self._metrics |= judgement(self._lessons.judged[judged_before:], self._metrics)
        self._complain(step, everything, wanted, refills)

    def _round(self, count: int, times: dict[str, float]) -> dict[int, ScoredGroup]:
        """Answer and score this process's share of the next `count` prompts; by their numbers."""
        if self._config.source == "data":
            return {number: given_answer(prompt) for number, prompt in self._next_prompts(count).items()}
        started = time.perf_counter()
        with self._answering():
            asked = self._ahead or self._ask(count)
            self._ahead = None
            drawn = self._runtime.together(asked.answers)
        times["time/sample_s"] += time.perf_counter() - started
        started = time.perf_counter()
        scored, own_faults = score_answers(self._scorer, self._encoder, list(asked.prompts.values()), drawn)
        faults = self._runtime.gather(own_faults)
        self._faults += len(faults)
        self._log.note(faults, phase="train")
        self._scorer.enforce(self._faults, faults)  # on all processes at once
        times["time/score_s"] += time.perf_counter() - started
        if self._config.loss.sampler_cap is None and self._sampler.exact:
            scored = [_without_drawn_logp(one) for one in scored]
        return dict(zip(asked.prompts, scored, strict=True))

    def _teach(self, step: int, times: dict[str, float]) -> dict[str, float]:
        """Before the first step, and then after every so many: the reward model learns what the rewards said."""
        if self._lessons is None or not self._lessons.are_due(step):
            return {}
        if step == 0:
            self._lessons.note(self._round(self._lessons.first_prompts, times).values())
        return self._lessons.teach(step)

    def _judged(self, scored: dict[int, ScoredGroup], times: dict[str, float]) -> dict[int, ScoredGroup]:
        """The same groups with the scores of the reward model, where there is one."""
        if self._lessons is None:
            return scored
        self._lessons.note(scored.values())
        started = time.perf_counter()
        rescored = self._lessons.rescored(scored)
        times["time/score_s"] += time.perf_counter() - started
        return rescored

    def _next_prompts(self, count: int) -> dict[int, Prompt]:
        """This process's share of the next prompts, by their numbers."""
        self._asked += count
        return self._numbered(self._asked - count, count)

    def _numbered(self, first: int, count: int) -> dict[int, Prompt]:
        """This process's share of the prompts with these numbers."""
        mine = self._runtime.in_turn(range(first, first + count))
        return {number: self._prompts[self._order[number]] for number in mine}

    def _ask(self, count: int) -> _Asked:
        """Ask this process's share of the next `count` prompts."""
        mine = self._next_prompts(count)
        of_base = self._config.source == "base"
        answers = ask_answers(
            self._sampler,
            self._engine.policy.positions,
            list(mine.values()),
            n=self._config.rollout.completions_per_prompt,
            params=SamplingParams.of(self._config.sampling),
            seed=self._config.run.seed,
            # The base gives a prompt the same answers in every epoch: they were sampled once.
            streams=[self._order[number] if of_base else number for number in mine],
        )
        return _Asked(count, mine, answers)

    def _publish(self, times: dict[str, float]) -> None:
        """Let the policy as it is now answer what is asked from here on."""
        started = time.perf_counter()
        self._sampler.publish()
        if not self._sampler.exact:
            times["time/publish_s"] = times.get("time/publish_s", 0.0) + time.perf_counter() - started

    def _answering(self) -> contextlib.AbstractContextManager[None]:
        """Inside, the active network is the one that answers."""
        return self._engine.policy.base() if self._config.source == "base" else contextlib.nullcontext()

    def _check_sampler(self, scored: Mapping[int, ScoredGroup]) -> None:
        """Done for the first two rollouts of a process: before the first, a fresh adapter changes nothing yet."""
        if not self._to_check or self._config.source == "data":
            return
        groups = [one.group for one in scored.values() if one.group is not None and one.teaches(self._config.loss)]
        with self._answering():
            check_sampler(self._engine, groups, self._runtime, temperature=self._config.sampling.temperature)
        self._to_check -= bool(self._runtime.any(bool(groups)))

    # --- from scores to what is learned from

    def _with_advantages(self, scored: Mapping[int, ScoredGroup], times: dict[str, float]) -> dict[int, Group]:
        """The groups that teach, by their numbers, with advantages; those that do not are passed over."""
        loss = self._config.loss
        teaching = {number: one for number, one in scored.items() if one.teaches(loss)}
        groups = [one.group for one in teaching.values() if one.group is not None]
        if loss.kl_in_reward:  # a part of what advantages are made of
            groups = self._with_reference(groups, times)
        weights = dict(zip(self._scorer.names, (reward.weight for reward in self._config.rewards), strict=True))
        found = with_advantages(list(teaching.values()), groups, loss, weights, self._runtime)
        whole = dict(zip(teaching, found, strict=True))
        silent = "all rewards are 0" if loss.advantage_baseline == "none" else "all rewards are equal"
        self._passed_over = [
            (number, one.group, silent)
            for number, one in scored.items()
            if one.group is not None and number not in teaching
        ]
        return self._without_cut(whole) if self._config.rollout.drop_cut else whole

    def _without_cut(self, groups: Mapping[int, Group]) -> dict[int, Group]:
        """The same without completions that were cut, counted; a group of which none is left is passed over."""
        cut = sum(not c.finished for group in groups.values() for c in group.completions)
        self._metrics["completions/dropped_cut"] = int(self._runtime.sums([cut])[0])
        kept: dict[int, Group] = {}
        for number, group in groups.items():
            if finished := [c for c in group.completions if c.finished]:
                kept[number] = group.replace_completions(finished)
            else:
                self._passed_over.append((number, group, "all answers were cut"))
        return kept

    def _deal(self, groups: Mapping[int, Group], times: dict[str, float], *, fresh: bool) -> None:
        """Give every process its share of each minibatch. A group may be cut: its advantages are all that joins it."""
        count, loss = self._config.rollout.minibatches, self._config.loss
        rank = {number: i for i, number in enumerate(sorted(self._runtime.gather(list(groups))))}
        for minibatch in range(count):
            own = [(rank[n] // count, group) for n, group in groups.items() if rank[n] % count == minibatch]
            share = StepShare.collected(own, self._runtime, cut_to=self._config.run.tokens_per_forward)
            if loss.reads_reference_logp:
                if not loss.kl_in_reward:
                    share = share.replace_groups(self._with_reference(share.groups, times))
                if fresh and self._config.source != "data":
                    check_reference(self._engine, share.groups, self._runtime)
            self._minibatches[minibatch] = share

    def _with_reference(self, groups: Sequence[Group], times: dict[str, float]) -> list[Group]:
        """The same with the reference's log-probs of this process's groups."""
        started = time.perf_counter()
        tokens, temperature = self._config.run.tokens_per_forward, self._config.sampling.temperature
        found = self._runtime.together(
            lambda: reference_logprobs(self._engine, groups, tokens_per_forward=tokens, temperature=temperature)
        )
        times["time/reference_s"] += time.perf_counter() - started
        return found

    def _complain(self, step: int, scored: Sequence[ScoredGroup], wanted: int, refills: int) -> None:
        """Say when there is nothing, or hardly anything, to learn from; at the first time and then every tenth."""
        text = silence(scored, self._config, self._runtime, wanted=wanted, refills=refills)
        if text is None:
            return
        self._silent_rollouts += 1
        if self._silent_rollouts % 10 == 1:
            self._log.say(f"warning: step {step + 1}: {text}")


def _named(name: str, contents: Sequence[bytes]) -> dict[str, bytes]:
    """File names of what the processes hand in."""
    return {f"{name}-{process:05d}.safetensors": content for process, content in enumerate(contents)}


def _without_drawn_logp(one: ScoredGroup) -> ScoredGroup:
    """Nothing reads it: it would only be written into checkpoints."""
    if one.group is None:
        return one
    bare_of_it = one.group.replace_completions([replace(c, drawn_logp=None) for c in one.group.completions])
    return replace(one, group=bare_of_it)
