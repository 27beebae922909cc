"""The loop: step after step until the end, with metrics, evaluations and checkpoints. Knows no objective and no data.

A run is a function of its configuration: step k learns from `source.share(k)`, which depends on nothing that is not
in a checkpoint, so a run that is stopped and continued ends with the same bytes.
"""

import json
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch

from groupwise.errors import Interrupted, RunStopped, UserError
from groupwise.groups import Group, NotFinite
from groupwise.model.engine import LogprobEngine
from groupwise.observe.alarms import Alarm, Alarms
from groupwise.observe.heldout import Evaluation, read_heldout
from groupwise.observe.metrics import JsonLinesFile, MetricsFile, read_metrics
from groupwise.observe.progress import Progress
from groupwise.observe.transcripts import TranscriptsFile
from groupwise.sections import OptimizerSection, RunSection
from groupwise.train.checkpoint import Position, is_complete, load_checkpoint, load_weights, newest_complete, step_name
from groupwise.train.checkpoint_keeper import CheckpointKeeper
from groupwise.train.choice import Choice, choose
from groupwise.train.interrupt import StopSignals
from groupwise.train.objective import Objective
from groupwise.train.offenders import keep_offenders
from groupwise.train.optimizer import Optimizer, learning_rate, set_learning_rate
from groupwise.train.run_folder import RunFolder
from groupwise.train.runtime import Runtime
from groupwise.train.share import StepShare
from groupwise.train.source import GroupSource
from groupwise.train.step import optimizer_step

Result = TypeVar("Result")
OBJECTIVE = "objective.json"


@dataclass(frozen=True, slots=True)
class FitResult:
    """What a run cost, continued runs added up, and what it warned of.

    Optimizer steps, tokens learned from, seconds spent; steps passed over because something was not finite; which
    step's weights the policy has now, None where nothing was held out; all alarms in order.
    """

    steps: int
    tokens: int
    seconds: float
    skipped: int
    choice: Choice | None
    alarms: tuple[Alarm, ...]


def fit(
    objective: Objective,
    source: GroupSource,
    *,
    engine: LogprobEngine,
    optimizer_section: OptimizerSection,
    run: RunSection,
    runtime: Runtime,
    folder: RunFolder,
    progress: Progress,
    title: str,
    evaluate: Callable[[int], Evaluation],
    evaluate_every: int,
    evaluated: Callable[[], None],
    alarms: Alarms,
    best: str,
    identity: Mapping[str, str],
    stop: StopSignals,
) -> FitResult:
    """Train from the newest complete checkpoint, or from the start, to the source's last step.

    `evaluate(step)` returns held-out figures, logged under `eval/`, and their values prompt by prompt; it runs every
    `evaluate_every` steps (0: never) and at the end, and must not draw from global generators; the main process then
    calls `evaluated`. The checkpoint in which the figure `best` is highest is kept whatever its age, and its weights
    are put back at the end where `choose` says so. `identity` holds hashes of base model and data: a checkpoint that
    was made with others is refused with a UserError. Raises RunStopped where training cannot go on, Interrupted after a
    signal that `stop` received, all being saved.
    """
    parameters = engine.policy.trainable()
    optimizer = runtime.optimizer(optimizer_section, parameters.values())
    total = source.total_steps
    decode: Callable[[Sequence[int]], str] = lambda ids: str(engine.policy.tokenizer.decode(list(ids)))  # noqa: E731
    keeper = CheckpointKeeper(
        folder.checkpoints,
        parameters=parameters,
        optimizer=optimizer,
        keep=run.keep_checkpoints,
        say=progress.line,
    )
    with (
        MetricsFile(folder.metrics) as metrics,
        TranscriptsFile(folder.transcripts, decode) as transcripts,
        JsonLinesFile(folder.heldout) as heldout,
        progress,
        stop,
    ):
        learner = _Learner(objective, engine, optimizer, optimizer_section, runtime, run, folder, progress, decode)
        position = _resume(folder.checkpoints, parameters, learner, source, identity, progress)
        if runtime.is_main:
            metrics.truncate(position.offsets.get("metrics", 0))
            transcripts.truncate(position.offsets.get("transcripts", 0))
            heldout.truncate(position.offsets.get("heldout", 0))
            for row in read_metrics(folder.metrics):
                alarms.look(row)
            keeper.tidy(position.best_step)
            keeper.check_space()
        progress.start(total, position.step, title)
        for step in range(position.step, total):
            started = time.perf_counter()
            done = step + 1
            rate = learning_rate(optimizer_section, step, total)
            set_learning_rate(optimizer, rate)
            share, values = learner.step(source, step, position)
            values |= {"learning_rate": rate, **_peak_memory(runtime.device)}
            judged = None
            if done == total or (evaluate_every and done % evaluate_every == 0):
                began = time.perf_counter()
                judged = learner.judge(evaluate, done)
                values["time/evaluate_s"] = time.perf_counter() - began
                values |= {f"eval/{name}": value for name, value in judged.figures.items()}
            position = _advanced(position, values, best=f"eval/{best}", seconds=time.perf_counter() - started)
            values["time/step_s"] = time.perf_counter() - started
            stopped = runtime.any(stop.received is not None)
            if run.transcripts_every and (done % run.transcripts_every == 0 or done == 1):
                learned = () if share is None else share.first(run.transcripts_groups, runtime)
                passed_over = source.passed_over(run.transcripts_groups)
                if runtime.is_main:
                    _write_transcripts(transcripts, done, learned, passed_over)
            if runtime.is_main:
                if judged is not None:
                    heldout.append_object(judged.as_record(done))
                if done % run.log_every == 0 or judged is not None:
                    values |= _raise_alarms(alarms, done, values, progress)
                    metrics.append(done, values)
                    runtime.track(values, done)
                progress.step(done, values)
                if judged is not None:
                    evaluated()
            due = run.checkpoint_every and done % run.checkpoint_every == 0
            if done == total or due or position.best_step == done or stopped:
                files = {"metrics": metrics, "transcripts": transcripts, "heldout": heldout}
                offsets = {name: file.sync() for name, file in files.items()} if runtime.is_main else {}
                more = (source.collect(), _kept_of(learner.objective))
                keeper.save(replace(position, identity=identity, offsets=offsets), more, writes=runtime.is_main)
            runtime.wait()
            if stopped and done < total:
                raise Interrupted(
                    f"stopped after step {done} of {total}; the same command continues from "
                    f"{newest_complete(folder.checkpoints)[0] or 'the start'}",
                    stop.received or signal.SIGTERM,
                )
        choice = _put_back_the_best(position, folder, parameters, best=best, allowed=run.adapter_from == "best")
        if choice is not None:
            progress.line(choice.line(best))
    return FitResult(
        steps=total,
        tokens=position.tokens,
        seconds=position.seconds,
        skipped=position.skipped,
        choice=choice,
        alarms=tuple(alarms.raised),
    )


