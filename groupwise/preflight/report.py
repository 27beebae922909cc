"""What a check has found, shown as it is found and counted at the end. Knows nothing about what is checked."""

import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from rich.console import Console, RenderableType
from rich.text import Text

from groupwise.errors import RunStopped, UserError, printable

Level = Literal["ok", "warning", "error"]
_STYLES: dict[Level, str] = {"ok": "green", "warning": "yellow", "error": "bold red"}
_WIDTH = max(map(len, _STYLES)) + 1


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at; an error must be mended before the run can do what it is meant to."""

    level: Level
    text: str


def own_terminal() -> Console:
    """Where this process shows what it finds: nowhere, if a launcher started others before it, which find the same."""
    return Console(quiet=os.environ.get("RANK", "0") != "0")


@dataclass(slots=True)
class Report:
    """Collects findings and shows each at once on the terminal."""

    console: Console
    findings: list[Finding] = field(default_factory=list[Finding])

    @contextmanager
    def part(self, title: str) -> Generator[None, None, None]:
        """A part of the check under its own heading; what a run would stop for becomes an error of the report."""
        self.console.print()
        self.console.print(Text(title, style="bold"))
        with self.guard():
            yield

    @contextmanager
    def guard(self) -> Generator[None, None, None]:
        """What a run would stop for becomes an error of the report, and the check goes on behind the block."""
        try:
            yield
        except (UserError, RunStopped) as error:
            self.error(str(error))

    def ok(self, text: str) -> None:
        self._add("ok", text)

    def warning(self, text: str) -> None:
        self._add("warning", text)

    def error(self, text: str) -> None:
        self._add("error", text)

    def notes(self, lines: Sequence[str]) -> None:
        """Lines as runs print them: those that begin with "warning:" are warnings."""
        for line in lines:
            part, colon, text = line.rpartition("warning: ")
            if colon and (not part or part.endswith(": ")):
                self.warning(part + text)
            else:
                self.ok(line)

    def show(self, what: RenderableType) -> None:
        """Something to look at that is no finding."""
        self.console.print(what, highlight=False)

    def count(self, level: Level) -> int:
        return sum(finding.level == level for finding in self.findings)

    def finish(self) -> int:
        """Say how it went; the exit code: 2 if something must be mended, else 0."""
        errors, warnings = self.count("error"), self.count("warning")
        if errors:
            line, style = f"{_counted(errors, 'error')} to mend, {_counted(warnings, 'warning')}", "bold red"
        elif warnings:
            line, style = f"nothing to mend, {_counted(warnings, 'warning')}", "yellow"
        else:
            line, style = "all is well", "green"
        self.console.print()
        self.console.print(Text(f"check: {line}; nothing was written, no training was started", style=style))
        return 2 if errors else 0

    def _add(self, level: Level, text: str) -> None:
        self.findings.append(Finding(level, text))
        indented = printable(text).replace("\n", "\n" + " " * (_WIDTH + 2))
        line = Text.assemble("  ", (f"{level:<{_WIDTH}}", _STYLES[level]), indented)
        self.console.print(line, soft_wrap=True)


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
