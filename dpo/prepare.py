"""Everything a preference run needs, loaded and checked before anything is written. Knows no loss and no loop."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from dpo.catalogue import OBJECTIVES
from dpo.config import DpoConfig
from dpo.dataset_report import DatasetReport
from dpo.dataset_utils import load_preference_groups
from groupwise.data.text import TextEncoder
from groupwise.errors import UserError
from groupwise.groups import Group, overlapping_prompts
from groupwise.model.captured import check_capturable
from groupwise.model.engine import LogprobEngine
from groupwise.model.loading import precision_doubts, quiet_libraries
from groupwise.model.policy import Policy
from groupwise.rewards.load import Score, load_score
from groupwise.train.runtime import Runtime


@dataclass(frozen=True, slots=True)
class Prepared:
    """Everything a run needs, loaded and checked; nothing of it has been written anywhere."""

    engine: LogprobEngine
    encoder: TextEncoder
    train: list[Group]
    heldout: list[Group]
    reports: dict[str, DatasetReport]
    score: Score | None
    notes: list[str]


def prepare(config: DpoConfig, runtime: Runtime) -> Prepared:
    """Load and check model, data and score; writes nothing. Raises UserError for what the user can mend."""
    quiet_libraries()
    score = None if config.eval.score is None else load_score(config.eval.score, key="eval.score")
    policy = Policy.load(
        config.model,
        config.lora,
        seed=config.run.seed,
        device=runtime.device,
        keep_base=config.loss.steps_run_reference,
        mesh=runtime.mesh,
    )
    runtime.spread_policy(policy, config.optimizer)
    data = config.data
    encoder = make_encoder(policy, config)
    groups, report = load_part(data.train, data.split, encoder, config)
    reports = {"train": report}
    if data.heldout:
        heldout, reports["heldout"] = load_part(data.heldout, data.heldout_split, encoder, config)
        heldout = heldout[: data.heldout_groups]
    else:
        groups, heldout = hold_out(groups, data.heldout_groups, seed=config.run.seed)
    for part, one in reports.items():
        check_signal(part, one, config)
    check_positions(policy, [*groups, *heldout], config)
    engine = LogprobEngine(policy, config.model.attention, autocast=runtime.autocast, in_lockstep=runtime.in_lockstep)
    if config.sampling.captured:
        check_capturable(engine)
    notes = [f"{part}: {line}" for part, report in reports.items() for line in report.lines()]
    notes += balance(report, config)
    notes += [*engine.notices, *precision_doubts(config.model, config.lora)]
    if leaked := overlapping_prompts(groups, heldout):
        notes.append(f"warning: {len(leaked)} held-out prompts are trained on, for example {leaked[0]}")
    return Prepared(engine, encoder, groups, heldout, reports, score, notes)


def make_encoder(policy: Policy, config: DpoConfig) -> TextEncoder:
    """The model's tokenizer with the configured limits."""
    return TextEncoder(
        policy.tokenizer,
        max_prompt_tokens=config.data.max_prompt_tokens,
        max_completion_tokens=config.data.max_completion_tokens,
        too_long=config.data.too_long,
    )


def load_part(
    sources: Sequence[str], split: str | None, encoder: TextEncoder, config: DpoConfig
) -> tuple[list[Group], DatasetReport]:
    """Groups of one part of the data, and the account of its rows."""
    data = config.data
    return load_preference_groups(
        sources, encoder, columns=data.columns, split=split, limit=data.limit, bad_rows=data.bad_rows
    )