@dataclass(slots=True)
class _Learner:
    """Takes steps, and decides what becomes of one in which something is not finite."""

    objective: Objective
    engine: LogprobEngine
    optimizer: Optimizer
    section: OptimizerSection
    runtime: Runtime
    run: RunSection
    folder: RunFolder
    progress: Progress
    decode: Callable[[Sequence[int]], str]
    before: Sequence[Group] = ()  # this process's groups of the last step that was taken

    def step(self, source: GroupSource, step: int, position: Position) -> tuple[StepShare | None, dict[str, float]]:
        """Numbers of one step, and its groups; a step without any leaves weights and optimizer alone, and says so.

        None in place of the groups where the step was passed over.
        """
        values: dict[str, float] = {"groups/used": 0, "tokens/prompt": 0, "tokens/completion": 0}
        share = self._or_stopped(lambda: source.share(step), step + 1)
        if not share.totals.groups:
            return share, values | dict(source.metrics())
        try:
            values = optimizer_step(
                self.objective,
                share,
                engine=self.engine,
                optimizer=self.optimizer,
                runtime=self.runtime,
                tokens_per_forward=self.run.tokens_per_forward,
                max_grad_norm=self.section.max_grad_norm,
            )
        except NotFinite as fault:
            self._pass_over(fault, step + 1, position)
            values["groups/not_finite"] = len(fault.groups)
            return None, values | dict(source.metrics())
        self.objective = self.objective.after_step(values)
        self.before = share.groups or self.before
        return share, values | dict(source.metrics())

    def judge(self, evaluate: Callable[[int], Evaluation], done: int) -> Evaluation:
        """Held-out figures."""
        return self._or_stopped(lambda: evaluate(done), done)

    def _or_stopped(self, deed: Callable[[], Result], step: int) -> Result:
        """The result of something that no policy can pass over: what it found lies in the weights."""
        try:
            return deed()
        except NotFinite as fault:
            raise self._stopped(f"step {step}: {self._kept(fault, step)}") from fault

    def _pass_over(self, fault: NotFinite, step: int, position: Position) -> None:
        """Keep the groups on disk; raise RunStopped unless the policy lets the step pass."""
        text = f"step {step}: {self._kept(fault, step)}"
        if self.run.on_not_finite == "stop" or position.skipped >= self.run.most_skipped_steps:
            raise self._stopped(f"{text}\nno weight was touched by this step") from fault
        self.progress.line(f"warning: {text}; the step is skipped")

    def _kept(self, fault: NotFinite, step: int) -> str:
        """What happened, and where the groups lie; where all are bad alike, those that were learned from last."""
        if not self.runtime.is_main:
            return str(fault)
        name, groups = self.folder.not_finite, fault.groups or self.before
        file = keep_offenders(name, step_name(step), step, groups, self.decode)
        return f"{fault}; {'these' if fault.groups else 'the groups of the step before'} are in {file}"

    def _stopped(self, text: str) -> RunStopped:
        newest = newest_complete(self.folder.checkpoints)[0]
        return RunStopped(
            f"{text}; the newest checkpoint is {newest or 'none'}\n"
            "usual causes are optimizer.learning_rate too high, or these rows of data; run.on_not_finite: skip passes "
            "over up to run.most_skipped_steps such steps"
        )


