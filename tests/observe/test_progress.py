"""The display: short logs, a clean terminal after any exception, and a time left that one slow step does not upset."""

import io
from collections.abc import Sequence

import pytest
from rich.console import Console

from groupwise.errors import Interrupted, RunStopped, UserError
from groupwise.observe.progress import LiveProgress, PlainProgress, Progress, duration, make_progress, sparkline


class _Clock:
    """Time moves only when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def _console(terminal: bool, width: int = 100, encoding: str = "utf-8") -> tuple[Console, io.BytesIO]:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding, write_through=True)
    console = Console(
        file=file, force_terminal=terminal, width=width, height=40, legacy_windows=False, _environ={"TERM": "xterm"}
    )
    return console, raw


def _run(
    progress: Progress, clock: _Clock, *, total: int, seconds: Sequence[float], first: int = 0, title: str = "DPO"
) -> None:
    with progress:
        progress.start(total, first, title)
        for number, took in enumerate(seconds, start=first + 1):
            clock.now += took
            progress.step(number, {"loss": 1 / number, "grad_norm": 2.0})


def _plain(total: int, seconds: Sequence[float], *, first: int = 0, headline: Sequence[str] = ()) -> list[str]:
    console, raw = _console(terminal=False)
    clock = _Clock()
    _run(make_progress(console, clock=clock, headline=headline), clock, total=total, seconds=seconds, first=first)
    return raw.getvalue().decode().splitlines()


def test_terminal_gets_the_panel_and_a_file_gets_lines() -> None:
    assert isinstance(make_progress(_console(terminal=True)[0]), LiveProgress)
    assert isinstance(make_progress(_console(terminal=False)[0]), PlainProgress)


def test_a_terminal_that_cannot_redraw_gets_lines() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, _environ={"TERM": "dumb"})
    assert isinstance(make_progress(console), PlainProgress)


def test_a_terminal_without_unicode_gets_lines() -> None:
    """The panel cuts long text with an ellipsis, which an ASCII terminal turns into a UnicodeEncodeError."""
    console, _ = _console(terminal=True, encoding="ascii")
    assert isinstance(make_progress(console), PlainProgress)


# --- plain lines ---


def test_a_long_fast_run_gives_a_short_log_with_first_and_last_step() -> None:
    lines = _plain(10_000, [0.01] * 10_000)
    assert len(lines) <= 50
    assert lines[1].startswith("step 1/10000 ") and lines[-2].startswith("step 10000/10000 (100 %)")


def test_a_slow_run_reports_at_least_every_minute() -> None:
    lines = [line for line in _plain(1000, [61.0] * 10) if line.startswith("step")]
    assert len(lines) == 10


def test_the_last_step_of_a_run_that_ends_early_is_shown() -> None:
    lines = _plain(1000, [0.1] * 7)
    assert lines[-2].startswith("step 7/1000 ")


def test_plain_lines_hold_no_escapes_even_when_colour_is_forced() -> None:
    raw = io.StringIO()
    console = Console(file=raw, force_terminal=True, color_system="truecolor", _environ={"TERM": "dumb"})
    clock = _Clock()
    progress = make_progress(console, clock=clock)
    progress.line("evil \x1b[2J\r\x07 text [/red]")
    _run(progress, clock, total=3, seconds=[1.0] * 3, title="a \x1b[31m title")
    assert "\x1b" not in raw.getvalue() and "\r" not in raw.getvalue() and "[/red]" in raw.getvalue()


def test_plain_lines_do_not_wrap() -> None:
    console, raw = _console(terminal=False, width=20)
    progress = make_progress(console)
    progress.line("x" * 300)
    assert raw.getvalue().decode() == "x" * 300 + "\n"


def test_time_left_is_the_median_step_times_what_remains() -> None:
    """One step of 600 s (an evaluation, a swap) among steps of 2 s: the mean would say hours, the truth is minutes."""
    lines = _plain(100, [2.0] * 9 + [600.0] + [2.0] * 10)
    shown = next(line for line in lines if line.startswith("step 18/100 "))
    assert f"{duration(2.0 * 82)} left" in shown and "2 s/step" in shown


def test_time_left_counts_only_recent_steps() -> None:
    lines = _plain(400, [10.0] * 100 + [1.0] * 100)
    assert "3 min 20 s left" in next(line for line in lines if line.startswith("step 200/400 "))


def test_a_resumed_run_neither_counts_nor_times_steps_done_before() -> None:
    lines = _plain(100, [3.0] * 10, first=40)
    assert lines[0] == "DPO: 100 steps, 40 done"
    assert lines[1].startswith("step 41/100 (41 %)") and "2 min 57 s left" in lines[1]


def test_logging_every_tenth_step_gives_the_time_of_one() -> None:
    console, raw = _console(terminal=False)
    clock = _Clock()
    with make_progress(console, clock=clock) as progress:
        progress.start(100, 0, "GRPO")
        for step in (10, 20):
            clock.now += 50.0
            progress.step(step, {"reward": 0.5})
    assert "5 s/step  6 min 40 s left" in raw.getvalue().decode()


def test_reporting_a_step_twice_does_not_count_as_a_fast_step() -> None:
    console, raw = _console(terminal=False)
    clock = _Clock()
    with make_progress(console, clock=clock) as progress:
        progress.start(4, 0, "DPO")
        for step in (1, 2):
            clock.now += 10.0
            progress.step(step, {"loss": 0.5})
            clock.now += 5.0
            progress.step(step, {"eval/loss": 0.5})
    assert "10 s/step  20 s left" in raw.getvalue().decode().splitlines()[-2]


def test_headline_chooses_and_orders_the_numbers_and_keeps_the_last_known_value() -> None:
    console, raw = _console(terminal=False)
    with make_progress(console, headline=("eval/reward", "kl", "never")) as progress:
        progress.start(3, 0, "GRPO")
        progress.step(1, {"kl": 0.123456, "loss": 9.0, "eval/reward": 0.5})
        progress.step(2, {"kl": 0.2})
        progress.step(3, {"kl": 1e-6})
    lines = raw.getvalue().decode().splitlines()
    assert "eval/reward 0.5  kl 0.1235" in lines[1] and "loss" not in lines[1]
    assert "eval/reward 0.5  kl 1e-06" in lines[3]


def test_an_ascii_log_file_never_fails() -> None:
    console, raw = _console(terminal=False, encoding="ascii")
    make_progress(console).line("π → ∞")
    assert raw.getvalue() == b"? ? ?\n"


def test_an_exception_is_told_and_not_swallowed() -> None:
    console, raw = _console(terminal=False)
    with pytest.raises(RuntimeError, match="boom"), make_progress(console) as progress:
        progress.start(10, 0, "DPO")
        progress.step(1, {"loss": 0.5})
        raise RuntimeError("boom")
    assert "stopped by RuntimeError after step 1" in raw.getvalue().decode()


@pytest.mark.parametrize("error", [RunStopped("5 of 5 failed"), UserError("no row"), Interrupted("saved", 15)])
def test_where_a_message_tells_why_no_class_is_named(error: Exception) -> None:
    console, raw = _console(terminal=False)
    with pytest.raises(type(error)), make_progress(console) as progress:
        progress.start(10, 0, "GRPO")
        progress.step(1, {"loss": 0.5})
        raise error
    assert "stopped after step 1" in raw.getvalue().decode()


def test_misuse_is_an_error() -> None:
    progress = make_progress(_console(terminal=False)[0])
    with pytest.raises(RuntimeError, match=r"start\(\)"):
        progress.step(1, {})
    progress.finish()
    progress.start(1, 0, "a")
    with pytest.raises(RuntimeError, match=r"finish\(\)"):
        progress.start(1, 0, "b")


# --- the live panel ---

_HIDE, _SHOW = "\x1b[?25l", "\x1b[?25h"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_the_cursor_comes_back_after_an_exception(error: type[BaseException]) -> None:
    console, raw = _console(terminal=True)
    with pytest.raises(error), make_progress(console) as progress:
        progress.start(10, 0, "DPO")
        progress.step(1, {"loss": 0.5})
        raise error
    text = raw.getvalue().decode()
    assert text.count(_HIDE) == 1 and text.rfind(_SHOW) > text.rfind(_HIDE)
    assert f"stopped by {error.__name__} after step 1" in text


def test_the_panel_shows_state_numbers_and_curve_and_events_stand_above_it_in_full() -> None:
    """An event inside the panel was cut at its width: of a long warning the remedy was never seen."""
    console, raw = _console(terminal=True)
    long = "warning: " + "word " * 60 + "and the remedy"
    clock = _Clock()
    with make_progress(console, clock=clock, headline=("reward", "kl")) as progress:
        progress.line("before the start")
        progress.start(40, 0, "GRPO on word problems")
        progress.line("resumed [from] step 0")
        progress.line(long)
        for step in range(1, 21):
            clock.now += 2.0
            progress.step(step, {"reward": step / 20, "kl": 0.5})
    last = raw.getvalue().decode().rsplit("GRPO on word problems", 1)[1]
    for text in ("step 20/40 (50 %)", "2 s/step", "40 s left", "40 s so far", "reward", "kl", "0.5", "▁", "█"):
        assert text in last
    shown = raw.getvalue().decode()
    assert "resumed [from] step 0" in shown and "before the start" in shown
    assert "and the remedy" in shown and shown.count("word ") >= 60


@pytest.mark.parametrize("width", [8, 20, 40, 79, 200])
def test_the_panel_fits_any_terminal(width: int) -> None:
    console, raw = _console(terminal=True, width=width)
    clock = _Clock()
    progress = make_progress(console, clock=clock, headline=("rewards/a_rather_long_name/mean", "[/red]", "kl"))
    with progress:
        progress.start(3, 0, "[/bold] \x1b[2J title")
        for step in (1, 2, 3):
            clock.now += 1.0
            progress.step(step, {"rewards/a_rather_long_name/mean": float(step), "[/red]": 0.0, "kl": float("nan")})
            progress.line("[/red] an event \x1b[2J\n with newline")
    assert "\x1b[2J" not in raw.getvalue().decode()


@pytest.mark.parametrize("width", [30, 60, 80, 120])
def test_a_number_is_never_shortened(width: int) -> None:
    """0.31 cut to "0." reads as a value: a narrow terminal shortens names and uses more rows instead."""
    console, raw = _console(terminal=True, width=width)
    with make_progress(console) as progress:
        progress.start(1, 0, "run")
        progress.step(1, {f"rewards/long_name_{i}/mean": -1.2345e-05 - i for i in (0, 1, 2)})
    shown = raw.getvalue().decode().rsplit("run", 1)[1]
    for value in ("-1.234e-05", "-1", "-2"):
        assert f" {value} " in shown.replace("\x1b[0m", " ")


def test_no_steps_at_all_is_no_division_by_zero() -> None:
    for terminal in (True, False):
        console, _ = _console(terminal=terminal)
        with make_progress(console) as progress:
            progress.start(0, 0, "nothing to do")


def test_two_runs_one_after_the_other_share_a_display() -> None:
    console, raw = _console(terminal=True)
    progress = make_progress(console)
    for title in ("first run", "second run"):
        with progress:
            progress.start(1, 0, title)
            progress.step(1, {"loss": 0.1})
    assert "second run" in raw.getvalue().decode().rsplit(_HIDE, 1)[1]


def test_sparkline_is_a_mean_per_character() -> None:
    assert sparkline([0.0, 0.0, 7.0, 7.0], 2) == "▁█"
    assert sparkline([float("nan"), 1.0, 1.0], 5) == "▁▁"
    assert sparkline([], 5) == "" and sparkline([1.0], 0) == ""
    assert len(sparkline(list(map(float, range(1000))), 30)) == 30
