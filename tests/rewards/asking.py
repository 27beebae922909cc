"""Rewards that go wrong, completions to ask them about, and the time that may take."""

import contextlib
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Literal

from groupwise.rewards.protocol import Answer
from groupwise.sections import RewardSection, ScoringSection

FAULTY = Path(__file__).with_name("faulty_rewards.py")
POISON = "poison"
Policy = Literal["skip", "zero", "fail"]


def faulty(function: str, **options: object) -> RewardSection:
    return RewardSection(name=f"{FAULTY}:{function}", options=options)


def scoring(policy: Policy = "skip", *, time_limit: float = 10.0, workers: int = 1, after: int = 0) -> ScoringSection:
    return ScoringSection(on_fault=policy, time_limit=time_limit, workers=workers, fail_after=after)


def group(texts: Sequence[str], number: int = 0) -> list[Answer]:
    return [Answer(text=text, token_ids=(7,) * len(text), finished=True, group=number) for text in texts]


def rows_of(answers: Sequence[Answer]) -> list[dict[str, object]]:
    return [{"prompt": f"question {answer.group}", "answer": "18"} for answer in answers]


def is_gone(pid: int) -> bool:
    """Whether a process has ended within five seconds; a zombie that nobody has collected has."""
    end = time.monotonic() + 5
    while time.monotonic() < end:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False


@contextlib.contextmanager
def within_stated_time(time_limit: float, *, asked_again: int) -> Generator[None]:
    """time_limit + 1 s, as much for each completion asked again, and 10 s for each new process."""
    started = time.monotonic()
    yield
    calls = 1 + asked_again
    assert time.monotonic() - started < calls * (time_limit + 1 + 10)
