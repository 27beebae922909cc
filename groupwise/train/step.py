"""One optimizer step: groups in, weights moved, numbers out. Knows neither the objective nor where groups come from.

Legend: S tokens in the row.
"""

import time
from collections.abc import Sequence

import torch
from torch import nn

from groupwise.batch import pack, split_by_tokens
from groupwise.groups import Group
from groupwise.model.engine import LogprobEngine
from groupwise.observe.metrics import MetricSums
from groupwise.train.objective import Objective, StepTotals
from groupwise.train.runtime import Runtime


class NonFiniteStep(RuntimeError):
    """The loss or the gradient of a step is not finite; the weights were not touched."""


def accumulate_gradient(
    objective: Objective,
    groups: Sequence[Group],
    *,
    engine: LogprobEngine,
    runtime: Runtime,
    tokens_per_forward: int,
) -> MetricSums:
    """Add the gradient of the step's loss to `.grad`, summed over micro-batches and processes.

    Every process hands in all groups of the step and works on its share. The loss is divided by the objective's count
    over the whole step, so `tokens_per_forward`, the number of processes and the order of groups change nothing but
    rounding. Returns the objective's metrics of the whole step. Raises NonFiniteStep naming the groups of the
    micro-batch whose loss is not finite.
    """
    denominator = objective.denominator(StepTotals.of(groups))
    sums = MetricSums(runtime.device)
    for name in ("entropy", *objective.metric_names):
        sums.add(name, 0.0, 0)
    for part in split_by_tokens(runtime.share(groups), tokens_per_forward):
        batch = pack(part).to(runtime.device)
        scores = engine.score(batch, temperature=objective.temperature)
        loss_sum = objective.loss_sum(batch, scores, sums)
        if not torch.isfinite(loss_sum):
            raise NonFiniteStep(
                f"loss is {loss_sum.item()} in a micro-batch with {_names(part)}; weights were not touched"
            )
        (loss_sum / denominator).backward()
        sums.add("loss", loss_sum, 0)
        sums.add("entropy", scores.entropy_T.sum(), batch.n_tokens)
    runtime.sum_gradients(engine.policy.trainable().values())
    # The count is the whole step's, and is known to every process: only the first one adds it.
    sums.add("loss", 0.0, denominator if runtime.is_main else 0)
    return sums if runtime.processes == 1 else sums.reduce(runtime.sum)


def optimizer_step(
    objective: Objective,
    groups: Sequence[Group],
    *,
    engine: LogprobEngine,
    optimizer: torch.optim.Optimizer,
    runtime: Runtime,
    tokens_per_forward: int,
    max_grad_norm: float | None,
) -> dict[str, float]:
    """Move the weights once along the gradient of the objective over these groups; returns the step's metrics."""
    started = time.perf_counter()
    parameters = engine.policy.trainable()
    sums = accumulate_gradient(objective, groups, engine=engine, runtime=runtime, tokens_per_forward=tokens_per_forward)
    norm = nn.utils.get_total_norm([p.grad for p in parameters.values() if p.grad is not None])
    if not torch.isfinite(norm):
        raise NonFiniteStep(f"gradient norm is {norm.item()} in a step with {_names(groups)}; weights were not touched")
    if max_grad_norm is not None:
        nn.utils.clip_grads_with_norm_(parameters.values(), max_grad_norm, norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    totals = StepTotals.of(groups)
    seconds = time.perf_counter() - started
    return {
        **sums.means(),
        "grad_norm": norm.item(),
        "tokens/prompt": totals.prompt_tokens,
        "tokens/completion": totals.tokens,
        "groups/used": totals.groups,
        "time/learn_s": seconds,
        "tokens_per_second": (totals.prompt_tokens + totals.tokens) / seconds,
    }


def _names(groups: Sequence[Group]) -> str:
    shown = ", ".join(group.key for group in groups[:5])
    return shown if len(groups) <= 5 else f"{shown} and {len(groups) - 5} more"
