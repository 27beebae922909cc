"""Is what a rollout starts from what it must be? Log-probs of sampler, engine and reference, compared.

Every process compares what it has itself; one that finds a fault stops all. Knows no loss.

Legend: T completion tokens.
"""

from collections.abc import Sequence

import torch

from groupwise.batch import pack
from groupwise.groups import Group
from groupwise.model.engine import LogprobEngine
from groupwise.train.runtime import Runtime

_LOOKED_AT = 4  # groups
_OF_EACH = 2  # completions


def check_sampler(engine: LogprobEngine, groups: Sequence[Group], runtime: Runtime, *, temperature: float) -> None:
    """The engine must find the log-probs that the tokens were drawn with, or every ratio would be wrong.

    The active network is the one that answered. Raises RuntimeError on all processes.
    """

    def faults() -> list[str]:
        found: list[str] = []
        for group in groups[:_LOOKED_AT]:
            batch = pack([group.replace_completions(group.completions[:_OF_EACH])]).to(engine.policy.device)
            with torch.no_grad():
                logp_T = engine.score(batch, temperature=temperature).logp_T
            assert batch.sampled_logp_T is not None
            gap = (logp_T.cpu() - batch.sampled_logp_T.cpu()).abs().max().item()
            allowed = engine.rounding * max(1.0, logp_T.abs().max().item())
            if not gap <= allowed:
                found.append(
                    f"{group.key}: sampler and engine differ by {gap:.3g} nats in a token's log-prob (allowed "
                    f"{allowed:.1g}), so ratios would be wrong; --model.attention repeat avoids the shared prompts, "
                    "which may be the cause"
                )
        return found

    _stop_all(runtime.together(faults), runtime)


def check_reference(engine: LogprobEngine, groups: Sequence[Group], runtime: Runtime) -> None:
    """A fresh policy is its reference: every KL is 0 before the first step. Raises RuntimeError on all processes."""
    faults: list[str] = []
    if groups:
        batch = pack(groups[:_LOOKED_AT])
        assert batch.sampled_logp_T is not None and batch.reference_logp_T is not None
        gap = (batch.sampled_logp_T - batch.reference_logp_T).abs().max().item()
        allowed = engine.rounding * max(1.0, batch.reference_logp_T.abs().max().item())
        if not gap <= allowed:
            faults.append(
                f"before the first step policy and reference differ by {gap:.3g} nats in a token's log-prob (allowed "
                f"{allowed:.1g}); the KL would not start at 0"
            )
    _stop_all(faults, runtime)


def _stop_all(faults: Sequence[str], runtime: Runtime) -> None:
    if everywhere := runtime.gather(faults):
        raise RuntimeError(everywhere[0])
