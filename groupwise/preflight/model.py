"""Is the model fit to be trained: it loads, its weights are finite, one real forward and backward pass works.

Knows no method's loss.

Legend: T completion tokens.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from groupwise.cost.shapes import GroupShape, shapes_of
from groupwise.data.text import TextEncoder
from groupwise.groups import Group, forward_tokens
from groupwise.model.engine import LogprobEngine
from groupwise.model.nf4 import weight_count
from groupwise.model.policy import Policy
from groupwise.preflight.folder import check_disk
from groupwise.preflight.report import Report
from groupwise.preflight.timing import busiest
from groupwise.sections import LoraSection, ModelSection, RunSection
from groupwise.train.objective import Objective
from groupwise.train.run_folder import RunFolder
from groupwise.train.runtime import Runtime
from groupwise.train.share import StepShare
from groupwise.train.step import accumulate_gradient


@dataclass(frozen=True, slots=True)
class Loaded:
    """What everything else is checked with; `sound`: its weights are numbers, so that it can be run."""

    runtime: Runtime
    policy: Policy
    encoder: TextEncoder
    sound: bool


def load_model(
    model: ModelSection,
    lora: LoraSection | None,
    run: RunSection,
    encode: Callable[[Policy], TextEncoder],
    report: Report,
    *,
    keep_base: bool,
) -> Loaded | None:
    """Model and tokenizer as a run would load them, or None, said, where they cannot be loaded."""
    with report.part("model"):
        runtime = Runtime(
            mixed_precision=run.mixed_precision,
            trackers=run.trackers,
            folder=RunFolder.of(run).path,
            seed=run.seed,
        )
        policy = Policy.load(model, lora, seed=run.seed, device=runtime.device, keep_base=keep_base)
        encoder = encode(policy)
        trained = sum(p.numel() for p in policy.trainable().values())
        everything = sum(weight_count(p) for p in policy.model.parameters())
        report.ok(f"{model.path}: {everything:,} weights, {trained:,} of them trained, on {policy.device}")
        sound = _check_weights(policy, model.path, report)
        with report.guard():
            check_disk(policy, run, report)
        return Loaded(runtime, policy, encoder, sound)
    return None


@dataclass(frozen=True, slots=True)
class TrialStep:
    """What one forward and backward pass gave; `groups` are those of the process that had most."""

    loss: float
    grad_norm: float
    groups: Sequence[GroupShape]
    seconds: float


def _check_weights(policy: Policy, path: str, report: Report) -> bool:
    """Whether all weights are finite; says so, or names one that is not."""
    bad = [name for name, p in policy.model.named_parameters() if not bool(torch.isfinite(p).all())]
    if bad:
        first = bad[0].removeprefix("base_model.model.").replace(".base_layer.", ".")  # as the file calls it
        report.error(
            f"model.path: {path}: {len(bad)} weights hold NaN or infinity, such as {first}; download or convert the "
            "model again"
        )
    else:
        report.ok("all weights are finite")
    return not bad


def trial_step(
    objective: Objective, part: Sequence[Group], *, engine: LogprobEngine, runtime: Runtime, report: Report
) -> TrialStep:
    """One forward and backward pass on a micro-batch, as a step does it; weights stay, gradients are cleared.

    Raises NotFinite where log-probs or loss are not.
    """
    trained = engine.policy.trainable().values()
    tokens = sum(map(forward_tokens, part))
    started = time.perf_counter()
    try:
        share = StepShare.of(part, runtime)
        objective = objective.for_step(share, engine=engine, runtime=runtime, tokens_per_forward=tokens)
        sums = accumulate_gradient(objective, share, engine=engine, runtime=runtime, tokens_per_forward=tokens)
        norm = nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None]).item()
    finally:
        for p in trained:
            p.grad = None
    own = busiest(shapes_of(part), runtime.processes)
    trial = TrialStep(sums.means()["loss"], norm, own, time.perf_counter() - started)
    where = f"one forward and backward pass of {tokens} tokens"
    if not torch.isfinite(torch.tensor(norm)):
        report.error(f"{where}: the gradient is not finite; use another model or model.dtype float32")
    elif norm == 0:
        report.error(f"{where}: the gradient is 0, so nothing would be learned")
    else:
        report.ok(f"{where}: loss {trial.loss:.4g}, gradient {norm:.4g}, {trial.seconds:.1f} s; weights are as before")
    return trial
