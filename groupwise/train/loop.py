"""The loop: step after step until the end, with metrics, evaluations and checkpoints. Knows no objective and no data.

A run is a function of its configuration: step k learns from `source.share(k)`, which depends on nothing that is not
in a checkpoint, so a run that is stopped and continued ends with the same bytes.
"""

import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch

from groupwise.errors import Interrupted, RunStopped
from groupwise.groups import Group, NotFinite
from groupwise.model.engine import LogprobEngine
from groupwise.observe.alarms import Alarm, Alarms
from groupwise.observe.heldout import Evaluation, read_heldout
from groupwise.observe.metrics import read_metrics
from groupwise.observe.progress import Progress
from groupwise.sections import OptimizerSection, RunSection
from groupwise.train.boundary import Boundary
from groupwise.train.checkpoint import Position, assign_weights, fault, read_weights, step_name
from groupwise.train.checkpoint_keeper import CheckpointKeeper
from groupwise.train.choice import Choice, choose
from groupwise.train.interrupt import StopSignals
from groupwise.train.objective import Objective
from groupwise.train.offenders import keep_offenders
from groupwise.train.optimizer import Optimizer, learning_rate, set_learning_rate
from groupwise.train.records import Records, open_records
from groupwise.train.run_folder import RunFolder
from groupwise.train.runtime import Runtime
from groupwise.train.share import StepShare
from groupwise.train.source import GroupSource
from groupwise.train.step import optimizer_step

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class Judging:
    """How a run looks at held-out data on its way.

    evaluate   at a step: figures, logged under `eval/`, and their values prompt by prompt; must not draw from global
               generators
    every      steps between evaluations, 0: never; the last step is always judged
    evaluated  what the main process then does
    best       name of the figure that the best step is the highest of
    """

    evaluate: Callable[[int], Evaluation]
    every: int
    evaluated: Callable[[], None]
    best: str

    def due(self, done: int, total: int) -> bool:
        """Whether the policy is judged after so many steps."""
        return done == total or bool(self.every and done % self.every == 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """Who looks on: the display and its title, the alarms, and the signals that ask the run to stop."""

    progress: Progress
    title: str
    alarms: Alarms
    stop: StopSignals


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
    identity: Mapping[str, str],
    judging: Judging,
    watch: Watch,
) -> FitResult:
    """Train from the newest complete checkpoint, or from the start, to the source's last step.

    The checkpoint in which the figure `judging.best` is highest is kept whatever its age, and its weights are put back
    at the end where `choose` says so. `identity` holds hashes of base model and data: a checkpoint that was made with
    others is refused with a UserError. Raises RunStopped where training cannot go on, Interrupted after a signal that
    `watch.stop` received, all that was learned being saved.
    """
    parameters = engine.policy.trainable()
    optimizer = runtime.optimizer(optimizer_section, parameters.values())
    total = source.total_steps
    progress = watch.progress
    decode: Callable[[Sequence[int]], str] = lambda ids: str(engine.policy.tokenizer.decode(list(ids)))  # noqa: E731
    keeper = CheckpointKeeper(
        folder.checkpoints,
        parameters=parameters,
        optimizer=optimizer,
        keep=run.keep_checkpoints,
        say=progress.line,
        exchange=runtime,
    )
    with open_records(folder, decode) as records, progress, watch.stop:
        boundary = Boundary(source, keeper, records, identity, runtime, progress.line)
        learner = _Learner(objective, engine, optimizer, optimizer_section, run, runtime, boundary, folder, decode)
        position, learner.objective = boundary.resume(parameters, optimizer, objective)
        runtime.together(lambda: _prepare_files(records, position, watch.alarms) if runtime.is_main else None)
        keeper.tidy(position.best_step)
        keeper.check_space()
        progress.start(total, position.step, watch.title)
        for step in range(position.step, total):
            started = time.perf_counter()
            done = step + 1
            rate = learning_rate(optimizer_section, step, total)
            set_learning_rate(optimizer, rate)
            share, values = learner.step(position)
            values |= {"learning_rate": rate, **_peak_memory(runtime.device)}
            judged = None
            if judging.due(done, total):
                began = time.perf_counter()
                judged = learner.judge(judging.evaluate, done)
                values["time/evaluate_s"] = time.perf_counter() - began
                values |= {f"eval/{name}": value for name, value in judged.figures.items()}
            position = _advanced(position, values, best=f"eval/{judging.best}", seconds=time.perf_counter() - started)
            values["time/step_s"] = time.perf_counter() - started
            stopped = runtime.any(watch.stop.received is not None)
            if run.transcripts_every and (done % run.transcripts_every == 0 or done == 1):
                learned = () if share is None else share.first(run.transcripts_groups, runtime)
                passed_over = source.passed_over(run.transcripts_groups)
                if runtime.is_main:
                    records.write_transcripts(done, learned, passed_over)
            if runtime.is_main:
                if judged is not None:
                    records.heldout.append_object(judged.as_record(done))
                if done % run.log_every == 0 or judged is not None:
                    values |= _raise_alarms(watch.alarms, done, values, progress)
                    records.metrics.append(done, values)
                    runtime.track(values, done)
                progress.step(done, values)
                if judged is not None:
                    judging.evaluated()
            due = run.checkpoint_every and done % run.checkpoint_every == 0
            if done == total or due or position.best_step == done or stopped:
                boundary.save(position, learner.objective)
            runtime.wait()
            if stopped and done < total:
                raise Interrupted(
                    f"stopped after step {done} of {total}; the same command continues from "
                    f"{keeper.newest or 'the start'}",
                    watch.stop.received or signal.SIGTERM,
                )
        choice = _put_back_the_best(
            position, folder, parameters, keeper, runtime, best=judging.best, allowed=run.adapter_from == "best"
        )
        if choice is not None:
            progress.line(choice.line(judging.best))
    return FitResult(
        steps=total,
        tokens=position.tokens,
        seconds=position.seconds,
        skipped=position.skipped,
        choice=choice,
        alarms=tuple(watch.alarms.raised),
    )


