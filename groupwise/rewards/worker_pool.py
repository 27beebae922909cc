"""Rewards loaded into worker processes and called there, each call within its time.

Knows how a call can fail and what that leaves, not what scores are for.
"""

import itertools
import os
import queue
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from groupwise.errors import UserError, listed
from groupwise.rewards.process import WorkerLost, WorkerProcess
from groupwise.rewards.protocol import Answer
from groupwise.rewards.registry import problems_before_loading
from groupwise.rewards.wire import Bad, Given, answers_to_plain, scores_from_plain
from groupwise.sections import RewardSection, ScoringSection


@dataclass(frozen=True, slots=True)
class Loaded:
    """A reward as the configuration names it, and what its loading said of it."""

    index: int
    section: RewardSection
    name: str
    per_completion: bool
    scores_steps: bool

    @property
    def key(self) -> str:
        return f"rewards[{self.index}]"


@dataclass(frozen=True, slots=True)
class Call:
    """One reward on neighbouring completions of one group."""

    reward: Loaded
    rows: Sequence[dict[str, Any]]
    answers: Sequence[Answer]

    def one_by_one(self) -> "list[Call]":
        return [Call(self.reward, [r], [a]) for r, a in zip(self.rows, self.answers, strict=True)]


class _Failed(Exception):
    """A call that gave no scores at all."""

    def __init__(self, bad: Bad, *, can_be_split: bool) -> None:
        super().__init__(bad.message)
        self.bad = bad
        self.can_be_split = can_be_split


class WorkerPool:
    """Processes that rewards are loaded into; as many as `scoring.workers`, each started when it is first needed."""

    def __init__(self, scoring: ScoringSection) -> None:
        self.closed = False
        self._scoring = scoring
        self._all_workers = [
            WorkerProcess(os.getcwd(), environment=scoring.environment) for _ in range(scoring.workers)
        ]
        self._idle: queue.LifoQueue[WorkerProcess] = queue.LifoQueue()  # the last one used has its rewards loaded
        for worker in self._all_workers:
            self._idle.put(worker)
        self._executor = ThreadPoolExecutor(scoring.workers, thread_name_prefix="rewards")

    def load(self, rewards: Sequence[RewardSection]) -> list[Loaded]:
        """Load every reward. Raises UserError with all the problems of all rewards."""
        worker = self._all_workers[-1]  # the one that the first call will get
        problems: list[str] = []
        loaded: list[Loaded] = []
        for (index, section), name in zip(enumerate(rewards), _display_names(rewards), strict=True):
            key = f"rewards[{index}]"
            found = problems_before_loading(section.name, section.options, key)
            if not found:
                try:
                    answer = _load_request(worker, index, section, self._scoring.load_limit)
                except WorkerLost as lost:
                    problem = f"{key}: {section.name} cannot be loaded: it {lost.kind}: {lost}"
                    answer: dict[str, Any] = {"problems": [problem]}
                found = answer.get("problems", [])
                marks = {mark: answer.get(mark, False) for mark in ("per_completion", "scores_steps")}
                loaded.append(Loaded(index, section, name, **marks))
            problems += found
        if problems:
            raise UserError(listed(problems))
        return loaded

    def submit(self, call: Call) -> Future[list[Given]]:
        """The scores of one call, when a worker has had time for it."""
        return self._executor.submit(self.scores, call)

    def scores(self, call: Call, *, limit_s: float | None = None) -> list[Given]:
        """The scores of one call; where the reward allows it, one fault costs one completion."""
        try:
            return self._ask(call, limit_s or self._scoring.time_limit)
        except _Failed as failure:
            if not (failure.can_be_split and call.reward.per_completion and len(call.answers) > 1):
                return [failure.bad] * len(call.answers)
        return list(itertools.chain.from_iterable(self.scores(one) for one in call.one_by_one()))

    def _ask(self, call: Call, limit_s: float) -> list[Given]:
        worker = self._idle.get()
        try:
            if self.closed:
                raise RuntimeError("closed while a call waited for its worker")
            if not worker.is_alive() or call.reward.index not in worker.loaded:
                self._reload(worker, call.reward)
            distinct = list({id(row): row for row in call.rows}.values())
            place = {id(row): i for i, row in enumerate(distinct)}
            answer = worker.request(
                {
                    "do": "score",
                    "index": call.reward.index,
                    "rows": distinct,
                    "row_of": [place[id(row)] for row in call.rows],
                    "completions": answers_to_plain(call.answers),
                },
                limit_s,
            )
        except WorkerLost as lost:
            raise _Failed(Bad(lost.kind, str(lost)), can_be_split=True) from None
        finally:
            self._idle.put(worker)
        if "user_error" in answer:
            raise UserError(f"{call.reward.key} ({call.reward.name}): {answer['user_error']}")
        if "bad" in answer:
            bad = Bad(*answer["bad"])
            raise _Failed(bad, can_be_split=bad.kind == "raised")
        return scores_from_plain(answer["scores"])

    def _reload(self, worker: WorkerProcess, reward: Loaded) -> None:
        """Load a reward, which loaded at the start, into a process that has not got it."""
        try:
            answer = _load_request(worker, reward.index, reward.section, self._scoring.load_limit)
        except WorkerLost as lost:
            raise _Failed(Bad(lost.kind, f"while it was loaded again: {lost}"), can_be_split=False) from None
        if "problems" in answer:
            message = f"while it was loaded again: {listed(answer['problems'])}"
            raise _Failed(Bad("raised", message), can_be_split=False)

    def close(self) -> None:
        """End every worker and all that rewards have started in them."""
        self.closed = True
        for worker in self._all_workers:
            worker.end()
        self._executor.shutdown(wait=True, cancel_futures=True)
        for worker in self._all_workers:
            worker.free()


def _load_request(worker: WorkerProcess, index: int, section: RewardSection, limit_s: float) -> dict[str, Any]:
    answer = worker.request(
        {
            "do": "load",
            "index": index,
            "name": section.name,
            "options": section.options,
            "key": f"rewards[{index}]",
        },
        limit_s,
    )
    if "problems" not in answer:
        worker.loaded.add(index)
    return answer


def _display_names(rewards: Sequence[RewardSection]) -> list[str]:
    """Short names that tell the rewards apart: of a user's file the function, and from the second use on its number.

    >>> _display_names([RewardSection(name=name) for name in ("length", "mine.py:length", "repetition")])
    ['length', 'length#2', 'repetition']
    """
    names: list[str] = []
    seen: dict[str, int] = {}
    for reward in rewards:
        name = reward.name.rpartition(":")[2]
        seen[name] = seen.get(name, 0) + 1
        names.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return names
