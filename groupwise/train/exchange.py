"""How the processes of a run meet: who does what, and what they tell each other.

Numbers, objects and bytes go between hosts (gloo), whatever device the network is on: a process may wait long for
another one that waits for a server, a reward or a disk, and what computes should neither wait with it nor hold its
messages. Every exchange is one of all processes, at the same place of the program. Knows nothing about networks, data
and losses.
"""

import atexit
import functools
import gc
import heapq
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar, cast

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from groupwise.errors import Interrupted, RunStopped, UserError
from groupwise.groups import Group, NotFinite, Unanswered
from groupwise.model.sharding import Pass
from groupwise.train.lockstep import Lockstep

Item = TypeVar("Item")
Result = TypeVar("Result")
_PARTING = 0.2  # s for threads of groups that something still holds, as FSDP2 does
_PATIENCE = timedelta(days=7)  # one that is gone is noticed by its closed connection, not by its silence
_LOST = ("gloo/transport", "Connection closed by peer", "Connection reset by peer", "NCCL communicator was aborted")


class Exchange:
    """The processes of a run, of which this is number `index`; the main one is number 0."""

    def __init__(self, processes: int, index: int) -> None:
        self.processes = processes
        self._index = index
        self._lockstep: Lockstep | None = None
        if processes > 1:
            _hosts()  # made by all at the same place

    @property
    def is_main(self) -> bool:
        return self._index == 0

    # --- who does what

    def in_turn(self, items: Sequence[Item]) -> list[Item]:
        """Every so many-th of a list that every process holds, for work whose length nobody knows before."""
        return list(items[self._index :: self.processes])

    def by_cost(self, items: Sequence[Item], cost: Callable[[Item], float]) -> list[Item]:
        """This process's part of a list that every process holds, dealt so that all have about the same to do."""
        return [items[i] for i in self._dealt(items, cost)[self._index]]

    def divided(
        self, items: Sequence[Item], work: Callable[[list[Item]], Sequence[Result]], cost: Callable[[Item], float]
    ) -> list[Result]:
        """What `work` makes of each item, in order; every process works on its part and gets everything.

        `work` takes a list and returns one result for each of its items. Raises as `together` does.
        """
        mine = self.together(lambda: work(self.by_cost(items, cost)))
        if self.processes == 1:
            return list(mine)
        found = dict[int, Result]()
        for places, results in zip(self._dealt(items, cost), self._of_each(mine), strict=True):
            found.update(zip(places, results, strict=True))
        return [found[place] for place in range(len(items))]

    def _dealt(self, items: Sequence[Item], cost: Callable[[Item], float]) -> list[list[int]]:
        return deal([cost(item) for item in items], self.processes)

    # --- what they tell each other

    def gather(self, items: Sequence[Item]) -> list[Item]:
        """The parts of all processes as one list, in the order of the list that they had in turn."""
        if self.processes == 1:
            return list(items)
        parts = self._of_each(items)
        longest = max(len(part) for part in parts)
        return [part[i] for i in range(longest) for part in parts if i < len(part)]

    def _of_each(self, items: Sequence[Item]) -> list[list[Item]]:
        """Every process's list, in their order."""
        self._settle()
        found: list[list[Item] | None] = [None] * self.processes
        torch.distributed.all_gather_object(found, list(items), group=_hosts())
        return cast(list[list[Item]], found)

    def from_main(self, deed: Callable[[], Result]) -> Result:
        """What the main process finds, on every process. Raises as `together` does."""
        return self.gather(self.together(lambda: [deed()] if self.is_main else []))[0]

    def deliver(self, parcels: Sequence[bytes]) -> list[bytes]:
        """One parcel for every process goes straight to it; returns those for this one, in the order of senders."""
        if self.processes == 1:
            return list(parcels)
        self._settle()
        sizes = torch.tensor([len(parcel) for parcel in parcels])
        coming = torch.empty_like(sizes)
        torch.distributed.all_to_all_single(coming, sizes, group=_hosts())
        content = torch.frombuffer(bytearray(b"".join(parcels)) or bytearray(1), dtype=torch.uint8)[: int(sizes.sum())]
        received = torch.empty(int(coming.sum()), dtype=torch.uint8)
        torch.distributed.all_to_all_single(received, content, coming.tolist(), sizes.tolist(), group=_hosts())
        return [part.numpy().tobytes() for part in received.split(coming.tolist())]

    def to_main(self, parcel: bytes) -> list[bytes]:
        """On the main process what every process hands in, in their order; nothing elsewhere."""
        received = self.deliver([parcel, *[b""] * (self.processes - 1)])
        return received if self.is_main else []

    def sum(self, values: Tensor) -> Tensor:
        """The sum of a tensor over all processes, on the device that it was on."""
        if self.processes == 1:
            return values
        self._settle()
        total = values.detach().cpu().clone()
        torch.distributed.all_reduce(total, group=_hosts())
        return total.to(values.device)

    def sums(self, numbers: Sequence[float]) -> list[float]:
        """The sum over all processes of each of some numbers."""
        return list(numbers) if self.processes == 1 else self.sum(torch.tensor(numbers, dtype=torch.float64)).tolist()

    def most(self, number: float) -> float:
        """The largest of all processes' numbers."""
        if self.processes == 1:
            return number
        self._settle()
        return self._largest(number)

    def _largest(self, number: float) -> float:
        value = torch.tensor(number, dtype=torch.float64)
        torch.distributed.all_reduce(value, torch.distributed.ReduceOp.MAX, group=_hosts())
        return value.item()

    def any(self, flag: bool) -> bool:
        """Whether any process says so."""
        return self.most(float(flag)) > 0

    def wait(self) -> None:
        """Return when all processes are here."""
        self.most(0.0)

    # --- when something fails

    def together(self, deed: Callable[[], Result]) -> Result:
        """The result of this process's deed; where that of one fails, all raise.

        The others would otherwise wait for one that is gone. What is not finite raises NotFinite on all, with the
        groups of all. Otherwise who fails raises its own error, and the others UserError or RunStopped with its text.
        """
        result, own = None, None
        try:
            result = deed()
        except Exception as error:
            if self.processes == 1 or self.lost_contact(error):
                raise
            own = error
        if self.any(own is not None):
            error = self._everyones(own)
            if error is own:
                raise error
            raise error from own
        return cast(Result, result)

    def _everyones(self, own: Exception | None) -> Exception:
        """What this process raises where its own error, or another's, ends all."""
        faults = self.gather([] if own is None else [_Fault.of(own)])
        if any(fault.kind == "not finite" for fault in faults):
            first = next(fault for fault in faults if fault.kind == "not finite")
            return NotFinite(first.text, [group for fault in faults for group in fault.groups])
        if own is not None:
            return own
        first = faults[0]
        return UserError(first.text) if first.kind == "user" else RunStopped(first.text)

    def lost_contact(self, error: BaseException) -> bool:
        """Whether an error is that of an exchange with another process that is not there any more."""
        if self.processes == 1:
            return False
        known = (
            torch.distributed.DistBackendError,
            torch.distributed.DistNetworkError,
            torch.distributed.DistStoreError,
        )
        return isinstance(error, known) or (isinstance(error, RuntimeError) and any(s in str(error) for s in _LOST))

    def part_at_exit(self) -> None:
        """All went well: take leave of the others when the program ends."""
        if self.processes > 1:
            atexit.unregister(_part)
            atexit.register(_part)

    # --- forward passes that need all processes

    def in_lockstep(self, empty: Callable[[Pass], None]) -> Callable[[Pass], None]:
        """Forward passes need all processes from now on; returns what to call before each.

        `empty` runs a pass of the given kind that has no effect.
        """
        self._lockstep = Lockstep(lambda number: int(self._largest(number)), empty)
        return self._lockstep.announce

    def _settle(self) -> None:
        """Return when no process has a forward pass left to run before all meet: what every exchange begins with.

        One with fewer passes would otherwise be in the exchange while another waits for it in a pass.
        """
        if self._lockstep is not None:
            self._lockstep.settle()


