"""Is the loss before the first step what it must be? Knows no formula: the catalogue has the values.

Legend: T completion tokens.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch

from dpo.objective import DpoObjective
from groupwise.batch import pack, split_by_tokens
from groupwise.groups import Group
from groupwise.model.engine import LogprobEngine, policy_beside_reference
from groupwise.model.head import beyond_rounding
from groupwise.observe.metrics import MetricSums
from groupwise.train.runtime import Runtime
from groupwise.train.share import StepShare, StepTotals


def check_start(
    objective: DpoObjective,
    engine: LogprobEngine,
    groups: Sequence[Group],
    runtime: Runtime,
    *,
    tokens_per_forward: int,
) -> None:
    """A fresh policy is its reference: every log-ratio is 0, and the loss what its formula gives there (DPO: ln 2).

    Anything else is a fault of ours: raises RuntimeError, and stops all processes, each of which looks at all `groups`.
    Without a reference nothing is known at the start.
    """
    if not any(part.entry.reference for part in objective.parts):
        return
    rounding = runtime.together(lambda: _compare_reference(engine, groups, tokens_per_forward))
    if objective.starts_at is None:
        return
    share = StepShare.of(groups, runtime)
    own = objective.for_step(share, engine=engine, runtime=runtime, tokens_per_forward=tokens_per_forward)
    runtime.together(lambda: _compare_loss(own, engine, groups, tokens_per_forward, rounding))


def _compare_reference(engine: LogprobEngine, groups: Sequence[Group], tokens_per_forward: int) -> float:
    """What rounding may do, or did, to a token's log-prob, nats, where it explains all there is.

    The reference pass may have cut the data into other rows, whose sums round differently.
    """
    logp_T, reference_logp_T = policy_beside_reference(engine, groups, tokens_per_forward=tokens_per_forward)
    gap = beyond_rounding(logp_T, reference_logp_T, rounding=engine.rounding)
    if gap is not None:
        raise RuntimeError(
            f"before the first step policy and reference differ by {gap:.3g} nats in a token's log-prob, which is more "
            "than rounding; the cached reference does not belong to this model"
        )
    usual = engine.rounding * max(1.0, reference_logp_T.abs().max().item())
    return max(usual, (logp_T - reference_logp_T).abs().max().item())


def _compare_loss(
    objective: DpoObjective,
    engine: LogprobEngine,
    groups: Sequence[Group],
    tokens_per_forward: int,
    rounding: float,
) -> None:
    assert objective.starts_at is not None
    loss, slope = _loss(objective, engine, groups, tokens_per_forward)
    # What rounding of every token's log-prob may do to the loss, to first order.
    tolerance = 2 * rounding * slope + 1e-6 * max(1.0, abs(objective.starts_at))
    if not abs(loss - objective.starts_at) <= tolerance:
        names = ", ".join(part.objective for part in objective.parts)
        raise RuntimeError(
            f"before the first step the loss of {names} is {loss:.6g}; its formula gives {objective.starts_at:.6g} "
            f"where policy and reference are equal (allowed difference {tolerance:.1g})"
        )


def _loss(
    objective: DpoObjective, engine: LogprobEngine, groups: Sequence[Group], tokens_per_forward: int
) -> tuple[float, float]:
    """The mean loss of these groups, and the sum of the sizes of its derivatives by every token's log-prob."""
    loss, slope = 0.0, 0.0
    count = objective.denominator(StepTotals.of(groups))
    for part in split_by_tokens(groups, tokens_per_forward):
        batch = pack(part).to(engine.policy.device)
        with torch.no_grad():
            scores = engine.score(batch, extras=objective.extras)
        logp_T = scores.logp_T.double().requires_grad_()
        part_loss = objective.loss_sum(batch, replace(scores, logp_T=logp_T), MetricSums(engine.policy.device)) / count
        (slope_T,) = torch.autograd.grad(part_loss, logp_T)
        loss += part_loss.item()
        slope += slope_T.abs().sum().item()
    return loss, slope
