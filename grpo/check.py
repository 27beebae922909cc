"""`python grpo/train_grpo.py --check`: all that can be known before a GRPO run begins. Writes nothing, trains nothing.

Legend: T completion tokens.
"""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console

from groupwise.batch import pack
from groupwise.data.rows import read_rows
from groupwise.data.text import TextEncoder
from groupwise.errors import UserError
from groupwise.groups import Completion, Group, forward_tokens
from groupwise.model.engine import LogprobEngine, reference_logprobs
from groupwise.model.policy import Policy, precision_doubts, quiet_libraries
from groupwise.model.sampling import SamplingParams
from groupwise.observe.progress import duration
from groupwise.preflight.fit import check_memory
from groupwise.preflight.folder import check_disk, check_folder
from groupwise.preflight.lengths import histogram
from groupwise.preflight.memory import sampling_bytes
from groupwise.preflight.model import TrialStep, check_weights, trial_step
from groupwise.preflight.report import Report
from groupwise.preflight.scores import check_length, judge_probes, probes, tell_scores
from groupwise.preflight.texts import check_ends, check_template, marked
from groupwise.rewards.protocol import prompt_text
from groupwise.rewards.scorer import Fault, Scorer
from groupwise.train.order import EpochOrder
from groupwise.train.run_folder import RunFolder
from groupwise.train.runtime import Runtime
from grpo.config import GrpoConfig
from grpo.dataset_utils import Prompt, PromptReport, hold_out, load_prompts
from grpo.eval import check_names
from grpo.grpo_trainer import GrpoObjective
from grpo.prepare import check_positions, doubts, make_encoder
from grpo.rollouts import ScoredGroup, as_answers, draw_answers, score_answers

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


def check(config: GrpoConfig, *, console: Console | None = None, memory: int | None = None) -> int:
    """Look at everything, show what is found; the exit code. `memory` stands for the bytes there are, for trying out."""
    report = Report(console or Console())
    quiet_libraries()
    with report.part("configuration and folder"):
        report.ok("the configuration holds no unknown key and no value out of range")
        report.notes([*doubts(config), *precision_doubts(config.model, config.lora)])
        check_folder(config, config.run, report)
    scorer: Scorer | None = None
    with report.part("rewards"):
        scorer = Scorer(config.rewards, config.scoring)
        report.ok(f"loaded: {', '.join(scorer.names)}")
    try:
        if scorer is not None:
            with report.part("measure of success"):
                check_names(config, scorer)
                report.ok(f"an answer is right with at least {config.eval.threshold:g} of {_correct(config, scorer)}")
        _check_rest(config, scorer, report, memory)
    finally:
        if scorer is not None:
            scorer.close()
    return report.finish()


def _correct(config: GrpoConfig, scorer: Scorer) -> str:
    return config.eval.correct or scorer.names[0]


def _check_rest(config: GrpoConfig, scorer: Scorer | None, report: Report, memory: int | None) -> None:
    """Model, data, and with both of them rollouts, memory, loss and time."""
    with report.part("model"):
        loaded = _load_model(config, report)
    if loaded is None:
        with report.part("data"):
            for source in (*config.data.train, *config.data.heldout):
                if Path(source).suffix:
                    read_rows(source, limit=1)
            report.warning("nothing more was checked of the data, for its tokens are the model's")
        return
    runtime, policy, encoder = loaded
    train, heldout = _check_data(config, policy, encoder, scorer, report)
    with report.part("weights and attention"):
        check_weights(policy, config.model.path)
        report.ok("all weights are finite")
    if not train or report.findings[-1].level == "error":
        return
    engine = LogprobEngine(policy, config.model.attention, autocast=runtime.autocast)
    report.notes(engine.notices)
    trial: Trial | None = None
    if scorer is not None:
        with report.part("rewards of the base model's answers"):
            trial = _roll_out(config, engine, encoder, scorer, train, report)
            _check_probes(config, encoder, scorer, trial, report)
    with report.part("memory, loss and time"):
        _check_step(config, engine, runtime, train, heldout, trial, report, memory)


def _load_model(config: GrpoConfig, report: Report) -> tuple[Runtime, Policy, TextEncoder] | None:
    """Model and tokenizer, or None, said, where they cannot be loaded."""
    try:
        runtime = Runtime(
            mixed_precision=config.run.mixed_precision,
            trackers=config.run.trackers,
            folder=RunFolder.of(config.run).path,
            seed=config.run.seed,
        )
        policy = Policy.load(config.model, config.lora, seed=config.run.seed, device=runtime.device)
        encoder = make_encoder(policy, config)
    except UserError as error:
        report.error(str(error))
        return None
    trained = sum(p.numel() for p in policy.trainable().values())
    everything = sum(p.numel() for p in policy.model.parameters())
    report.ok(f"{config.model.path}: {everything:,} weights, {trained:,} of them trained, on {policy.device}")
    try:
        check_disk(policy, config.run, report)
    except UserError as error:
        report.error(str(error))
    return runtime, policy, encoder


