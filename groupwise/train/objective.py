"""What a training objective is to the step: a sum to differentiate and a count to divide by. Knows no objective.

Legend: R completions, T completion tokens, K pairs.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from groupwise.batch import GroupBatch
from groupwise.groups import Group, completion_tokens, ordered_pairs
from groupwise.model.engine import TokenScores
from groupwise.observe.metrics import MetricSums


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTotals:
    """What one optimizer step holds, over all processes and micro-batches, counted before the first backward.

    >>> StepTotals.of([])
    StepTotals(groups=0, completions=0, tokens=0, prompt_tokens=0, pairs=0)
    """

    groups: int
    completions: int
    tokens: int
    prompt_tokens: int
    pairs: int

    @classmethod
    def of(cls, groups: Iterable[Group]) -> "StepTotals":
        counted = list(groups)
        return cls(
            groups=len(counted),
            completions=sum(len(group.completions) for group in counted),
            tokens=sum(completion_tokens(group) for group in counted),
            prompt_tokens=sum(len(group.prompt_ids) for group in counted),
            pairs=sum(len(ordered_pairs(group)) for group in counted),
        )


class Objective(Protocol):
    """A loss that never divides: the step divides its sum once, by a count over the whole step.

    That makes the gradient independent of how the step is cut into micro-batches and processes.
    """

    @property
    def temperature(self) -> float:
        """What divides the logits before log-probs are taken; 1 unless samples were drawn otherwise."""
        ...

    @property
    def metric_names(self) -> Sequence[str]:
        """Every name that `loss_sum` adds to its sums, so that a process without groups knows them too."""
        ...

    def loss_sum(self, batch: GroupBatch, scores: TokenScores, sums: MetricSums) -> Tensor:
        """Sum of the loss over the micro-batch, a scalar; adds its own numbers to `sums`."""
        ...

    def denominator(self, totals: StepTotals) -> int:
        """What the step's sum is divided by."""
        ...
