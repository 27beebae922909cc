"""Checkpoints are complete or absent, and give back exactly what they took."""

import errno
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import weakref
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
from groupwise.train.checkpoint import (
    Generators,
    Position,
    delete_old,
    newest_complete,
    read_checkpoint,
    whole_state,
    write_checkpoint,
)
from groupwise.train.checkpoint_keeper import CheckpointKeeper
from groupwise.train.exchange import Exchange
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


def saved(folder: Path, step: int, parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> Path:
    """A checkpoint of what is trained as it is now."""
    trained = whole_state(parameters, optimizer, kept=True)
    return write_checkpoint(folder, at(step), trained, Generators.now())


def at(step: int) -> Position:
    return Position(step=step, identity={"base model": "x"}, offsets={"metrics": 7}, tokens=11, seconds=1.5)


@pytest.mark.parametrize("name", ["adamw", "rmsprop"])
def test_the_next_step_after_loading_has_the_same_bytes(tmp_path: Path, name: OptimizerName) -> None:
    parameters, optimizer = trained(name)
    kept = saved(tmp_path, 3, parameters, optimizer)
    advance(parameters, optimizer)
    fresh = {key: nn.Parameter(torch.zeros_like(p)) for key, p in parameters.items()}
    fresh_optimizer = make_optimizer(OptimizerSection(name=name, learning_rate=0.1), fresh.values())
    assert read_checkpoint(kept, fresh).put_back(fresh, fresh_optimizer) == at(3)
    advance(fresh, fresh_optimizer)
    assert all(torch.equal(fresh[key], parameters[key]) for key in parameters)


def test_every_global_generator_continues(tmp_path: Path) -> None:
    parameters, optimizer = trained("adamw")
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    for draw_one in (random.gauss, np.random.normal):
        draw_one(0, 1)  # both keep half of a pair for the next call
    kept = saved(tmp_path, 1, parameters, optimizer)

    def draw() -> tuple[float, ...]:
        return random.gauss(0, 1), random.random(), np.random.standard_normal(), np.random.rand(), torch.rand(()).item()

    expected = draw()
    read_checkpoint(kept, parameters).put_back(parameters, optimizer)
    assert draw() == expected


@pytest.mark.parametrize("file", ["weights.safetensors", "optimizer.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "missing"])
def test_a_damaged_checkpoint_is_passed_over_with_a_line(tmp_path: Path, file: str, damage: str) -> None:
    parameters, optimizer = trained("adamw")
    older = saved(tmp_path, 1, parameters, optimizer)
    newer = saved(tmp_path, 2, parameters, optimizer)
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
    good = saved(tmp_path, 1, parameters, optimizer)

    def killed(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, "sync", killed)
    with pytest.raises(KeyboardInterrupt):
        saved(tmp_path, 2, parameters, optimizer)
    assert newest_complete(tmp_path) == (good, [])
    delete_old(tmp_path, keep=3)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]


def test_damaged_checkpoints_do_not_count_as_kept(tmp_path: Path) -> None:
    parameters, optimizer = trained("adamw")
    for step in (100, 300):
        saved(tmp_path, step, parameters, optimizer)
    (tmp_path / "step-000300" / "weights.safetensors").write_bytes(b"")
    delete_old(tmp_path, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000100"]


def test_the_best_checkpoint_stays_whatever_its_age(tmp_path: Path) -> None:
    parameters, optimizer = trained("adamw")
    for step in (5, 10, 15, 20):
        saved(tmp_path, step, parameters, optimizer)
    delete_old(tmp_path, keep=1, best=10)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000010", "step-000020"]


def test_swapped_files_are_noticed(tmp_path: Path) -> None:
    parameters, optimizer = trained("adamw")
    older, newer = (saved(tmp_path, i, parameters, optimizer) for i in (1, 2))
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
    hostile = saved(folder, 7, parameters, optimizer)
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
    kept = saved(tmp_path, 1, parameters, optimizer)
    other = {"c.weight": nn.Parameter(torch.zeros(2))}
    fresh = make_optimizer(OptimizerSection(), other.values())
    with pytest.raises(UserError, match="step-000001: is no checkpoint of this run: .*other parameters"):
        read_checkpoint(kept, other).put_back(other, fresh)


def keeper(folder: Path, lines: list[str]) -> CheckpointKeeper:
    parameters, optimizer = trained("adamw")
    return CheckpointKeeper(
        folder, parameters=parameters, optimizer=optimizer, keep=2, say=lines.append, exchange=Exchange(1, 0)
    )


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
        saved(tmp_path, step, parameters, optimizer)
    delete_old(tmp_path, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000015", "step-000020"]


def test_who_does_not_write_holds_one_tensor_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every process once had all weights and moments in main memory, eight times a model of 28 GB on one machine."""
    parameters, optimizer = trained("adamw")
    alive = most = gathered = 0

    def gone() -> None:
        nonlocal alive
        alive -= 1

    def whole(value: torch.Tensor) -> torch.Tensor:
        nonlocal alive, most, gathered
        alive, gathered = alive + 1, gathered + 1
        most = max(most, alive)
        content = value.detach().numpy().copy()  # a tensor and all its views keep it alive
        weakref.finalize(content, gone)
        return torch.from_numpy(content)

    monkeypatch.setattr(checkpoints, "whole_tensor", whole)
    found = whole_state(parameters, optimizer, kept=False)
    assert (most, gathered) == (1, 2 * 4), "each weight, its step and two moments, one after the other"
    assert not found.weights and not found.moments
    kept = whole_state(parameters, optimizer, kept=True)
    assert len(kept.weights) + len(kept.moments) == most == 8


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the checkpoints whose weights are read through."""
    found: list[str] = []
    original = checkpoints.__dict__["_sha256"]

    def counted(file: Path) -> str:
        if file.name == "weights.safetensors":
            found.append(file.parent.name)
        return original(file)

    monkeypatch.setattr(checkpoints, "_sha256", counted)
    return found


def test_what_was_written_or_verified_once_is_not_read_again(tmp_path: Path, read: list[str]) -> None:
    """All kept checkpoints were once read through after every save, while all processes waited."""
    kept = keeper(tmp_path, [])
    for step in range(1, 5):
        assert kept.save(at(step))
    assert read == [f".writing-step-{step:06d}" for step in range(1, 5)], "each is hashed as it is written"
    read.clear()
    again = keeper(tmp_path, [])
    assert again.find_newest() == tmp_path / "step-000004"
    again.tidy(None)
    assert read == ["step-000004", "step-000003"]
    assert again.save(at(5)) and again.newest == tmp_path / "step-000005"
    assert read[2:] == [".writing-step-000005"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000004", "step-000005"]


@pytest.mark.parametrize("left", ["step-000001", ".writing-step-000009"])
def test_a_deletion_that_the_disk_refuses_costs_a_line_and_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: str
) -> None:
    """Network disks refuse to delete what another machine has open; the run ended with a traceback."""
    lines: list[str] = []
    kept = keeper(tmp_path, lines)
    for step in (1, 2):
        assert kept.save(at(step))
    (tmp_path / ".writing-step-000009").mkdir()
    delete = shutil.rmtree

    def busy(path: Path, ignore_errors: bool = False) -> None:
        if path.name == left and not ignore_errors:
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), str(path))
        delete(path, ignore_errors=ignore_errors)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.shutil, "rmtree", busy)
        assert kept.save(at(3))
    assert len(lines) == 1 and left in lines[0] and "could not be deleted" in lines[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([left, "step-000002", "step-000003"])
    assert kept.save(at(4))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000003", "step-000004"]
    assert len(lines) == 1
