"""The configuration of a GRPO run: which keys exist, their limits and defaults."""

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from groupwise.config import Section
from groupwise.sections import (
    AlarmsSection,
    LoraSection,
    ModelSection,
    OptimizerSection,
    RewardSection,
    RunSection,
    SamplingSection,
    ScoringSection,
)

Normaliser = Literal["completion", "token", "constant"]
AdvantageScale = Literal["group_std", "batch_std", "none"]
KlForm = Literal["k3", "k3_ratio"]
Reference = Literal["frozen", "copy", "average"]

PRESETS: dict[str, dict[str, object]] = {
    "grpo": {},  # the defaults of the section
    "dr_grpo": {"normaliser": "constant", "advantage_scale": "none", "kl_coefficient": 0.0},
    "dapo": {"normaliser": "token", "kl_coefficient": 0.0, "clip_high": 0.28},
}


class PromptDataSection(Section):
    """Where prompts come from; every other column of a row is handed to the rewards."""

    train: tuple[str, ...] = Field(
        min_length=1, description="files (.jsonl, .json, .parquet, .csv) or hub data sets owner/name"
    )
    heldout: tuple[str, ...] = Field(default=(), description="the same, never trained on; empty: taken from train")
    heldout_prompts: int = Field(default=256, ge=1, description="most held-out prompts; how many are taken from train")
    columns: dict[str, str] = Field(
        default_factory=dict[str, str], description="our names to the data's: {prompt: question}"
    )
    split: str | None = Field(default=None, description="split of a hub data set, or value of a split column")
    heldout_split: str | None = Field(default=None, description="the same for heldout")
    limit: int | None = Field(default=None, ge=1, description="rows read from each source; null: all")
    template: str = Field(default="{prompt}", description="what a text prompt is put into, such as a few-shot example")
    chat: bool = Field(default=False, description="hand a text prompt to the chat template as a user's message")
    system: str | None = Field(default=None, description="system message put before every chat prompt")
    max_prompt_tokens: int = Field(default=256, ge=1, description="a longer prompt is dropped, counted")

    @model_validator(mode="after")
    def _template_holds_the_prompt(self) -> Self:
        if "{prompt}" not in self.template:
            raise ValueError("template must contain {prompt}, which stands for the prompt of the row")
        if self.system is not None and not self.chat:
            raise ValueError("system is for chat prompts: set chat to true, or put the text into the data's messages")
        return self


class RolloutSection(Section):
    """How answers are gathered between updates."""

    completions_per_prompt: int = Field(default=8, ge=2, description="size of a group")
    minibatches: int = Field(
        default=1, ge=1, description="optimizer steps that a rollout is cut into; it has as many times the prompts"
    )
    updates: int = Field(default=1, ge=1, description="mu of the paper: times that a rollout is learned from")
    most_refills: int = Field(
        default=0, ge=0, description="dynamic sampling: rounds of new prompts in place of groups without signal; 0: off"
    )


