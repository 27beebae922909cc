"""A configuration of its own to try the machinery on, with every kind of key that a schema can have."""

from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field, model_validator

from groupwise.config import Section, load_config
from groupwise.errors import UserError

# Any two of these names are at least three edits apart, so that every single slip has one right answer.


class ModelSection(Section):
    path: str = Field(description="folder or hub name of the base model")
    dtype: Literal["float32", "bfloat16"] = Field(default="float32", description="how weights are stored")


class LossSection(Section):
    beta: float = Field(default=0.1, gt=0, description="1/nat; pull to the reference: usually 0.1-0.5 # not a length")
    variant: Literal["sigmoid", "hinge", "no", "off"] = "sigmoid"
    smoothing: float = Field(
        default=0.0, ge=0, lt=0.5, description="share of labels taken to be flipped, " + 9 * "very long "
    )


class OptimizerSection(Section):
    learning_rate: float = Field(default=1e-6, gt=0, description="step size [at its peak]")
    warmup_steps: int = Field(default=10, ge=0)
    epochs: int | Literal["endless"] = 1


class DataSection(Section):
    train: tuple[str, ...] = ("a.jsonl", "b.jsonl")
    shuffle: bool = True
    weights: dict[str, float] = {"math": 1.0}

    @model_validator(mode="after")
    def _weights_are_not_all_zero(self) -> "DataSection":
        if self.weights and not any(self.weights.values()):
            raise ValueError("every weight is 0; give one reward a weight")
        return self


class LoraSection(Section):
    rank: int = Field(default=16, ge=1)
    targets: tuple[str, ...] | Literal["all-linear"] = "all-linear"


class RewardSection(Section):
    function: str
    gain: float = 1.0


class ConstantSchedule(Section):
    kind: Literal["constant"] = "constant"


class CosineSchedule(Section):
    kind: Literal["cosine"] = "cosine"
    floor: float = Field(default=0.0, ge=0)


class Config(Section):
    model: ModelSection
    loss: LossSection = LossSection()
    optimizer: OptimizerSection = OptimizerSection()
    data: DataSection = DataSection()
    lora: LoraSection | None = Field(default=LoraSection(), description="low-rank adapter; null trains every weight")
    rewards: tuple[RewardSection, ...] = ()
    schedule: Annotated[ConstantSchedule | CosineSchedule, Field(discriminator="kind")] = ConstantSchedule()
    seed: int = 0
    note: str | None = None


KEYS = [
    *("model.path", "model.dtype", "loss.beta", "loss.variant", "loss.smoothing", "optimizer.learning_rate"),
    *("optimizer.warmup_steps", "optimizer.epochs", "data.train", "data.shuffle", "lora.rank", "lora.targets"),
]


def load(folder: Path, text: str, *overrides: str) -> Config:
    """What a file with this text, written into the folder, and overrides make."""
    (folder / "my.yaml").write_text(text, encoding="utf-8")
    return load_config(Config, folder / "my.yaml", overrides)


def problems(folder: Path, text: str, *overrides: str) -> list[str]:
    """What is wrong with such a file, one line a problem, the file called FILE."""
    with pytest.raises(UserError) as caught:
        load(folder, text, *overrides)
    return str(caught.value).replace(str(folder / "my.yaml"), "FILE").splitlines()


M = "model: {path: m}\n"  # line 1 of nearly every file tried: the one required key
