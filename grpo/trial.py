"""A rollout of a few prompts before a run: what the base model answers, and what rewards make of it.

Knows no losses. Writes nothing.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from groupwise.data.text import TextEncoder
from groupwise.groups import Completion, Group
from groupwise.model.drawing import SamplingParams
from groupwise.model.engine import LogprobEngine
from groupwise.preflight.lengths import histogram
from groupwise.preflight.report import Report
from groupwise.preflight.scores import check_length, judge_probes, probes, tell_scores
from groupwise.preflight.texts import marked
from groupwise.rewards.protocol import prompt_text
from groupwise.rewards.scorer import Fault, Scorer
from groupwise.train.order import EpochOrder
from grpo.answering import draw_answers, score_answers
from grpo.config import GrpoConfig
from grpo.credit import ScoredGroup
from grpo.dataset_utils import Prompt

_TRIAL_PROMPTS = 8
_MORE_PROMPTS = 24  # where the first ones gave no signal
_SHOWN = 2  # prompts


@dataclass(frozen=True, slots=True)
class Trial:
    """A rollout of a few prompts: what was drawn, what it scored, what it took."""

    prompts: Sequence[Prompt]
    drawn: Sequence[Sequence[Completion]]
    scored: Sequence[ScoredGroup]
    faults: Sequence[Fault]
    sample_s: float
    score_s: float

    @property
    def answers(self) -> list[Completion]:
        return [completion for own in self.drawn for completion in own]


def roll_out(
    config: GrpoConfig,
    engine: LogprobEngine,
    encoder: TextEncoder,
    scorer: Scorer,
    train: Sequence[Prompt],
    report: Report,
) -> Trial:
    """Answers to the first prompts of the run, and to more of them where none of these would teach anything."""
    order = EpochOrder(len(train), seed=config.run.seed)
    trial = _drawn(config, engine, encoder, scorer, [train[order[i]] for i in range(_TRIAL_PROMPTS)], 0)
    scored = list(trial.scored)
    if not any(one.teaches(config.loss) for one in scored) and len(trial.faults) < len(trial.answers):
        more = [train[order[i]] for i in range(_TRIAL_PROMPTS, _TRIAL_PROMPTS + _MORE_PROMPTS)]
        scored += _drawn(config, engine, encoder, scorer, more, _TRIAL_PROMPTS).scored
    _show_answers(trial, engine, encoder, report)
    _tell_faults(config, scorer, trial, report)
    tell_scores({name: [v for one in scored for v in one.by_reward[name]] for name in scored[0].by_reward}, report)
    with_signal = sum(one.teaches(config.loss) for one in scored)
    line = f"{with_signal} of {len(scored)} groups have answers of different reward"
    if not with_signal:
        report.error(
            f"{line}: nothing would be learned. Remedy: easier or harder prompts, a base model that is sometimes "
            "right, more completions per prompt, or a reward with steps between its least and its most"
        )
    elif with_signal <= len(scored) // 4:
        report.warning(f"{line}; the others teach nothing")
    else:
        report.ok(line)
    return trial


def _drawn(
    config: GrpoConfig,
    engine: LogprobEngine,
    encoder: TextEncoder,
    scorer: Scorer,
    prompts: Sequence[Prompt],
    first: int,
) -> Trial:
    started = time.perf_counter()
    drawn = draw_answers(
        engine,
        encoder,
        prompts,
        n=config.rollout.completions_per_prompt,
        params=SamplingParams.of(config.sampling),
        seed=config.run.seed,
        streams=range(first, first + len(prompts)),
    )
    sampled = time.perf_counter()
    scored, faults = score_answers(scorer, encoder, prompts, drawn)
    return Trial(prompts, drawn, scored, faults, sampled - started, time.perf_counter() - sampled)


def _show_answers(trial: Trial, engine: LogprobEngine, encoder: TextEncoder, report: Report) -> None:
    for prompt, one, own in list(zip(trial.prompts, trial.scored, trial.drawn, strict=True))[:_SHOWN]:
        scored = own if one.group is None else one.group.completions
        group = Group(key=prompt.key, prompt_ids=prompt.prompt_ids, completions=tuple(scored[:2]))
        report.show(marked(group, encoder.tokenizer, report.console))
    answers = trial.answers
    report.show(histogram([len(c.token_ids) for c in answers], "completion tokens", console=report.console))
    cut = sum(not completion.finished for completion in answers)
    say = report.warning if cut > 0.3 * len(answers) else report.ok
    say(f"{cut} of {len(answers)} answers are cut at sampling.max_new_tokens")


def _tell_faults(config: GrpoConfig, scorer: Scorer, trial: Trial, report: Report) -> None:
    """Faults of rewards, and what a call takes."""
    if trial.faults:
        fault = trial.faults[0]
        line = (
            f"reward {fault.reward} {fault.kind} on {len(trial.faults)} of {len(trial.answers)} answers: "
            f"{fault.message}; prompt {fault.prompt[-200:]!r}, completion {fault.completion[:200]!r}"
        )
        fatal = len(trial.faults) >= len(trial.answers) or config.scoring.on_fault == "fail"
        (report.error if fatal else report.warning)(line)
    each = trial.score_s / len(trial.prompts)
    say = report.warning if each > config.scoring.time_limit / 2 else report.ok
    limit = config.scoring.time_limit
    say(f"scoring takes {each:.2g} s per group (all {len(scorer.names)} rewards, limit {limit:g} s)")


def check_probes(config: GrpoConfig, encoder: TextEncoder, scorer: Scorer, trial: Trial, report: Report) -> None:
    """Whether answers without merit are paid, or length alone is."""
    totals = [(c.score, len(c.token_ids)) for one in trial.scored if one.group for c in one.group.completions]
    if not totals:
        return
    check_length([score for score, _ in totals], [length for _, length in totals], report)
    made = [
        (probe, prompt)
        for index, (prompt, own) in enumerate(zip(trial.prompts, trial.drawn, strict=True))
        for probe in probes(
            prompt_text(prompt.row), own[0].token_ids, encoder, group=index, most_tokens=config.sampling.max_new_tokens
        )
    ]
    scored = scorer.score([prompt.row for _, prompt in made], [probe.answer for probe, _ in made], counted=False)
    judge_probes([probe.name for probe, _ in made], scored.totals, [score for score, _ in totals], report)
    if scored.faults and not trial.faults:
        fault = scored.faults[0]
        report.warning(
            f"reward {fault.reward} {fault.kind} on {len(scored.faults)} of {len(made)} made-up answers: "
            f"{fault.message}; completion {fault.completion[:200]!r}"
        )
