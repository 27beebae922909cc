"""Figures of groups of scored completions that tell good data from bad: lengths, repetitions, contradictions.

Knows no rows and no texts.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from groupwise.groups import Completion, Group, ordered_pairs


class Quantiles(NamedTuple):
    """Token lengths: the smallest, the middle, the one that 95 of 100 do not exceed, the largest."""

    least: int
    median: int
    p95: int
    most: int


def quantiles(lengths: Sequence[int]) -> Quantiles:
    """Each is a length that occurs: the smallest one that at least this share does not exceed."""
    ordered = sorted(lengths)
    least, median, p95, most = (ordered[max(0, math.ceil(share * len(ordered)) - 1)] for share in (0, 0.5, 0.95, 1))
    return Quantiles(least, median, p95, most)


def longer_wins(groups: Iterable[Group]) -> float:
    """Probability that the better completion of an ordered pair is the longer one, ties counted half.

    >>> better, worse = (Completion(token_ids=ids, finished=True, score=len(ids)) for ids in ((5, 6), (5,)))
    >>> longer_wins([Group(key="", prompt_ids=(1,), completions=(better, worse))])
    1.0
    """
    lengths = [
        (len(group.completions[better].token_ids), len(group.completions[worse].token_ids))
        for group in groups
        for better, worse in ordered_pairs(group)
    ]
    return sum(1.0 if better > worse else 0.5 if better == worse else 0.0 for better, worse in lengths) / len(lengths)


def longer_wins_labelled(completions: Iterable[Completion]) -> float:
    """Over all pairs of a desirable and an undesirable completion, whatever their prompts; 0.5 where there is none."""
    counts = Counter((completion.score > 0, len(completion.token_ids)) for completion in completions)
    pairs, wins, shorter = 0, 0.0, 0
    undesirable = sum(count for (desirable, _), count in counts.items() if not desirable)
    for length in sorted({length for _, length in counts}):
        wins += counts[True, length] * (shorter + counts[False, length] / 2)
        pairs += counts[True, length] * undesirable
        shorter += counts[False, length]
    return wins / pairs if pairs else 0.5


def duplicates(groups: Iterable[Group]) -> int:
    """Groups whose prompt, completions and scores an earlier group has too, in whatever order."""
    seen = Counter(
        (group.prompt_ids, frozenset(Counter((c.token_ids, c.score) for c in group.completions).items()))
        for group in groups
    )
    return sum(count - 1 for count in seen.values())


def contradictions(groups: Iterable[Group]) -> int:
    """Pairs of completions of one prompt that are ordered both ways somewhere in the data."""
    orders: set[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = set()
    for group in groups:
        ids = [completion.token_ids for completion in group.completions]
        orders.update((group.prompt_ids, ids[better], ids[worse]) for better, worse in ordered_pairs(group))
    return sum((prompt, worse, better) in orders for prompt, better, worse in orders) // 2


def doubly_labelled(groups: Iterable[Group]) -> int:
    """Completions of one prompt that are labelled desirable somewhere in the data, and undesirable elsewhere."""
    labels: dict[tuple[tuple[int, ...], tuple[int, ...]], set[float]] = {}
    for group in groups:
        for completion in group.completions:
            labels.setdefault((group.prompt_ids, completion.token_ids), set()).add(completion.score)
    return sum(len(found) > 1 for found in labels.values())