@dataclass(slots=True)
class _Learner:
    """Takes steps, and decides what becomes of one in which something is not finite."""

    objective: Objective
    engine: LogprobEngine
    optimizer: Optimizer
    section: OptimizerSection
    run: RunSection
    runtime: Runtime
    boundary: Boundary
    folder: RunFolder
    decode: Callable[[Sequence[int]], str]
    before: Sequence[Group] = ()  # this process's groups of the last step that was taken

    def step(self, position: Position) -> tuple[StepShare | None, dict[str, float]]:
        """Numbers of the next step, and its groups; a step without any leaves weights and optimizer alone, and says so.

        None in place of the groups where the step was passed over.
        """
        values: dict[str, float] = {"groups/used": 0, "tokens/prompt": 0, "tokens/completion": 0}
        source = self.boundary.source
        share = self._or_stopped(lambda: self.boundary.share(position, self.objective), position.step + 1)
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
        except NotFinite as found:
            self._pass_over(found, position)
            values["groups/not_finite"] = len(found.groups)
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
        except NotFinite as found:
            raise self._stopped(f"step {step}: {self._kept(found, step)}") from found

    def _pass_over(self, found: NotFinite, position: Position) -> None:
        """Keep the groups on disk; raise RunStopped unless the policy lets the step pass."""
        step = position.step + 1
        text = f"step {step}: {self._kept(found, step)}"
        if self.run.on_not_finite == "stop" or position.skipped >= self.run.most_skipped_steps:
            raise self._stopped(f"{text}\nno weight was touched by this step") from found
        self.boundary.say(f"warning: {text}; the step is skipped")

    def _kept(self, found: NotFinite, step: int) -> str:
        return keep_offenders(
            found,
            self.folder.not_finite,
            step_name(step),
            step,
            self.decode,
            self.runtime,
            before=self.before,
        )

    def _stopped(self, text: str) -> RunStopped:
        return RunStopped(
            f"{text}; the newest checkpoint is {self.boundary.keeper.newest or 'none'}\n"
            "usual causes are optimizer.learning_rate too high, or these rows of data; run.on_not_finite: skip passes "
            "over up to run.most_skipped_steps such steps"
        )


def _prepare_files(records: Records, position: Position, alarms: Alarms) -> None:
    """Forget what was written after the checkpoint, and let the alarms see what was before."""
    records.cut_back(position.offsets)
    for row in read_metrics(records.metrics.path):
        alarms.look(row)


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
    position: Position,
    folder: RunFolder,
    parameters: Mapping[str, torch.nn.Parameter],
    keeper: CheckpointKeeper,
    runtime: Runtime,
    *,
    best: str,
    allowed: bool,
) -> Choice | None:
    """Decide between the last step and the best one, whose weights are put back where they are better."""
    step = position.best_step
    if step is None:
        return None
    kept = folder.checkpoints / step_name(step)

    def decide() -> Choice:
        may = allowed and step != position.step and fault(kept) is None
        return choose(read_heldout(folder.heldout), best, best=step, last=position.step, allowed=may)

    choice = runtime.from_main(decide)
    if choice.step != choice.last:
        keeper.check_seen(kept)
        assign_weights(runtime.together(lambda: read_weights(kept, parameters)), parameters)
    return choice


def _peak_memory(device: torch.device) -> dict[str, float]:
    if device.type != "cuda":
        return {}
    peak = torch.cuda.max_memory_allocated(device) / 1e9
    torch.cuda.reset_peak_memory_stats(device)
    return {"memory/peak_gb": peak}
