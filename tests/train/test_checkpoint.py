"""Checkpoints are complete or absent, and give back exactly what they took."""

import hashlib
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from groupwise.errors import UserError
from groupwise.sections import OptimizerSection
from groupwise.train import checkpoint as checkpoints
from groupwise.train import checkpoint_keeper
from groupwise.train.checkpoint import Position, delete_old, load_checkpoint, newest_complete, save_checkpoint
from groupwise.train.checkpoint_keeper import CheckpointKeeper
from groupwise.train.optimizer import make_optimizer

ROOT = Path(__file__).resolve().parents[2]
OptimizerName = Literal["adamw", "rmsprop"]


def trained(optimizer_name: OptimizerName) -> tuple[dict[str, nn.Parameter], torch.optim.Optimizer]:
    torch.manual_seed(0)
    parameters = {"b.weight": nn.Parameter(torch.randn(3, 2)), "a.weight": nn.Parameter(torch.randn(4))}
    optimizer = make_optimizer(OptimizerSection(name=optimizer_name, learning_rate=0.1), parameters.values())
    for _ in range(3):
        advance(parameters, optimizer)
    return parameters, optimizer


def advance(parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    sum((p**2).sum() * (i + 1) for i, p in enumerate(parameters.values())).backward()  # type: ignore[union-attr]
    optimizer.step()


def at(step: int) -> Position:
    return Position(step=step, identity={"base model": "x"}, offsets={"metrics": 7}, tokens=11, seconds=1.5)


@pytest.mark.parametrize("name", ["adamw", "rmsprop"])
def test_the_next_step_after_loading_has_the_same_bytes(tmp_path: Path, name: OptimizerName) -> None:
    parameters, optimizer = trained(name)
    saved = save_checkpoint(tmp_path, at(3), parameters=parameters, optimizer=optimizer)
    advance(parameters, optimizer)
    fresh = {key: nn.Parameter(torch.zeros_like(p)) for key, p in parameters.items()}
    fresh_optimizer = make_optimizer(OptimizerSection(name=name, learning_rate=0.1), fresh.values())
    assert load_checkpoint(saved, parameters=fresh, optimizer=fresh_optimizer) == at(3)
    advance(fresh, fresh_optimizer)
    assert all(torch.equal(fresh[key], parameters[key]) for key in parameters)


def test_every_global_generator_continues(tmp_path: Path) -> None:
    parameters, optimizer = trained("adamw")
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    for draw_one in (random.gauss, np.random.normal):
        draw_one(0, 1)  # both keep half of a pair for the next call
    saved = save_checkpoint(tmp_path, at(1), parameters=parameters, optimizer=optimizer)

    def draw() -> tuple[float, ...]:
        return random.gauss(0, 1), random.random(), np.random.standard_normal(), np.random.rand(), torch.rand(()).item()

    expected = draw()
    load_checkpoint(saved, parameters=parameters, optimizer=optimizer)
    assert draw() == expected


@pytest.mark.parametrize("file", ["weights.safetensors", "optimizer.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "missing"])
def test_a_damaged_checkpoint_is_passed_over_with_a_line(tmp_path: Path, file: str, damage: str) -> None:
    parameters, optimizer = trained("adamw")
    older = save_checkpoint(tmp_path, at(1), parameters=parameters, optimizer=optimizer)
    newer = save_checkpoint(tmp_path, at(2), parameters=parameters, optimizer=optimizer)
    content = bytearray((newer / file).read_bytes())
    if damage == "missing":
        (newer / file).unlink()
    else:
        content[len(content) // 2] ^= 1
        cut = {"flip": len(content), "truncate": len(content) // 2, "empty": 0}[damage]
        (newer / file).write_bytes(bytes(content[:cut]))
    found, lines = newest_complete(tmp_path)
    assert found == older
    assert len(lines) == 1 and str(newer) in lines[0]


def test_a_save_that_is_cut_short_leaves_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The peer writes in place: killed at any of six points of a save, it cannot resume at all."""
    parameters, optimizer = trained("adamw")
    good = save_checkpoint(tmp_path, at(1), parameters=parameters, optimizer=optimizer)

    def killed(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, "sync", killed)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, at(2), parameters=parameters, optimizer=optimizer)
    assert newest_complete(tmp_path) == (good, [])
    delete_old(tmp_path, keep=3)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]


def test_damaged_checkpoints_do_not_count_as_kept(tmp_path: Path) -> None:
    parameters, optimizer = trained("adamw")
    for step in (100, 300):
        save_checkpoint(tmp_path, at(step), parameters=parameters, optimizer=optimizer)
    (tmp_path / "step-000300" / "weights.safetensors").write_bytes(b"")
    delete_old(tmp_path, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000100"]


def test_the_best_checkpoint_stays_whatever_its_age(tmp_path: Path) -> None:
    parameters, optimizer = trained("adamw")
    for step in (5, 10, 15, 20):
        save_checkpoint(tmp_path, at(step), parameters=parameters, optimizer=optimizer)
    delete_old(tmp_path, keep=1, best=10)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000010", "step-000020"]


def test_swapped_files_are_noticed(tmp_path: Path) -> None:
    parameters, optimizer = trained("adamw")
    older, newer = (save_checkpoint(tmp_path, at(i), parameters=parameters, optimizer=optimizer) for i in (1, 2))
    one, other = newer / "weights.safetensors", newer / "optimizer.safetensors"
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)
    found, lines = newest_complete(tmp_path)
    assert found == older and "does not have the bytes that were written" in lines[0]


@pytest.mark.parametrize("trick", ["manifest names a file outside", "a file is a link", "the folder is a link"])
def test_files_from_outside_the_checkpoint_are_not_read(tmp_path: Path, trick: str) -> None:
    """A checkpoint may come from a stranger; what it points to on this machine is none of its business."""
    parameters, optimizer = trained("adamw")
    folder = tmp_path / "checkpoints"
    hostile = save_checkpoint(folder, at(7), parameters=parameters, optimizer=optimizer)
    outside = tmp_path / "private"
    if trick == "the folder is a link":
        hostile.rename(outside)
        hostile.symlink_to(outside)
    elif trick == "a file is a link":
        (hostile / "weights.safetensors").rename(outside)
        (hostile / "weights.safetensors").symlink_to(outside)
    else:
        outside.write_text("secret")
        manifest = json.loads((hostile / "manifest.json").read_text())
        manifest["../../private"] = hashlib.sha256(b"secret").hexdigest()
        (hostile / "manifest.json").write_text(json.dumps(manifest))
    found, lines = newest_complete(folder)
    assert found is None
    assert not lines or "is not a plain file of its own" in lines[0]


def test_a_whole_checkpoint_of_something_else_is_a_clear_error(tmp_path: Path) -> None:
    parameters, optimizer = trained("adamw")
    saved = save_checkpoint(tmp_path, at(1), parameters=parameters, optimizer=optimizer)
    other = {"c.weight": nn.Parameter(torch.zeros(2))}
    fresh = make_optimizer(OptimizerSection(), other.values())
    with pytest.raises(UserError, match="step-000001: is no checkpoint of this run: .*other parameters"):
        load_checkpoint(saved, parameters=other, optimizer=fresh)


def keeper(folder: Path, lines: list[str]) -> CheckpointKeeper:
    parameters, optimizer = trained("adamw")
    return CheckpointKeeper(folder, parameters=parameters, optimizer=optimizer, keep=2, say=lines.append)


def test_a_disk_without_room_is_foreseen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage(NamedTuple):
        free: int

    monkeypatch.setattr(checkpoint_keeper.shutil, "disk_usage", lambda _: Usage(5_000_000))
    lines: list[str] = []
    kept = keeper(tmp_path, lines)
    with pytest.raises(UserError, match=r"5.0 MB are free .* take .* run.keep_checkpoints"):
        kept.check_space()
    assert kept.save(at(1))  # one checkpoint still fits
    monkeypatch.setattr(checkpoint_keeper.shutil, "disk_usage", lambda _: Usage(1_000_000))
    assert not kept.save(at(2))
    assert "step 2 could not be saved: 1.0 MB are free" in lines[0]
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]


def test_a_save_that_the_disk_refuses_costs_a_line(tmp_path: Path) -> None:
    """A real write error in the middle of a file: the peer dies, leaves half a checkpoint, and cannot resume."""
    program = f"""
import resource, signal
from pathlib import Path
from tests.train.test_checkpoint import at, keeper
lines = []
kept = keeper(Path({str(tmp_path)!r}), lines)
assert kept.save(at(1))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
assert not kept.save(at(2))
assert "step 2 could not be saved" in lines[0], lines
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert kept.save(at(3))
"""
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000001", "step-000003"]
    assert newest_complete(tmp_path) == (tmp_path / "step-000003", [])


def test_old_checkpoints_go_and_the_newest_stay(tmp_path: Path) -> None:
    parameters, optimizer = trained("adamw")
    for step in (5, 10, 15, 20):
        save_checkpoint(tmp_path, at(step), parameters=parameters, optimizer=optimizer)
    delete_old(tmp_path, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000015", "step-000020"]