def _raise_alarms(alarms: Alarms, step: int, values: Mapping[str, float], progress: Progress) -> dict[str, float]:
    """Show what these numbers raise; the figures as metrics."""
    found = alarms.look({"step": step, **values})
    for alarm in found:
        progress.line(f"alarm: step {step}: {alarm.text}")
    return {f"alarm/{alarm.name}": alarm.figure for alarm in found}


def _advanced(position: Position, values: Mapping[str, float], *, best: str, seconds: float) -> Position:
    """Where the run stands one step later; `best` names the figure that the best step is the highest of."""
    value = values.get(best)
    better = value is not None and (position.best_value is None or value > position.best_value)
    return replace(
        position,
        step=position.step + 1,
        tokens=position.tokens + int(values["tokens/prompt"] + values["tokens/completion"]),
        seconds=position.seconds + seconds,
        skipped=position.skipped + ("groups/not_finite" in values),
        best_step=position.step + 1 if better else position.best_step,
        best_value=value if better else position.best_value,
    )


def _put_back_the_best(
    position: Position, folder: RunFolder, parameters: Mapping[str, torch.nn.Parameter], *, best: str, allowed: bool
) -> Choice | None:
    """Decide between the last step and the best one, whose weights are put back where they are better."""
    if position.best_step is None:
        return None
    kept = folder.checkpoints / step_name(position.best_step)
    evaluations = read_heldout(folder.heldout)
    allowed &= is_complete(kept)
    choice = choose(evaluations, best, best=position.best_step, last=position.step, allowed=allowed)
    if choice.step != choice.last:
        load_weights(kept, parameters)
    return choice


def _advantages(group: Group) -> dict[str, list[float]]:
    """Mean advantage of each completion for the transcript, where there are any."""
    means = [completion.advantage.mean().item() for completion in group.completions if completion.advantage is not None]
    return {"advantage": means} if means else {}


def _write_transcripts(
    transcripts: TranscriptsFile, step: int, learned: Sequence[Group], passed_over: Sequence[tuple[Group, str]]
) -> None:
    """Some groups of a step as text: those that were learned from, and those that taught nothing."""
    for group in learned:
        transcripts.append(step, group, phase="train", extra=_advantages(group))
    for group, reason in passed_over:
        transcripts.append(step, group, phase="train", reason=reason)


def _kept_of(objective: Objective) -> Callable[[Path], None]:
    """What writes what an objective remembers."""

    def write(folder: Path) -> None:
        (folder / OBJECTIVE).write_text(json.dumps(dict(objective.memory())) + "\n")

    return write


def _resume(
    checkpoints: Path,
    parameters: Mapping[str, torch.nn.Parameter],
    learner: _Learner,
    source: GroupSource,
    identity: Mapping[str, str],
    progress: Progress,
) -> Position:
    """Restore the newest complete checkpoint and say so, or start at step 0."""
    checkpoint, passed_over = newest_complete(checkpoints)
    for line in passed_over:
        progress.line(line)
    if checkpoint is None:
        return Position(step=0, identity=identity, offsets={}, tokens=0, seconds=0.0)
    position = load_checkpoint(checkpoint, parameters=parameters, optimizer=learner.optimizer)
    changed = [name for name in identity if position.identity.get(name) != identity[name]]
    if changed:
        raise UserError(
            f"{checkpoint}: was made with another {' and another '.join(changed)} than the files hold now; put the old "
            "ones back, or start a new run with another --run.name"
        )
    source.restore(checkpoint)
    learner.objective = learner.objective.remembering(json.loads((checkpoint / OBJECTIVE).read_text()))
    progress.line(
        f"continued from {checkpoint}: step {position.step}, weights, optimizer, random generators, "
        "and metrics and transcripts up to there"
    )
    return position


def _peak_memory(device: torch.device) -> dict[str, float]:
    if device.type != "cuda":
        return {}
    peak = torch.cuda.max_memory_allocated(device) / 1e9
    torch.cuda.reset_peak_memory_stats(device)
    return {"memory/peak_gb": peak}
