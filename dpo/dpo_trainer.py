"""A DPO run from configuration to adapter and summary: puts the shared pieces together and adds the objective.

Knows no file formats (dpo/dataset_utils.py), no formula (dpo/losses.py) and no loop (groupwise/train/).
Legend: T completion tokens, R completions, K pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from torch import Tensor

from dpo.config import DpoConfig
from dpo.eval import LABELS, HeldOut, before_and_after, evaluate
from dpo.losses import dpo_loss, implicit_rewards
from dpo.prepare import Prepared, prepare
from dpo.report import DRIFTING, LEARNING, WATCHED, record
from groupwise.batch import GroupBatch
from groupwise.config import settings
from groupwise.errors import RunStopped
from groupwise.groups import Group, NotFinite, fingerprint
from groupwise.model.engine import LogprobEngine, TokenScores, starting_gap
from groupwise.model.reference_cache import cached_reference
from groupwise.observe.alarms import Alarms
from groupwise.observe.figure import learning_curve
from groupwise.observe.metrics import MetricSums
from groupwise.observe.progress import make_progress
from groupwise.report.renew import renew_report
from groupwise.train.loop import EpochSource, FitResult, fit
from groupwise.train.objective import Objective, StepTotals
from groupwise.train.offenders import keep_offenders
from groupwise.train.run import Run, open_run
from groupwise.train.run_folder import RunFolder, write_json
from groupwise.train.summary import print_figures, print_health, run_facts, stored_figures

CACHE = Path("data/processed")
PAIR_METRICS = (
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "rewards/accuracies",
    "logps/chosen",
    "logps/rejected",
)
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
@dataclass(frozen=True, slots=True)
class DpoObjective(Objective):
    """Mean DPO loss over all preference pairs of the step."""

    beta: float
    label_smoothing: float = 0.0

    @property
    def metric_names(self) -> tuple[str, ...]:
        return PAIR_METRICS

    def loss_sum(self, batch: GroupBatch, scores: TokenScores, sums: MetricSums) -> Tensor:
        """Sum of Eq. 7 over the micro-batch's pairs; the metrics are means over pairs."""
        if batch.reference_logp_T is None:
            raise ValueError("DPO needs the reference log-probs of every completion")
        logp_R = batch.sum_per_completion(scores.logp_T)
        logratio_R = logp_R - batch.sum_per_completion(batch.reference_logp_T)
        reward_R = implicit_rewards(logratio_R.detach(), beta=self.beta)
        chosen_K, rejected_K = batch.pairs_K2.unbind(dim=1)
        margin_K = reward_R[chosen_K] - reward_R[rejected_K]
        values = (
            reward_R[chosen_K],
            reward_R[rejected_K],
            margin_K,
            (margin_K > 0).float() + (margin_K == 0).float() / 2,
            logp_R.detach()[chosen_K],
            logp_R.detach()[rejected_K],
        )
        for name, value_K in zip(PAIR_METRICS, values, strict=True):
            sums.add(name, value_K.sum(), len(value_K))
        loss_K = dpo_loss(logratio_R, batch.pairs_K2, beta=self.beta, label_smoothing=self.label_smoothing)
        return loss_K.sum()

    def denominator(self, totals: StepTotals) -> int:
        """All strictly ordered pairs of the step."""
        return totals.pairs


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
        run.begin(config, prepared.notes)
        base_model = prepared.engine.policy.base_fingerprint()  # reads all weights, so once
        result = _learn(config, prepared, base_model, run)
        if run.runtime.is_main:
            _finish(config, prepared, base_model, result, run)
    return folder


def _learn(config: DpoConfig, prepared: Prepared, base_model: str, run: Run) -> FitResult:
    """Reference pass and training."""
    engine, section = prepared.engine, config.run
    parts: list[list[Group]] = []
    for name, groups in (("train", prepared.train), ("heldout", prepared.heldout)):
        try:
            scored, found = cached_reference(
                engine,
                groups,
                CACHE,
                base_model=base_model,
                tokens_per_forward=section.tokens_per_forward,
                precision=section.mixed_precision,
            )
        except NotFinite as fault:
            file = keep_offenders(run.folder.not_finite, f"reference-{name}", 0, fault.groups, prepared.encoder.decode)
            raise RunStopped(
                f"{name}: {fault}; these are in {file}\nthe base model {config.model.path} cannot read these rows: "
                "leave them out, or use another model or model.dtype"
            ) from fault
        where = "read from" if found else "computed and kept in"
        run.say(f"{name}: reference log-probs {where} {CACHE}")
        parts.append(scored)
    trained, heldout = parts
    _check_start(engine, trained[:8])
    _check_start(engine, heldout[:8])
    source = EpochSource(trained, groups_per_step=section.groups_per_step, epochs=config.epochs, seed=section.seed)
    held_out = HeldOut(heldout, beta=config.loss.beta, tokens_per_forward=section.tokens_per_forward)
    run.runtime.start_trackers("dpo", {one.key: one.value for one in settings(config)})
    return fit(
        DpoObjective(config.loss.beta, config.loss.label_smoothing),
        source,
        engine=engine,
        optimizer_section=config.optimizer,
        run=section,
        runtime=run.runtime,
        folder=run.folder,
        progress=make_progress(run.console, headline=HEADLINE),
        title=f"DPO of {config.model.path}",
        evaluate=lambda step: evaluate(engine, held_out),
        evaluate_every=config.eval.every,
        evaluated=lambda: renew_report(section, lambda: record(run.folder, config), run.say),
        identity={
            "base model": base_model,
            "training data": fingerprint(trained, scores=True),
        },
        alarms=Alarms(config.alarms, replace(WATCHED, beta=config.loss.beta)),
        best=WATCHED.held_out.removeprefix("eval/"),
    )


def _check_start(engine: LogprobEngine, groups: Sequence[Group]) -> None:
    """A fresh policy is the reference: every log-ratio is 0 and the loss ln 2. Anything else is a fault of ours."""
    gap, allowed = starting_gap(engine, groups)
    if not gap <= allowed:
        raise RuntimeError(
            f"before the first step policy and reference differ by {gap:.3g} nats in a token's log-prob (allowed "
            f"{allowed:.1g}); the cached reference in {CACHE} does not belong to this model"
        )


def _finish(config: DpoConfig, prepared: Prepared, base_model: str, result: FitResult, run: Run) -> None:
    """Adapter, held-out figures before and after, summary and learning curve."""
    folder = run.folder
    prepared.engine.policy.save(folder.adapter)
    panels = (*LEARNING[:2], *DRIFTING[:2])
    learning_curve(folder.metrics, folder.curve, panels=panels, title=f"DPO: {folder.path.name}")
    compared = before_and_after(
        config, prepared.engine, prepared.encoder, prepared.heldout, prepared.score, folder=folder
    )
    judged = compared.as_dict(folder, [alarm.name for alarm in result.alarms])
    facts = run_facts(
        result,
        attention=prepared.engine.method,
        seed=config.run.seed,
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