class GrpoLossSection(Section):
    """Eq. 3 of Shao et al. 2024 and its variants, spelled out; a preset only fills in what is not set."""

    preset: Literal["grpo", "dr_grpo", "dapo"] = Field(default="grpo", description="whose choices to start from")
    normaliser: Normaliser = Field(
        default="completion",
        description="completion: mean over completions of their means over tokens; token: mean over all tokens; "
        "constant: sum over tokens / (completions x constant_length)",
    )
    constant_length: int | None = Field(
        default=None, ge=1, description="tokens, of the normaliser constant; null: sampling.max_new_tokens"
    )
    advantage_scale: AdvantageScale = Field(
        default="group_std", description="what (reward - mean of its group) is divided by"
    )
    std_ddof: int = Field(default=0, ge=0, le=1, description="0: population, 1: sample standard deviation")
    kl_coefficient: float = Field(default=0.04, ge=0, description="weight of the KL to the reference; 0: no reference")
    kl_form: KlForm = Field(
        default="k3", description="k3: Eq. 4, per token, in the loss; k3_ratio: times the ratio (unbiased gradient)"
    )
    reference: Reference = Field(
        default="frozen",
        description="what the KL pulls to: frozen: the base; copy: the policy as it was at the last of every "
        "reference_every steps (iterations of Algorithm 1); average: moves reference_mix of the way there instead",
    )
    reference_every: int = Field(
        default=100, ge=1, description="optimizer steps between moves of the reference; acts from the next rollout on"
    )
    reference_mix: float = Field(default=0.6, gt=0, le=1, description="share of the policy in an average")
    clip_low: float = Field(default=0.2, gt=0, lt=1, description="ratio is clipped below 1 - clip_low")
    clip_high: float = Field(default=0.2, gt=0, description="and above 1 + clip_high")

    @model_validator(mode="before")
    @classmethod
    def _fill_in_preset(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        return {**PRESETS.get(str(values.get("preset")), {}), **values}

    @model_validator(mode="after")
    def _a_moving_reference_is_used(self) -> Self:
        if self.reference != "frozen" and self.kl_coefficient == 0:
            raise ValueError(f"reference {self.reference!r} moves what only the KL uses; set kl_coefficient above 0")
        return self

    def reference_moves(self, step: int) -> float:
        """Share of the policy that enters the reference before step `step`, counted from 0; 0: it stays."""
        if self.reference == "frozen" or step == 0 or step % self.reference_every:
            return 0.0
        return 1.0 if self.reference == "copy" else self.reference_mix


class RewardModelSection(Section):
    """A reward model that learns during the run from answers that the rewards ordered; Algorithm 1 of the paper."""

    path: str | None = Field(default=None, description="folder or hub id it starts from; null: model.path")
    rank: int = Field(default=8, ge=1, description="of its own adapter")
    learning_rate: float = Field(default=1e-3, gt=0, description="the paper's 7B model: 2e-5")
    first_prompts: int = Field(default=128, ge=1, description="prompts that it learns from before the first step")
    every: int = Field(default=10, ge=1, description="optimizer steps between updates; acts from the next rollout on")
    replay: float = Field(default=0.1, ge=0, lt=1, description="share of earlier groups among those of an update")
    history: int = Field(default=1000, ge=1, description="earlier groups that are kept for that, and in checkpoints")
    epochs: int = Field(default=1, ge=1, description="passes over the groups of an update")
    groups_per_step: int = Field(default=16, ge=1, description="groups in one of its optimizer steps")


class GrpoEvalSection(Section):
    """What is measured on held-out prompts."""

    every: int = Field(default=10, ge=0, description="optimizer steps between evaluations; 0: only before and after")
    correct: str | None = Field(default=None, description="reward that tells right (1) from wrong; null: the first")
    threshold: float = Field(default=1.0, description="a completion with at least this much of it is right")
    samples_per_prompt: int = Field(default=8, ge=1, description="k of pass@k and maj@k")
    answer_marker: str | None = Field(
        default="#### ", description="majority votes count what follows it; null: no vote is held"
    )


class GrpoConfig(Section):
    """A GRPO run."""

    model: ModelSection = ModelSection()
    lora: LoraSection | None = LoraSection()
    data: PromptDataSection
    rewards: tuple[RewardSection, ...] = Field(min_length=1, description="what scores answers, weighted and summed")
    scoring: ScoringSection = ScoringSection()
    sampling: SamplingSection = SamplingSection()
    rollout: RolloutSection = RolloutSection()
    loss: GrpoLossSection = GrpoLossSection()
    optimizer: OptimizerSection = OptimizerSection()
    run: RunSection
    alarms: AlarmsSection = AlarmsSection()
    steps: int = Field(default=100, ge=1, description="optimizer steps of the whole run")
    eval: GrpoEvalSection = GrpoEvalSection()
