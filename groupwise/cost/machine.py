"""From counts to seconds: a machine is one constant per count. Fitted by `python -m benchmarks.scaling`."""

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from groupwise.cost.work import KINDS, Work

_ROUNDS = 20_000


@dataclass(frozen=True, slots=True)
class Machine:
    """Seconds per unit of each count of `Work`."""

    name: str
    seconds_per: Mapping[str, float]

    def seconds(self, work: Work) -> float:
        """How long a piece of work takes.

        >>> Machine("made up", {"products": 1e-9}).seconds(Work(products=2e9, calls=7))
        2.0
        """
        return sum(self.seconds_per.get(kind, 0.0) * count for kind, count in zip(KINDS, astuple(work), strict=True))

    @classmethod
    def fitted(cls, name: str, works: Sequence[Work], seconds: Sequence[float]) -> Self:
        """The machine whose relative errors are least in the mean square; no constant is negative.

        >>> works = [Work(products=1e9), Work(products=1e9, calls=1000.0), Work(calls=500.0)]
        >>> machine = Machine.fitted("made up", works, [1.0, 2.0, 0.5])
        >>> [round(machine.seconds(work), 3) for work in works]
        [1.0, 2.0, 0.5]
        """
        measured = np.asarray(seconds, dtype=float)
        counts = np.asarray([astuple(work) for work in works], dtype=float) / measured[:, None]
        constants = non_negative_least_squares(counts, np.ones(len(measured)))
        return cls(name, {kind: float(value) for kind, value in zip(KINDS, constants, strict=True) if value > 0})


def non_negative_least_squares(
    matrix: npt.NDArray[np.float64], target: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """x >= 0 for which |matrix x - target| is least, one coordinate after the other until nothing moves.

    >>> non_negative_least_squares(np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([2.0, -1.0]))
    array([2., 0.])
    """
    scale = np.linalg.norm(matrix, axis=0)
    scale[scale == 0] = 1.0
    unit = matrix / scale
    gram, pull = unit.T @ unit, unit.T @ target
    x = np.zeros(matrix.shape[1])
    for _ in range(_ROUNDS):
        before = x.copy()
        for i in range(len(x)):
            if gram[i, i] > 0:
                x[i] = max(0.0, x[i] + (pull[i] - gram[i] @ x) / gram[i, i])
        if np.abs(x - before).max() <= 1e-12 * max(1.0, np.abs(x).max()):
            break
    return x / scale
