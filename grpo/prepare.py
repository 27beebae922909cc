"""What a GRPO run needs, loaded and checked before anything is written. Knows no loss and no loop."""

from collections.abc import Sequence
from dataclasses import dataclass

from groupwise.data.text import TextEncoder
from groupwise.errors import UserError
from groupwise.groups import overlapping_prompts
from groupwise.model.captured import check_capturable
from groupwise.model.engine import LogprobEngine
from groupwise.model.loading import precision_doubts, quiet_libraries
from groupwise.model.policy import Policy
from groupwise.rewards.scorer import Scorer
from groupwise.train.runtime import Runtime
from grpo.config import GrpoConfig
from grpo.dataset_utils import Prompt, PromptReport, hold_out, load_prompts
from grpo.faults import FaultLog
from grpo.presets import PRESETS
from grpo.reward_model import RewardModel


@dataclass(frozen=True, slots=True)
class Prepared:
    """Model and prompts; nothing of it has been written anywhere."""

    runtime: Runtime
    faults: FaultLog
    engine: LogprobEngine
    encoder: TextEncoder
    train: list[Prompt]
    heldout: list[Prompt]
    reports: dict[str, PromptReport]
    notes: list[str]


def prepare(config: GrpoConfig, scorer: Scorer, runtime: Runtime, faults: FaultLog) -> Prepared:
    """Load and check model, prompts and gold answers; writes nothing. Raises UserError for what the user can mend."""
    quiet_libraries()
    policy = Policy.load(
        config.model,
        config.lora,
        seed=config.run.seed,
        device=runtime.device,
        keep_base=config.steps_run_base,
        mesh=runtime.mesh,
    )
    runtime.spread_policy(policy, config.optimizer)
    data = config.data
    encoder = make_encoder(policy, config)
    train, report = load_prompts(
        data.train, encoder, data, split=data.split, answer_column=config.rollout.answer_column
    )
    reports = {"train": report}
    if data.heldout:
        heldout, reports["heldout"] = load_prompts(data.heldout, encoder, data, split=data.heldout_split)
        heldout = heldout[: data.heldout_prompts]
    else:
        train, heldout = hold_out(train, data.heldout_prompts, seed=config.run.seed)
    check_positions(policy, [*train, *heldout], config)
    everything = (*train, *heldout)
    scorer.check_rows([prompt.row for prompt in everything], [prompt.key for prompt in everything])
    engine = LogprobEngine(policy, config.model.attention, autocast=runtime.autocast, in_lockstep=runtime.in_lockstep)
    if config.sampling.captured:
        check_capturable(engine)
    notes = [f"{part}: {line}" for part, report in reports.items() for line in report.lines()]
    notes += [*engine.notices, *precision_doubts(config.model, config.lora)]
    notes += doubts(config)
    if leaked := overlapping_prompts(train, heldout):
        notes.append(f"warning: {len(leaked)} held-out prompts are trained on, for example {leaked[0]}")
    return Prepared(runtime, faults, engine, encoder, train, heldout, reports, notes)


def make_encoder(policy: Policy, config: GrpoConfig) -> TextEncoder:
    """The model's tokenizer with the configured limits."""
    return TextEncoder(
        policy.tokenizer,
        max_prompt_tokens=config.data.max_prompt_tokens,
        max_completion_tokens=config.sampling.max_new_tokens,
    )


def load_reward_model(config: GrpoConfig, policy: Policy, runtime: Runtime) -> RewardModel | None:
    """The reward model that learns on the way, where one is asked for. Raises UserError where it does not fit."""
    if config.reward_model is None:
        return None
    return RewardModel(
        config.reward_model, config.model, tokenizer=policy.tokenizer, seed=config.run.seed, runtime=runtime
    )


def doubts(config: GrpoConfig) -> list[str]:
    """Settings that are allowed and hardly meant."""
    found = [
        f"warning: loss.preset {config.loss.preset}, but loss.{name} is {getattr(config.loss, name)}, not {value}"
        for name, value in PRESETS[config.loss.preset].items()
        if getattr(config.loss, name) != value
    ]
    if config.sampling.engine == "vllm" and config.loss.sampler_cap is None:
        found.append("warning: loss.sampler_cap is null: the gap between servers and engine is shown, not corrected")
    if config.optimizer.warmup_steps >= config.steps:
        found.append(
            f"warning: optimizer.warmup_steps {config.optimizer.warmup_steps} is not less than steps {config.steps}: "
            "the learning rate is never reached"
        )
    return found


def check_positions(policy: Policy, prompts: Sequence[Prompt], config: GrpoConfig) -> None:
    """Refuse prompts that leave no room for an answer of the configured length."""
    positions = policy.positions
    longest = max(prompts, key=lambda prompt: len(prompt.prompt_ids))
    length = len(longest.prompt_ids)
    if positions is not None and length + config.sampling.max_new_tokens > positions:
        raise UserError(
            f"sampling.max_new_tokens: {config.sampling.max_new_tokens} after the prompt of {length} tokens at "
            f"{longest.key} is more than the model's {positions} positions; lower it, or data.max_prompt_tokens "
            f"(now {config.data.max_prompt_tokens}), which drops long prompts and counts them"
        )
