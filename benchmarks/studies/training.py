"""Runs the training commands that a study needs, several at a time, each once. Knows no study.

A run that is finished is read and not repeated, one that was stopped goes on: the commands do that by themselves.
"""

import json
import os
import subprocess
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SCRIPTS = {"dpo": "dpo/train_dpo.py", "grpo": "grpo/train_grpo.py"}


@dataclass(frozen=True, slots=True)
class Training:
    """One run: a method, a name for its folder, and what differs from the method's default."""

    method: str
    name: str
    flags: Mapping[str, object]
    seed: int = 0

    @property
    def folder_name(self) -> str:
        return f"{self.name}-seed{self.seed}"

    def command(self, folder: Path) -> list[str]:
        own = {**self.flags, "run.folder": folder, "run.name": self.folder_name, "run.seed": self.seed}
        return [sys.executable, SCRIPTS[self.method], *(part for k, v in own.items() for part in (f"--{k}", str(v)))]


def parser(description: str | None, folder: str) -> ArgumentParser:
    """The options that all studies have."""
    options = ArgumentParser(description=(description or "").splitlines()[0])
    options.add_argument("--folder", type=Path, default=Path(folder), help="where the runs go (default %(default)s)")
    options.add_argument("--out", type=Path, default=Path("docs/studies"), help="figure, table (default %(default)s)")
    options.add_argument("--seeds", type=int, default=3, help="runs of each kind (default %(default)s)")
    options.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each (default %(default)s)")
    return options


def train_all(trainings: Sequence[Training], options: Namespace) -> list[Path]:
    """Run folders of all trainings, in order. Raises RuntimeError with the end of the output of one that fails."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"} if options.jobs > 1 else dict(os.environ)

    def run(training: Training) -> Path:
        place = options.folder / training.folder_name
        if not (place / "summary.json").is_file():
            print(f"training {training.folder_name}", flush=True)
            done = subprocess.run(
                training.command(options.folder), env=environment, capture_output=True, text=True, check=False
            )
            if done.returncode:
                raise RuntimeError(f"{training.folder_name}: exit code {done.returncode}\n{done.stderr[-2000:]}")
        return place

    with ThreadPoolExecutor(options.jobs) as pool:
        return list(pool.map(run, trainings))


def summary(run: Path) -> dict[str, Any]:
    """The figures that a run ended with."""
    return json.loads((run / "summary.json").read_text(encoding="utf-8"))


def write_study(out: Path, name: str, table: str, data: object) -> None:
    """The table in Markdown and the numbers behind figure and table."""
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.md").write_text(table, encoding="utf-8")
    (out / f"{name}.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
