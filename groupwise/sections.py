"""The configuration sections that both methods share. Knows names, limits and defaults, not what is done with them."""

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from groupwise.config import Section

Sharding = Literal["none", "fsdp2", "zero2", "zero3"]
_SECRET = re.compile(r"(?i)(^|_)(api_?key|password|passwd|secret|credentials?|(access_|auth_|hf_)?token)$")


class ModelSection(Section):
    """The base model."""

    path: str = Field(default="model/base_gpt2", description="folder with a model, or a hub id like owner/name")
    revision: str | None = Field(default=None, description="hub commit or tag; null: the newest")
    dtype: Literal["float32", "bfloat16", "float64"] = Field(default="float32", description="of the base weights")
    attention: Literal["auto", "shared", "flex", "repeat"] = Field(
        default="auto",
        description="auto: prompts once per group where the check at load proves it right; flex: the same by one "
        "FlexAttention call, GPU only; repeat: the slow oracle",
    )
    quantization: Literal["none", "nf4"] = Field(
        default="none",
        description="nf4: linear layers lie in memory in four bits and an adapter learns on top (QLoRA)",
    )
    gradient_checkpointing: bool = Field(
        default=False, description="recompute layers in the backward pass; memory, never the result"
    )
    trust_remote_code: bool = Field(
        default=False, description="run Python code that comes with the model; leave off, or pin revision to a commit"
    )

    @model_validator(mode="after")
    def _foreign_code_is_pinned(self) -> Self:
        pinned = Path(self.path).is_dir() or re.fullmatch("[0-9a-f]{40}", self.revision or "")
        if self.trust_remote_code and not pinned:
            raise ValueError(
                "trust_remote_code runs code that its publisher can change at any time; set revision to the commit "
                "that you have read (40 hexadecimal digits)"
            )
        return self


class LoraSection(Section):
    """Low-rank adapters; set the section to null to train all weights."""

    rank: int = Field(default=16, ge=1, description="rank of the update")
    alpha: int = Field(default=32, ge=1, description="update is scaled by alpha / rank")
    target_modules: str | tuple[str, ...] = Field(
        default="all-linear", description="all-linear, or a list of layer names"
    )
    rank_stabilized: bool = Field(default=False, description="scale by alpha / sqrt(rank) instead")


class OptimizerSection(Section):
    """How weights move."""

    name: Literal["adamw", "rmsprop"] = Field(default="adamw", description="the DPO paper used rmsprop")
    learning_rate: float = Field(default=1e-6, ge=0, description="after warm-up; 0: a control run that learns nothing")
    betas: tuple[float, float] = Field(default=(0.9, 0.999), description="adamw: decay of the two moments")
    alpha: float = Field(default=0.99, gt=0, lt=1, description="rmsprop: decay of the squared gradient")
    epsilon: float = Field(default=1e-8, gt=0, description="added to the denominator")
    weight_decay: float = Field(default=0.0, ge=0, description="adamw: decoupled, times the learning rate")
    max_grad_norm: float | None = Field(default=1.0, gt=0, description="clip the gradient's norm; null: never")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        default="constant", description="after warm-up; the others end at 0"
    )
    warmup_steps: int = Field(default=150, ge=0, description="optimizer steps of linear warm-up from 0")

    @model_validator(mode="after")
    def _decay_is_decoupled(self) -> Self:
        if self.name == "rmsprop" and self.weight_decay > 0:
            raise ValueError("weight_decay is for adamw; rmsprop would add it to the gradient, set it to 0")
        return self


class ReferenceSchedule(Section):
    """What the policy is compared with, and when that moves: keys that the section `loss` of both methods has."""

    reference: Literal["frozen", "copy", "average"] = Field(
        default="frozen",
        description="frozen: the base; copy: the policy as it was at the last of every reference_every steps "
        "(Algorithm 1 of the GRPO paper); average: moves reference_mix of the way there instead (TR-DPO)",
    )
    reference_every: int = Field(default=100, ge=1, description="optimizer steps between moves of the reference")
    reference_mix: float = Field(default=0.6, gt=0, le=1, description="average: share of the policy")

    @model_validator(mode="after")
    def _the_schedule_is_read(self) -> Self:
        readers = {"reference_every": ("copy", "average"), "reference_mix": ("average",)}
        for key, references in readers.items():
            usual = type(self).model_fields[key].default
            if self.reference not in references and getattr(self, key) != usual:
                raise ValueError(f"{key} is read by reference {' or '.join(references)} alone; remove it, or set that")
        return self

    def reference_moves(self, step: int) -> float:
        """Share of the policy that enters the reference before step `step`, counted from 0; 0: it stays."""
        if self.reference == "frozen" or step == 0 or step % self.reference_every:
            return 0.0
        return 1.0 if self.reference == "copy" else self.reference_mix


