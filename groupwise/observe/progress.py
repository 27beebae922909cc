"""What a person sees while a run goes on: a live panel on a terminal, short plain lines in a log file.

Knows nothing about training: steps are numbers, metrics are names with values, events are lines of text.
"""

import math
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Protocol, Self

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from groupwise.errors import Interrupted, RunStopped, UserError, printable

_RECENT_STEPS = 50
_MOST_METRICS = 8
_PLAIN_LINES = 40
_VALUE_WIDTH = 10  # "-1.235e-05"
_BLOCKS = "▁▂▃▄▅▆▇█"


class Progress(Protocol):
    """Tells a person how a run is going; a context manager that leaves the terminal clean, whatever happens inside."""

    def start(self, total_steps: int, first_step: int, title: str) -> None:
        """Begin; `first_step` is the number of steps already done, 0 for a new run."""
        ...

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Report that `step` steps are done; names missing from `metrics` keep the value they had."""
        ...

    def line(self, text: str) -> None:
        """Show an event, such as "resumed from step 40"."""
        ...

    def finish(self) -> None:
        """End the display; harmless when nothing is shown."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def make_progress(
    console: Console | None = None,
    *,
    headline: Sequence[str] = (),
    every_seconds: float = 60.0,
    clock: Callable[[], float] = time.monotonic,
) -> Progress:
    """A live panel when `console` is a terminal that can redraw and show Unicode, plain lines otherwise.

    `headline` names the metrics to show, at most eight; the first one is drawn as a sparkline. Empty means the first
    eight that are reported. Plain lines come for the first and the last step, for about forty steps in between, and
    whenever `every_seconds` have passed since the last one. `clock` returns seconds.
    """
    console = Console() if console is None else console
    if console.is_terminal and not console.is_dumb_terminal and not console.options.ascii_only:
        return LiveProgress(console, headline=headline, clock=clock)
    return PlainProgress(console, headline=headline, every_seconds=every_seconds, clock=clock)


class _Run:
    """State both displays share: where the run is, how fast, what was reported last."""

    def __init__(
        self, total_steps: int, first_step: int, title: str, headline: Sequence[str], clock: Callable[[], float]
    ) -> None:
        self.total_steps, self.first_step, self.done, self.title = total_steps, first_step, first_step, title
        self.began = self._last = clock()
        self._clock = clock
        self._headline = tuple(headline)
        self._metrics: dict[str, float] = {}
        self._recent: deque[float] = deque(maxlen=_RECENT_STEPS)
        self.history: list[float] = []

    def advance(self, step: int, metrics: Mapping[str, float]) -> None:
        now = self._clock()
        if step > self.done:
            self._recent.append((now - self._last) / (step - self.done))
        self.done, self._last = step, now
        self._metrics.update(metrics)
        if self.spark_name in metrics:
            self.history.append(metrics[self.spark_name])

    @property
    def spark_name(self) -> str:
        names = self._headline or tuple(self._metrics)
        return names[0] if names else ""

    def headline(self) -> list[tuple[str, str]]:
        """Name and formatted value of the metrics to show."""
        names = self._headline or tuple(self._metrics)
        known = [name for name in names if name in self._metrics]
        return [(name, f"{self._metrics[name]:.4g}") for name in known[:_MOST_METRICS]]

    @property
    def elapsed(self) -> float:
        return self._clock() - self.began

    @property
    def percent(self) -> int:
        return 100 * self.done // self.total_steps if self.total_steps else 100

    def speed(self) -> str:
        if not self._recent:
            return ""
        seconds = statistics.median(self._recent)
        return f"{seconds:.3g} s/step" if seconds >= 1 or seconds == 0 else f"{1 / seconds:.3g} steps/s"

    def time_left(self) -> str:
        """Median time of the recent steps times the steps that remain: one slow step does not upset it."""
        remaining = self.total_steps - self.done
        if not self._recent or remaining <= 0:
            return ""
        return f"{duration(statistics.median(self._recent) * remaining)} left"


def duration(seconds: float) -> str:
    """A span of time in its two largest units.

    >>> [duration(s) for s in (0.4, 59.6, 250, 7500, 277200)]
    ['0 s', '1 min 00 s', '4 min 10 s', '2 h 05 min', '3 d 5 h']
    """
    whole = round(seconds)
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if days:
        return f"{days} d {hours % 24} h"
    if hours:
        return f"{hours} h {minutes % 60:02d} min"
    return f"{minutes} min {whole % 60:02d} s" if minutes else f"{whole} s"


def sparkline(values: Sequence[float], width: int) -> str:
    """The values as at most `width` characters, from the lowest block (smallest) to the highest; each is a mean.

    >>> sparkline([0, 1, 2, 3, 4, 5, 6, 7], 8)
    '▁▂▃▄▅▆▇█'
    """
    finite = [value for value in values if math.isfinite(value)]
    if not finite or width < 1:
        return ""
    means = [float(np.mean(part)) for part in np.array_split(np.asarray(finite), min(width, len(finite)))]
    low, span = min(means), max(means) - min(means)
    top = len(_BLOCKS) - 1
    return "".join(_BLOCKS[round((mean - low) / span * top) if span > 0 else 0] for mean in means)


def _printable(text: str) -> str:
    """One line without control characters: text may come from data, and must not move the cursor."""
    return printable(text).replace("\n", " ")


