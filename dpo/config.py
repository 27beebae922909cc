"""The configuration of a DPO run: which keys exist, their limits and defaults."""

from typing import Literal, Self

from pydantic import Field, model_validator

from dpo.loss_config import DpoLossSection
from groupwise.config import Section
from groupwise.sections import (
    AlarmsSection,
    LoraSection,
    ModelSection,
    OptimizerSection,
    RunSection,
    SamplingSection,
    check_storage,
)


class PreferenceDataSection(Section):
    """Where preference groups come from; formats in dpo/README.md."""

    train: tuple[str, ...] = Field(
        min_length=1, description="files (.jsonl, .json, .parquet, .csv) or hub data sets owner/name"
    )
    heldout: tuple[str, ...] = Field(default=(), description="the same, never trained on; empty: taken from train")
    heldout_groups: int = Field(default=256, ge=1, description="most held-out groups; how many are taken from train")
    columns: dict[str, str | tuple[str, ...]] = Field(
        default_factory=dict[str, str | tuple[str, ...]], description="our names to the data's: {prompt: question}"
    )
    split: str | None = Field(default=None, description="split of a hub data set, or value of a split column")
    heldout_split: str | None = Field(default=None, description="the same for heldout")
    limit: int | None = Field(default=None, ge=1, description="rows read from each source; null: all")
    bad_rows: Literal["refuse", "drop"] = Field(default="refuse", description="drop: count and show them, and go on")
    max_prompt_tokens: int = Field(default=256, ge=1, description="a longer prompt drops its group, counted")
    max_completion_tokens: int = Field(default=256, ge=1, description="end-of-sequence token included")
    too_long: Literal["drop", "cut_completion"] = Field(
        default="drop", description="what becomes of longer completions"
    )


class DpoEvalSection(Section):
    """What is measured on held-out data."""

    every: int = Field(default=10, ge=0, description="optimizer steps between evaluations; 0: only before and after")
    prompts: int = Field(default=256, ge=1, description="held-out prompts that fresh completions are drawn for")
    samples_per_prompt: int = Field(default=1, ge=1, description="fresh completions per prompt")
    path_prompts: int = Field(
        default=32, ge=0, description="of those, how many also at every evaluation, for the reward-KL path; 0: none"
    )
    score: str | None = Field(
        default=None, description="ground truth of fresh samples: review_sentiment, or file.py:function(text) -> float"
    )


class DpoConfig(Section):
    """A DPO run."""

    model: ModelSection = ModelSection()
    lora: LoraSection | None = LoraSection()
    data: PreferenceDataSection
    loss: DpoLossSection = DpoLossSection()
    optimizer: OptimizerSection = OptimizerSection()
    run: RunSection
    alarms: AlarmsSection = AlarmsSection()
    epochs: float = Field(default=1.0, gt=0, description="passes over the training groups")
    eval: DpoEvalSection = DpoEvalSection()
    sampling: SamplingSection = SamplingSection()

    @model_validator(mode="after")
    def _storage_fits(self) -> Self:
        check_storage(self.model, self.run, self.lora, self.loss)
        return self
