"""Metrics as columns that a browser draws. Knows nothing about drawing, nor about what a metric means."""

from collections.abc import Mapping, Sequence
from typing import Any

from groupwise.observe.figure import Panel

MOST_POINTS = 4000  # of one curve; each is then the mean of several steps, and the page says so
_DIGITS = 5


def chart(panel: Panel, rows: Sequence[Mapping[str, float]], width: int) -> dict[str, Any] | None:
    """A panel's lines over the steps, held-out values and their intervals beside them; None where nothing is logged.

    `rows` and `width` are what `thinned` gives.
    """
    logged = {name for row in rows for name in row}
    names = [name for name in panel.lines.values() if name in logged]
    held_out = [f"eval/{name}" for name in panel.lines.values() if f"eval/{name}" in logged]
    if not names and not held_out:
        return None
    labels = {name: label for label, name in panel.lines.items()}
    series = [_series(rows, name, labels[name], held_out=name.startswith("eval/")) for name in names]
    for name in held_out:
        label = f"{labels[name.removeprefix('eval/')]}, held-out"
        series.append(_series(rows, name, label, held_out=True))
    return {
        "title": panel.title,
        "unit": panel.y_label,
        "x": [int(row["step"]) for row in rows],
        "series": series,
        "limits": list(panel.limits),
        "reference": panel.reference,
        "referenceLabel": panel.reference_label,
        "mean": width,
    }


def thinned(rows: Sequence[Mapping[str, float]]) -> tuple[Sequence[Mapping[str, float]], int]:
    """At most MOST_POINTS rows, each the mean over as many neighbours as the second value says.

    >>> thinned([{"step": 1, "loss": 2.0}])
    ([{'step': 1, 'loss': 2.0}], 1)
    """
    width = -(-len(rows) // MOST_POINTS) if rows else 1
    if width == 1:
        return rows, 1
    return [_mean_row(rows[start : start + width]) for start in range(0, len(rows), width)], width


def _mean_row(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means of every name over the rows that have it, at the last row's step."""
    values: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.items():
            values.setdefault(name, []).append(value)
    return {name: sum(own) / len(own) for name, own in values.items()} | {"step": rows[-1]["step"]}


def _series(rows: Sequence[Mapping[str, float]], name: str, label: str, *, held_out: bool) -> dict[str, Any]:
    def column(key: str) -> list[float | None]:
        return [_short(row.get(key)) for row in rows]

    band = {"low": column(f"{name}/low"), "high": column(f"{name}/high")} if held_out else {}
    return {"label": label, "heldOut": held_out, "y": column(name), **band}


def _short(value: float | None) -> float | None:
    """Enough digits for a screen."""
    return None if value is None else float(f"{value:.{_DIGITS}g}")
