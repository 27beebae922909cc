"""What the report must know of a method: its curves by the question they answer, and how a prompt is passed."""

from collections.abc import Mapping
from dataclasses import dataclass

from groupwise.observe.alarms import Watched
from groupwise.observe.figure import Panel


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """`questions` maps a question to its curves.

    `held_out` names the value of heldout.jsonl that says how well a prompt goes, `held_out_label` what it is; from
    `passed_from` on the prompt is passed (above it, where `passed_above`). `decides` and `cost` are figures of
    summary.json, drawn against each other when runs are compared; `path` is the pair of metrics, cost first, that
    draws the same inside a run, None where a run does not measure both. `shares` are the figures shown in per cent.
    """

    name: str
    questions: Mapping[str, tuple[Panel, ...]]
    watched: Watched
    held_out: str
    held_out_label: str
    passed_from: float
    passed_above: bool = False
    labels: Mapping[str, str]
    shares: frozenset[str]
    decides: tuple[str, ...]
    cost: str = "kl/sequence"
    path: tuple[str, str] | None = None

    def passes(self, value: float) -> bool:
        return value > self.passed_from if self.passed_above else value >= self.passed_from
