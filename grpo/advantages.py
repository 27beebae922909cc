"""Rewards of groups to advantages: pure arithmetic. Knows nothing about models or where rewards come from.

An outcome reward is one step, which ends with the last token. No epsilon is added anywhere: what is equal gets exact
zeros. Groups are handed in as lists; where others hold groups of the same batch, `Batch` knows what theirs come to.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Literal, Protocol

Baseline = Literal["group_mean", "leave_one_out", "batch_mean", "none"]
Scale = Literal["group_std", "batch_std", "none"]
Steps = Sequence[tuple[int, float]]
"""Rewards of one completion's steps: index of the token that ends the step, and its reward."""


class Batch(Protocol):
    """Figures over all groups of a batch, wherever they lie; everyone asks for the same ones in the same order."""

    def sums(self, numbers: Sequence[float]) -> list[float]:
        """The sums of what each has of some numbers."""
        ...

    def most(self, number: float) -> float:
        """The largest of what each has."""
        ...


class Alone:
    """All groups of the batch are here."""

    def sums(self, numbers: Sequence[float]) -> list[float]:
        return list(numbers)

    def most(self, number: float) -> float:
        return number


ALONE = Alone()


def group_advantages(
    scores: Sequence[Sequence[float]],
    *,
    scale: Scale,
    baseline: Baseline = "group_mean",
    ddof: int = 0,
    batch: Batch = ALONE,
) -> list[list[float]]:
    """Outcome-supervision advantages of every completion: its score less a baseline, scaled.

    Section 4.1.2 of Shao et al. 2024 (arXiv 2402.03300) divides by the group's standard deviation and names no degrees
    of freedom: `ddof` 0 is the population's, 1 the sample's. Scale "none" is Dr. GRPO (arXiv 2503.20783); "batch_std"
    divides by the deviation of all scores less their baselines. Baseline "leave_one_out" is RLOO (arXiv 2402.14740),
    "batch_mean" REINFORCE++ (arXiv 2501.03262), and with "none" the advantage is the score. Raises ValueError for a
    score that is not finite.

    >>> group_advantages([[1, 0, 0, 0, 0]], scale="group_std")[0][0]    # a lone success: sqrt(G - 1)
    2.0
    >>> group_advantages([[0.1, 0.1, 0.1]], scale="group_std")
    [[0.0, 0.0, 0.0]]
    >>> group_advantages([[1, 0, 0]], scale="none", baseline="leave_one_out")
    [[1.0, -0.5, -0.5]]
    """
    if any(not math.isfinite(score) for group in scores for score in group):
        raise ValueError("an advantage needs finite scores")
    centred = _less_baseline(scores, baseline, batch)
    if scale == "none":
        return centred
    if scale == "group_std":
        return [_divided(group, _deviation(group, ddof, ALONE)) for group in centred]
    whole = _deviation(list(itertools.chain.from_iterable(centred)), ddof, batch)
    return [_divided(group, whole) for group in centred]


def step_advantages(
    steps: Sequence[Sequence[Steps]],
    lengths: Sequence[Sequence[int]],
    *,
    scale: Scale,
    baseline: Baseline = "group_mean",
    ddof: int = 0,
    batch: Batch = ALONE,
) -> list[list[list[float]]]:
    """Process-supervision advantages of every token, by group and completion.

    Section 4.1.3 of Shao et al. 2024: step rewards are normalised over all steps of all completions of the group, and a
    token's advantage is the sum over the steps that end at it or later. With one step at the end of each completion
    that is outcome supervision. `lengths` are tokens.

    >>> step_advantages([[[(0, 3.0), (2, 0.0)], [(1, 0.0)]]], [[3, 2]], scale="none")  # the mean step is 1
    [[[1.0, -1.0, -1.0], [-1.0, -1.0]]]
    """
    flat = [[reward for own in group for _, reward in own] for group in steps]
    advantages: list[list[list[float]]] = []
    normalised = group_advantages(flat, scale=scale, baseline=baseline, ddof=ddof, batch=batch)
    for group, counts, values in zip(steps, lengths, normalised, strict=True):
        remaining = iter(values)
        scaled = [[(end, next(remaining)) for end, _ in own] for own in group]
        advantages.append([_to_go(own, count) for own, count in zip(scaled, counts, strict=True)])
    return advantages


