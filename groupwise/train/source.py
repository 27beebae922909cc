"""Where the groups of each step come from, as the loop sees it, and the source of those that lie in memory.

Knows no objective, nor what groups are made of.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from groupwise.groups import Group
from groupwise.train.order import EpochOrder
from groupwise.train.runtime import Runtime
from groupwise.train.share import StepShare


class GroupSource(Protocol):
    """Gives every process its share of each step's groups; all processes call the same methods at the same places."""

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        ...

    def share(self, step: int) -> StepShare:
        """This process's groups of step `step`, counted from 0; a step may hold none, on all processes.

        Raises RunStopped or Interrupted, on all processes, where they cannot be had now; `collect` then gives what it
        gave before the call.
        """
        ...

    def passed_over(self, count: int) -> Sequence[tuple[Group, str]]:
        """The first groups that were gathered for the last step and not handed out, each with the reason."""
        ...

    def metrics(self) -> Mapping[str, float]:
        """Numbers about the groups that were handed out last; the same names and values on every process."""
        ...

    def collect(self) -> Callable[[Path], None] | None:
        """Collect what the next steps depend on, besides weights; one process then has it written into a checkpoint.

        What is written must not depend on other processes: they do not wait. After `share` has raised RunStopped or
        Interrupted it is the state from before that call, for the step will be asked for again; None, on any process,
        where that cannot be had any more, and then nothing is saved.
        """
        ...

    def restore(self, folder: Path) -> None:
        """Put back what `collect` had written, whatever the number of processes then and now."""
        ...


class EpochSource:
    """Groups from a list, in an order that is a pure function of (seed, epoch): one permutation per epoch.

    The last step of the run takes what is left, so every group is seen exactly `epochs` times (rounded up to one step
    for a fraction).

    >>> from groupwise.groups import Completion
    >>> completion = Completion(token_ids=(1,), finished=False, score=0.0)
    >>> groups = [Group(key=str(i), prompt_ids=(1,), completions=(completion,)) for i in range(5)]
    >>> source = EpochSource(groups, groups_per_step=2, epochs=2, seed=0, runtime=Runtime())
    >>> seen = [group.key for step in range(source.total_steps) for group in source.groups(step)]
    >>> source.total_steps, sorted(seen[:5]), sorted(seen[5:])
    (5, ['0', '1', '2', '3', '4'], ['0', '1', '2', '3', '4'])
    """

    def __init__(
        self, groups: Sequence[Group], *, groups_per_step: int, epochs: float, seed: int, runtime: Runtime
    ) -> None:
        self._groups = groups
        self._per_step = groups_per_step
        self._total = max(1, round(len(groups) * epochs))
        self._order = EpochOrder(len(groups), seed=seed)
        self._runtime = runtime

    @property
    def total_steps(self) -> int:
        return -(-self._total // self._per_step)

    def groups(self, step: int) -> list[Group]:
        """The groups of a step, which every process has."""
        first = step * self._per_step
        return [self._groups[self._order[i]] for i in range(first, min(first + self._per_step, self._total))]

    def share(self, step: int) -> StepShare:
        return StepShare.of(self.groups(step), self._runtime)

    def passed_over(self, count: int) -> Sequence[tuple[Group, str]]:
        return ()

    def metrics(self) -> Mapping[str, float]:
        return {}

    def collect(self) -> Callable[[Path], None]:
        """The order is a function of the step: there is nothing to keep."""
        return lambda folder: None

    def restore(self, folder: Path) -> None:
        """There was nothing to keep."""
