"""Kill a training run again and again, restart it by the plain command, and compare every byte with a run left alone.

    python scripts/chaos.py --algorithm grpo --kills 100

Every other kill comes at a random moment of the run's life, the others inside a save, at one file operation after the
other (files written by safetensors are then left half written). All are SIGKILL: nothing is cleaned up. Whenever a run
reaches its end, adapter, newest checkpoint, metrics (but for times), transcripts and the figures of the summary are
compared, and a new run begins. Ctrl-C ends the series and tells what was found so far. Exit code 1 when anything
differs. Knows the two programs by their command lines only; the child that kills itself also knows which function
writes a checkpoint.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
SMALL = {
    "dpo": (
        "--data.limit", "160", "--run.groups_per_step", "10", "--run.checkpoint_every", "3", "--eval.every", "4",
        "--eval.prompts", "4", "--sampling.max_new_tokens", "12",
    ),
    "grpo": (
        "--data.limit", "400", "--data.heldout_prompts", "4", "--steps", "12", "--run.groups_per_step", "3",
        "--rollout.completions_per_prompt", "4", "--rollout.updates", "2", "--rollout.minibatches", "2",
        "--run.checkpoint_every", "3", "--eval.every", "4", "--eval.samples_per_prompt", "2",
        "--sampling.max_new_tokens", "24", "--loss.reference", "average", "--loss.reference_every", "5",
    ),
}  # fmt: skip
COMMON = ("--run.transcripts_every", "1", "--run.keep_checkpoints", "2", "--run.name", "run")
NEVER = 10**9


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algorithm", choices=sorted(SMALL), default="dpo")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0, help="of the moments at which runs are killed")
    parser.add_argument("--folder", type=Path, help="where the runs are made; a temporary folder, if not given")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="chaos-") as temporary:
        chaos = Chaos(args.algorithm, args.folder or Path(temporary), random.Random(args.seed), Console())
        return chaos.run(args.kills)


class Chaos:
    """One series of kills against one straight run."""

    def __init__(self, algorithm: str, folder: Path, moments: random.Random, console: Console) -> None:
        self.algorithm = algorithm
        self.folder = folder
        self.moments = moments
        self.console = console
        self.where: Counter[str] = Counter()
        self.compared = 0
        self.differences: list[str] = []

    def run(self, kills: int) -> int:
        """Kill that often; returns the exit code."""
        straight, note = self.folder / "straight", self.folder / "operations"
        began = time.monotonic()
        subprocess.run(self._child(straight, NEVER, note), cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        life = time.monotonic() - began
        operations = int(note.read_text().split()[0])
        self.console.print(f"straight run: {life:.1f} s, {operations} file operations in its first save")
        expected = contents(straight / "run")
        folder = self.folder / "killed"
        try:
            while self.kills < kills:
                if self.kills % 2:
                    # The first save after a restart and the one after it, so that runs get somewhere.
                    finished = self._kill_inside(folder, 1 + (self.kills // 2) % (2 * operations))
                else:
                    finished = self._kill_at_random(folder, life)
                if finished:
                    self._compare(folder, expected)
        except KeyboardInterrupt:
            self.console.print("interrupted: the last run goes to its end, and what was found so far is told")
        subprocess.run(self._command(folder), cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        self._compare(folder, expected)
        self._report()
        return 1 if self.differences else 0

    @property
    def kills(self) -> int:
        return sum(self.where.values())

    def _command(self, folder: Path) -> list[str]:
        program = f"{self.algorithm}/train_{self.algorithm}.py"
        return [sys.executable, program, *SMALL[self.algorithm], *COMMON, "--run.folder", str(folder)]

    def _child(self, folder: Path, operation: int, note: Path) -> list[str]:
        """The same program, in a process that kills itself at a file operation of its saves."""
        _, program, *arguments = self._command(folder)
        return [sys.executable, __file__, "die-at", str(operation), str(note), program, *arguments]

    def _kill_at_random(self, folder: Path, life: float) -> bool:
        """Whether the run ended before it was killed."""
        process = subprocess.Popen(self._command(folder), cwd=ROOT, stdout=subprocess.DEVNULL)
        try:
            code = process.wait(timeout=self.moments.uniform(0, life))
        except BaseException as reason:
            process.kill()
            process.wait()
            if not isinstance(reason, subprocess.TimeoutExpired):
                raise  # Ctrl-C: two processes must not write into one folder
            self.where[stage(folder / "run")] += 1
            return False
        if code != 0:
            raise SystemExit(f"a restarted run ended with exit code {code}; its folder is {folder}")
        return True

    def _kill_inside(self, folder: Path, operation: int) -> bool:
        code = subprocess.run(
            self._child(folder, operation, self.folder / "note"), cwd=ROOT, stdout=subprocess.DEVNULL
        ).returncode
        if code == -signal.SIGKILL:
            self.where["inside a save, at a chosen file operation"] += 1
        elif code != 0:
            raise SystemExit(f"a restarted run ended with exit code {code}; its folder is {folder}")
        return code == 0

    def _compare(self, folder: Path, expected: Mapping[str, str]) -> None:
        found = contents(folder / "run")
        different = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        self.compared += 1
        self.differences += [f"run {self.compared}: {name}" for name in different]
        if different:
            shutil.copytree(folder, self.folder / f"different-{self.compared}")
        shutil.rmtree(folder)

    def _report(self) -> None:
        table = Table(title=f"{self.algorithm.upper()}: {self.kills} kills (SIGKILL), {self.compared} runs to the end")
        table.add_column("killed")
        table.add_column("times", justify="right")
        for name, count in sorted(self.where.items()):
            table.add_row(name, str(count))
        self.console.print(table)
        for line in self.differences:
            self.console.print(f"different: {line}", markup=False)
        verdict = "some bytes differ" if self.differences else "every byte is that of the run left alone"
        self.console.print(f"{self.kills} of {self.kills} kills recovered; {verdict}")


def stage(run: Path) -> str:
    """What a killed run was doing, by what lies in its folder."""
    if not (run / "config.yaml").is_file():
        return "at a random moment, while starting"
    if any((run / "checkpoints").glob(".writing-*")):
        return "at a random moment, inside a save"
    if (run / "adapter").is_dir():
        return "at a random moment, after training"
    return "at a random moment, in training"


def contents(run: Path) -> dict[str, str]:
    """Digests of everything that two runs of one configuration have in common."""
    files = [*(run / "adapter").iterdir(), run / "transcripts.jsonl", run / "heldout.jsonl", run / "samples.jsonl"]
    for checkpoint in sorted((run / "checkpoints").iterdir()):
        files += [file for file in checkpoint.iterdir() if file.name not in ("state.json", "manifest.json")]
    found = {str(file.relative_to(run)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found["metrics.jsonl but for times"] = json.dumps([timeless(row) for row in rows])
    summary = json.loads((run / "summary.json").read_text())
    found["figures of summary.json"] = json.dumps([summary[part] for part in ("before", "after", "steps", "tokens")])
    return found


def timeless(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if not name.startswith("time/") and name != "tokens_per_second"}


# --- the child that kills itself ------------------------------------------------------------------------------------


def die_at(operation: int, note: Path, program: str, arguments: list[str]) -> None:
    """Run a program; the process is killed at that file operation of its saves, and writes how many there were."""
    sys.path.insert(0, str(ROOT))
    from groupwise.errors import exit_with_user_errors
    from groupwise.train import checkpoint, checkpoint_keeper

    inside, seen, per_save = False, 0, list[int]()
    write_checkpoint = checkpoint_keeper.write_checkpoint
    delete_old = checkpoint_keeper.delete_old

    def reached() -> bool:
        nonlocal seen
        seen += inside
        return inside and seen == operation

    def kill() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def watch(event: str, _: tuple[Any, ...]) -> None:
        if event in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree") and reached():
            kill()

    def half_written(tensors: dict[str, Tensor], file: Path) -> None:
        deadly = reached()
        save_file(tensors, file)
        if deadly:
            os.truncate(file, file.stat().st_size // 2)
            kill()

    def saving(*args: Any, **options: Any) -> Any:
        nonlocal inside
        before, inside = seen, True
        try:
            return write_checkpoint(*args, **options)
        finally:
            inside = False
            per_save.append(seen - before)
            note.write_text(" ".join(map(str, per_save)))

    def deleting(*args: Any, **options: Any) -> Any:
        nonlocal inside
        inside = True
        try:
            return delete_old(*args, **options)
        finally:
            inside = False

    checkpoint.save_file = half_written
    checkpoint_keeper.write_checkpoint = saving
    checkpoint_keeper.delete_old = deleting
    sys.addaudithook(watch)
    main_of = {"dpo/train_dpo.py": "dpo.train_dpo", "grpo/train_grpo.py": "grpo.train_grpo"}[program]
    with exit_with_user_errors():
        __import__(main_of, fromlist=["main"]).main(arguments)


if __name__ == "__main__":
    if sys.argv[1:2] == ["die-at"]:
        die_at(int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4], sys.argv[5:])
    else:
        raise SystemExit(main())
