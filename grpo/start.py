"""Is what a rollout starts from what it must be? Log-probs of sampler, engine and reference, compared.

Every process compares what it has itself; one that finds a fault stops all. Knows no loss.

Legend: T completion tokens.
"""

from collections.abc import Sequence

import torch

from groupwise.batch import pack
from groupwise.groups import Group, named
from groupwise.model.engine import LogprobEngine
from groupwise.model.head import beyond_rounding
from groupwise.train.runtime import Runtime

_LOOKED_AT = 4  # groups
_OF_EACH = 2  # completions


def check_sampler(engine: LogprobEngine, groups: Sequence[Group], runtime: Runtime, *, temperature: float) -> None:
    """The engine must find the log-probs that the tokens were drawn with, or every ratio would be wrong.

    The active network is the one that answered. Raises RuntimeError where it does not, and stops all processes.
    """
    looked_at = [group.replace_completions(group.completions[:_OF_EACH]) for group in groups[:_LOOKED_AT]]
    runtime.together(lambda: _compare_sampler(engine, looked_at, temperature))


def _compare_sampler(engine: LogprobEngine, groups: Sequence[Group], temperature: float) -> None:
    if not groups:
        return
    batch = pack(groups).to(engine.policy.device)
    with torch.no_grad():
        logp_T = engine.score(batch, temperature=temperature).logp_T
    assert batch.sampled_logp_T is not None
    gap = beyond_rounding(logp_T, batch.sampled_logp_T, rounding=engine.rounding)
    if gap is not None:
        raise RuntimeError(
            f"{named(groups)}: sampler and engine differ by {gap:.3g} nats in a token's log-prob, which is more than "
            "rounding, so ratios would be wrong; --model.attention repeat avoids the shared prompts, which may be the "
            "cause"
        )


def check_reference(engine: LogprobEngine, groups: Sequence[Group], runtime: Runtime) -> None:
    """A fresh policy is its reference: every KL is 0 before the first step.

    Raises RuntimeError where it is not, and stops all processes.
    """
    runtime.together(lambda: _compare_reference(engine, groups[:_LOOKED_AT]))


def _compare_reference(engine: LogprobEngine, groups: Sequence[Group]) -> None:
    if not groups:
        return
    batch = pack(groups)
    assert batch.sampled_logp_T is not None and batch.reference_logp_T is not None
    gap = beyond_rounding(batch.sampled_logp_T, batch.reference_logp_T, rounding=engine.rounding)
    if gap is not None:
        raise RuntimeError(
            f"before the first step policy and reference differ by {gap:.3g} nats in a token's log-prob, which is more "
            "than rounding; the KL would not start at 0"
        )
