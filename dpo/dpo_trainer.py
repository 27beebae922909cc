"""A DPO run from configuration to adapter and summary: puts the shared pieces together and adds the objective.

Knows no file formats (dpo/formats.py), no formula (dpo/losses/) and no loop (groupwise/train/).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from dpo.config import DpoConfig
from dpo.eval import LABELS, HeldOut, before_and_after, evaluate, path_figures
from dpo.objective import DpoObjective
from dpo.prepare import Prepared, prepare
from dpo.reference_schedule import MovingReference
from dpo.report import DRIFTING, WATCHED, learning, record, watched
from dpo.start import check_start
from groupwise.config import settings
from groupwise.errors import RunStopped
from groupwise.groups import Group, NotFinite, fingerprint
from groupwise.observe.alarms import Alarms
from groupwise.observe.figure import learning_curve
from groupwise.observe.progress import make_progress
from groupwise.report.renew import renew_report
from groupwise.train.interrupt import StopSignals
from groupwise.train.loop import FitResult, Judging, Watch, fit
from groupwise.train.offenders import keep_offenders
from groupwise.train.reference_cache import cached_reference
from groupwise.train.run import Run, open_run
from groupwise.train.run_folder import RunFolder, write_json
from groupwise.train.source import EpochSource, GroupSource
from groupwise.train.summary import print_figures, print_health, run_facts, stored_figures

CACHE = Path("data/processed")
HEADLINE = (
    "loss",
    "rewards/accuracies",
    "rewards/margins",
    "logps/chosen",
    "logps/rejected",
    "grad_norm",
    "eval/rewards/accuracies",
    "tokens_per_second",
)


def train(config: DpoConfig, *, console: Console | None = None) -> RunFolder:
    """Run DPO as configured; the run's folder then holds adapter, metrics, transcripts, summary and learning curve.

    Continues a run that was stopped, and only shows the figures of one that is finished. Raises UserError for anything
    the user can mend, before anything is written.
    """
    console = console or Console()
    folder = RunFolder.of(config.run)
    run = open_run(config, config.run, folder, console)
    if run is None:
        print_figures(*stored_figures(folder), LABELS, console=console)
        return folder
    with run:
        prepared = prepare(config, run.runtime)
        identity = {
            "base model": prepared.engine.policy.base_fingerprint(),  # reads all weights, so once
            "training data": fingerprint(prepared.train, scores=True),
            "held-out data": fingerprint(prepared.heldout, scores=True),
        }
        run.begin(config, identity, prepared.notes)
        result = _learn(config, prepared, identity, run)
        _finish(config, prepared, identity["base model"], result, run)
    return folder


def _learn(config: DpoConfig, prepared: Prepared, identity: Mapping[str, str], run: Run) -> FitResult:
    """Reference pass, where the objective reads one, and training."""
    engine, section = prepared.engine, config.run
    objective = DpoObjective.of(config.loss)
    trained, heldout = prepared.train, prepared.heldout
    if config.loss.needs_reference:
        base_model, tokens = identity["base model"], section.tokens_per_forward
        heldout = _with_reference("heldout", heldout, config, prepared, base_model, run)
        check_start(objective, engine, heldout[:8], run.runtime, tokens_per_forward=tokens)
        if config.loss.reference == "frozen":
            trained = _with_reference("train", trained, config, prepared, base_model, run)
            check_start(objective, engine, trained[:8], run.runtime, tokens_per_forward=tokens)
    source: GroupSource = EpochSource(
        trained,
        groups_per_step=section.groups_per_step,
        epochs=config.epochs,
        seed=section.seed,
        runtime=run.runtime,
    )
    if config.loss.reference != "frozen":
        source = MovingReference(
            source, config.loss, engine=engine, runtime=run.runtime, tokens_per_forward=section.tokens_per_forward
        )
    held_out = HeldOut(heldout, objective, tokens_per_forward=section.tokens_per_forward)
    progress = make_progress(run.console, headline=HEADLINE)
    run.runtime.start_trackers("dpo", {one.key: one.value for one in settings(config)})
    return fit(
        objective,
        source,
        engine=engine,
        optimizer_section=config.optimizer,
        run=section,
        runtime=run.runtime,
        folder=run.folder,
        identity=identity,
        judging=Judging(
            evaluate=lambda step: evaluate(
                engine,
                held_out,
                run.runtime,
                lambda: path_figures(config, engine, prepared.encoder, heldout, prepared.score, run.runtime),
            ),
            every=config.eval.every,
            evaluated=lambda: renew_report(section, lambda: record(run.folder, config), run.say),
            best=WATCHED.held_out.removeprefix("eval/"),
        ),
        watch=Watch(
            progress=progress,
            title=f"DPO of {config.model.path}",
            alarms=Alarms(config.alarms, watched(config.loss)),
            stop=StopSignals(progress.line),
        ),
    )


def _with_reference(
    name: str, groups: Sequence[Group], config: DpoConfig, prepared: Prepared, base_model: str, run: Run
) -> list[Group]:
    """The groups with log-probs under the base, from the cache where it has them. Raises RunStopped."""
    try:
        scored, found = cached_reference(
            prepared.engine,
            groups,
            CACHE,
            base_model=base_model,
            tokens_per_forward=config.run.tokens_per_forward,
            precision=config.run.mixed_precision,
            runtime=run.runtime,
        )
    except NotFinite as fault:
        text = keep_offenders(
            fault, run.folder.not_finite, f"reference-{name}", 0, prepared.encoder.decode, run.runtime
        )
        raise RunStopped(
            f"{name}: {text}\nthe base model {config.model.path} cannot read these rows: "
            "leave them out, or use another model or model.dtype"
        ) from fault
    where = "read from" if found else "computed and kept in"
    run.say(f"{name}: reference log-probs {where} {CACHE}")
    return scored


def _finish(config: DpoConfig, prepared: Prepared, base_model: str, result: FitResult, run: Run) -> None:
    """Adapter, held-out figures before and after, summary and learning curve."""
    folder = run.folder
    prepared.engine.policy.save(folder.adapter, writes=run.runtime.is_main)
    if run.runtime.is_main:
        panels = (*learning(config.loss)[:2], *DRIFTING[:2])
        learning_curve(folder.metrics, folder.curve, panels=panels, title=f"DPO: {folder.path.name}")
    compared = before_and_after(
        config, prepared.engine, prepared.encoder, prepared.heldout, prepared.score, run.runtime, folder=folder
    )
    if not run.runtime.is_main:
        return
    judged = compared.as_dict(folder, [alarm.name for alarm in result.alarms])
    facts = run_facts(
        result,
        attention=prepared.engine.method,
        seed=config.run.seed,
        processes=run.runtime.processes,
        sharding=config.run.sharding,
        base_model=base_model,
        sources=(*config.data.train, *config.data.heldout),
        reports={part: report.as_dict() for part, report in prepared.reports.items()},
    )
    write_json(folder.summary, {**judged, **facts})
    print_figures(compared.before, compared.after, LABELS, console=run.console)
    print_health(result, judged, run.say)
    renew_report(config.run, lambda: record(folder, config), run.say)
    for line in (f"adapter: {folder.adapter}", f"summary: {folder.summary}", f"report: {folder.report}"):
        run.say(line)
