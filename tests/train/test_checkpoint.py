"""Checkpoints are complete or absent, and give back exactly what they took."""

import random
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from torch import nn

from groupwise.sections import OptimizerSection
from groupwise.train import checkpoint as checkpoints
from groupwise.train.checkpoint import Position, delete_old, load_checkpoint, newest_complete, save_checkpoint
from groupwise.train.optimizer import make_optimizer

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

    monkeypatch.setattr(checkpoints, "_sync", killed)
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


def test_old_checkpoints_go_and_the_newest_stay(tmp_path: Path) -> None:
    parameters, optimizer = trained("adamw")
    for step in (5, 10, 15, 20):
        save_checkpoint(tmp_path, at(step), parameters=parameters, optimizer=optimizer)
    delete_old(tmp_path, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000015", "step-000020"]
