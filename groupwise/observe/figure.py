"""Learning curves as a picture, drawn from a `metrics.jsonl`. Knows nothing about methods: panels say what to draw."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from groupwise.errors import UserError, listed
from groupwise.observe.metrics import read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WIDTH_INCHES, _ROW_INCHES, _DPI = 8.0, 2.75, 200  # shown 800 pixels wide, 9 points are 12.5 pixels high
_COLOURS = ("#2166ac", "#b2182b", "#4d9221", "#762a83")  # told apart by most colour-blind readers, and in grey
_DARK = ("#0b2a4a", "#5c0d17", "#24480f", "#3b1442")  # held-out points, to be seen on top of their line
_SMOOTH_FROM = 12  # fewer points are drawn as they are

_STYLE: dict[str, object] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "text.parse_math": False,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One small plot: `lines` maps a legend text to a metric name, at most four.

    Held-out points are drawn for every line whose name also exists under `eval/`; their intervals come from
    `eval/NAME/low` and `eval/NAME/high`. `y_label` says the quantity and its unit. `limits` fixes either end of the
    y axis. `reference` is a dashed horizontal line (chance, ln 2) with `reference_label`.

    >>> Panel(title="Loss", y_label="nat", lines={"loss": "loss"}, limits=(0.0, None)).reference is None
    True
    """

    title: str
    y_label: str
    lines: Mapping[str, str]
    limits: tuple[float | None, float | None] = (None, None)
    reference: float | None = None
    reference_label: str = field(default="")

    def __post_init__(self) -> None:
        if not 1 <= len(self.lines) <= len(_COLOURS):
            raise ValueError(f"panel {self.title!r} has {len(self.lines)} lines, expected 1 to {len(_COLOURS)}")


@dataclass(frozen=True, slots=True)
class _Series:
    """Values of one metric at the steps where it was logged."""

    step: NDArray[np.float64]
    value: NDArray[np.float64]


def learning_curve(metrics_path: Path | str, out_png: Path | str, *, panels: Sequence[Panel], title: str) -> None:
    """Draw the panels, two in a row, into a PNG 1,600 pixels wide; the same metrics always give the same bytes.

    Raises UserError when the file is missing or holds none of a line's metrics, and names the nearest one it does hold.
    """
    if not panels:
        raise ValueError("no panels to draw")
    records = read_metrics(metrics_path)
    _check_names(Path(metrics_path), records, panels)

    import matplotlib.style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    with matplotlib.style.context(["default", _STYLE]):
        layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08)
        figure = Figure(figsize=(_WIDTH_INCHES, _ROW_INCHES * rows + 0.4), dpi=_DPI, layout=layout)
        FigureCanvasAgg(figure)
        figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
        for index, panel in enumerate(panels):
            _draw_panel(figure.add_subplot(rows, columns, index + 1), panel, records)
        figure.savefig(out_png, format="png", metadata={"Software": None})


def _check_names(path: Path, records: Sequence[Mapping[str, float]], panels: Sequence[Panel]) -> None:
    known = {name for record in records for name in record}
    problems: list[str] = []
    for panel in panels:
        for name in panel.lines.values():
            if name not in known and f"eval/{name}" not in known:
                near = difflib.get_close_matches(name, sorted(known), n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                problems.append(f"{path}: panel {panel.title!r}: no metric named {name}{hint}")
    if problems:
        raise UserError(listed(problems))


def _series(records: Sequence[Mapping[str, float]], name: str) -> _Series:
    points = [(record["step"], record[name]) for record in records if name in record]
    array = np.asarray(points, dtype=np.float64).reshape(-1, 2)
    return _Series(array[:, 0], array[:, 1])


def smoothed(value: NDArray[np.float64]) -> NDArray[np.float64]:
    """Centred Gaussian average whose width is a fortieth of the curve; near the ends only what exists counts.

    Unlike a running average it does not lag behind the curve.

    >>> smoothed(np.ones(20)).round(6).tolist() == [1.0] * 20
    True
    """
    sigma = max(1.0, len(value) / 40)
    reach = min(int(3 * sigma), len(value) - 1)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    weight = np.convolve(np.ones(len(value)), kernel)[reach : reach + len(value)]
    return np.convolve(value, kernel)[reach : reach + len(value)] / weight


def _draw_panel(axes: "Axes", panel: Panel, records: Sequence[Mapping[str, float]]) -> None:
    from matplotlib.ticker import MaxNLocator

    has_held_out = False
    for colour, dark, (label, name) in zip(_COLOURS, _DARK, panel.lines.items(), strict=False):
        train, held_out = _series(records, name), _series(records, f"eval/{name}")
        if len(train.step):
            _draw_line(axes, train, colour, label)
        if len(held_out.step):
            has_held_out = True
            label_of_points = None if len(train.step) else f"{label}, held out"
            _draw_points(axes, records, f"eval/{name}", dark, label_of_points)
    if panel.reference is not None:
        axes.axhline(panel.reference, color="#777777", linewidth=1, linestyle="--", label=panel.reference_label or None)
    axes.set_title(panel.title)
    axes.set_xlabel("step")
    axes.set_ylabel(panel.y_label)
    axes.set_ylim(*panel.limits)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
    _place_legend(axes, has_held_out)


def _draw_line(axes: "Axes", train: _Series, colour: str, label: str) -> None:
    if len(train.step) < _SMOOTH_FROM:
        axes.plot(train.step, train.value, color=colour, linewidth=1.6, marker=".", markersize=4, label=label)
        return
    axes.plot(train.step, train.value, color=colour, linewidth=0.7, alpha=0.3)
    axes.plot(train.step, smoothed(train.value), color=colour, linewidth=1.8, label=label)


def _draw_points(
    axes: "Axes", records: Sequence[Mapping[str, float]], name: str, colour: str, label: str | None
) -> None:
    points, low, high = _series(records, name), _series(records, f"{name}/low"), _series(records, f"{name}/high")
    # The white edge separates a point from the line it lies on.
    axes.plot(
        points.step,
        points.value,
        color=colour,
        label=label,
        zorder=4,
        linestyle="none",
        marker="o",
        markersize=5,
        markeredgecolor="white",
        markeredgewidth=0.8,
    )
    if np.array_equal(low.step, high.step):
        axes.vlines(low.step, low.value, high.value, color=colour, linewidth=1.4, zorder=3)


def _place_legend(axes: "Axes", has_held_out: bool) -> None:
    """A row below the panel, where no curve can run through it."""
    from matplotlib.lines import Line2D

    handles, labels = axes.get_legend_handles_labels()
    if has_held_out and not any("held out" in label for label in labels):
        handles.append(Line2D([], [], color="#333333", marker="o", markersize=4.5, linestyle="none"))
        labels.append("held out")
    if len(labels) > 1:
        axes.legend(handles, labels, loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=len(labels))
