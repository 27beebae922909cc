"""Is the loss before the first step what it must be? Knows no formula: the catalogue has the values.

Legend: T completion tokens.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch

from dpo.objective import DpoObjective
from groupwise.batch import pack
from groupwise.groups import Group
from groupwise.model.engine import LogprobEngine, starting_gap
from groupwise.observe.metrics import MetricSums
from groupwise.train.runtime import Runtime
from groupwise.train.share import StepShare, StepTotals


def check_start(objective: DpoObjective, engine: LogprobEngine, groups: Sequence[Group], runtime: Runtime) -> None:
    """A fresh policy is its reference: every log-ratio is 0, and the loss what its formula gives there (DPO: ln 2).

    Anything else is a fault of ours: raises RuntimeError. Without a reference nothing is known at the start.
    """
    if not any(part.entry.reference for part in objective.parts):
        return
    gap, allowed = starting_gap(engine, groups)
    if not gap <= allowed:
        raise RuntimeError(
            f"before the first step policy and reference differ by {gap:.3g} nats in a token's log-prob (allowed "
            f"{allowed:.1g}); the cached reference does not belong to this model"
        )
    if objective.starts_at is None:
        return
    own = objective.for_step(StepShare.of(groups, runtime), engine=engine, runtime=runtime, tokens_per_forward=2**62)
    loss, slope = _loss(own, engine, groups)
    # What rounding of every token's log-prob may do to the loss, to first order.
    tolerance = 2 * allowed * slope + 1e-6 * max(1.0, abs(objective.starts_at))
    if not abs(loss - objective.starts_at) <= tolerance:
        names = ", ".join(part.objective for part in objective.parts)
        raise RuntimeError(
            f"before the first step the loss of {names} is {loss:.6g}; its formula gives {objective.starts_at:.6g} "
            f"where policy and reference are equal (allowed difference {tolerance:.1g})"
        )


def _loss(objective: DpoObjective, engine: LogprobEngine, groups: Sequence[Group]) -> tuple[float, float]:
    """The mean loss of these groups, and the sum of the sizes of its derivatives by every token's log-prob."""
    batch = pack(groups).to(engine.policy.device)
    with torch.no_grad():
        scores = engine.score(batch, extras=objective.extras)
    logp_T = scores.logp_T.double().requires_grad_()
    total = objective.loss_sum(batch, replace(scores, logp_T=logp_T), MetricSums(engine.policy.device))
    loss = total / objective.denominator(StepTotals.of(groups))
    (slope_T,) = torch.autograd.grad(loss, logp_T)
    return loss.item(), slope_T.abs().sum().item()
