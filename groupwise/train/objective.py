"""What a training objective is to the step: a sum to differentiate and a count to divide by. Knows no objective.

Legend: R completions, T completion tokens, K pairs.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from torch import Tensor

from groupwise.batch import GroupBatch
from groupwise.model.engine import Extra, LogprobEngine, TokenScores
from groupwise.observe.metrics import MetricSums
from groupwise.train.runtime import Runtime
from groupwise.train.share import StepShare, StepTotals


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective(ABC):
    """A loss that never divides: the step divides its sum once, by a count over the whole step.

    That makes the gradient independent of how the step is cut into micro-batches and processes. Objectives are values:
    what changes from step to step (a running mean, an adapted coefficient) is in the objective of the next step.
    `temperature` divides the logits before log-probs are taken; it is 1 unless samples were drawn otherwise.
    """

    temperature: float = 1.0

    @property
    @abstractmethod
    def metric_names(self) -> Sequence[str]:
        """Every name that `loss_sum` adds to its sums, so that a process without groups knows them too."""

    @property
    def extras(self) -> Collection[Extra]:
        """What `loss_sum` reads of the scores besides log-probs."""
        return ()

    @abstractmethod
    def loss_sum(self, batch: GroupBatch, scores: TokenScores, sums: MetricSums) -> Tensor:
        """Sum of the loss over the micro-batch, a scalar; adds its own numbers to `sums`."""

    @abstractmethod
    def denominator(self, totals: StepTotals) -> int:
        """What the step's sum is divided by."""

    def for_step(self, share: StepShare, *, engine: LogprobEngine, runtime: Runtime, tokens_per_forward: int) -> Self:
        """The objective that knows what it needs of the whole step, such as an order over all its pairs.

        Called on every process, each with its share, before the first micro-batch; must not move weights.
        """
        return self

    def after_step(self, values: Mapping[str, float]) -> Self:
        """The objective of the next step, given the metrics of this one; not called for a step that was skipped."""
        return self

    def memory(self) -> Mapping[str, float]:
        """What `after_step` changed, for the checkpoint."""
        return {}

    def remembering(self, memory: Mapping[str, float]) -> Self:
        """The objective with what `memory` once returned."""
        return self
