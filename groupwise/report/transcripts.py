"""As many steps of a `transcripts.jsonl` as a page can hold, spread evenly over the run. Knows nothing about pages."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from groupwise.errors import UserError

_STEP = re.compile(rb'\{"step": (\d+)')


@dataclass(frozen=True, slots=True)
class Transcripts:
    """The groups of `shown` of the `written` steps that the file has."""

    groups: Sequence[dict[str, Any]]
    shown: int
    written: int


def spread_transcripts(path: Path, *, most_bytes: int) -> Transcripts:
    """Whole steps, evenly spread and the last one always, whose lines take no more than `most_bytes` together.

    Only what is shown is parsed. Raises UserError naming a line that is no line of such a file.
    """
    if not path.is_file():
        return Transcripts((), 0, 0)
    steps: dict[int, list[tuple[int, bytes]]] = {}
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        begins = _STEP.match(line)
        if begins is None:
            raise UserError(f"{path}:{number}: does not begin with a step; remove the line, or restore the file")
        steps.setdefault(int(begins[1]), []).append((number, line))
    kept = _spread(steps, most_bytes)
    return Transcripts([_parsed(path, *one) for step in kept for one in steps[step]], len(kept), len(steps))


def _spread(steps: dict[int, list[tuple[int, bytes]]], most_bytes: int) -> list[int]:
    """Every k-th step counted from the last, for the smallest k that fits."""
    numbers = sorted(steps, reverse=True)
    size = {step: sum(len(line) for _, line in lines) for step, lines in steps.items()}
    every = 1
    while len(numbers[::every]) > 1 and sum(size[step] for step in numbers[::every]) > most_bytes:
        every += 1
    return numbers[::every][::-1]


def _parsed(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        return dict(json.loads(line))
    except ValueError as error:
        raise UserError(f"{path}:{number}: not JSON: {error}; remove the line, or restore the file") from error
