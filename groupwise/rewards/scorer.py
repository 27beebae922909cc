"""Scores groups of completions with the configured rewards, in worker processes, and says what became of each fault.

Knows nothing about how a reward works, nor what the scores are for. The protocol is in `protocol.py`, the processes in
`worker_pool.py`, one of them in `process.py`, what crosses the pipe in `wire.py`.
"""

import hashlib
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from groupwise.errors import RunStopped, UserError, listed
from groupwise.rewards.protocol import Answer, Steps, prompt_text
from groupwise.rewards.registry import BUILT_IN, GOLD_REWARDS
from groupwise.rewards.user_file import split_name
from groupwise.rewards.wire import Bad, FaultKind, Given, row_to_plain
from groupwise.rewards.worker_pool import Call, Loaded, WorkerPool
from groupwise.sections import RewardSection, ScoringSection

LARGEST_FLOAT32 = 3.4028234663852886e38


class RewardFailure(RunStopped):
    """More faults than `scoring.fail_after` under the policy "fail"; the message shows the last one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One completion that one reward gave no valid score; `index` is its place in the call to `Scorer.score`."""

    reward: str
    kind: FaultKind
    message: str
    prompt: str
    completion: str
    index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredAnswers:
    """The scores of R completions, in the order they were given.

    `totals` are the weighted sums; None: leave the completion out, for a fault under the policy skip or fail, or
    because no reward with a weight had an opinion. `by_reward` holds the unweighted scores under each reward's display
    name; None: no opinion, or a fault. A process reward's score is the mean over its steps; `steps` holds these, by
    display name, for process rewards alone. `outcomes` are the weighted sums without process rewards, None where no
    other reward had an opinion.
    """

    totals: tuple[float | None, ...]
    by_reward: Mapping[str, tuple[float | None, ...]]
    steps: Mapping[str, tuple[Steps | None, ...]]
    outcomes: tuple[float | None, ...]
    faults: tuple[Fault, ...]