def _check_data(
    config: GrpoConfig, policy: Policy, encoder: TextEncoder, scorer: Scorer | None, report: Report
) -> tuple[list[Prompt], list[Prompt]]:
    """Both parts of the data; empty where a part cannot be used."""
    data = config.data
    train: list[Prompt] = []
    heldout: list[Prompt] = []
    with report.part("training data"):
        train, account = load_prompts(data.train, encoder, data, split=data.split)
        _tell_account(account, report)
    if data.heldout:
        with report.part("held-out data"):
            heldout, account = load_prompts(data.heldout, encoder, data, split=data.heldout_split)
            heldout = heldout[: data.heldout_prompts]
            _tell_account(account, report)
    elif train:
        with report.part("held-out data"):
            train, heldout = hold_out(train, data.heldout_prompts, seed=config.run.seed)
            report.ok(f"{len(heldout)} prompts are taken from the training data, {len(train)} stay")
    if not train or not heldout:
        return [], []
    everything = [*train, *heldout]
    usable = False
    with report.part("texts"):
        trained = {prompt.prompt_ids for prompt in train}
        if leaked := [prompt.key for prompt in heldout if prompt.prompt_ids in trained]:
            report.warning(f"{len(leaked)} of {len(heldout)} held-out prompts are trained on, for example {leaked[0]}")
        else:
            report.ok("no held-out prompt is trained on")
        check_ends([_bare(prompt) for prompt in everything], encoder, policy.model.config, report, answered=False)
        if encoder.tokenizer.chat_template and (data.chat or any(isinstance(p.row["prompt"], list) for p in train)):
            check_template(encoder, report)
        check_positions(policy, everything, config)
        if scorer is not None:
            scorer.check_rows([prompt.row for prompt in everything], [prompt.key for prompt in everything])
        report.show(histogram([len(p.prompt_ids) for p in everything], "prompt tokens", console=report.console))
        usable = True
    return (train, heldout) if usable else ([], [])


def _bare(prompt: Prompt) -> Group:
    """A prompt as a group, its only answer an empty one, for what looks at prompts of groups."""
    return Group(key=prompt.key, prompt_ids=prompt.prompt_ids, completions=(_EMPTY,))


_EMPTY = Completion(token_ids=(0,), finished=False, score=0.0)


def _tell_account(account: PromptReport, report: Report) -> None:
    report.notes(account.lines())
    if account.repeated:
        report.warning(f"{account.repeated} prompts are exact duplicates of others: they are asked more often")


# --- answers and rewards


def _roll_out(
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
    if not any(one.has_signal for one in scored) and len(trial.faults) < len(trial.answers):
        more = [train[order[i]] for i in range(_TRIAL_PROMPTS, _TRIAL_PROMPTS + _MORE_PROMPTS)]
        scored += _drawn(config, engine, encoder, scorer, more, _TRIAL_PROMPTS).scored
    _show_answers(trial, engine, encoder, report)
    _tell_faults(config, scorer, trial, report)
    tell_scores({name: [v for one in scored for v in one.by_reward[name]] for name in scored[0].by_reward}, report)
    with_signal = sum(one.has_signal for one in scored)
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
    say(f"scoring takes {each:.2g} s per group (all {len(scorer.names)} rewards, limit {config.scoring.time_limit:g} s)")


def _check_probes(config: GrpoConfig, encoder: TextEncoder, scorer: Scorer, trial: Trial, report: Report) -> None:
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
            f"reward {fault.reward} {fault.kind} on {len(scored.faults)} of {len(made)} made-up answers: {fault.message}; "
            f"completion {fault.completion[:200]!r}"
        )


# --- memory, loss, time


def _check_step(
    config: GrpoConfig,
    engine: LogprobEngine,
    runtime: Runtime,
    train: Sequence[Prompt],
    heldout: Sequence[Prompt],
    trial: Trial | None,
    report: Report,
    there: int | None,
) -> None:
    """Memory first; what fits is then tried."""
    n, most = config.rollout.completions_per_prompt, config.sampling.max_new_tokens
    longest = max(train, key=lambda prompt: len(prompt.prompt_ids))
    texts = trial.answers if trial else [Completion(token_ids=longest.prompt_ids, finished=False, score=0.0)]
    prompts = config.run.groups_per_step * config.rollout.minibatches
    state = 3 * sum(p.numel() * p.element_size() for p in engine.policy.trainable().values())
    sampling = max(
        sampling_bytes(
            engine,
            config.sampling,
            prompts=count,
            longest=max(len(p.prompt_ids) for p in [*train, *heldout]),
            n=each,
            state=state,
        )
        for count, each in ((prompts, n), (len(heldout), config.eval.samples_per_prompt), (len(heldout), 1))
    )
    whole = config.run.groups_per_step * (len(longest.prompt_ids) + n * (most - 1))
    fit = check_memory(
        engine,
        config.optimizer,
        lambda size: [_filled(longest, texts, n=n, most=most, tokens=min(size, whole))],
        tokens=config.run.tokens_per_forward,
        sampling=sampling,
        several=whole > config.run.tokens_per_forward,
        report=report,
        there=there,
    )
    if fit.tokens is None:
        report.warning("no forward pass was tried, for it would not fit")
        return
    if trial is not None:
        _check_start(config, engine, trial, report)
    part = _filled(longest, texts, n=n, most=most, tokens=min(fit.tokens, whole))
    part = reference_logprobs(
        engine, part, tokens_per_forward=config.run.tokens_per_forward, temperature=config.sampling.temperature
    )
    objective = GrpoObjective(config.loss, config.sampling.temperature, config.loss.constant_length or most)
    step = trial_step(objective, _as_rollout(part), engine=engine, runtime=runtime, report=report)
    if trial is not None:
        _say_time(config, len(heldout), trial, step, report)


