"""What an evaluation found on held-out data: figures for the curves, and values prompt by prompt for everything else.

Knows nothing about what was measured.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from groupwise.observe.metrics import read_json_lines


@dataclass(frozen=True, slots=True)
class Evaluation:
    """`figures` are flat numbers for metrics.jsonl, `values[name][i]` belongs to the prompt `keys[i]`."""

    figures: Mapping[str, float]
    keys: Sequence[str]
    values: Mapping[str, Sequence[float | None]]

    def as_record(self, step: int) -> dict[str, object]:
        """The line of heldout.jsonl."""
        return {"step": step, "keys": list(self.keys), "values": {name: list(own) for name, own in self.values.items()}}


@dataclass(frozen=True, slots=True)
class Evaluated:
    """A line of heldout.jsonl; None where a prompt could not be judged."""

    step: int
    values: Mapping[str, Mapping[str, float | None]]


def read_heldout(path: Path) -> list[Evaluated]:
    """All evaluations of a run, in order; none where the file is not there. Errors as in `read_json_lines`."""
    if not path.is_file():
        return []
    found: list[Evaluated] = []
    for row in read_json_lines(path):
        step, keys, values = row["step"], row["keys"], row["values"]
        assert isinstance(step, int) and isinstance(keys, list) and isinstance(values, dict)
        found.append(Evaluated(step, {str(name): dict(zip(keys, own, strict=True)) for name, own in values.items()}))
    return found
