"""The work of a step dealt to processes, piece by piece, as the program deals it. Knows no seconds and no network.

A hand is what one process has to do: its micro-batches in order.
"""

from collections.abc import Sequence

from groupwise.cost.shapes import GroupShape, ModelShape, micro_batches
from groupwise.cost.work import Work, forward, learn, update
from groupwise.sections import Sharding
from groupwise.train.exchange import deal


def dealt(groups: Sequence[GroupShape], processes: int) -> list[list[GroupShape]]:
    """Groups of each process: the largest first, each to who has the fewest tokens so far.

    >>> one, two = GroupShape(2, (3, 3)), GroupShape(2, (9, 9))
    >>> [[group.row_tokens for group in hand] for hand in dealt([one, two, one, one], 2)]
    [[18], [6, 6, 6]]
    """
    return [[groups[i] for i in places] for places in deal([group.row_tokens for group in groups], processes)]


def in_turn(groups: Sequence[GroupShape], processes: int) -> list[list[GroupShape]]:
    """Groups of each process as prompts are dealt, for nobody knows how long answers get."""
    return [list(groups[process::processes]) for process in range(processes)]


def learning_hands(
    shape: ModelShape,
    groups: Sequence[GroupShape],
    *,
    processes: int,
    sharding: Sharding,
    tokens_per_forward: int,
    recompute: bool,
    updates: float = 1,
) -> list[list[Work]]:
    """Forward and backward passes of each process, and in the end the optimizer's steps."""
    moved = update(shape, spread=1 if sharding == "none" else processes) * updates
    return [
        [*(learn(shape, part, recompute=recompute) for part in micro_batches(hand, tokens_per_forward)), moved]
        for hand in dealt(groups, processes)
    ]


def reading_hands(
    shape: ModelShape, groups: Sequence[GroupShape], *, processes: int, tokens_per_forward: int
) -> list[list[Work]]:
    """Passes without gradients of each process."""
    return [
        [forward(shape, part) for part in micro_batches(hand, tokens_per_forward)] for hand in dealt(groups, processes)
    ]


def most_passes(groups: Sequence[GroupShape], *, processes: int, tokens_per_forward: int) -> int:
    """Micro-batches of the process that has most.

    >>> most_passes([GroupShape(2, (3, 3))] * 5, processes=2, tokens_per_forward=12)
    2
    """
    return max(len(micro_batches(hand, tokens_per_forward)) for hand in dealt(groups, processes))