def check_storage(
    model: ModelSection, run: "RunSection", lora: LoraSection | None, schedule: ReferenceSchedule
) -> None:
    """Raise ValueError for ways of holding weights that do not go with each other, or with what is asked of them."""
    if model.quantization != "none" and lora is None:
        raise ValueError(
            f"model.quantization {model.quantization}: four-bit weights cannot be trained; train an adapter on top of "
            "them (lora), or set it to none"
        )
    if model.quantization != "none" and run.sharding != "none":
        raise ValueError(
            f"model.quantization {model.quantization}: four-bit weights are not spread over processes; set "
            "run.sharding to none, for they are a quarter of what they were, or quantization to none"
        )
    if run.zero_settings is not None and not run.sharding.startswith("zero"):
        raise ValueError("run.zero_settings is read by run.sharding zero2 and zero3 alone; remove it, or set that")
    if run.sharding.startswith("zero"):
        _check_zero(model, run, lora, schedule)
    if run.sharding != "none" and lora is None and schedule.reference != "frozen":
        raise ValueError(
            f"loss.reference {schedule.reference} would exchange all weights, which run.sharding {run.sharding} "
            "spreads over processes; train an adapter (lora), or set run.sharding to none"
        )


def _check_zero(model: ModelSection, run: "RunSection", lora: LoraSection | None, schedule: ReferenceSchedule) -> None:
    """Raise ValueError for what DeepSpeed does not do, and `none` or `fsdp2` do."""
    if schedule.reference != "frozen":
        raise ValueError(f"loss.reference {schedule.reference} does not go with run.sharding {run.sharding}; set fsdp2")
    if run.on_not_finite == "skip":
        raise ValueError(
            f"run.on_not_finite skip: run.sharding {run.sharding} cannot take back what a step has added; set it to "
            "stop, or run.sharding to fsdp2"
        )
    if model.dtype == "float64" or (lora is None and model.dtype != "float32"):
        raise ValueError(
            f"model.dtype {model.dtype}: run.sharding {run.sharding} keeps what it trains in float32; set float32 "
            "(run.mixed_precision bf16 computes in bfloat16)"
        )


class SamplingSection(Section):
    """How completions are drawn; the order is temperature, top-k, top-p, min-p."""

    temperature: float = Field(default=1.0, gt=0, description="divides the logits")
    top_p: float = Field(default=1.0, gt=0, le=1, description="fewest likeliest tokens that sum to this; 1: all")
    top_k: int | None = Field(default=None, ge=1, description="only the k likeliest tokens; null: all")
    min_p: float = Field(default=0.0, ge=0, lt=1, description="only tokens this many times as likely as the likeliest")
    max_new_tokens: int = Field(
        default=128, ge=1, description="a completion longer than this is cut and counts as unfinished"
    )
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        default=(), description="texts that end a completion, besides the end tokens"
    )
    rows_at_once: int = Field(
        default=512, ge=1, description="completions decoded together; memory only, never the result but for rounding"
    )
    captured: bool = Field(
        default=False,
        description="GPU: decoding steps are captured once and replayed; the same result but for rounding",
    )

    @model_validator(mode="after")
    def _stop_looks_at_every_token(self) -> Self:
        if self.captured and self.stop:
            raise ValueError(
                "captured: steps that are replayed look at no texts, and stop needs that at every token; set captured "
                "to false, or remove stop"
            )
        return self


class RewardSection(Section):
    """One reward of several; a completion's score is the weighted sum."""

    name: str = Field(description="a built-in such as numeric_answer, or path/to/file.py:function")
    weight: float = Field(default=1.0, description="times the reward's score; 0: shown, but not part of the sum")
    options: dict[str, object] = Field(default={}, description="the reward's own settings, handed over by name")

    @model_validator(mode="after")
    def _options_hold_no_secret(self) -> Self:
        if found := [name for name, value in self.options.items() if _SECRET.search(name) and value]:
            raise ValueError(
                f"options.{found[0]} looks like a secret, which would be written into the run's config.yaml; put it "
                "into an environment variable, name that in scoring.environment, and read it in the reward"
            )
        return self


