"""The picture is the same bytes for the same metrics, and a panel that names nothing is refused."""

import math
import struct
from pathlib import Path

import numpy as np
import pytest

from groupwise.errors import UserError
from groupwise.observe.figure import Panel, learning_curve, smoothed
from groupwise.observe.metrics import MetricsFile
from groupwise.observe.statistics import proportion_interval

_PANEL = Panel(title="Accuracy $x^2$", y_label="share", lines={"train": "accuracy"}, limits=(0, 1))


@pytest.fixture
def metrics(tmp_path: Path) -> Path:
    path = tmp_path / "metrics.jsonl"
    with MetricsFile(path) as file:
        for step in range(1, 31):
            held_out = proportion_interval(step, 40).as_metrics("eval/accuracy") if step % 10 == 0 else {}
            file.append(step, {"accuracy": step / 40, "loss": math.exp(-step / 9), **held_out})
        file.append(31, {"eval/only_here": 0.5})
    return path


def test_the_same_metrics_give_the_same_bytes(metrics: Path, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        learning_curve(metrics, tmp_path / name, panels=[_PANEL], title="run")
    first = (tmp_path / "a.png").read_bytes()
    assert first == (tmp_path / "b.png").read_bytes()
    assert struct.unpack(">I", first[16:20])[0] == 1600


def test_a_users_own_matplotlib_style_does_not_change_the_picture(metrics: Path, tmp_path: Path) -> None:
    import matplotlib

    learning_curve(metrics, tmp_path / "plain.png", panels=[_PANEL], title="run")
    with matplotlib.rc_context({"axes.facecolor": "black", "lines.linewidth": 9, "savefig.dpi": 30}):
        learning_curve(metrics, tmp_path / "styled.png", panels=[_PANEL], title="run")
    assert (tmp_path / "plain.png").read_bytes() == (tmp_path / "styled.png").read_bytes()


def _dark_rows(picture: Path) -> int:
    """Height in pixels of what is drawn in the colour of held-out points in the first line's panel."""
    from matplotlib.image import imread

    pixels = np.asarray(imread(picture))[:, :, :3]
    dark = np.abs(pixels - np.array([0x0B, 0x2A, 0x4A]) / 255).max(axis=2) < 0.02
    rows = np.flatnonzero(dark.any(axis=1))
    return int(rows[-1] - rows[0]) if rows.size else 0


def test_held_out_intervals_are_drawn_to_scale(tmp_path: Path) -> None:
    """An interval from 0.2 to 0.8 must be twice as high in the picture as one from 0.35 to 0.65."""
    heights: list[int] = []
    for name, low, high in (("none", None, None), ("wide", 0.2, 0.8), ("narrow", 0.35, 0.65)):
        path = tmp_path / f"{name}.jsonl"
        with MetricsFile(path) as file:
            file.append(1, {"accuracy": 0.5})
            file.append(2, {"accuracy": 0.5})
            if low is not None and high is not None:
                file.append(2, {"eval/accuracy": 0.5, "eval/accuracy/low": low, "eval/accuracy/high": high})
        learning_curve(path, tmp_path / f"{name}.png", panels=[_PANEL], title="run")
        heights.append(_dark_rows(tmp_path / f"{name}.png"))
    nothing, wide, narrow = heights
    assert nothing == 0
    assert wide / narrow == pytest.approx(2, rel=0.03)


def test_an_unknown_metric_is_named_with_the_nearest_one(metrics: Path, tmp_path: Path) -> None:
    panels = [_PANEL, Panel(title="Typo", y_label="nat", lines={"a": "los", "b": "nothing_like_it"})]
    with pytest.raises(UserError) as caught:
        learning_curve(metrics, tmp_path / "x.png", panels=panels, title="run")
    assert "no metric named los; did you mean loss?" in str(caught.value) and "nothing_like_it" in str(caught.value)
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_any_number_of_panels_and_few_points(tmp_path: Path, count: int) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsFile(path) as file:
        file.append(1, {"loss": 0.5})
    panels = [Panel(title=f"{i}", y_label="nat", lines={"loss": "loss"}) for i in range(count)]
    learning_curve(path, tmp_path / "x.png", panels=panels, title="one step")
    height = struct.unpack(">I", (tmp_path / "x.png").read_bytes()[20:24])[0]
    assert height == round(200 * (2.75 * -(-count // 2) + 0.4))


def test_a_metric_that_exists_only_held_out_can_be_drawn(metrics: Path, tmp_path: Path) -> None:
    panel = Panel(title="x", y_label="share", lines={"only": "only_here"})
    learning_curve(metrics, tmp_path / "x.png", panels=[panel], title="run")
    assert (tmp_path / "x.png").stat().st_size > 0


def test_too_many_lines_or_none_are_refused(metrics: Path, tmp_path: Path) -> None:
    for lines in ({}, {str(i): "loss" for i in range(5)}):
        with pytest.raises(ValueError, match="expected 1 to 4"):
            Panel(title="x", y_label="nat", lines=lines)
    with pytest.raises(ValueError, match="no panels"):
        learning_curve(metrics, tmp_path / "x.png", panels=[], title="run")


def test_smoothing_keeps_constants_and_does_not_lag() -> None:
    """A running average of a ramp lags behind it; a centred one lies on it away from the ends."""
    ramp = np.arange(200.0)
    assert np.allclose(smoothed(np.full(50, 3.0)), 3.0)
    assert np.allclose(smoothed(ramp)[30:-30], ramp[30:-30])
    assert len(smoothed(ramp)) == 200
    assert smoothed(np.random.default_rng(0).normal(size=400)).std() < 0.4
