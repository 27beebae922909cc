"""One optimizer step: groups in, weights moved, numbers out. Knows neither the objective nor where groups come from.

Legend: S tokens in the row.
"""

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from groupwise.batch import pack, split_by_tokens
from groupwise.groups import Group, NotFinite
from groupwise.model.engine import LogprobEngine
from groupwise.observe.metrics import MetricSums
from groupwise.train.clock import PhaseClock
from groupwise.train.objective import Objective
from groupwise.train.optimizer import Optimizer, clipped_step
from groupwise.train.runtime import Runtime
from groupwise.train.share import StepShare


def accumulate_gradient(
    objective: Objective,
    share: StepShare,
    *,
    engine: LogprobEngine,
    runtime: Runtime,
    tokens_per_forward: int,
    clock: PhaseClock | None = None,
) -> MetricSums:
    """Add the gradient of the step's loss to `.grad`, or to what ZeRO holds, summed over micro-batches and processes.

    The loss is divided by the objective's count over the whole step, so `tokens_per_forward`, the number of processes
    and the order of groups change nothing but rounding. Returns the objective's metrics of the whole step. Raises
    NotFinite, on all processes, naming the groups whose loss or log-probs are not; gradients are cleared then.
    """
    denominator = objective.denominator(share.totals)
    sums = MetricSums(runtime.device)
    for name in ("entropy", *objective.metric_names):
        sums.add(name, 0.0, 0)
    bad: list[Group] = []
    parts = split_by_tokens(share.groups, tokens_per_forward)
    runtime.expect_backward(len(parts))
    for part in parts:
        batch = pack(part).to(runtime.device)
        scores = engine.score(batch, temperature=objective.temperature, extras=objective.extras)
        loss_sum = objective.loss_sum(batch, scores, sums)
        # A log-ratio of infinity can have a loss of 0, so the loss alone does not tell.
        if not (torch.isfinite(loss_sum) & torch.isfinite(scores.logp_T).all()):
            bad += part  # its backward pass is run all the same: others may wait for it
        if clock is not None:
            clock.lap("forward")
        engine.policy.backward(loss_sum / denominator)
        if clock is not None:
            clock.lap("backward")
        sums.add("loss", loss_sum, 0)
        sums.add("entropy", scores.entropy_T.sum(), batch.n_tokens)
    if runtime.any(bool(bad)):
        raise NotFinite("loss or log-probs are", _culprits(objective, bad, engine, runtime))
    runtime.sum_gradients(engine.policy.trainable().values())
    # The count is the whole step's, and is known to every process: only the first one adds it.
    sums.add("loss", 0.0, denominator if runtime.is_main else 0)
    return sums if runtime.processes == 1 else sums.reduce(runtime.sum)


def optimizer_step(
    objective: Objective,
    share: StepShare,
    *,
    engine: LogprobEngine,
    optimizer: Optimizer,
    runtime: Runtime,
    tokens_per_forward: int,
    max_grad_norm: float | None,
) -> dict[str, float]:
    """Move the weights once along the gradient of the objective over these groups; returns the whole step's metrics.

    Raises NotFinite before weights and optimizer are touched.
    """
    started = time.perf_counter()
    parameters = engine.policy.trainable()
    clock = PhaseClock(runtime.device)
    objective = objective.for_step(share, engine=engine, runtime=runtime, tokens_per_forward=tokens_per_forward)
    sums = accumulate_gradient(
        objective, share, engine=engine, runtime=runtime, tokens_per_forward=tokens_per_forward, clock=clock
    )
    norm = clipped_step(optimizer, parameters.values(), max_grad_norm)
    if not torch.isfinite(norm):
        raise NotFinite("the gradient is", _culprits(objective, share.groups, engine, runtime))
    totals = share.totals
    seconds = time.perf_counter() - started
    return {
        **sums.means(),
        "grad_norm": norm.item(),
        "tokens/prompt": totals.prompt_tokens,
        "tokens/completion": totals.tokens,
        "groups/used": totals.groups,
        "time/learn_s": seconds,
        **{f"time/{phase}_s": spent for phase, spent in clock.seconds.items()},
        "tokens_per_second": (totals.prompt_tokens + totals.tokens) / seconds,
    }


def _culprits(objective: Objective, suspects: Sequence[Group], engine: LogprobEngine, runtime: Runtime) -> list[Group]:
    """Of all processes' suspects those that are not finite on their own, all where none is; clears gradients."""
    found = [group for group in suspects if not _is_finite_alone(objective, group, engine, runtime)]
    told_apart = runtime.any(bool(found))
    for p in engine.policy.trainable().values():
        p.grad = None
    return runtime.gather(found if told_apart else suspects)


def _is_finite_alone(objective: Objective, group: Group, engine: LogprobEngine, runtime: Runtime) -> bool:
    """Whether log-probs, loss and, where one process can tell, gradient of one group are finite."""
    batch = pack([group]).to(runtime.device)
    with torch.set_grad_enabled(not engine.policy.gradients_spread):
        scores = engine.score(batch, temperature=objective.temperature, extras=objective.extras)
        loss = objective.loss_sum(batch, scores, MetricSums(runtime.device))
    values = [scores.logp_T.detach(), loss.detach()]
    if not engine.policy.gradients_spread:
        values += _gradient(loss, engine)
    return all(bool(torch.isfinite(value).all()) for value in values)


def _gradient(loss: Tensor, engine: LogprobEngine) -> list[Tensor]:
    """Of one loss alone."""
    parameters = engine.policy.trainable().values()
    for p in parameters:
        p.grad = None
    loss.backward()
    found = [p.grad for p in parameters if p.grad is not None]
    for p in parameters:
        p.grad = None
    return found