class ScoringSection(Section):
    """How rewards are run, and what happens when one fails."""

    workers: int = Field(default=1, ge=1, description="processes that score side by side; each loads its own rewards")
    time_limit: float = Field(
        default=10.0, gt=0, description="s; a reward that takes longer for one group is killed with its children"
    )
    load_limit: float = Field(default=300.0, gt=0, description="s; for a process to start, and to load one reward")
    environment: tuple[str, ...] = Field(
        default=(), description="variables that rewards get besides PATH and the like, such as the key of a judge"
    )
    on_fault: Literal["skip", "zero", "fail"] = Field(
        default="skip",
        description="skip: leave the completion out; zero: the reward counts 0; fail: skip, then stop the run",
    )
    fail_after: int = Field(default=0, ge=0, description="fail: completions without a valid score that are let pass")


class AlarmsSection(Section):
    """When a run warns about itself; levels are means over five logged steps."""

    spike: float = Field(
        default=30, gt=0, description="median deviations above the median of 50 steps; healthy runs stay below 30"
    )
    spike_ratio: float = Field(default=5, gt=1, description="and at least this many times that median")
    entropy: float = Field(
        default=0.03,
        ge=0,
        lt=1,
        description="share of the first level; a healthy run that solves its task ends at 0.08",
    )
    kl: float = Field(
        default=0.5, gt=0, description="nats per token to the reference; text falls apart at about 1, usual is 0.01-0.1"
    )
    clipped: float = Field(
        default=0.3, gt=0, lt=1, description="share of completions cut at the limit, if it grew by half of this"
    )
    chosen_fall: float = Field(
        default=0.3,
        gt=0,
        description="log-prob that chosen completions lose, as a share of what they had; usual is 0.05",
    )
    silent: float = Field(
        default=0.95, gt=0, lt=1, description="share of groups with equal rewards; healthy runs end at up to 0.9"
    )
    sampler_gap: float = Field(
        default=0.05,
        gt=0,
        description="nats per token between servers and engine, if it grew by half of this; bfloat16 has 0.01",
    )
    quiet_steps: int = Field(default=50, ge=1, description="logged steps before the same alarm may be raised again")


class RunSection(Section):
    """Where, how long, how reproducible."""

    name: str = Field(description="the run's folder is runs/NAME")
    folder: str = Field(default="runs", description="parent of all run folders")
    seed: int = Field(default=0, ge=0, description="every random purpose draws from its own generator under this seed")
    groups_per_step: int = Field(
        default=64, ge=1, description="prompts per optimizer step, over all processes; changes the result"
    )
    tokens_per_forward: int = Field(
        default=8192, ge=1, description="packed tokens per micro-batch; memory only, never the result"
    )
    checkpoint_every: int = Field(
        default=100, ge=0, description="optimizer steps between checkpoints; 0: only the last"
    )
    keep_checkpoints: int = Field(default=3, ge=1, description="older ones are deleted")
    resume: bool = Field(
        default=True, description="continue the newest complete checkpoint of a run folder that agrees"
    )
    on_not_finite: Literal["stop", "skip"] = Field(
        default="stop",
        description="what a loss, gradient or log-prob that is NaN or infinite does: stop the run, or skip the step",
    )
    most_skipped_steps: int = Field(default=3, ge=0, description="skip: steps that are let pass before the run stops")
    log_every: int = Field(default=1, ge=1, description="optimizer steps between lines in metrics.jsonl")
    transcripts_every: int = Field(
        default=1, ge=0, description="optimizer steps between steps whose groups are written as text; 0: never"
    )
    transcripts_groups: int = Field(
        default=4, ge=1, description="groups of such a step that are written, and as many that it passed over"
    )
    report: bool = Field(default=True, description="write report.html after every evaluation, and at the end")
    adapter_from: Literal["best", "last"] = Field(
        default="best", description="best: the step best on held-out data, if better than the last beyond chance"
    )
    mixed_precision: Literal["no", "bf16"] = Field(
        default="no", description="bf16: forward passes in bfloat16, weights as they are"
    )
    sharding: Sharding = Field(
        default="none",
        description="several processes: none: each holds the whole model; fsdp2: each holds a part of every layer; "
        "zero2, zero3: DeepSpeed spreads gradients and optimizer state, zero3 weights too",
    )
    zero_settings: str | None = Field(
        default=None, description="zero2, zero3: JSON file with DeepSpeed's section zero_optimization"
    )
    trackers: tuple[Literal["tensorboard", "wandb", "trackio", "mlflow"], ...] = Field(
        default=(), description="also send metrics there, through Accelerate; metrics.jsonl is always written"
    )
