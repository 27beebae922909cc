"""Which servers answer with the current version: one that fails is left alone for a while, and then looked at.

Knows neither what a look is, nor what servers are asked.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

_FIRST_PAUSE = 1.0  # s before a server that failed is looked at; doubled each time
_LONGEST_PAUSE = 30.0


@dataclass(slots=True)
class Server:
    """What is known of a server."""

    address: str
    ready: bool = False  # it has the version that answers now
    well: bool = True  # it did what it was asked to when it was asked last; a server begins well
    in_flight: int = 0  # groups that it is asked for
    pause: float = _FIRST_PAUSE
    next_look: float = 0.0  # by the monotonic clock, s

    def expect_new_version(self) -> None:
        """It has to be looked at before it is asked again."""
        self.ready, self.next_look = False, 0.0

    def fail(self) -> None:
        """Ask it nothing, and look at it again later each time; groups that were in flight fail together."""
        self.well = False
        now = time.monotonic()
        if not self.ready and now < self.next_look:
            return
        self.ready = False
        self.next_look = now + self.pause
        self.pause = min(2 * self.pause, _LONGEST_PAUSE)

    def recover(self) -> None:
        """It answers with the current version."""
        self.ready, self.well, self.pause = True, True, _FIRST_PAUSE


class Looks:
    """Looks at servers that are not ready, beside whatever else is done; at most one at each server."""

    def __init__(self, servers: Sequence[Server], look: Callable[[Server], Awaitable[None]]) -> None:
        """`look` makes a server ready, or has it fail."""
        self._servers = servers
        self._look = look
        self._under_way: dict[asyncio.Future[None], Server] = {}

    @property
    def tasks(self) -> list[asyncio.Future[None]]:
        return list(self._under_way)

    @property
    def at_well_servers(self) -> bool:
        """Whether one is under way at a server that was well so far."""
        return any(server.well for server in self._under_way.values())

    def begin(self) -> None:
        """Look at every server that is due."""
        now = time.monotonic()
        looked_at = [server.address for server in self._under_way.values()]
        for server in self._servers:
            if not server.ready and server.next_look <= now and server.address not in looked_at:
                self._under_way[asyncio.ensure_future(self._look(server))] = server

    def settle(self) -> None:
        """Put away those that are over. Raises what a look was not meant to."""
        for task in self.tasks:
            if task.done():
                del self._under_way[task]
                task.result()

    async def some_time(self, seconds: float) -> None:
        """Return when a look is over, or that time."""
        if self._under_way:
            await asyncio.wait(self.tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        else:
            await asyncio.sleep(seconds)
        self.settle()

    async def end(self) -> None:
        """End those that are under way."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        self._under_way.clear()
