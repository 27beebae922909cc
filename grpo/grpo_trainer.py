"""A GRPO run from configuration to adapter and summary: puts the shared pieces together and adds the objective.

Knows no file formats (grpo/dataset_utils.py), no formula (grpo/losses.py), no sampling (grpo/rollouts.py) and no loop
(groupwise/train/).
Legend: T completion tokens, R completions.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from torch import Tensor

from groupwise.batch import GroupBatch
from groupwise.config import settings
from groupwise.model.engine import TokenScores
from groupwise.observe.alarms import Alarms
from groupwise.observe.figure import learning_curve
from groupwise.observe.metrics import MetricSums, read_metrics
from groupwise.observe.progress import Progress, make_progress
from groupwise.report.renew import renew_report
from groupwise.rewards.scorer import Scorer
from groupwise.train.loop import FitResult, fit
from groupwise.train.objective import Objective, StepTotals
from groupwise.train.run import Run, open_run
from groupwise.train.run_folder import RunFolder, write_json
from groupwise.train.summary import print_figures, print_health, run_facts, stored_figures
from grpo.config import GrpoConfig, GrpoLossSection
from grpo.dataset_utils import Prompt
from grpo.eval import Comparison, before_and_after, check_names, evaluate, labels
from grpo.faults import FaultLog
from grpo.losses import grpo_token_loss, kl_k3
from grpo.prepare import Prepared, prepare
from grpo.report import DRIFTING, LEARNING, WATCHED, record
from grpo.rollouts import Rollouts

TOKEN_METRICS = ("ratio", "clip_ratio/low", "clip_ratio/high", "advantages/size")
HEADLINE = (
    "reward",
    "frac_reward_zero_std",
    "completions/mean_length",
    "kl",
    "entropy",
    "grad_norm",
    "eval/pass@1",
    "time/step_s",
)


@dataclass(frozen=True, slots=True)
class GrpoObjective(Objective):
    """The group-relative policy gradient, summed over tokens with the weights of the configured normaliser."""

    loss: GrpoLossSection
    constant_length: int

    @property
    def metric_names(self) -> tuple[str, ...]:
        return (*TOKEN_METRICS, "kl") if self.loss.kl_coefficient > 0 else TOKEN_METRICS

    def loss_sum(self, batch: GroupBatch, scores: TokenScores, sums: MetricSums) -> Tensor:
        """Sum over the micro-batch's tokens; the metrics are means over tokens."""
        if batch.sampled_logp_T is None or batch.advantage_T is None:
            raise ValueError("GRPO needs the sampling log-probs and the advantages of every completion")
        wants_kl = self.loss.kl_coefficient > 0
        if wants_kl and batch.reference_logp_T is None:
            raise ValueError("a KL needs the reference log-probs of every completion")
        loss_T = grpo_token_loss(
            scores.logp_T,
            batch.sampled_logp_T,
            batch.advantage_T,
            clip_low=self.loss.clip_low,
            clip_high=self.loss.clip_high,
            reference_logp_T=batch.reference_logp_T if wants_kl else None,
            kl_coefficient=self.loss.kl_coefficient,
            kl_form=self.loss.kl_form,
        )
        self._watch(batch, scores.logp_T.detach(), sums)
        if self.loss.normaliser == "completion":
            loss_T = loss_T / batch.length_R[batch.row_T]
        return loss_T.sum()

    def denominator(self, totals: StepTotals) -> int:
        """Completions of the step, its tokens, or its completions times a constant length."""
        if self.loss.normaliser == "completion":
            return totals.completions
        if self.loss.normaliser == "token":
            return totals.tokens
        return totals.completions * self.constant_length

    def _watch(self, batch: GroupBatch, logp_T: Tensor, sums: MetricSums) -> None:
        """Means over tokens: the ratio, the share that the clip stops, the size of advantages, the KL (k3)."""
        assert batch.sampled_logp_T is not None and batch.advantage_T is not None
        ratio_T = (logp_T - batch.sampled_logp_T).exp()
        values = (
            ratio_T,
            ((ratio_T < 1 - self.loss.clip_low) & (batch.advantage_T < 0)).float(),
            ((ratio_T > 1 + self.loss.clip_high) & (batch.advantage_T > 0)).float(),
            batch.advantage_T.abs(),
        )
        for name, value_T in zip(TOKEN_METRICS, values, strict=True):
            sums.add(name, value_T.sum(), batch.n_tokens)
        if self.loss.kl_coefficient > 0 and batch.reference_logp_T is not None:
            sums.add("kl", kl_k3(logp_T, batch.reference_logp_T).sum(), batch.n_tokens)


