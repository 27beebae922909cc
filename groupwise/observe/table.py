"""Before and after as a table for the terminal. Knows nothing about which direction is an improvement."""

import math
from collections.abc import Mapping

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from groupwise.observe.statistics import Figure

MARK = "*"


def before_after_table(before: Mapping[str, Figure], after: Mapping[str, Figure], labels: Mapping[str, str]) -> Table:
    """One row per entry of `labels` (name -> text shown, with its unit), each value with its 95 % interval.

    A row is marked when the two intervals do not overlap. That is a careful mark: a paired difference can be clear
    while the intervals still overlap. Figures of fewer than two items are never marked. Raises ValueError naming every
    label without a figure on both sides.

    >>> from rich.console import Console
    >>> table = before_after_table(
    ...     {"correct": Figure(0.35, 0.30, 0.40, 256)}, {"correct": Figure(0.61, 0.55, 0.67, 256)},
    ...     {"correct": "correct answers"})
    >>> table.row_count, separated(Figure(0.35, 0.30, 0.40, 256), Figure(0.61, 0.55, 0.67, 256))
    (1, True)
    """
    missing = [name for name in labels if name not in before or name not in after]
    if missing:
        raise ValueError(f"no figure before and after for: {', '.join(missing)}")
    # Narrow enough for a terminal of 80 columns: labels must not be broken up.
    table = Table(
        caption=f"[ ]: 95 % interval.  {MARK}: the two intervals do not overlap.",
        caption_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    table.add_column("", no_wrap=True)
    for heading in ("before", "after", "change"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("n", justify="right", no_wrap=True)
    for name, label in labels.items():
        table.add_row(*_row(label, before[name], after[name]))
    return table


def separated(before: Figure, after: Figure) -> bool:
    """Whether the two intervals have no point in common, with at least two items behind each."""
    return min(before.n, after.n) > 1 and (before.high < after.low or after.high < before.low)


def _row(label: str, before: Figure, after: Figure) -> list[Text]:
    decimals = min(_decimals(before), _decimals(after))
    marked = separated(before, after)
    counts = str(before.n) if before.n == after.n else f"{before.n} / {after.n}"
    return [
        Text(label),
        _with_interval(before, decimals),
        _with_interval(after, decimals),
        Text(f"{after.value - before.value:+.{decimals}f}{MARK if marked else ' '}", style="bold" if marked else ""),
        Text(counts, style="dim"),
    ]


def _with_interval(figure: Figure, decimals: int) -> Text:
    interval = f" [{figure.low:.{decimals}f}, {figure.high:.{decimals}f}]"
    return Text.assemble(f"{figure.value:.{decimals}f}", (interval, "dim"))


def _decimals(figure: Figure) -> int:
    """Decimals for two digits of the interval's half width (of a width of 0: three of the value), few enough to fit."""
    half = (figure.high - figure.low) / 2
    scale, digits = (half, 2) if half > 0 else (abs(figure.value), 3)
    most = 1 if max(abs(figure.low), abs(figure.high)) >= 10 else 3
    return min(2, most) if scale == 0 else min(most, max(0, digits - 1 - math.floor(math.log10(scale))))