class _Display:
    """What both displays have in common: begin, end, and saying so when an exception ends the run."""

    def __init__(self, console: Console, headline: Sequence[str], clock: Callable[[], float]) -> None:
        self._console, self._headline, self._clock = console, headline, clock
        self._run: _Run | None = None

    def start(self, total_steps: int, first_step: int, title: str) -> None:
        if self._run is not None:
            raise RuntimeError("already started; call finish() first")
        self._run = _Run(total_steps, first_step, _printable(title), self._headline, self._clock)

    def _started(self) -> _Run:
        if self._run is None:
            raise RuntimeError("not started; call start() first")
        return self._run

    def line(self, text: str) -> None:
        raise NotImplementedError

    def finish(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is not None and self._run is not None:
                told_below = issubclass(kind, UserError | RunStopped | Interrupted)
                cause = "" if told_below else f" by {kind.__name__}"
                self.line(f"stopped{cause} after step {self._run.done}")
        finally:
            self.finish()


class PlainProgress(_Display):
    """Lines for a log file: no colour, no cursor movement, no wrapping."""

    def __init__(
        self, console: Console, *, headline: Sequence[str], every_seconds: float, clock: Callable[[], float]
    ) -> None:
        super().__init__(console, headline, clock)
        self._every_seconds = every_seconds
        self._printed_at: float | None = None
        self._printed_step = -1

    def start(self, total_steps: int, first_step: int, title: str) -> None:
        super().start(total_steps, first_step, title)
        self._printed_at, self._printed_step = None, first_step
        done = f", {first_step} done" if first_step else ""
        self._print(f"{self._started().title}: {total_steps} steps{done}")

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        run = self._started()
        run.advance(step, metrics)
        every = max(1, math.ceil(run.total_steps / _PLAIN_LINES))
        waited = self._printed_at is None or self._clock() - self._printed_at >= self._every_seconds
        if waited or step % every == 0 or step >= run.total_steps:
            self._print_step(run)

    def line(self, text: str) -> None:
        self._print(_printable(text))

    def finish(self) -> None:
        run, self._run = self._run, None
        if run is None:
            return
        if self._printed_step != run.done:
            self._print_step(run)
        self._print(f"{run.title}: {run.done} of {run.total_steps} steps done, this took {duration(run.elapsed)}")

    def _print_step(self, run: _Run) -> None:
        self._printed_at, self._printed_step = self._clock(), run.done
        values = [f"{_printable(name)} {value}" for name, value in run.headline()]
        parts = [f"step {run.done}/{run.total_steps} ({run.percent} %)", *values, run.speed(), run.time_left()]
        self._print("  ".join(part for part in parts if part))

    def _print(self, text: str) -> None:
        if self._console.quiet:
            return
        # Straight to the file: a console would wrap long lines and may add colour codes when one is forced.
        encoding = getattr(self._console.file, "encoding", None) or "utf-8"
        self._console.file.write(text.encode(encoding, errors="replace").decode(encoding) + "\n")
        self._console.file.flush()


class LiveProgress(_Display):
    """One panel that is redrawn in place; what else is printed meanwhile appears above it."""

    def __init__(self, console: Console, *, headline: Sequence[str], clock: Callable[[], float]) -> None:
        super().__init__(console, headline, clock)
        self._lock = threading.Lock()  # the panel is drawn by a thread of its own
        self._live: Live | None = None

    def start(self, total_steps: int, first_step: int, title: str) -> None:
        super().start(total_steps, first_step, title)
        self._live = Live(get_renderable=self._render, console=self._console, refresh_per_second=4)
        self._live.start(refresh=True)

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        with self._lock:
            self._started().advance(step, metrics)

    def line(self, text: str) -> None:
        """Print an event in full; above the panel, when there is one."""
        self._console.print(Text(_printable(text)))

    def finish(self) -> None:
        live, self._live = self._live, None
        try:
            if live is not None:
                live.stop()  # draws the last state and gives the cursor back
        finally:
            self._run = None

    def _render(self) -> RenderableType:
        with self._lock:
            run = self._run
            return Text("") if run is None else self._panel(run)

    def _panel(self, run: _Run) -> Panel:
        width = min(100, self._console.width)
        parts: list[RenderableType] = [
            self._bar(run),
            Text("   ".join(part for part in self._status(run) if part)),
        ]
        if run.headline():
            parts += [Text(""), self._numbers(run, width - 4), Text("")]
            parts += self._curve(run, width - 4)
        return Panel(Group(*parts), title=Text(run.title), title_align="left", width=width)

    def _bar(self, run: _Run) -> Table:
        bar = Table.grid(expand=True)  # a bar alone does not end its line
        bar.add_row(ProgressBar(total=max(1, run.total_steps), completed=run.done if run.total_steps else 1))
        return bar

    def _status(self, run: _Run) -> list[str]:
        place = f"step {run.done}/{run.total_steps} ({run.percent} %)"
        return [place, run.speed(), run.time_left(), f"{duration(run.elapsed)} so far"]

    def _numbers(self, run: _Run, width: int) -> Table:
        """Two pairs of name and value side by side where they fit; a name may be shortened, a number never."""
        pairs = 2 if width >= 2 * (_VALUE_WIDTH + 20) else 1
        table = Table.grid(padding=(0, 1, 0, 0))
        for _ in range(pairs):
            name_width = max(1, width // pairs - _VALUE_WIDTH - 2)
            table.add_column(style="dim", overflow="ellipsis", no_wrap=True, max_width=name_width)
            table.add_column(no_wrap=True, width=_VALUE_WIDTH)
        cells = [(Text(_printable(name)), Text(value)) for name, value in run.headline()]
        rows = math.ceil(len(cells) / pairs)
        for row in range(rows):
            table.add_row(*(cell for pair in cells[row::rows] for cell in pair))
        return table

    def _curve(self, run: _Run, width: int) -> list[RenderableType]:
        name = _printable(run.spark_name)
        drawn = sparkline(run.history, width - len(name) - 1)
        if len(drawn) < 2:
            return []
        return [Text.assemble((name, "dim"), " ", (drawn, "cyan"), no_wrap=True, overflow="crop")]