def check_signal(part: str, report: DatasetReport, config: DpoConfig) -> None:
    """Refuse pairs for an objective that reads labels, and the reverse."""
    names = ", ".join(objective.objective for objective in config.loss.parts)
    of_labels = ", ".join(name for name, entry in OBJECTIVES.items() if entry.unit == "completion")
    if report.labelled and not config.loss.learns_from_labels:
        raise UserError(
            f"loss.objective: {names} learns from pairs or rankings, and data.{part} holds single labelled "
            f"completions; choose one of {of_labels}, or data with chosen and rejected"
        )
    if config.loss.learns_from_labels and not report.labelled:
        raise UserError(
            f"loss.objective: {names} learns from single completions (prompt, completion, label), and data.{part} "
            "holds pairs or rankings; choose an objective for pairs such as sigmoid, or data with labels"
        )
    if report.labelled and part == "train" and not (report.desirable and report.undesirable):
        raise UserError(
            f"data.train: all {report.groups_used} completions have the same label; {names} needs desirable and "
            "undesirable ones"
        )
    if config.loss.compares_across_prompts and config.run.groups_per_step < 2:
        raise UserError(
            "run.groups_per_step: kto compares with completions of other prompts in the step; set it to 2 or more"
        )


def balance(report: DatasetReport, config: DpoConfig) -> list[str]:
    """What the weights make of the numbers of both labels; the paper of KTO recommends a ratio of 1 to 3/2."""
    if not report.labelled:
        return []
    keys = config.loss.parts[0].keys
    ratio = keys["desirable_weight"] * report.desirable / (keys["undesirable_weight"] * report.undesirable)
    line = f"train: weighted desirable : undesirable completions = {ratio:.3g} : 1; recommended are 1 to 1.5"
    return [line if 1 <= ratio <= 1.5 else f"warning: {line}; change loss.desirable_weight or loss.undesirable_weight"]


def check_positions(policy: Policy, groups: Sequence[Group], config: DpoConfig) -> None:
    """Refuse texts that are longer than the model has positions, in training or in sampling."""
    positions = policy.positions
    if positions is None:
        return
    longest = max(groups, key=_longest_text)
    if _longest_text(longest) > positions:
        raise UserError(
            f"{longest.key}: prompt and completion have {_longest_text(longest)} tokens, the model has {positions} "
            f"positions; lower data.max_prompt_tokens (now {config.data.max_prompt_tokens}) or "
            f"data.max_completion_tokens (now {config.data.max_completion_tokens})"
        )
    prompt = max(len(group.prompt_ids) for group in groups)
    completion = max(len(completion.token_ids) for group in groups for completion in group.completions)
    if config.loss.compares_across_prompts and prompt + completion > positions:
        raise UserError(
            f"loss.objective kto reads completions behind the prompts of others, so the longest of both must fit "
            f"together: {prompt} and {completion} tokens are more than the model's {positions} positions; lower "
            "data.max_prompt_tokens or data.max_completion_tokens"
        )
    if prompt + config.sampling.max_new_tokens > positions:
        raise UserError(
            f"sampling.max_new_tokens: {config.sampling.max_new_tokens} after a prompt of {prompt} tokens is more than "
            f"the model's {positions} positions; lower it, or data.max_prompt_tokens"
        )


def _longest_text(group: Group) -> int:
    return len(group.prompt_ids) + max(len(completion.token_ids) for completion in group.completions)


def hold_out(groups: Sequence[Group], most: int, *, seed: int) -> tuple[list[Group], list[Group]]:
    """Split off held-out groups so that no prompt is on both sides: at most `most`, and at most a tenth.

    Prompts are taken in a random order while all of their groups fit; the first one always fits.
    Raises UserError when there is only one prompt.
    """
    count = Counter(group.prompt_ids for group in groups)
    if len(count) < 2:
        raise UserError("data.heldout: the training data has a single prompt, so none can be held out; name a file")
    prompts = sorted(count)
    random.Random(seed).shuffle(prompts)
    room = max(1, min(most, len(groups) // 10))
    kept_out: set[tuple[int, ...]] = set()
    for prompt in prompts:
        if not kept_out or count[prompt] <= room:
            kept_out.add(prompt)
            room -= count[prompt]
        if room <= 0:
            break
    return (
        [group for group in groups if group.prompt_ids not in kept_out],
        [group for group in groups if group.prompt_ids in kept_out],
    )
