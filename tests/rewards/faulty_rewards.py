"""Rewards that go wrong on a completion whose text is "poison"; every other completion scores 1."""

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from groupwise.rewards.protocol import Answer, per_completion

Rows = Sequence[Mapping[str, Any]]
POISON = "poison"


def _raise() -> None:
    raise ZeroDivisionError("the reward's own bug")


def _exit() -> None:
    raise SystemExit(0)


def _sleep() -> None:
    time.sleep(600)


def _sleep_deaf() -> None:
    for number in (signal.SIGABRT, signal.SIGTERM, signal.SIGALRM):
        signal.signal(number, signal.SIG_IGN)
    time.sleep(600)


def _hold_the_interpreter() -> None:
    9**9**9  # hours of C code that answers no Python signal handler  # pyright: ignore[reportUnusedExpression]


def _end() -> None:
    os._exit(3)


def _segfault() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def _close_everything() -> None:
    os.closerange(0, 1000)


DEEDS: dict[str, Callable[[], None]] = {
    "raise": _raise,
    "exit": _exit,
    "sleep": _sleep,
    "sleep_deaf": _sleep_deaf,
    "hold_the_interpreter": _hold_the_interpreter,
    "end": _end,
    "segfault": _segfault,
    "close_everything": _close_everything,
}
VALUES: dict[str, object] = {"nan": float("nan"), "inf": float("inf"), "text": "1", "list": [1.0], "huge": 10**5000}
COUNTS: dict[str, Callable[[list[object]], object]] = {
    "too_few": lambda scores: scores[:-1],
    "too_many": lambda scores: [*scores, 1.0],
    "endless": lambda scores: iter(lambda: 1.0, None),
    "one_number": lambda scores: 1.0,
    "mapping": lambda scores: dict.fromkeys(range(len(scores)), 1.0),
    "nothing": lambda scores: None,
}


@per_completion
def faulty(rows: Rows, completions: Sequence[Answer], fault: str) -> object:
    scores: list[object] = [1.0 for _ in completions]
    poisoned = [i for i, answer in enumerate(completions) if answer.text == POISON]
    for place in poisoned:
        if fault in DEEDS:
            DEEDS[fault]()
        scores[place] = VALUES.get(fault, 1.0)
    return COUNTS[fault](scores) if poisoned and fault in COUNTS else scores


def faulty_group(rows: Rows, completions: Sequence[Answer], fault: str) -> object:
    """The same, but it does not say that it looks at one completion at a time."""
    return faulty(rows, completions, fault)


@per_completion
def spawns(rows: Rows, completions: Sequence[Answer], note: str, hang: bool) -> list[float]:
    """Starts a child that holds the pipes of this process open."""
    child = subprocess.Popen(["sleep", "600"], close_fds=False)
    with Path(note).open("a") as file:
        file.write(f"{child.pid}\n")
    if hang:
        child.wait()
    return [1.0 for _ in completions]


def forks(rows: Rows, completions: Sequence[Answer]) -> list[float]:
    """Both processes return, as when a programmer forgets that fork() returns twice."""
    child = os.fork()
    return [float(child > 0) for _ in completions]


def prints(rows: Rows, completions: Sequence[Answer]) -> list[float]:
    print('{"id": 1, "scores": [9.0]}', flush=True)
    os.write(1, b'{"id": 2, "scores": [9.0]}\n')
    subprocess.run(["echo", "hello"], check=True)
    return [1.0 for _ in completions]


def floods_then_raises(rows: Rows, completions: Sequence[Answer]) -> list[float]:
    for _ in range(3000):
        print("x" * 99)
    print("last words")
    os._exit(1)


def draws(rows: Rows, completions: Sequence[Answer]) -> list[float]:
    return [random.random() for _ in completions]


def process_id(rows: Rows, completions: Sequence[Answer]) -> list[float]:
    return [float(os.getpid()) for _ in completions]


def meets(rows: Rows, completions: Sequence[Answer], folder: str) -> list[float]:
    """How many processes have been here; the first one waits for a second one, until its time is over."""
    Path(folder, str(os.getpid())).touch()
    while len(os.listdir(folder)) < 2:
        time.sleep(0.01)
    return [float(len(os.listdir(folder))) for _ in completions]


def place(rows: Rows, completions: Sequence[Answer]) -> list[float]:
    """The number that the row and the completion agree on; uneven times, so that order must be kept on purpose."""
    time.sleep(random.random() / 50)
    pairs = zip(rows, completions, strict=True)
    return [float(row["number"]) if answer.text == str(row["number"]) else -1.0 for row, answer in pairs]


def sees(rows: Rows, completions: Sequence[Answer], **options: object) -> list[float]:
    """Shows its input in an error message."""
    raise RuntimeError(f"rows={list(rows)!r} completions={list(completions)!r} options={options!r}")


def mixed(rows: Rows, completions: Sequence[Answer]) -> Sequence[object]:
    return [True, False, None, 2, 0.5][: len(completions)]


async def asynchronous(rows: Rows, completions: Sequence[Answer]) -> list[float]:
    return [1.0 for _ in completions]


class AClass:
    pass


def takes_one(rows: Rows) -> list[float]:
    return []
