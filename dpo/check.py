"""`python dpo/train_dpo.py --check`: all that can be known before a DPO run begins. Writes nothing, trains nothing."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console

from dpo.config import DpoConfig
from dpo.dataset_report import DatasetReport
from dpo.eval import draw_samples
from dpo.objective import DpoObjective
from dpo.prepare import balance, check_positions, check_signal, hold_out, load_part, make_encoder
from dpo.start import check_start
from groupwise.batch import split_by_tokens
from groupwise.cost.shapes import GroupShape, ModelShape, shapes_of
from groupwise.data.rows import read_rows
from groupwise.data.text import TextEncoder
from groupwise.groups import Group, overlapping_prompts
from groupwise.model.captured import check_capturable
from groupwise.model.engine import LogprobEngine, reference_logprobs
from groupwise.model.loading import precision_doubts, quiet_libraries
from groupwise.model.policy import Policy
from groupwise.observe.progress import duration
from groupwise.preflight.fit import Fit, check_memory, heaviest
from groupwise.preflight.folder import check_folder
from groupwise.preflight.lengths import histogram
from groupwise.preflight.memory import sampling_bytes
from groupwise.preflight.model import Loaded, TrialStep, load_model, trial_step
from groupwise.preflight.report import Report, own_terminal
from groupwise.preflight.sources import check_sources
from groupwise.preflight.texts import check_ends, check_template, marked, tell_leaks
from groupwise.preflight.timing import Speed, busiest, repeated, tell_network
from groupwise.rewards.load import Score, load_score
from groupwise.train.checkpoint_keeper import state_bytes
from groupwise.train.runtime import Runtime
from groupwise.train.source import EpochSource

_SHOWN = 2  # groups
_TRIAL_PROMPTS = 8


def check(config: DpoConfig, *, console: Console | None = None, memory: int | None = None) -> int:
    """Look at everything, show what is found; returns the exit code. `memory` stands for the bytes there are."""
    report = Report(console or own_terminal())
    quiet_libraries()
    with report.part("configuration and folder"):
        report.ok("the configuration holds no unknown key and no value out of range")
        report.notes(precision_doubts(config.model, config.lora))
        check_folder(config, config.run, report)
    score: Score | None = None
    if config.eval.score is not None:
        with report.part("measure of success"):
            score = load_score(config.eval.score, key="eval.score")
            report.ok(f"eval.score: {config.eval.score}")
    loaded = load_model(
        config.model,
        config.lora,
        config.run,
        lambda policy: make_encoder(policy, config),
        report,
        keep_base=config.loss.steps_run_reference,
    )
    if loaded is None:
        check_sources((*config.data.train, *config.data.heldout), report)
        return report.finish()
    groups, heldout = _check_data(config, loaded.policy, loaded.encoder, report)
    if groups and loaded.sound:
        with report.part("memory, loss and time"):
            _check_step(config, loaded, groups, heldout, score, report, memory)
    return report.finish()


def _check_step(
    config: DpoConfig,
    loaded: Loaded,
    groups: Sequence[Group],
    heldout: Sequence[Group],
    score: Score | None,
    report: Report,
    there: int | None,
) -> None:
    """Memory first; what fits is then tried."""
    engine = LogprobEngine(loaded.policy, config.model.attention, autocast=loaded.runtime.autocast)
    if config.sampling.captured:
        check_capturable(engine)
    report.notes(engine.notices)
    source = EpochSource(
        groups,
        groups_per_step=config.run.groups_per_step,
        epochs=config.epochs,
        seed=config.run.seed,
        runtime=loaded.runtime,
    )
    fit = _check_memory(config, engine, source, heldout, report, there)
    if fit.tokens is None:
        report.warning("no forward pass was tried, for it would not fit")
        return
    trial = _check_loss(config, engine, loaded.runtime, source, fit.tokens, report)
    sampled = _check_samples(config, engine, loaded.encoder, heldout[:_TRIAL_PROMPTS], score, loaded.runtime, report)
    _say_time(config, source, groups, heldout, trial, sampled, loaded, engine, report)


def _check_data(
    config: DpoConfig, policy: Policy, encoder: TextEncoder, report: Report
) -> tuple[list[Group], list[Group]]:
    """Both parts of the data; empty where a part cannot be used."""
    data = config.data
    groups: list[Group] = []
    heldout: list[Group] = []
    with report.part("training data"):
        found, account = load_part(data.train, data.split, encoder, config)
        _tell_account(account, report)
        check_signal("train", account, config)
        report.notes(balance(account, config))
        groups = found
    if data.heldout:
        with report.part("held-out data"):
            heldout, account = load_part(data.heldout, data.heldout_split, encoder, config)
            heldout = heldout[: data.heldout_groups]
            _tell_account(account, report)
    elif groups:
        with report.part("held-out data"):
            groups, heldout = hold_out(groups, data.heldout_groups, seed=config.run.seed)
            report.ok(f"{len(heldout)} groups are taken from the training data, {len(groups)} stay")
    if not groups or not heldout:
        return [], []
    usable = False
    with report.part("texts"):
        tell_leaks(overlapping_prompts(groups, heldout), len(heldout), report)
        check_ends([*groups, *heldout], encoder, policy.model.config, report)
        if encoder.tokenizer.chat_template and _holds_messages(data.train):
            check_template(encoder, report)
        for group in groups[:_SHOWN]:
            report.show(marked(group, encoder.tokenizer, report.console))
        check_positions(policy, [*groups, *heldout], config)
        usable = True
    with report.part("lengths"):
        everything = [*groups, *heldout]
        report.show(histogram([len(g.prompt_ids) for g in everything], "prompt tokens", console=report.console))
        lengths = [len(c.token_ids) for group in everything for c in group.completions]
        report.show(histogram(lengths, "completion tokens", console=report.console))
    return (groups, heldout) if usable else ([], [])


def _holds_messages(sources: Sequence[str]) -> bool:
    return any(isinstance(v, list) for s in sources for row in read_rows(s, limit=1) for v in row.values.values())


def _tell_account(account: DatasetReport, report: Report) -> None:
    report.notes(account.lines())
    if account.duplicate_groups:
        report.warning(f"{account.duplicate_groups} groups are exact duplicates of others: they count twice")


def _micro_batches(source: EpochSource, tokens: int) -> list[list[Group]]:
    return [part for step in range(source.total_steps) for part in split_by_tokens(source.groups(step), tokens)]


def _check_memory(
    config: DpoConfig,
    engine: LogprobEngine,
    source: EpochSource,
    heldout: Sequence[Group],
    report: Report,
    there: int | None,
) -> Fit:
    tokens = config.run.tokens_per_forward
    return check_memory(
        engine,
        config.optimizer,
        lambda size: heaviest(_micro_batches(source, size)),
        tokens=tokens,
        sampling=sampling_bytes(
            engine,
            config.sampling,
            prompts=min(config.eval.prompts, len(heldout)),
            longest=max(len(group.prompt_ids) for group in heldout),
            n=config.eval.samples_per_prompt,
            state=state_bytes(engine.policy.trainable().values()),
        ),
        several=len(_micro_batches(source, tokens)) > source.total_steps,
        report=report,
        there=there,
    )


def _check_loss(
    config: DpoConfig, engine: LogprobEngine, runtime: Runtime, source: EpochSource, tokens: int, report: Report
) -> TrialStep:
    """One pass on the largest micro-batch: a fresh policy is its reference, the loss what its formula gives there."""
    part: Sequence[Group] = heaviest(_micro_batches(source, tokens))[0]
    objective = DpoObjective.of(config.loss)
    if config.loss.needs_reference:
        part = reference_logprobs(engine, part, tokens_per_forward=tokens)
        try:
            check_start(objective, engine, part, runtime, tokens_per_forward=tokens)
            report.ok("policy and reference are equal before the first step, and the loss is what its formula gives")
        except RuntimeError as error:
            report.error(f"{error}; try model.attention repeat")
    return trial_step(objective, part, engine=engine, runtime=runtime, report=report)


def _check_samples(
    config: DpoConfig,
    engine: LogprobEngine,
    encoder: TextEncoder,
    groups: Sequence[Group],
    score: Score | None,
    runtime: Runtime,
    report: Report,
) -> "Drawn":
    """Fresh completions of a few held-out prompts and their ground-truth score; what was drawn, and the seconds."""
    started = time.perf_counter()
    samples = draw_samples(config, engine, encoder, groups, score, runtime)
    seconds = time.perf_counter() - started
    cut = sum(not sample.finished for sample in samples)
    say = report.warning if cut > len(samples) // 2 else report.ok
    most = config.sampling.max_new_tokens
    say(f"{cut} of {len(samples)} fresh completions are cut at sampling.max_new_tokens {most}")
    scores = [sample.score for sample in samples if sample.score is not None]
    if scores and min(scores) == max(scores):
        report.warning(f"eval.score {config.eval.score} gives all {len(scores)} fresh completions {scores[0]:g}")
    elif scores:
        report.ok(f"eval.score {config.eval.score}: {min(scores):.3g} to {max(scores):.3g} for fresh completions")
    each = config.eval.samples_per_prompt
    lengths = [sample.tokens for sample in samples]
    sizes = [
        GroupShape(len(group.prompt_ids), tuple(lengths[i * each : (i + 1) * each])) for i, group in enumerate(groups)
    ]
    return Drawn(sizes, seconds)


@dataclass(frozen=True, slots=True)
class Drawn:
    """Sizes of fresh completions, and the seconds that drawing and judging them took."""

    groups: Sequence[GroupShape]
    seconds: float


def _say_time(
    config: DpoConfig,
    source: EpochSource,
    groups: Sequence[Group],
    heldout: Sequence[Group],
    trial: TrialStep,
    drawn: Drawn,
    loaded: Loaded,
    engine: LogprobEngine,
    report: Report,
) -> None:
    """By the cost model, at the speed of the trial."""
    speed = Speed.of_trial(
        ModelShape.of(engine.policy.model),
        engine.policy.device.type,
        learned=(trial.groups, trial.seconds),
        drawn=(busiest(drawn.groups, loaded.runtime.processes), drawn.seconds),
        tokens_per_forward=config.run.tokens_per_forward,
        rows_at_once=config.sampling.rows_at_once,
        recompute=config.model.gradient_checkpointing,
        processes=loaded.runtime.processes,
        sharding=config.run.sharding,
    )
    trained, held = shapes_of(groups), shapes_of(heldout)
    evaluations = source.total_steps // config.eval.every if config.eval.every else 0
    steps = [shapes_of(source.groups(step)) for step in range(source.total_steps)]
    learning = sum(speed.learning(groups) for groups in steps)
    reading = (evaluations + 3) * speed.reading(held)
    if config.loss.needs_reference:
        reading += speed.reading(trained)
    asked = min(config.eval.prompts, len(heldout))
    path = min(config.eval.path_prompts, asked) * evaluations
    sampling = speed.sampling(repeated(drawn.groups, 2 * asked)) + speed.sampling(repeated(drawn.groups, path))
    report.ok(
        f"time, with answers as long as these: {duration(learning + reading + sampling)} for {source.total_steps} "
        f"steps and {evaluations} evaluations (learning {duration(learning)}, reference and evaluation "
        f"{duration(reading)}, sampling {duration(sampling)})"
    )
    tell_network(speed, report, learned=max(steps, key=lambda groups: sum(group.row_tokens for group in groups)))
