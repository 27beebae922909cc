"""What summary.json holds of every run: into it, out of it again, onto the terminal. Knows no method's figures."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console

from groupwise.data.rows import source_hash
from groupwise.observe.statistics import Figure
from groupwise.observe.table import before_after_table
from groupwise.observe.versions import versions
from groupwise.train.loop import FitResult
from groupwise.train.run_folder import RunFolder

Figures = dict[str, Figure]


def as_json(figures: Figures) -> dict[str, dict[str, float]]:
    """Figures as summary.json holds them."""
    return {name: figure.as_dict() for name, figure in figures.items()}


def run_facts(
    result: FitResult,
    *,
    attention: str,
    seed: int,
    processes: int,
    sharding: str,
    base_model: str,
    sources: Sequence[str],
    reports: Mapping[str, Mapping[str, object]],
) -> dict[str, object]:
    """What a run cost and what it was made of: the part of summary.json that is no figure.

    `base_model` is the policy's `base_fingerprint`, `reports` the account of each part of the data.
    """
    return {
        "train_seconds": round(result.seconds, 2),
        "steps": result.steps,
        "tokens": result.tokens,
        "skipped_steps": result.skipped,
        "adapter_step": result.steps if result.choice is None else result.choice.step,
        "alarms": [alarm.as_dict() for alarm in result.alarms],
        "attention": attention,
        "processes": processes,
        "sharding": sharding,
        "seeds": {"run": seed},
        "hashes": {"base_model": base_model, "data": {source: source_hash(source) for source in sources}},
        "data": dict(reports),
        "versions": versions(),
    }


def print_health(result: FitResult, judged: Mapping[str, Any], say: Callable[[str], None]) -> None:
    """What a person should know of the way to the figures, alarms and skipped steps, and the verdict last."""
    if result.skipped:
        say(f"warning: {result.skipped} steps were skipped because something was not finite")
    for alarm in result.alarms:
        say(f"alarm: step {alarm.step}: {alarm.text}")
    if not result.alarms:
        say("no alarms")
    say(judged["verdict"]["text"])


def stored_figures(folder: RunFolder) -> tuple[Figures, Figures]:
    """The figures before and after that a finished run has in its summary."""
    summary: Mapping[str, Mapping[str, Mapping[str, float]]] = json.loads(folder.summary.read_text())

    def figures(part: str) -> Figures:
        return {
            name: Figure(value=value["value"], low=value["low"], high=value["high"], n=int(value["n"]))
            for name, value in summary[part].items()
        }

    return figures("before"), figures("after")


def print_figures(before: Figures, after: Figures, labels: Mapping[str, str], *, console: Console) -> None:
    """The table of those figures that have a label, in the labels' order."""
    console.print(before_after_table(before, after, {name: label for name, label in labels.items() if name in before}))