def _filled(longest: Prompt, texts: Sequence[Completion], *, n: int, most: int, tokens: int) -> list[Group]:
    """The largest micro-batch that can occur: the longest prompt, and answers of the full length made of real ones.

    The last group's answers are shorter where the whole ones would leave the row unfilled.
    """
    prompt = len(longest.prompt_ids)
    ids = [i for completion in texts for i in completion.token_ids]
    ids *= -(-most // len(ids))
    groups: list[Group] = []
    left = tokens
    while not groups or left >= prompt + n:
        length = min(most, max(2, (left - prompt) // n + 1))
        completion = Completion(token_ids=tuple(ids[:length]), finished=False, score=0.0)
        groups.append(Group(key=longest.key, prompt_ids=longest.prompt_ids, completions=(completion,) * n))
        left -= forward_tokens(groups[-1])
    return groups


def _as_rollout(groups: Sequence[Group]) -> list[Group]:
    """As if the policy had drawn these answers and every other one were better: a step with a gradient."""
    return [
        group.replace_completions(
            [
                replace(c, sampled_logp=c.reference_logp, advantage=torch.full((len(c.token_ids),), 1.0 - 2 * (j % 2)))
                for j, c in enumerate(_told_apart(group.completions))
            ]
        )
        for group in groups
    ]


def _told_apart(completions: Sequence[Completion]) -> list[Completion]:
    """Every other answer one token shorter, so that equal texts of opposite advantage do not cancel."""
    shorter = [
        replace(c, token_ids=c.token_ids[:-1], reference_logp=None if c.reference_logp is None else c.reference_logp[:-1])
        if j % 2 and len(c.token_ids) > 1
        else c
        for j, c in enumerate(completions)
    ]
    return shorter


def _check_start(config: GrpoConfig, engine: LogprobEngine, trial: Trial, report: Report) -> None:
    """Before the first step sampler, policy and reference are one function: every ratio is 1 and every KL 0."""
    groups = [
        Group(key=prompt.key, prompt_ids=prompt.prompt_ids, completions=tuple(own[:2]))
        for prompt, own in list(zip(trial.prompts, trial.drawn, strict=True))[:4]
    ]
    temperature = config.sampling.temperature
    scored = reference_logprobs(
        engine, groups, tokens_per_forward=config.run.tokens_per_forward, temperature=temperature
    )
    batch = pack(scored).to(engine.policy.device)
    assert batch.sampled_logp_T is not None and batch.reference_logp_T is not None
    with torch.no_grad():
        logp_T = engine.score(batch, temperature=temperature).logp_T
    allowed = engine.rounding * max(1.0, logp_T.abs().max().item())
    for what, other_T in (("sampler", batch.sampled_logp_T), ("reference", batch.reference_logp_T)):
        gap = (logp_T - other_T).abs().max().item()
        if gap <= allowed:
            report.ok(f"policy and {what} agree to {gap:.1g} nats in a token's log-prob")
        else:
            report.error(
                f"policy and {what} differ by {gap:.2g} nats in a token's log-prob before the first step; try "
                "model.attention repeat"
            )


def _say_time(config: GrpoConfig, heldout: int, trial: Trial, step: TrialStep, report: Report) -> None:
    """The trial's speed times all there is to do; a forward pass alone counts a third."""
    per_prompt = (trial.sample_s + trial.score_s) / len(trial.prompts)
    per_answer = per_prompt / config.rollout.completions_per_prompt
    tokens = statistics.fmean(
        len(p.prompt_ids) + sum(len(c.token_ids) - 1 for c in own)
        for p, own in zip(trial.prompts, trial.drawn, strict=True)
    )
    prompts = config.steps * config.run.groups_per_step / config.rollout.updates
    reading = prompts * tokens * step.seconds_per_token / 3 if config.loss.kl_coefficient > 0 else 0.0
    learning = prompts * config.rollout.updates * tokens * step.seconds_per_token
    sampling = prompts * per_prompt
    evaluations = config.steps // config.eval.every if config.eval.every else 0
    judging = heldout * per_answer * (evaluations + 2 * (1 + config.eval.samples_per_prompt))
    report.ok(
        f"time, very roughly: {duration(sampling + reading + learning + judging)} for {config.steps} steps and "
        f"{evaluations} evaluations (rollouts {duration(sampling)}, learning {duration(learning + reading)}, "
        f"evaluation {duration(judging)})"
    )
