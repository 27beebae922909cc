"""Groups of each step with the log-probs of a reference that moves (TR-DPO, arXiv 2404.09656).

Knows no loss and no file format; where groups come from is another source's business.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from dpo.loss_config import DpoLossSection
from groupwise.groups import Group, forward_tokens
from groupwise.model.engine import LogprobEngine, reference_logprobs
from groupwise.train.loop import GroupSource
from groupwise.train.runtime import Runtime


class MovingReference:
    """A source whose groups get their reference log-probs in the step that learns from them.

    The reference moves before step `reference_every`, and so on; it is in every checkpoint.
    """

    def __init__(
        self,
        source: GroupSource,
        loss: DpoLossSection,
        *,
        engine: LogprobEngine,
        runtime: Runtime,
        tokens_per_forward: int,
    ) -> None:
        self._source = source
        self._loss = loss
        self._engine = engine
        self._runtime = runtime
        self._tokens_per_forward = tokens_per_forward

    @property
    def total_steps(self) -> int:
        return self._source.total_steps

    def groups(self, step: int) -> Sequence[Group]:
        """The groups of the step under the reference as it is then. Raises NotFinite on all processes."""
        if mix := self._loss.reference_moves(step):
            self._engine.policy.move_reference(mix)
        return self._runtime.spread(
            self._source.groups(step),
            lambda part: reference_logprobs(self._engine, part, tokens_per_forward=self._tokens_per_forward),
            forward_tokens,
        )

    def passed_over(self) -> Sequence[tuple[Group, str]]:
        return self._source.passed_over()

    def metrics(self) -> Mapping[str, float]:
        return self._source.metrics()

    def save(self, folder: Path) -> None:
        self._source.save(folder)
        self._engine.policy.save_reference(folder)

    def restore(self, folder: Path) -> None:
        self._source.restore(folder)
        self._engine.policy.restore_reference(folder)
