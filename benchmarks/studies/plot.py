"""One look for the figures of all studies."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes


@contextmanager
def drawing(file: Path, *, title: str, x: str, y: str) -> Generator[Axes, None, None]:
    """Axes to draw on; the picture is written behind the block."""
    figure, axes = pyplot.subplots(figsize=(8, 4.5), dpi=160)
    yield axes
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_title(title, loc="left", fontweight="bold")
    axes.grid(color="#e6e6e6")
    axes.set_axisbelow(True)
    axes.legend(frameon=False)
    figure.tight_layout()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)
    pyplot.close(figure)