def train(config: GrpoConfig, *, console: Console | None = None) -> RunFolder:
    """Run GRPO as configured; the run's folder then holds adapter, metrics, transcripts, summary and learning curve.

    Continues a run that was stopped, and only shows the figures of one that is finished. Raises UserError for anything
    the user can mend, before anything is written.
    """
    console = console or Console()
    folder = RunFolder.of(config.run)
    run = open_run(config, config.run, folder, console)
    if run is None:
        print_figures(*stored_figures(folder), labels(config), console=console)
        return folder
    with run, Scorer(config.rewards, config.scoring) as scorer:
        check_names(config, scorer)
        progress = make_progress(run.console, headline=HEADLINE)
        faults = FaultLog(folder.faults, progress.line, writes=run.runtime.is_main)
        prepared = prepare(config, scorer, run.runtime, faults)
        run.begin(config, prepared.notes)
        base_model = prepared.engine.policy.base_fingerprint()  # reads all weights, so once
        result, fault_count = _learn(config, prepared, base_model, scorer, progress, run)
        if run.runtime.is_main:
            prepared.engine.policy.save(folder.adapter)
        judged = before_and_after(config, prepared, scorer, folder=folder)
        if run.runtime.is_main:
            _draw_curve(folder)
            facts = run_facts(
                result,
                attention=prepared.engine.method,
                seed=config.run.seed,
                base_model=base_model,
                sources=(*config.data.train, *config.data.heldout),
                reports={part: report.as_dict() for part, report in prepared.reports.items()},
            )
            figures = judged.as_dict(folder, [alarm.name for alarm in result.alarms])
            write_json(folder.summary, {**figures, "reward_faults": fault_count, **facts})
            _show(config, judged, result, run)
            print_health(result, figures, run.say)
            renew_report(config.run, lambda: record(folder, config), run.say)
    return folder


def _learn(
    config: GrpoConfig, prepared: Prepared, base_model: str, scorer: Scorer, progress: Progress, run: Run
) -> tuple[FitResult, int]:
    """Rollouts and training; also how many faults rewards had in the rollouts."""
    engine = prepared.engine
    source = Rollouts(
        prepared.train,
        config=config,
        engine=engine,
        encoder=prepared.encoder,
        scorer=scorer,
        runtime=run.runtime,
        faults=prepared.faults,
    )
    objective = GrpoObjective(
        config.loss,
        config.loss.constant_length or config.sampling.max_new_tokens,
        temperature=config.sampling.temperature,
    )
    run.runtime.start_trackers("grpo", {one.key: one.value for one in settings(config)})
    result = fit(
        objective,
        source,
        engine=engine,
        optimizer_section=config.optimizer,
        run=config.run,
        runtime=run.runtime,
        folder=run.folder,
        progress=progress,
        title=f"GRPO of {config.model.path}",
        evaluate=lambda step: evaluate(config, prepared, scorer),
        evaluate_every=config.eval.every,
        evaluated=lambda: renew_report(config.run, lambda: record(run.folder, config), progress.line),
        identity={
            "base model": base_model,
            "training data": _fingerprint(prepared.train),
            "held-out data": _fingerprint(prepared.heldout),
            "file of a reward": scorer.fingerprint(),
        },
        alarms=Alarms(config.alarms, WATCHED),
        best=WATCHED.held_out.removeprefix("eval/"),
    )
    return result, source.faults


def _fingerprint(prompts: Sequence[Prompt]) -> str:
    """SHA-256 over ids and columns of all prompts in order."""
    digest = hashlib.sha256()
    for prompt in prompts:
        digest.update(f"{prompt.prompt_ids} {json.dumps(prompt.row, sort_keys=True, default=str)}\n".encode())
    return digest.hexdigest()


def _draw_curve(folder: RunFolder) -> None:
    """The learning curve; what a run never logged, because nothing could be learned or scored, is left out."""
    logged = {name for row in read_metrics(folder.metrics) for name in row}
    drawn = [panel for panel in (*LEARNING, *DRIFTING) if logged.issuperset(panel.lines.values())]
    learning_curve(folder.metrics, folder.curve, panels=drawn, title=f"GRPO: {folder.path.name}")


def _show(config: GrpoConfig, judged: Comparison, result: FitResult, run: Run) -> None:
    """The table, and what a person should know of the figures."""
    folder = run.folder
    print_figures(judged.before, judged.after, labels(config), console=run.console)
    if sum(judged.unjudged):
        run.say(f"warning: {sum(judged.unjudged)} held-out answers could not be judged and are in no figure")
    shares = {judged.before["pass@1"].value, judged.after["pass@1"].value}
    if shares in ({0.0}, {1.0}):
        worth = "right" if shares == {1.0} else "wrong"
        run.say(
            f"warning: every judged sample is {worth}, before and after; is eval.threshold {config.eval.threshold:g} "
            "what this reward gives a right answer?"
        )
    for line in (
        f"greedy answers that became right: {len(judged.became_right)}, that became wrong: {len(judged.became_wrong)}",
        f"adapter: {folder.adapter}",
        f"summary: {folder.summary}",
        f"report: {folder.report}",
    ):
        run.say(line)
