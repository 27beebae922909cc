"""Figures before and after: into summary.json, out of it again, onto the terminal. Knows no method's figures."""

import json
from collections.abc import Mapping

from rich.console import Console

from groupwise.observe.statistics import Figure
from groupwise.observe.table import before_after_table
from groupwise.train.run_folder import RunFolder

Figures = dict[str, Figure]


def as_json(figures: Figures) -> dict[str, dict[str, float]]:
    """Figures as summary.json holds them."""
    return {name: figure.as_dict() for name, figure in figures.items()}


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
