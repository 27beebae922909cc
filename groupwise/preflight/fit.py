"""Does the run fit into memory, and if not, which micro-batch does? Shared by both methods; knows no method.

Legend: S tokens in the row.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from groupwise.groups import Group, forward_tokens
from groupwise.model.engine import LogprobEngine
from groupwise.preflight.memory import Prediction, loaded_bytes, memory_there, training_bytes
from groupwise.preflight.report import Report
from groupwise.sections import OptimizerSection
from groupwise.train.checkpoint_keeper import size_text

Largest = Callable[[int], list[list[Group]]]
_TRIES = 8
_SMALLEST = 64  # tokens


@dataclass(frozen=True, slots=True)
class Fit:
    """The size of micro-batch that fits, None where none does, and the prediction for the configured size."""

    tokens: int | None
    prediction: Prediction


def check_memory(
    engine: LogprobEngine,
    optimizer: OptimizerSection,
    largest: Largest,
    *,
    tokens: int,
    sampling: int,
    several: bool,
    report: Report,
    there: int | None = None,
    later: int = 0,
) -> Fit:
    """Predict the run's peak and compare it with what there is.

    `largest(tokens)` are the micro-batches that may need most under that `run.tokens_per_forward`; `sampling` are bytes
    of sampling, `later` those that stay once something else of the run has begun to learn. `there` overrules the
    memory that the system tells of.
    """
    small = min((part[:1] for part in largest(_SMALLEST)), key=lambda part: sum(map(forward_tokens, part)))
    loaded = loaded_bytes(engine, small, optimizer) + later
    there = memory_there(engine.policy.device) if there is None else there

    def needed(size: int) -> int:
        return max(training_bytes(engine, part, optimizer, several=several) for part in largest(size))

    prediction = Prediction(loaded, needed(tokens), sampling)
    parts = (
        f"{size_text(loaded)} once loaded, {size_text(prediction.training)} for a step, "
        f"{size_text(sampling)} for sampling"
    )
    line = f"memory: {size_text(prediction.peak)} at the peak ({parts})"
    if there is None:
        report.ok(f"{line}; how much there is could not be told")
        return Fit(tokens, prediction)
    line += f", {size_text(there)} are there"
    if prediction.peak <= there:
        report.ok(line)
        return Fit(tokens, prediction)
    if loaded + sampling > there:
        report.error(f"{line}; lower sampling.rows_at_once or sampling.max_new_tokens")
    if loaded + prediction.training <= there:
        return Fit(tokens, prediction)
    used = max(sum(map(forward_tokens, part)) for part in largest(tokens))  # a step may hold less than allowed
    fitting = _largest_fitting(needed, used, prediction.training, there - loaded)
    if fitting is None:
        report.error(
            f"{line}; a single group is too much: set model.gradient_checkpointing true, train an adapter (lora), or "
            "lower the limits on lengths"
        )
    else:
        report.error(f"{line}; set run.tokens_per_forward to {fitting}, which fits and changes no result")
    return Fit(fitting, prediction)


def _largest_fitting(needed: Callable[[int], int], tokens: int, at_tokens: int, allowed: int) -> int | None:
    """The largest size found whose need is allowed, None where not even the smallest is; needs grow with size."""
    size, need = tokens, at_tokens
    for _ in range(_TRIES):
        if allowed <= 0 or size <= _SMALLEST:
            return None
        size = max(_SMALLEST, min(int(size * 0.95 * allowed / need), int(size * 0.9)) // _SMALLEST * _SMALLEST)
        need = needed(size)
        if need <= allowed:
            return size
    return None


def heaviest(parts: Sequence[Sequence[Group]]) -> list[list[Group]]:
    """Of the micro-batches of a run those that may need most memory: most tokens, and most scores of attention."""
    most_tokens = max(parts, key=lambda part: sum(map(forward_tokens, part)))
    most_scores = max(parts, key=_scores)
    return [list(most_tokens)] if most_scores is most_tokens else [list(most_tokens), list(most_scores)]


def _scores(part: Sequence[Group]) -> int:
    """Query-key scores of the completions, padded to the longest as attention may do."""
    longest = max(len(completion.token_ids) for group in part for completion in group.completions)
    return sum(len(group.completions) * longest * (len(group.prompt_ids) + longest) for group in part)
