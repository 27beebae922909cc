"""Scores of groups to advantages: pure arithmetic. Knows nothing about tokens, models or where scores come from."""

import math
import statistics
from collections.abc import Sequence
from typing import Literal


def group_advantages(
    scores: Sequence[Sequence[float]], *, scale: Literal["group_std", "batch_std", "none"], ddof: int = 0
) -> list[list[float]]:
    """Outcome-supervision advantages of every completion: its score less the mean of its group, scaled.

    Section 4.1.2 of Shao et al. 2024 (arXiv 2402.03300) divides by the group's standard deviation and names no degrees
    of freedom: `ddof` 0 is the population's, 1 the sample's. "none" is Dr. GRPO (arXiv 2503.20783); "batch_std" divides
    by the deviation of all centred scores. No epsilon is added: a group whose scores are all equal gets exact zeros.
    Raises ValueError for a score that is not finite.

    >>> group_advantages([[1, 0, 0, 0, 0]], scale="group_std")[0][0]    # a lone success: sqrt(G - 1)
    2.0
    >>> group_advantages([[0.1, 0.1, 0.1]], scale="group_std")
    [[0.0, 0.0, 0.0]]
    """
    if any(not math.isfinite(score) for group in scores for score in group):
        raise ValueError("an advantage needs finite scores")
    centred = [_centred(group) for group in scores]
    if scale == "none":
        return centred
    if scale == "group_std":
        return [_divided(group, _deviation(group, ddof)) for group in centred]
    whole = _deviation([value for group in centred for value in group], ddof)
    return [_divided(group, whole) for group in centred]


def _centred(group: Sequence[float]) -> list[float]:
    if len(set(group)) == 1:
        return [0.0] * len(group)  # subtracting a rounded mean would leave dust, and its deviation blow it up
    mean = statistics.fmean(group)
    return [score - mean for score in group]


def _deviation(centred: Sequence[float], ddof: int) -> float:
    return math.sqrt(math.fsum(value * value for value in centred) / max(1, len(centred) - ddof))


def _divided(centred: Sequence[float], deviation: float) -> list[float]:
    return [value / deviation if value else 0.0 for value in centred]
