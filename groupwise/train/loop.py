"""The loop: step after step until the end, with metrics, evaluations and checkpoints. Knows no objective and no data.

A run is a function of its configuration: step k learns from `source.groups(k)`, which depends on nothing that is not
in a checkpoint, so a run that is stopped and continued ends with the same bytes.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from groupwise.errors import UserError
from groupwise.groups import Group
from groupwise.model.engine import LogprobEngine
from groupwise.observe.metrics import MetricsFile
from groupwise.observe.progress import Progress
from groupwise.observe.transcripts import TranscriptsFile
from groupwise.sections import OptimizerSection, RunSection
from groupwise.train.checkpoint import Position, delete_old, load_checkpoint, newest_complete, save_checkpoint
from groupwise.train.objective import Objective
from groupwise.train.optimizer import learning_rate, make_optimizer, set_learning_rate
from groupwise.train.order import EpochOrder
from groupwise.train.run_folder import RunFolder
from groupwise.train.runtime import Runtime
from groupwise.train.step import optimizer_step


class GroupSource(Protocol):
    """Where the groups of each step come from."""

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        ...

    def groups(self, step: int) -> Sequence[Group]:
        """The groups of step `step`, counted from 0; none where there is nothing to learn from."""
        ...

    def metrics(self) -> Mapping[str, float]:
        """Numbers about the groups that were handed out last; the same names on every process."""
        ...

    def save(self, folder: Path) -> None:
        """Write what the next steps depend on, besides weights, into the folder of a checkpoint."""
        ...

    def restore(self, folder: Path) -> None:
        """Put back what `save` wrote."""
        ...


class EpochSource:
    """Groups from a list, in an order that is a pure function of (seed, epoch): one permutation per epoch.

    The last step of the run takes what is left, so every group is seen exactly `epochs` times (rounded up to one step
    for a fraction).

    >>> from groupwise.groups import Completion
    >>> completion = Completion(token_ids=(1,), finished=False, score=0.0)
    >>> groups = [Group(key=str(i), prompt_ids=(1,), completions=(completion,)) for i in range(5)]
    >>> source = EpochSource(groups, groups_per_step=2, epochs=2, seed=0)
    >>> seen = [group.key for step in range(source.total_steps) for group in source.groups(step)]
    >>> source.total_steps, sorted(seen[:5]), sorted(seen[5:])
    (5, ['0', '1', '2', '3', '4'], ['0', '1', '2', '3', '4'])
    """

    def __init__(self, groups: Sequence[Group], *, groups_per_step: int, epochs: float, seed: int) -> None:
        self._groups = groups
        self._per_step = groups_per_step
        self._total = max(1, round(len(groups) * epochs))
        self._order = EpochOrder(len(groups), seed=seed)

    @property
    def total_steps(self) -> int:
        return -(-self._total // self._per_step)

    def groups(self, step: int) -> list[Group]:
        first = step * self._per_step
        return [self._groups[self._order[i]] for i in range(first, min(first + self._per_step, self._total))]

    def metrics(self) -> Mapping[str, float]:
        return {}

    def save(self, folder: Path) -> None:
        """The order is a function of the step: there is nothing to keep."""

    def restore(self, folder: Path) -> None:
        """There was nothing to keep."""


@dataclass(frozen=True, slots=True)
class FitResult:
    """What a run cost: optimizer steps, tokens learned from, and seconds spent, continued runs added up."""

    steps: int
    tokens: int
    seconds: float


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
    evaluate: Callable[[int], Mapping[str, float]],
    evaluate_every: int,
    identity: Mapping[str, str],
) -> FitResult:
    """Train from the newest complete checkpoint, or from the start, to the source's last step.

    `evaluate(step)` returns held-out figures, logged under `eval/`; it runs every `evaluate_every` steps (0: never) and
    at the end, and must not draw from global generators. `identity` holds hashes of base model and data: a checkpoint
    that was made with others is refused with a UserError.
    """
    parameters = engine.policy.trainable()
    optimizer = make_optimizer(optimizer_section, parameters.values())
    total = source.total_steps
    decode: Callable[[Sequence[int]], str] = lambda ids: str(engine.policy.tokenizer.decode(list(ids)))  # noqa: E731
    with MetricsFile(folder.metrics) as metrics, TranscriptsFile(folder.transcripts, decode) as transcripts, progress:
        position = _resume(folder.checkpoints, parameters, optimizer, source, identity, progress)
        if runtime.is_main:
            metrics.truncate(position.offsets.get("metrics", 0))
            transcripts.truncate(position.offsets.get("transcripts", 0))
        tokens, seconds = position.tokens, position.seconds
        progress.start(total, position.step, title)
        for step in range(position.step, total):
            started = time.perf_counter()
            groups = source.groups(step)
            rate = learning_rate(optimizer_section, step, total)
            set_learning_rate(optimizer, rate)
            values = _learn(objective, groups, engine, optimizer, runtime, run, optimizer_section)
            values |= {"learning_rate": rate, **source.metrics(), **_peak_memory(runtime.device)}
            done = step + 1
            if done == total or (evaluate_every and done % evaluate_every == 0):
                values |= {f"eval/{name}": value for name, value in evaluate(done).items()}
            seconds += time.perf_counter() - started
            tokens += int(values["tokens/prompt"] + values["tokens/completion"])
            values["time/step_s"] = time.perf_counter() - started
            if runtime.is_main:
                if groups and run.transcripts_every and (done % run.transcripts_every == 0 or done == 1):
                    transcripts.append(done, groups[0], phase="train", extra=_advantages(groups[0]))
                if done % run.log_every == 0 or done == total:
                    metrics.append(done, values)
                    runtime.track(values, done)
                progress.step(done, values)
                if done == total or (run.checkpoint_every and done % run.checkpoint_every == 0):
                    metrics.sync()
                    transcripts.sync()
                    offsets = {"metrics": metrics.offset, "transcripts": transcripts.offset}
                    position = Position(step=done, identity=identity, offsets=offsets, tokens=tokens, seconds=seconds)
                    save_checkpoint(
                        folder.checkpoints, position, parameters=parameters, optimizer=optimizer, more=source.save
                    )
                    delete_old(folder.checkpoints, run.keep_checkpoints)
            runtime.wait()
    return FitResult(steps=total, tokens=tokens, seconds=seconds)


def _learn(
    objective: Objective,
    groups: Sequence[Group],
    engine: LogprobEngine,
    optimizer: torch.optim.Optimizer,
    runtime: Runtime,
    run: RunSection,
    section: OptimizerSection,
) -> dict[str, float]:
    """One optimizer step; a step without groups leaves weights and optimizer alone, and says so."""
    if not groups:
        return {"groups/used": 0, "tokens/prompt": 0, "tokens/completion": 0}
    return optimizer_step(
        objective,
        groups,
        engine=engine,
        optimizer=optimizer,
        runtime=runtime,
        tokens_per_forward=run.tokens_per_forward,
        max_grad_norm=section.max_grad_norm,
    )


def _advantages(group: Group) -> dict[str, list[float]]:
    """Mean advantage of each completion for the transcript, where there are any."""
    means = [completion.advantage.mean().item() for completion in group.completions if completion.advantage is not None]
    return {"advantage": means} if means else {}


def _resume(
    checkpoints: Path,
    parameters: Mapping[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
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
    position = load_checkpoint(checkpoint, parameters=parameters, optimizer=optimizer)
    changed = [name for name in identity if position.identity.get(name) != identity[name]]
    if changed:
        raise UserError(
            f"{checkpoint}: was made with another {' and another '.join(changed)} than the files hold now; put the old "
            "ones back, or start a new run with another --run.name"
        )
    source.restore(checkpoint)
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