class Scorer:
    """Rewards by name, each in a process that can be killed; use it as a context manager.

    Making one starts a worker, which loads every reward: a wrong name, option, file or package raises one UserError
    with all the problems before anything is trained. More workers start when they are needed. `fault_count` counts
    faults over the scorer's life, begun at `faults_before` when a run goes on; `names` are the rewards' display names.

    >>> reward = RewardSection(name="numeric_answer", options={"column": "answer"})
    >>> row = {"prompt": "6 x 3 = ?", "answer": "18"}
    >>> texts = ["Six threes.\\n#### 18.0", "#### 63"]
    >>> answers = [Answer(text=text, token_ids=(), finished=True, group=0) for text in texts]
    >>> with Scorer([reward], ScoringSection()) as scorer:
    ...     scorer.score([row, row], answers).totals
    (1.0, 0.0)
    """

    def __init__(self, rewards: Sequence[RewardSection], scoring: ScoringSection, *, faults_before: int = 0) -> None:
        if not rewards:
            raise UserError("rewards: name at least one reward")
        self.fault_count = faults_before
        self._scoring = scoring
        self._workers = WorkerPool(scoring)
        try:
            self._rewards = self._workers.load(rewards)
        except BaseException:
            self.close()
            raise
        self.sections = tuple(rewards)
        self.names = tuple(reward.name for reward in self._rewards)
        self.process_names = tuple(reward.name for reward in self._rewards if reward.scores_steps)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End every worker and all that rewards have started in them."""
        self._workers.close()

    def score(
        self, rows: Sequence[Mapping[str, object]], answers: Sequence[Answer], *, counted: bool = True
    ) -> ScoredAnswers:
        """Score R completions; rows[i] is the row of data that answers[i] completes.

        One call of a reward gets the completions of one group. Raises UserError when a row lacks a column that a reward
        needs, and RewardFailure under the policy "fail". Faults that are not `counted` are returned all the same, for a
        caller that counts over several processes and calls `enforce`.
        """
        if self._workers.closed:
            raise RuntimeError("this Scorer is closed")
        spans = _groups(rows, answers)
        plain = _rows_to_plain(rows)
        calls = [Call(r, plain[s.start : s.stop], answers[s.start : s.stop]) for r in self._rewards for s in spans]
        futures = [self._workers.submit(call) for call in calls]
        try:
            results = iter([future.result() for future in futures])
        except BaseException:
            self.close()  # the run is over: wait for no reward
            raise
        given = {
            reward.name: list(itertools.chain.from_iterable(next(results) for _ in spans)) for reward in self._rewards
        }
        given = {r.name: [_countable(s, r, len(self._rewards)) for s in given[r.name]] for r in self._rewards}
        table = {name: [_mean_of_steps(score) for score in column] for name, column in given.items()}
        outcomes = [r for r in self._rewards if not r.scores_steps]
        faults = tuple(
            Fault(
                reward=name,
                kind=score.kind,
                message=score.message,
                prompt=prompt_text(rows[index]),
                completion=answers[index].text,
                index=index,
            )
            for name, column in table.items()
            for index, score in enumerate(column)
            if isinstance(score, Bad)
        )
        if counted:
            self.fault_count += len(faults)
            self.enforce(self.fault_count, faults)
        return ScoredAnswers(
            totals=tuple(self._total(self._rewards, table, i) for i in range(len(answers))),
            by_reward={n: tuple(None if isinstance(s, Bad) else s for s in column) for n, column in table.items()},
            steps={n: tuple(s if isinstance(s, tuple) else None for s in given[n]) for n in self.process_names},
            outcomes=tuple(self._total(outcomes, table, i) for i in range(len(answers))),
            faults=faults,
        )

    def fingerprint(self) -> str:
        """SHA-256 over the files of the users' rewards, whose code scores depend on."""
        digest = hashlib.sha256()
        for reward in self._rewards:
            if reward.section.name not in BUILT_IN and (parts := split_name(reward.section.name)) is not None:
                digest.update(Path(parts[0]).read_bytes())
        return digest.hexdigest()

    def check_rows(self, rows: Sequence[Mapping[str, object]], keys: Sequence[str]) -> None:
        """Let the rewards that compare with a gold answer look at every row; `keys` name the rows for people.

        Raises UserError with all rows that lack the column, or whose gold answer no completion could equal: they are
        found before anything is trained.
        """
        plain = _rows_to_plain(rows)
        for reward in self._rewards:
            if reward.section.name in GOLD_REWARDS and self._problem_of(reward, plain):
                found = [(key, self._problem_of(reward, [row])) for key, row in zip(keys, plain, strict=True)]
                raise UserError(listed([f"{key}: {problem}" for key, problem in found if problem]))

    def _problem_of(self, reward: Loaded, rows: Sequence[dict[str, Any]]) -> str:
        """What a reward that compares with gold answers says against these rows."""
        blank = Answer(text="", token_ids=(), finished=True, group=0)
        try:
            self._workers.scores(Call(reward, rows, [blank] * len(rows)), limit_s=self._scoring.load_limit)
        except UserError as error:
            return str(error)
        return ""

    def enforce(self, count: int, faults: Sequence[Fault]) -> None:
        """Raise RewardFailure, showing the last of these faults, where the policy is "fail" and `count` is too many."""
        if faults and self._scoring.on_fault == "fail" and count > self._scoring.fail_after:
            last = faults[-1]
            raise RewardFailure(
                f"the reward {last.reward} {last.kind}: {_short(last.message)}\n"
                f"  prompt: {_short(last.prompt)}\n"
                f"  completion: {_short(last.completion)}\n"
                f"{count} completions were left without a valid score, "
                f"scoring.fail_after allows {self._scoring.fail_after}"
            )

    def _total(
        self, rewards: Sequence[Loaded], table: Mapping[str, Sequence[float | None | Bad]], index: int
    ) -> float | None:
        """The weighted sum of the scores that these rewards gave one completion."""
        parts: list[float] = []
        for reward in rewards:
            score = table[reward.name][index]
            if reward.section.weight == 0 or score is None:
                continue
            if isinstance(score, Bad):
                if self._scoring.on_fault != "zero":
                    return None
                score = 0.0
            parts.append(reward.section.weight * score)
        # What differs by the rounding of a sum (0.1 + 0.2 and 0.3) must not look like a better answer.
        return float(np.float32(math.fsum(parts))) if parts else None


def _groups(rows: Sequence[Mapping[str, object]], answers: Sequence[Answer]) -> list[range]:
    """The places of each group's completions."""
    if len(rows) != len(answers):
        raise ValueError(f"{len(rows)} rows for {len(answers)} completions")
    spans: list[range] = []
    for _, places in itertools.groupby(range(len(answers)), key=lambda i: answers[i].group):
        found = list(places)
        spans.append(range(found[0], found[-1] + 1))
    if len({answers[span.start].group for span in spans}) < len(spans):
        raise ValueError("completions of one group must stand next to each other")
    return spans


def _rows_to_plain(rows: Sequence[Mapping[str, object]]) -> list[dict[str, Any]]:
    """Every row as JSON can hold it; what was one object stays one."""
    plain: dict[int, dict[str, Any]] = {}
    for row in rows:
        if id(row) not in plain:
            plain[id(row)] = row_to_plain(row)
    return [plain[id(row)] for row in rows]


def _countable(score: Given, reward: Loaded, rewards: int) -> Given:
    """The score, unless its part of the sum could leave the range of float32, in which advantages are computed."""
    if score is None or isinstance(score, Bad):
        return score
    values = [value for _, value in score] if isinstance(score, tuple) else [score]
    largest = max(values, key=abs)
    if abs(largest * reward.section.weight) <= LARGEST_FLOAT32 / rewards / len(values):
        return score
    return Bad("not finite", f"returned {largest:g}, which times its weight is beyond the range of float32")


def _mean_of_steps(score: Given) -> float | None | Bad:
    return math.fsum(value for _, value in score) / len(score) if isinstance(score, tuple) else score


def _short(text: str, most: int = 500) -> str:
    return repr(text if len(text) <= most else text[:most] + "...")