@dataclass(frozen=True, slots=True)
class _Fault:
    """An error as others are told of it."""

    kind: str
    text: str
    groups: tuple[Group | Unanswered, ...] = ()

    @classmethod
    def of(cls, error: Exception) -> "_Fault":
        if isinstance(error, NotFinite):
            return cls("not finite", error.what, error.groups)
        if isinstance(error, UserError):
            return cls("user", str(error))
        if isinstance(error, RunStopped | Interrupted):
            return cls("stopped", str(error))
        return cls("other", f"another process failed: {type(error).__name__}: {error}")


@functools.cache
def _hosts() -> ProcessGroup:
    """All processes, over gloo."""
    group = torch.distributed.new_group(backend="gloo", timeout=_PATIENCE)
    assert isinstance(group, ProcessGroup)
    return group


def _part() -> None:
    """Leave, with no thread of a group left: one that lets go of a tensor while Python ends aborts the program."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    _hosts.cache_clear()
    gc.collect()  # what is left of groups goes, and their threads are joined
    time.sleep(_PARTING)


def deal(costs: Sequence[float], parts: int) -> list[list[int]]:
    """Places of a list dealt into parts of about the same cost: the largest first, each to who has least so far.

    No part costs more than 4/3 of the best there is (Graham 1969). Depends on costs alone, so all processes agree.

    >>> deal([5, 1, 1, 3, 1], parts=2)
    [[0, 4], [1, 2, 3]]
    """
    dealt: list[list[int]] = [[] for _ in range(parts)]
    loads = [(0.0, part) for part in range(parts)]
    for place in sorted(range(len(costs)), key=lambda place: (-costs[place], place)):
        load, part = heapq.heappop(loads)
        dealt[part].append(place)
        heapq.heappush(loads, (load + costs[place], part))
    return [sorted(own) for own in dealt]
