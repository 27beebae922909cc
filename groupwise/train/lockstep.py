"""Keeps processes in step whose forward passes need each other: with sharded weights each gathers them from all.

A process that has less to do goes on with empty passes until nobody has work left. Knows neither network nor data.
"""

from collections.abc import Callable
from dataclasses import dataclass

from groupwise.model.sharding import Pass


@dataclass(slots=True)
class Lockstep:
    """`most` gives the largest number that any process hands in; `empty` runs a pass of no consequence."""

    most: Callable[[int], int]
    empty: Callable[[Pass], None]
    running_empty: bool = False

    def announce(self, kind: Pass) -> None:
        """Say that a forward pass of this kind begins; returns when all processes are about to begin one."""
        if not self.running_empty:
            self.most(1 + kind[0] + 2 * kind[1])

    def settle(self) -> None:
        """Return when no process has a pass left to run; every process settles at the same places."""
        while code := self.most(0):
            self.running_empty = True
            try:
                self.empty((bool((code - 1) & 1), bool((code - 1) & 2)))
            finally:
                self.running_empty = False
