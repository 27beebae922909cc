"""A file becomes one typed object, or one error that lists everything."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groupwise.config import load_config
from groupwise.errors import UserError
from tests.config.example import (
    Config,
    CosineSchedule,
    DataSection,
    LoraSection,
    LossSection,
    M,
    ModelSection,
    load,
    problems,
)


def test_a_file_becomes_a_frozen_typed_object(tmp_path: Path):
    config = load(tmp_path, M + "loss:\n  beta: 1\ndata:\n  train: [x, y]\n")
    assert config == Config(
        model=ModelSection(path="m"), loss=LossSection(beta=1.0), data=DataSection(train=("x", "y"))
    )
    assert isinstance(config.loss.beta, float)
    with pytest.raises(ValueError, match="frozen"):
        config.loss.beta = 2.0  # pyright: ignore[reportAttributeAccessIssue]


def test_a_discriminated_section_takes_the_keys_of_its_kind(tmp_path: Path):
    config = load(tmp_path, M + "schedule: {kind: cosine, floor: 0.1}\n")
    assert config.schedule == CosineSchedule(floor=0.1)
    assert load(tmp_path, M + "schedule: {kind: cosine}\n", "--schedule.floor", "0.3").schedule == CosineSchedule(
        floor=0.3
    )


def test_a_union_takes_either_member(tmp_path: Path):
    assert load(tmp_path, M + "optimizer: {epochs: endless}\n").optimizer.epochs == "endless"
    assert load(tmp_path, M + "lora: {targets: [q, v]}\n").lora == LoraSection(targets=("q", "v"))


def test_all_problems_come_at_once_in_the_order_of_the_file(tmp_path: Path):
    text = M + "loss:\n  bta: 1\n  beta: -1\nseed: 1\nseed: 2\nlora: {rank: x}\n"
    found = problems(tmp_path, text, "--data.shuffle", "maybe", "--optimiser.epochs", "2")
    assert [line.split(":")[1] for line in found[:4]] == ["3", "4", "6", "7"]
    assert found[4:] == [
        "--data.shuffle: must be true or false, got 'maybe'",
        "--optimiser.epochs: unknown key; did you mean --optimizer.epochs?",
    ]


def test_the_first_twenty_problems_and_a_count(tmp_path: Path):
    found = problems(tmp_path, M + "".join(f"unknown_{i}: 1\n" for i in range(25)))
    assert len(found) == 21 and found[-1] == "... and 5 more"


@settings(deadline=None)
@given(st.text(max_size=60), st.text(max_size=20).filter(lambda text: "\0" not in text))
def test_no_text_whatever_gets_past_as_anything_but_a_user_error(tmp_path_factory: Any, text: str, value: str):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError):
        load_config(Config, path, ["--note", value])  # the required model.path is never there
