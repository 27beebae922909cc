"""From counts to seconds: a machine is one constant per count. Fitted by `python -m benchmarks.scaling`."""

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from itertools import zip_longest
from typing import Literal, Self

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

    def busiest(self, hands: Sequence[Sequence[Work]], *, lockstep: bool) -> float:
        """Seconds until every process is through with its pieces; in lockstep they wait for each other after each.

        >>> machine = Machine("made up", {"calls": 1.0})
        >>> hands = [[Work(calls=3.0), Work(calls=1.0)], [Work(calls=2.0), Work(calls=4.0)]]
        >>> machine.busiest(hands, lockstep=False), machine.busiest(hands, lockstep=True)
        (6.0, 7.0)
        """
        seconds = [[self.seconds(work) for work in hand] for hand in hands]
        if lockstep:
            return sum(map(max, zip_longest(*seconds, fillvalue=0.0)))
        return max(map(sum, seconds))

    def calibrated(self, work: Work, seconds: float) -> "Machine":
        """The machine of the same proportions on which this work takes that long.

        >>> Machine("made up", {"products": 1e-9}).calibrated(Work(products=1.0), 3.0).seconds(Work(products=2.0))
        6.0
        """
        return self.slower(seconds / self.seconds(work))

    def slower(self, factor: float) -> "Machine":
        """The machine that takes so many times as long for everything."""
        return Machine(self.name, {kind: factor * value for kind, value in self.seconds_per.items()})

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


@dataclass(frozen=True, slots=True)
class Link:
    """What it takes processes to work together, besides what the busiest of them does.

    crowding        factor on its own work, where others use the same memory at the same time
    s_per_byte      of what a process sends
    s_per_exchange  of each time that all meet
    """

    name: str
    crowding: float
    s_per_byte: float
    s_per_exchange: float

    def seconds(self, own: float, *, sent: float, exchanges: float) -> float:
        """How long a piece of shared work takes, where the busiest process alone would take `own` seconds.

        >>> Link("made up", 1.5, 1e-9, 0.01).seconds(2.0, sent=1e9, exchanges=4)
        4.04
        """
        return self.crowding * own + self.s_per_byte * sent + self.s_per_exchange * exchanges

    @classmethod
    def fitted(cls, name: str, counts: Sequence[tuple[float, float, float]], seconds: Sequence[float]) -> Self:
        """The link whose relative errors are least in the mean square; `counts` are own seconds, bytes, exchanges.

        >>> counts = [(1.0, 0.0, 4.0), (2.0, 1e9, 4.0), (0.0, 0.0, 100.0)]
        >>> link = Link.fitted("made up", counts, [1.54, 4.04, 1.0])
        >>> round(link.crowding, 3), round(link.s_per_byte, 12), round(link.s_per_exchange, 6)
        (1.5, 1e-09, 0.01)
        """
        measured = np.asarray(seconds, dtype=float)
        relative = np.asarray(counts, dtype=float) / measured[:, None]
        return cls(name, *map(float, non_negative_least_squares(relative, np.ones(len(measured)))))


Kind = Literal["rows", "sampling", "serving"]
_CPU: dict[Kind, Machine] = {
    "rows": Machine(
        "one core, passes over rows",
        {
            "products": 7.376e-12,
            "attention": 2.319e-11,
            "states": 2.953e-10,
            "table": 2.371e-10,
            "memory": 4.782e-10,
            "calls": 2.999e-05,
        },
    ),
    "sampling": Machine(
        "one core, sampling",
        {
            "states": 1.014e-09,
            "table": 1.733e-10,
            "memory": 2.219e-10,
            "cache": 3.073e-12,
            "calls": 4.42e-05,
            "steps": 6.822e-05,
        },
    ),
    "serving": Machine(
        "one core, a vLLM server",
        {"products": 1.373e-11, "attention": 2.541e-10, "states": 4.54e-09, "steps": 0.006398, "requests": 0.01518},
    ),
}
"""What `python -m benchmarks.scaling` and `benchmarks.scaling_servers` fit to docs/scaling.json and
docs/scaling_servers.json; tests hold them to it."""
GLOO = Link(
    "two processes of one thread on one machine, gloo",
    crowding=1.094,
    s_per_byte=2.903e-09,
    s_per_exchange=0.0007819,
)
"""What `python -m benchmarks.scaling_processes` fits to docs/scaling_processes.json; a test holds it to that."""
NETWORK = Link(
    "40 GB/s for each GPU, four fifths of a card of 400 Gb/s, and 50 us per exchange",
    crowding=1.0,
    s_per_byte=1 / (0.8 * 50e9),
    s_per_exchange=50e-6,
)
"""Assumed, not measured."""
H100 = Machine(
    "H100 SXM: 989 TFLOP/s in bfloat16 and 3.35 TB/s by its datasheet; products reach 40 % of it, attention 30 %, "
    "memory 70 %; 5 us per operation that is started",
    {
        "products": 1 / (0.40 * 989e12),
        "attention": 1 / (0.30 * 989e12),
        "states": 1 / (0.70 * 3.35e12),
        "table": 1 / (0.70 * 3.35e12),
        "memory": 1 / (0.70 * 3.35e12),
        "cache": 1 / (0.70 * 3.35e12),
        "calls": 5e-6,
        "steps": 1e-3,
    },
)
"""Assumed, not measured."""


def prior(kind: Kind, device: str) -> Machine:
    """The proportions that a device is taken to have before anything is measured on it."""
    return _CPU[kind] if device == "cpu" else H100


def assumed_link(device: str) -> Link:
    """What processes are taken to need in order to meet; nobody knows a network that was not measured."""
    return GLOO if device == "cpu" else NETWORK


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
