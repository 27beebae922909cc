"""A step's groups over processes: what this one learns from, and what all of them learn from together.

Nobody needs all groups of a step. A process holds its part, dealt by tokens, and counts over the whole; a rollout goes
from who sampled it straight to who learns from it. Knows neither the objective nor how groups came about.

Legend: N groups, or parts of groups, that one process has.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from safetensors.torch import load, save

from groupwise.batch import cut_groups
from groupwise.groups import Group, completion_tokens, count_pairs, forward_tokens
from groupwise.train.exchange import deal
from groupwise.train.group_file import as_tensors, from_tensors
from groupwise.train.runtime import Runtime

Place = tuple[int, int]
"""Of a group in its step, and of a part of it in the group."""
Placed = tuple[Place, Group]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTotals:
    """What one optimizer step holds, over all processes and micro-batches, counted before the first backward.

    >>> StepTotals.of([])
    StepTotals(groups=0, completions=0, tokens=0, prompt_tokens=0, pairs=0)
    """

    groups: int
    completions: int
    tokens: int
    prompt_tokens: int
    pairs: int

    @classmethod
    def of(cls, groups: Iterable[Group]) -> "StepTotals":
        counted = list(groups)
        return cls(
            groups=len(counted),
            completions=sum(len(group.completions) for group in counted),
            tokens=sum(completion_tokens(group) for group in counted),
            prompt_tokens=sum(len(group.prompt_ids) for group in counted),
            pairs=sum(map(count_pairs, counted)),
        )

    def over(self, runtime: Runtime) -> "StepTotals":
        """The sum of what all processes counted."""
        names = [field.name for field in fields(self)]
        summed = runtime.sums([getattr(self, name) for name in names])
        return type(self)(**{name: int(value) for name, value in zip(names, summed, strict=True)})


@dataclass(frozen=True, slots=True, kw_only=True)
class StepShare:
    """What one process learns from in a step.

    groups   its groups in the order of the step; one that is too long for a micro-batch may be here in parts, or partly
    places   the place of each in the step
    totals   counts over all processes, a group that is cut counting once
    """

    groups: tuple[Group, ...]
    places: tuple[Place, ...]
    totals: StepTotals

    @classmethod
    def of(cls, groups: Sequence[Group], runtime: Runtime, *, cut_to: int | None = None) -> "StepShare":
        """This process's part of groups that every process holds.

        With `cut_to` tokens, for objectives to which a group's completions are strangers, long groups are cut.
        """
        parts = _parts(enumerate(groups), cut_to)
        return cls._holding(runtime.by_cost(parts, lambda part: forward_tokens(part[1])), StepTotals.of(groups))

    @classmethod
    def collected(cls, own: Sequence[tuple[int, Group]], runtime: Runtime, *, cut_to: int | None = None) -> "StepShare":
        """This process's part of groups that lie on several processes, `own` on this one, with their places.

        Every process calls. Each group goes straight to the process that learns from it.
        """
        totals = StepTotals.of(group for _, group in own).over(runtime)
        return cls._holding(_dealt(_parts(own, cut_to), runtime), totals)

    @classmethod
    def restored(cls, parts: Sequence[Placed], totals: StepTotals, runtime: Runtime) -> "StepShare":
        """This process's part of what some number of processes once had, `parts` being what this one read.

        Every process calls. With as many processes as there were, each of which reads its own, nothing is sent.
        """
        return cls._holding(_dealt(parts, runtime), totals)

    @classmethod
    def _holding(cls, parts: Sequence[Placed], totals: StepTotals) -> "StepShare":
        places, groups = tuple(place for place, _ in parts), tuple(group for _, group in parts)
        return cls(groups=groups, places=places, totals=totals)

    @property
    def parts(self) -> list[Placed]:
        """Groups with their places."""
        return list(zip(self.places, self.groups, strict=True))

    def replace_groups(self, groups: Sequence[Group]) -> Self:
        """The same places with other groups."""
        return replace(self, groups=tuple(groups))

    def first(self, count: int, runtime: Runtime) -> list[Group]:
        """The first groups of the whole step, each whole again; every process calls, and gets them."""
        mine = [part for part in self.parts if part[0][0] < count]
        parts = sorted(runtime.gather(mine), key=lambda part: part[0])
        whole: dict[int, Group] = {}
        for (place, _), part in parts:
            before = whole[place].completions if place in whole else ()
            whole[place] = part.replace_completions((*before, *part.completions))
        return [whole[place] for place in sorted(whole)]


def _parts(groups: Iterable[tuple[int, Group]], cut_to: int | None) -> list[Placed]:
    """Groups with their places, cut where that is wanted."""
    return [
        ((place, number), part)
        for place, group in groups
        for number, part in enumerate([group] if cut_to is None else cut_groups([group], cut_to))
    ]


def _dealt(own: Sequence[Placed], runtime: Runtime) -> list[Placed]:
    """Of the parts of all processes those that this one is dealt, in order; what it does not keep it sends on."""
    known = sorted(runtime.gather([(place, forward_tokens(group)) for place, group in own]))
    goes_to = {
        known[index][0]: process
        for process, hand in enumerate(deal([cost for _, cost in known], runtime.processes))
        for index in hand
    }
    parcels = [[part for part in own if goes_to[part[0]] == process] for process in range(runtime.processes)]
    return sorted(sent(parcels, runtime), key=lambda part: part[0])


def sent(parcels: Sequence[Sequence[Placed]], runtime: Runtime) -> list[Placed]:
    """What this process gets where each hands in a parcel for every process, its own included; in no order."""
    if runtime.processes == 1:
        return list(parcels[0])
    received = runtime.deliver([packed(parcel) for parcel in parcels])
    return [part for content in received for part in unpacked(content)]


def packed(parts: Sequence[Placed]) -> bytes:
    """Groups and places as one safetensors file.

    >>> unpacked(packed([]))
    []
    """
    places = torch.tensor([place for place, _ in parts], dtype=torch.long).reshape(-1, 2)
    return save(as_tensors([group for _, group in parts]) | {"place_N2": places})


def unpacked(content: bytes) -> list[Placed]:
    """What `packed` was given."""
    tensors = load(content)
    places = [(place, part) for place, part in tensors["place_N2"].tolist()]
    return list(zip(places, from_tensors(tensors), strict=True))