def return_advantages(
    steps: Sequence[Sequence[Steps]],
    penalties: Sequence[Sequence[Sequence[float]]],
    *,
    scale: Scale,
    baseline: Baseline,
    ddof: int = 0,
    batch: Batch = ALONE,
) -> list[list[list[float]]]:
    """Advantages of tokens that pay a penalty each, such as beta KL: REINFORCE++ (arXiv 2501.03262, Eq. 2 to 4).

    What a token gets is the rewards that come at it or later less the penalties from it on; that is normalised over all
    tokens of the batch.

    >>> return_advantages([[[(1, 1.0)]]], [[[0.1, 0.2]]], scale="none", baseline="none")
    [[[0.7, 0.8]]]
    """
    returns = [
        [_return_to_go(own, costs) for own, costs in zip(group, costs_of, strict=True)]
        for group, costs_of in zip(steps, penalties, strict=True)
    ]
    flat = [list(itertools.chain.from_iterable(group)) for group in returns]
    normalised = group_advantages(flat, scale=scale, baseline=baseline, ddof=ddof, batch=batch)
    advantages: list[list[list[float]]] = []
    for group, values in zip(returns, normalised, strict=True):
        remaining = iter(values)
        advantages.append([[next(remaining) for _ in own] for own in group])
    return advantages


def advantages_of_each(
    scores: Sequence[Sequence[Sequence[float | None]]],
    weights: Sequence[float],
    *,
    scale: Scale,
    ddof: int = 0,
    batch: Batch = ALONE,
) -> list[list[float]]:
    """Advantages of several rewards, each normalised by itself: GDPO (arXiv 2601.05242).

    `scores` are by group, reward and completion; None is no opinion and counts nothing. Every reward's advantages in
    the group are weighted and summed, and the sums standardised over all groups, so that their size does not grow with
    the number of rewards. Of summed rewards one with a large scale would drown the others.

    >>> one = advantages_of_each([[[0.0, 1.0], [0.0, 100.0]]], [1.0, 1.0], scale="group_std")
    >>> other = advantages_of_each([[[0.0, 1.0], [0.0, 1.0]]], [1.0, 1.0], scale="group_std")
    >>> one == other == [[-1.0, 1.0]]
    True
    """
    sums = [[0.0] * len(group[0]) for group in scores]
    for place, weight in enumerate(weights):
        known = [[value for value in group[place] if value is not None] for group in scores]
        normalised = group_advantages(known, scale=scale, ddof=ddof, batch=batch)
        for total, group, values in zip(sums, scores, normalised, strict=True):
            remaining = iter(values)
            for index, value in enumerate(group[place]):
                if value is not None:
                    total[index] += weight * next(remaining)
    return group_advantages(sums, scale="batch_std", baseline="batch_mean", ddof=ddof, batch=batch)


def _less_baseline(scores: Sequence[Sequence[float]], baseline: Baseline, batch: Batch) -> list[list[float]]:
    if baseline == "none":
        return [[float(score) for score in group] for group in scores]
    if baseline == "batch_mean":
        centred = iter(_centred(list(itertools.chain.from_iterable(scores)), batch))
        return [[next(centred) for _ in group] for group in scores]
    groups = [_centred(group, ALONE) for group in scores]
    if baseline == "group_mean":
        return groups
    return [[value * len(group) / max(1, len(group) - 1) for value in group] for group in groups]


def _centred(scores: Sequence[float], batch: Batch) -> list[float]:
    highest = batch.most(max(scores, default=-math.inf))
    if highest == -batch.most(-min(scores, default=math.inf)):
        return [0.0] * len(scores)  # subtracting a rounded mean would leave dust, and its deviation blow it up
    total, count = batch.sums([math.fsum(scores), len(scores)])
    return [score - total / count for score in scores]


def _deviation(centred: Sequence[float], ddof: int, batch: Batch) -> float:
    squares, count = batch.sums([math.fsum(value * value for value in centred), len(centred)])
    return math.sqrt(squares / max(1, count - ddof))


def _divided(centred: Sequence[float], deviation: float) -> list[float]:
    return [value / deviation if value else 0.0 for value in centred]


def _to_go(steps: Steps, count: int) -> list[float]:
    """At every token the sum of the steps that end at it or later."""
    values = [0.0] * count
    for end, reward in steps:
        values[end] += reward
    return list(itertools.accumulate(reversed(values)))[::-1]


def _return_to_go(steps: Steps, penalties: Sequence[float]) -> list[float]:
    rewards = _to_go(steps, len(penalties))
    costs = list(itertools.accumulate(reversed(penalties)))[::-1]
    return [reward - cost for reward, cost in zip(rewards, costs, strict=True)]
