"""One folder per run, and the decision whether a run is new, continued or finished. Knows nothing about training."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from groupwise.config import Section, differences, load_config, to_yaml
from groupwise.errors import UserError, listed
from groupwise.sections import AlarmsSection, RunSection

_ASIDE = ".writing-"
_LOCK = ".lock"
_BEFORE_CONFIG = frozenset((_LOCK, f"{_ASIDE}config.yaml"))  # all that a run writes before its config.yaml is there
# Keys that say how a run is watched, kept, spread and fitted into memory, not what it computes.
HARMLESS = frozenset(
    (
        "model.gradient_checkpointing", "run.resume", "run.log_every", "run.keep_checkpoints", "run.checkpoint_every",
        "run.tokens_per_forward", "run.trackers", "run.report", "run.transcripts_every", "run.transcripts_groups",
        "run.sharding", "run.zero_settings",
        "sampling.rows_at_once", "sampling.captured", "scoring.workers",
        "scoring.load_limit", "scoring.fail_after", "run.on_not_finite", "run.most_skipped_steps",
        "scoring.environment", "sampling.servers", "sampling.versions_folder", "sampling.api_key_variable",
        "sampling.groups_per_server", "sampling.answer_limit", "sampling.most_tries", "sampling.server_wait",
        *(f"alarms.{name}" for name in AlarmsSection.model_fields),
    )
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Where everything of a run lies."""

    path: Path

    @classmethod
    def of(cls, section: RunSection) -> "RunFolder":
        """The folder that a configuration names."""
        return cls(Path(section.folder) / section.name)

    @classmethod
    def finished(cls, path: Path) -> "RunFolder":
        """The folder of a run that has ended. Raises UserError when it holds no such run."""
        folder = cls(path)
        for file in (folder.config, folder.summary):
            if not file.is_file():
                raise UserError(f"{file}: is missing, so {path} is no finished run")
        return folder

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def lock(self) -> Path:
        """Held by the process that trains in this folder."""
        return self.path / _LOCK

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def transcripts(self) -> Path:
        return self.path / "transcripts.jsonl"

    @property
    def heldout(self) -> Path:
        """What every evaluation found for every held-out prompt."""
        return self.path / "heldout.jsonl"

    @property
    def samples(self) -> Path:
        """Completions of held-out prompts, before and after."""
        return self.path / "samples.jsonl"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def faults(self) -> Path:
        return self.path / "faults.jsonl"

    @property
    def not_finite(self) -> Path:
        """Groups that a step was stopped for, one file per step."""
        return self.path / "not-finite"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    @property
    def curve(self) -> Path:
        return self.path / "learning_curve.png"

    def state(self, config: Section, *, resume: bool) -> tuple[str, list[str]]:
        """ "new", "started" or "finished", and a line about each harmless difference to the run that is there.

        Writes nothing. Raises UserError when the folder belongs to something else: another configuration, a run that
        must not be continued, or files that no run wrote.
        """
        for place in (self.path, *self.path.parents):
            if place.exists() and not place.is_dir():
                raise UserError(
                    f"{place}: is a file, so {self.path} cannot be made; choose another --run.folder or name"
                )
        if not self.path.exists() or all(file.name in _BEFORE_CONFIG for file in self.path.iterdir()):
            return "new", []
        another = "choose another --run.name, or delete the folder"
        if not self.config.is_file():
            raise UserError(f"{self.path}: exists, is not empty and holds no config.yaml; {another}")
        before = load_config(type(config), self.config)
        changed = differences(before, config)
        decisive = [line for line in changed if line.split(":", 1)[0] not in HARMLESS]
        if decisive:
            head = f"{self.path}: this run was started with another configuration; {another}"
            raise UserError(listed([head, *(f"  {line}" for line in decisive)]))
        if not resume:
            raise UserError(f"{self.path}: exists and run.resume is false; {another}")
        notes = [f"changed since the run was started, without effect on its result: {line}" for line in changed]
        return ("finished" if self.summary.is_file() else "started"), notes

    def create(self, config: Section) -> None:
        """Make the folder and write the resolved configuration, every default spelled out.

        The configuration comes first: a folder with anything else in it is a run's only if it has one.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        write_text(self.config, to_yaml(config))
        self.checkpoints.mkdir(exist_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a file aside and rename it, so that readers see all of it or the one before."""
    write_aside(path, lambda aside: aside.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write JSON in the same way; refuses NaN and infinities."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_aside(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a file beside `path`, then put it in place."""
    aside = path.with_name(f"{_ASIDE}{path.name}")
    write(aside)
    aside.replace(path)
