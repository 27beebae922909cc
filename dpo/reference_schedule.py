"""Groups of each step with the log-probs of a reference that moves (TR-DPO, arXiv 2404.09656).

Knows no loss and no file format; where groups come from is another source's business.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from dpo.loss_config import DpoLossSection
from groupwise.groups import Group
from groupwise.model.engine import LogprobEngine, reference_logprobs
from groupwise.train.runtime import Runtime
from groupwise.train.share import StepShare
from groupwise.train.source import GroupSource


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
        self._moved_early = False  # the reference has moved for a step whose groups were not handed out

    @property
    def total_steps(self) -> int:
        return self._source.total_steps

    def share(self, step: int) -> StepShare:
        """The groups of the step under the reference as it is then. Raises NotFinite on all processes."""
        share = self._source.share(step)
        if mix := self._loss.reference_moves(step):
            self._moved_early = True
            self._engine.policy.move_reference(mix)
        tokens = self._tokens_per_forward
        found = share.replace_groups(
            self._runtime.together(lambda: reference_logprobs(self._engine, share.groups, tokens_per_forward=tokens))
        )
        self._moved_early = False
        return found

    def passed_over(self, count: int) -> Sequence[tuple[Group, str]]:
        return self._source.passed_over(count)

    def metrics(self) -> Mapping[str, float]:
        return self._source.metrics()

    def collect(self) -> Callable[[Path], None] | None:
        """None where a step failed after the reference had moved for it: it would move once more."""
        write = self._source.collect()
        if write is None or self._moved_early:
            return None

        def write_both(folder: Path) -> None:
            write(folder)
            self._engine.policy.save_reference(folder)

        return write_both

    def restore(self, folder: Path) -> None:
        self._source.restore(folder)
        self._engine.policy.restore_reference(folder)
