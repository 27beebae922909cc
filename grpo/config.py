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
    ReferenceSchedule,
    RewardSection,
    RunSection,
    ScoringSection,
    check_storage,
)
from groupwise.servers.settings import ServedSamplingSection
from grpo.presets import PRESETS, SOURCES, unread_keys

Preset = Literal[
    "grpo", "dr_grpo", "dapo", "bnpo", "gspo", "cispo", "sapo", "gmpo", "luspo", "vespo", "dppo", "rloo",
    "reinforce_pp", "sft", "rft", "online_rft",
]  # fmt: skip
Surrogate = Literal["clip", "cispo", "sapo", "gmpo", "vespo", "dppo", "log_prob"]
Normaliser = Literal["completion", "token", "sum", "constant"]
AdvantageBaseline = Literal["group_mean", "leave_one_out", "batch_mean", "none"]
AdvantageScale = Literal["group_std", "batch_std", "none"]
KlForm = Literal["k1", "k2", "k3", "exact"]
KlPlace = Literal["loss", "reward", "reward_per_token"]
SERVERS_CAP = 2.0  # loss.sampler_cap with servers, as in https://fengyao.notion.site/off-policy-rl


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

    source: Literal["auto", "policy", "base", "data"] = Field(
        default="auto",
        description="who answers: policy: as it is now; base: the model before training, each prompt always the same; "
        "data: nobody, the row's own answer is learned from, with score 1; auto: as loss.preset has it, else policy",
    )
    answer_column: str | None = Field(default=None, description="source data: column with the row's own answer")
    completions_per_prompt: int = Field(default=8, ge=1, description="size of a group; source data: 1")
    minibatches: int = Field(
        default=1, ge=1, description="optimizer steps that a rollout is cut into; it has as many times the prompts"
    )
    updates: int = Field(default=1, ge=1, description="mu of the paper: times that a rollout is learned from")
    most_refills: int = Field(
        default=0, ge=0, description="dynamic sampling: rounds of new prompts in place of groups without signal; 0: off"
    )
    drop_cut: bool = Field(
        default=False,
        description="overlong filtering: completions that were cut count in their group's mean and deviation, are not "
        "learned from, and leave what the loss is divided by",
    )


