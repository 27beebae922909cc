"""Do all processes hold the same? Where they do not, they would train on mixed weights, or never meet again.

Knows nothing about what is compared.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from groupwise.errors import UserError, listed
from groupwise.train.exchange import Exchange

_SHOWN = 40  # characters of a value
ONE_DISK = (
    "the run's folder must be one and the same for all: put it on a disk that all nodes see, or, if it is on one, wait "
    "until that shows every node the same"
)


def check_same(facts: Mapping[str, str], exchange: Exchange, *, remedy: str) -> None:
    """Raise UserError, on every process, where one holds another value under a name than the main process does.

    >>> check_same({"run.seed": "0"}, Exchange(1, 0), remedy="start all processes by the same command")
    """
    everyones = exchange.gather([dict(facts)])
    problems: list[str] = []
    for name, wanted in everyones[0].items():
        other = next((i for i, own in enumerate(everyones) if own.get(name) != wanted), None)
        if other is not None:
            theirs = everyones[other].get(name, "nothing")
            problems.append(f"  {name}: {_shown(wanted)} on process 0, {_shown(theirs)} on process {other}")
    if problems:
        raise UserError(listed([f"the processes of this run do not hold the same; {remedy}", *problems]))


def _shown(value: str) -> str:
    return value if len(value) <= _SHOWN else f"{value[:_SHOWN]}..."


def file_hash(file: Path) -> str:
    """SHA-256 of a small file as this process sees it, to be compared."""
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else "no such file"
