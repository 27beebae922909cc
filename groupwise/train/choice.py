"""Which step's weights a run hands over: the last, or the best on held-out data where that is more than luck.

Knows nothing about what is measured, nor how weights come back.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from groupwise.observe.heldout import Evaluated
from groupwise.observe.statistics import Figure, paired_difference


@dataclass(frozen=True, slots=True)
class Choice:
    """The step whose weights are handed over.

    `gain` is what the best step has over the last; None where they are one, or where no prompt was judged at both.
    """

    step: int
    best: int
    last: int
    gain: Figure | None

    def line(self, name: str) -> str:
        """The decision in words; `name` is the figure it rests on."""
        if self.best == self.last:
            return f"held-out {name} is best at the last step, {self.last}; the adapter is that step's"
        if self.gain is None:
            return f"held-out {name} was not measured at the last step, whose weights are the adapter"
        gain = f"{self.gain.value:+.4g} (95 % interval {self.gain.low:.4g} to {self.gain.high:.4g})"
        if self.step == self.best:
            return (
                f"held-out {name} was best at step {self.best}, by {gain} over the last one: the adapter is that step's"
            )
        kept = "run.adapter_from is last, or the checkpoint is not there"
        reason = "no significant difference" if self.gain.low <= 0 else kept
        return (
            f"held-out {name} was best at step {self.best} of {self.last}, by {gain}: {reason}, so the adapter is the "
            "last step's"
        )


def choose(evaluations: Sequence[Evaluated], name: str, *, best: int, last: int, allowed: bool = True) -> Choice:
    """Compare the best step with the last one on the same prompts (bootstrap over prompts).

    The best of many evaluations is partly lucky, so it is taken only where its gain is significant, and even then looks
    a little better than it is. With `allowed` False it is compared and not taken.

    >>> def at(step, *values):
    ...     return Evaluated(step, {"right": dict(enumerate(values))})
    >>> evaluations = [at(5, 1.0, 1.0, 0.0), at(10, 0.0, 1.0, 1.0)]
    >>> choose(evaluations, "right", best=5, last=10).step
    10
    >>> choose([at(5, *[1.0] * 9), at(10, *[0.0] * 9)], "right", best=5, last=10).step
    5
    """
    if best == last:
        return Choice(last, best, last, None)
    by_step = {one.step: one.values[name] for one in evaluations}
    earlier, later = by_step[best], by_step[last]
    keys = [key for key, value in later.items() if value is not None and earlier.get(key) is not None]
    if not keys:
        return Choice(last, best, last, None)
    before, after = [later[key] for key in keys], [earlier[key] for key in keys]
    gain = paired_difference([v for v in before if v is not None], [v for v in after if v is not None])
    return Choice(best if allowed and gain.low > 0 else last, best, last, gain)