class GrpoLossSection(ReferenceSchedule):
    """Eq. 3 of Shao et al. 2024 and its relatives, spelled out; a preset only fills in what is not set."""

    preset: Preset = Field(default="grpo", description="whose choices to start from; docs/objectives.md has them all")
    surrogate: Surrogate = Field(
        default="clip",
        description="clip: PPO's; cispo: capped weight, no token is dropped; sapo: soft gate; gmpo: geometric mean of "
        "clipped ratios; vespo: gamma weight of the completion's ratio; dppo: mask by moved probability; log_prob: no "
        "ratio, A log pi",
    )
    ratio: Literal["token", "completion"] = Field(
        default="token", description="of surrogate clip: each token's own, or its geometric mean over the completion"
    )
    clip_low: float = Field(
        default=0.2,
        gt=0,
        lt=1,
        description="ratio is clipped below 1 - clip_low; gmpo: its log at -clip_low; dppo: a fall in probability",
    )
    clip_high: float = Field(default=0.2, gt=0, description="and above 1 + clip_high, clip_high, a rise")
    ratio_bound: float | None = Field(
        default=None,
        gt=1,
        description="two-sided clip (delta of INTELLECT-2, there 4): no ratio above counts; null: off",
    )
    ratio_cap: float = Field(default=5.0, gt=0, description="of cispo: the largest weight, absolute and not 1 + it")
    tau_positive: float = Field(
        default=1.0, gt=0, description="of sapo: steepness of the gate where advantages are > 0"
    )
    tau_negative: float = Field(default=1.05, gt=0, description="and where they are not")
    k_positive: float = Field(
        default=2.0, ge=0, description="of vespo: k of the gamma weight where advantages are >= 0"
    )
    lambda_positive: float = Field(default=3.0, gt=0, description="and its lambda")
    k_negative: float = Field(default=3.0, ge=0, description="of vespo: k where advantages are < 0")
    lambda_negative: float = Field(default=2.0, gt=0, description="and its lambda")
    normaliser: Normaliser = Field(
        default="completion",
        description="completion: mean over completions of their means over tokens; token: mean over all tokens; sum: "
        "mean over completions of their sums; constant: sum over tokens / (completions x constant_length)",
    )
    constant_length: int | None = Field(
        default=None, ge=1, description="tokens, of the normaliser constant; null: sampling.max_new_tokens"
    )
    advantage_baseline: AdvantageBaseline = Field(
        default="group_mean",
        description="what is subtracted from a reward: the mean of its group, of the others of its group, of all that "
        "is learned from, or nothing, so that the advantage is the reward",
    )
    advantage_scale: AdvantageScale = Field(default="group_std", description="what the rest is divided by")
    std_ddof: int = Field(default=0, ge=0, le=1, description="0: population, 1: sample standard deviation")
    several_rewards: Literal["sum", "normalise_each"] = Field(
        default="sum",
        description="sum: advantages of the weighted sum; normalise_each: advantages of each reward, weighted, summed, "
        "and standardised over the rollout (GDPO)",
    )
    kl_coefficient: float = Field(default=0.04, ge=0, description="weight of the KL to the reference; 0: no reference")
    kl_form: KlForm = Field(
        default="k3", description="estimate from the drawn tokens (k3: Eq. 4), or exact: over the vocabulary"
    )
    kl_place: KlPlace = Field(
        default="loss",
        description="loss: as Eq. 3; reward: of the whole completion, off its reward; reward_per_token: each token's, "
        "off what follows it",
    )
    kl_ratio: bool = Field(
        default=False, description="times the ratio: then the gradient of k1 and k3 is that of KL(policy || reference)"
    )
    reference_every: int = Field(
        default=100, ge=1, description="optimizer steps between moves of the reference; acts from the next rollout on"
    )
    entropy_coefficient: float = Field(
        default=0.0, ge=0, description="bonus for entropy, times each token's; with entropy_target where it starts"
    )
    entropy_target: float | None = Field(
        default=None,
        gt=0,
        description="nats per token; the bonus acts below it, and its coefficient adapts; null: fixed",
    )
    entropy_step: float = Field(default=0.005, gt=0, description="what the coefficient rises or falls by at each step")
    entropy_most: float = Field(default=1.0, gt=0, description="largest coefficient that it may rise to")
    top_entropy: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="share of the step's tokens, those of highest entropy, that are learned from",
    )
    off_policy_limit: float | None = Field(
        default=None,
        gt=0,
        description="nats; completions whose mean log(pi_old / pi) is above leave where A < 0; null: none do",
    )
    sampler_cap: float | None = Field(
        default=None,
        gt=0,
        description="truncated importance sampling: weight min(pi_old / pi_drawn, this); null: weight 1",
    )

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

    @model_validator(mode="after")
    def _every_key_is_read(self) -> Self:
        usual = {name: field.default for name, field in type(self).model_fields.items()}
        preset = {**usual, **PRESETS[self.preset]}
        for key, reader in unread_keys(self).items():
            value = getattr(self, key)
            if value not in (usual[key], preset[key]):
                raise ValueError(f"{key} {value!r} is read by {reader} alone; remove it, or set that")
        return self

    @model_validator(mode="after")
    def _the_choices_fit(self) -> Self:
        baseline, scale = self.advantage_baseline, self.advantage_scale
        if scale == "group_std" and baseline in ("batch_mean", "none"):
            raise ValueError(f"advantage_scale group_std fits no advantage_baseline {baseline}; use batch_std or none")
        if baseline == "none" and scale != "none":
            raise ValueError(
                "advantage_baseline none makes the advantage the reward itself; set advantage_scale to none"
            )
        if self.several_rewards == "normalise_each" and baseline != "group_mean":
            raise ValueError(
                "several_rewards normalise_each (GDPO) is over groups; set advantage_baseline to group_mean"
            )
        if self.entropy_target is not None and self.entropy_coefficient > self.entropy_most:
            raise ValueError("entropy_coefficient is above entropy_most, which it may never be")
        return self

    @model_validator(mode="after")
    def _the_kl_fits(self) -> Self:
        if self.kl_coefficient == 0:
            return self
        if self.kl_place != "loss":
            if self.kl_form == "exact":
                raise ValueError("kl_form exact is a term of the loss; in a reward use k1")
            if self.several_rewards == "normalise_each":
                raise ValueError(
                    "several_rewards normalise_each has no reward to take the KL off; set kl_place to loss"
                )
        elif self.kl_form == "k1" and not self.kl_ratio:
            raise ValueError(
                "kl_form k1 in the loss has a gradient whose mean is 0; set kl_ratio to true, kl_place to reward, or "
                "kl_form to k2 or k3"
            )
        if self.kl_place == "reward_per_token" and self.advantage_baseline not in ("batch_mean", "none"):
            raise ValueError(
                "kl_place reward_per_token gives every token a reward of its own, which no group shares; set "
                "advantage_baseline to batch_mean or none, or kl_place to reward"
            )
        return self

    @property
    def reads_reference_logp(self) -> bool:
        """Whether the reference must score the rollout's tokens; the exact KL has it run over the step's."""
        return self.kl_coefficient > 0 and self.kl_form != "exact"

    @property
    def kl_in_reward(self) -> bool:
        return self.kl_coefficient > 0 and self.kl_place != "loss"


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
    sampling: ServedSamplingSection = ServedSamplingSection()
    rollout: RolloutSection = RolloutSection()
    reward_model: RewardModelSection | None = None
    loss: GrpoLossSection = GrpoLossSection()
    optimizer: OptimizerSection = OptimizerSection()
    run: RunSection
    alarms: AlarmsSection = AlarmsSection()
    steps: int = Field(default=100, ge=1, description="optimizer steps of the whole run")
    eval: GrpoEvalSection = GrpoEvalSection()

    @property
    def source(self) -> Literal["policy", "base", "data"]:
        """Who answers the prompts."""
        return SOURCES.get(self.loss.preset, "policy") if self.rollout.source == "auto" else self.rollout.source

    @property
    def steps_run_base(self) -> bool:
        """Whether training itself runs the network it started from, or a reference that came from it."""
        return self.loss.kl_coefficient > 0 or self.source == "base"

    @model_validator(mode="after")
    def _the_source_fits(self) -> Self:
        loss, rollout = self.loss, self.rollout
        if self.source == "data":
            self._data_teaches()
        elif rollout.answer_column is not None:
            raise ValueError("rollout.answer_column is read by source data alone; remove it, or set rollout.source")
        elif rollout.completions_per_prompt < 2 and loss.advantage_baseline in ("group_mean", "leave_one_out"):
            raise ValueError(
                f"rollout.completions_per_prompt: {rollout.completions_per_prompt} makes no group, and "
                f"loss.advantage_baseline {loss.advantage_baseline} compares within groups; set it to 2 or more"
            )
        sampling = self.sampling
        whole = sampling.top_k is None and sampling.top_p == 1 and sampling.min_p == 0 and sampling.engine == "builtin"
        if loss.sampler_cap is not None and (self.source == "data" or whole):
            raise ValueError(
                "loss.sampler_cap weighs tokens that were not drawn from the whole distribution of the policy; here "
                "all were; remove it, or set sampling.top_p, top_k or min_p"
            )
        return self

    @model_validator(mode="after")
    def _storage_fits(self) -> Self:
        check_storage(self.model, self.run, self.lora, self.loss)
        return self

    @model_validator(mode="after")
    def _servers_are_corrected(self) -> Self:
        """With servers loss.sampler_cap starts from 2; null, written out, leaves the gap uncorrected."""
        if self.sampling.engine == "vllm" and "sampler_cap" not in self.loss.model_fields_set:
            # A default that two sections decide; a configuration is frozen only once it is made.
            object.__setattr__(self, "loss", self.loss.model_copy(update={"sampler_cap": SERVERS_CAP}))
        return self

    @model_validator(mode="after")
    def _the_servers_fit(self) -> Self:
        if self.sampling.engine == "builtin":
            return self
        if self.lora is None:
            raise ValueError(
                "sampling.engine vllm hands adapters to the servers, and lora null trains all weights; set lora.rank, "
                "or sampling.engine to builtin"
            )
        if self.run.sharding == "zero3":
            raise ValueError("sampling.engine vllm needs adapters whole; set run.sharding to fsdp2, zero2 or none")
        if self.source != "policy":
            raise ValueError(f"sampling.engine vllm samples the policy; with rollout.source {self.source} remove it")
        if self.sampling.ahead:
            self._one_update_behind_fits()
        return self

    def _one_update_behind_fits(self) -> None:
        """Raise ValueError for what does not go with answers of the update before."""
        if self.rollout.minibatches * self.rollout.updates > 1:
            raise ValueError("sampling.ahead is for one update per rollout; set rollout.minibatches and updates to 1")
        if self.rollout.most_refills:
            raise ValueError("sampling.ahead asks before anyone knows what is missing; set rollout.most_refills to 0")
        if self.reward_model is not None:
            raise ValueError("sampling.ahead does not go with a reward_model that learns; set it to 0")
        if self.loss.surrogate == "log_prob":
            raise ValueError("sampling.ahead needs a surrogate with a ratio, which loss.surrogate log_prob has not")

    @model_validator(mode="after")
    def _the_reward_model_fits(self) -> Self:
        if self.reward_model is None:
            return self
        if self.run.sharding != "none":
            raise ValueError("reward_model is held whole by every process; set run.sharding to none")
        if self.source != "policy":
            raise ValueError(
                f"reward_model learns from answers of the policy; with rollout.source {self.source} remove it"
            )
        if self.loss.several_rewards == "normalise_each":
            raise ValueError("loss.several_rewards normalise_each has one reward to normalise; set it to sum")
        per_rollout = self.rollout.minibatches * self.rollout.updates
        if self.reward_model.every % per_rollout:
            raise ValueError(
                f"reward_model.every: {self.reward_model.every} falls between rollouts, which come every {per_rollout} "
                "steps (rollout.minibatches x updates); use a multiple of that"
            )
        return self

    def _data_teaches(self) -> None:
        """Raise ValueError for what answers that no policy drew do not allow."""
        loss, rollout = self.loss, self.rollout
        if rollout.answer_column is None:
            raise ValueError("rollout.source data needs rollout.answer_column, the column with the row's own answer")
        if rollout.completions_per_prompt != 1:
            raise ValueError("a row has one answer of its own; set rollout.completions_per_prompt to 1")
        if rollout.most_refills or rollout.drop_cut:
            raise ValueError("rollout.most_refills and drop_cut are for answers that are sampled; remove them")
        if loss.surrogate != "log_prob" or loss.advantage_baseline != "none":
            raise ValueError(
                "rollout.source data has answers that no policy drew, one for each prompt: it needs loss.surrogate "
                "log_prob and loss.advantage_baseline none, as --loss.preset sft sets them"
            )
        if loss.kl_ratio or loss.off_policy_limit is not None or loss.kl_in_reward:
            raise ValueError(
                "rollout.source data has no sampling log-probs, which loss.kl_ratio, loss.off_policy_limit and a KL in "
                "the reward read; remove them"
            )
