"""Processes that do not hold the same are refused: they would train on mixed weights, or wait for each other for ever.

Every process has a folder of its own, as on nodes without a common disk.
"""

import json
import shutil
from pathlib import Path

import pytest

from tests.train.test_processes import run_processes, small_run

pytestmark = pytest.mark.distributed


def site(tmp_path: Path, model: Path) -> list[str]:
    """A command for two processes, and the folders that they run in."""
    for rank in ("0", "1"):
        (tmp_path / rank).mkdir()
        rows = (json.dumps({"prompt": f"We saw film number {i}."}) + "\n" for i in range(30))
        (tmp_path / rank / "prompts.jsonl").write_text("".join(rows))
    _, *arguments = small_run(tmp_path, model, "runs")
    paths = ("--run.folder", "runs", "--data.train", "[prompts.jsonl]", "--run.checkpoint_every", "1")
    return ["-m", "tests.train.process_elsewhere", str(tmp_path), *arguments, *paths]


def stopped_after_two_steps(tmp_path: Path, command: list[str]) -> tuple[Path, Path]:
    """The run's folder as both processes have it, each its own: copies of the one that they trained in."""
    first, second = (tmp_path / rank / "runs" for rank in ("0", "1"))
    first.mkdir()
    second.symlink_to(first)
    run_processes(2, command)
    (first / "run" / "summary.json").unlink()
    shutil.rmtree(first / "run" / "checkpoints" / "step-000003")
    second.unlink()
    shutil.copytree(first, second)
    return first / "run", second / "run"


def test_a_process_that_does_not_see_the_newest_checkpoint_ends_the_run(tiny_model: Path, tmp_path: Path) -> None:
    """A directory listing that is seconds old: one process began at step 2 and the other at step 1."""
    command = site(tmp_path, tiny_model)
    _, second = stopped_after_two_steps(tmp_path, command)
    shutil.move(second / "checkpoints" / "step-000002", tmp_path / "aside")
    said = run_processes(2, command, exit_code=2, limit=90)
    assert "step-000002" in said and "process 1" in said and "a disk that all nodes see" in said
    shutil.move(tmp_path / "aside", second / "checkpoints" / "step-000002")
    run_processes(2, command)


def test_a_process_with_another_checkpoint_of_the_same_step_ends_the_run(tiny_model: Path, tmp_path: Path) -> None:
    """It is whole, and could be of this run. Half of each step was learned by other weights, and nobody was told."""
    command = site(tmp_path, tiny_model)
    _, second = stopped_after_two_steps(tmp_path, command)
    other = second / "checkpoints"
    shutil.rmtree(other / "step-000002")
    run_processes(
        1,
        [*small_run(tmp_path, tiny_model, "other"), "--optimizer.learning_rate", "3e-2", "--run.checkpoint_every", "1"],
    )
    shutil.copytree(tmp_path / "other" / "run" / "checkpoints" / "step-000002", other / "step-000002")
    said = run_processes(2, command, exit_code=2, limit=90)
    assert "step-000002" in said and "process 1" in said


@pytest.mark.parametrize(
    ("flags", "named"), [("--optimizer.learning_rate\n1e-3", "optimizer.learning_rate"), ("", "training data")]
)
def test_processes_with_another_configuration_or_other_data_are_refused(
    tiny_model: Path, tmp_path: Path, flags: str, named: str
) -> None:
    """Started by hand on two nodes, with a flag forgotten on one, or another version of the data there."""
    command = site(tmp_path, tiny_model)
    if flags:
        (tmp_path / "1" / "flags").write_text(flags)
    else:
        data = tmp_path / "1" / "prompts.jsonl"
        data.write_text(data.read_text().replace("film number 7", "play number 7"))
    said = run_processes(2, command, exit_code=2, limit=90)
    assert named in said and "process 1" in said
    assert not (tmp_path / "0" / "runs").exists(), "nothing was to be written"
