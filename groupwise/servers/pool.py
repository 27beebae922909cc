"""Groups spread over servers by load; what fails is asked again elsewhere, bounded in tries and in time.

A server that does anything but answer rightly is asked nothing more until it has loaded the version that answers now
and gives its log-probs for the fixed text. Knows nothing about training.
"""

import asyncio
import time
from collections import Counter, deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

from groupwise.errors import Interrupted, RunStopped
from groupwise.groups import Completion
from groupwise.servers.answers import AnswerRules, Ask, as_request, read_completions
from groupwise.servers.client import Client
from groupwise.servers.health import Looks, Server
from groupwise.servers.loading import Version, bring, forget
from groupwise.servers.replies import ServerFault

_TICK = 0.2  # s until clock and signals are looked at again


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of a pool: groups asked of a server at once, seconds and tries for a group, seconds without a server.

    `most_gap` is the largest difference of log-probs of the fixed text, nats per token.
    """

    groups_per_server: int = 64
    answer_limit: float = 300.0
    most_tries: int = 8
    server_wait: float = 600.0
    most_gap: float = 0.1


@dataclass(slots=True)
class _Job:
    """A group that is to be answered; its place in the list that was asked, and where it failed."""

    place: int
    ask: Ask
    tries: int = 0
    failed_at: set[str] = field(default_factory=set[str])


class _Draw:
    """Groups of one call: those that wait, those that a server is asked for, those that are answered."""

    def __init__(self, asks: Sequence[Ask], rules: AnswerRules) -> None:
        self.rules = rules
        self.waiting = deque(_Job(place, ask) for place, ask in enumerate(asks))
        self.asked: dict[asyncio.Task[list[Completion]], tuple[_Job, Server]] = {}
        self.answered: dict[int, list[Completion]] = {}

    @property
    def unfinished(self) -> bool:
        return bool(self.waiting or self.asked)

    async def end(self) -> None:
        """Ask for nothing more; a server stops when it is hung up on."""
        for task in self.asked:
            task.cancel()
        await asyncio.gather(*self.asked, return_exceptions=True)
        for _, server in self.asked.values():
            server.in_flight -= 1


class Pool:
    """All servers of a run, as one that answers.

    Its calls run in one event loop, one after the other, and may be cancelled. `up` and the counts may be read from
    other threads: they are numbers that this one sets, and the counts only grow.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        *,
        limits: Limits,
        api_key: str | None = None,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._servers = [Server(address.rstrip("/")) for address in addresses]
        self._limits = limits
        self._api_key = api_key
        self._say = say
        self._version: Version | None = None
        self.stopped_by: Callable[[], int | None] = lambda: None  # a signal that asks to stop
        self.faults: Counter[str] = Counter()  # of servers, by kind
        self.asked_again = 0  # groups

    @property
    def up(self) -> int:
        """Servers that answer now."""
        return sum(server.ready for server in self._servers)

    async def publish(self, version: Version) -> None:
        """From now on all answers are of this version; those before are forgotten.

        Raises RunStopped when no server takes it in time, Interrupted when the wait for one was asked to stop.
        """
        self._version = version
        for server in self._servers:
            server.expect_new_version()
        async with self._connected() as (_, looks):
            await self._until_one_is_up(looks)
            while looks.at_well_servers:  # they take part from the start; those that were ill come when they can
                await looks.some_time(_TICK)

    async def draw(self, asks: Sequence[Ask], rules: AnswerRules) -> list[list[Completion]]:
        """The completions of every ask.

        Raises RunStopped when servers are gone for too long, or a group is refused; Interrupted as `publish` does.
        """
        draw = _Draw(asks, rules)
        async with self._connected() as (clients, looks):
            try:
                while draw.unfinished:
                    looks.begin()
                    self._ask(draw, clients)
                    if not draw.asked:
                        await self._until_one_is_up(looks)
                        continue
                    under_way = (*draw.asked, *looks.tasks)
                    await asyncio.wait(under_way, timeout=_TICK, return_when=asyncio.FIRST_COMPLETED)
                    looks.settle()
                    self._settle(draw)
            finally:
                await draw.end()
        return [draw.answered[place] for place in range(len(asks))]

    async def forget(self) -> None:
        """Have all servers forget what was published, where that is possible."""
        version = self._version
        if version is None:
            return
        async with self._connected() as (clients, _):
            forgotten = (forget(client, version.prefix) for client in clients.values())
            await asyncio.gather(*forgotten, return_exceptions=True)

    @asynccontextmanager
    async def _connected(self) -> AsyncGenerator[tuple[dict[str, Client], Looks], None]:
        """Clients by address, and looks at servers, for the time of one call."""
        async with AsyncExitStack() as stack:
            clients: dict[str, Client] = {}
            for server in self._servers:
                client = Client(server.address, api_key=self._api_key, connections=self._limits.groups_per_server)
                clients[server.address] = await stack.enter_async_context(client)
            looks = Looks(self._servers, lambda server: self._look(server, clients[server.address]))
            stack.push_async_callback(looks.end)
            yield clients, looks

    # --- who is up

    async def _look(self, server: Server, client: Client) -> None:
        """Make a server ready to answer with the current version, or note why it is not."""
        assert self._version is not None
        try:
            await bring(client, self._version, most_gap=self._limits.most_gap)
        except ServerFault as fault:
            self._note(server, fault)
            return
        if not server.well:
            self._say(f"server {server.address} is back and answers with the current version")
        server.recover()

    def _note(self, server: Server, fault: ServerFault) -> None:
        self.faults[fault.kind] += 1
        if server.well:
            self._say(
                f"warning: server {server.address}: {fault}; its groups are asked elsewhere until it is well again"
            )
        server.fail()

    async def _until_one_is_up(self, looks: Looks) -> None:
        began = time.monotonic()
        said = False
        looks.begin()
        while not self.up:
            if (signal := self.stopped_by()) is not None:
                raise Interrupted(
                    "stopped while no server answered; the same command continues from the newest checkpoint", signal
                )
            late = time.monotonic() - began >= self._limits.server_wait
            if late and not looks.tasks:
                raise RunStopped(
                    f"none of {len(self._servers)} servers answers, for {self._limits.server_wait:g} s now "
                    "(sampling.server_wait); what is learned is in the newest checkpoint\n"
                    "start the servers, and the same command goes on"
                )
            if not said and not looks.tasks:
                self._say(f"warning: no server answers; waiting up to {self._limits.server_wait:g} s for one")
                said = True
            await looks.some_time(_TICK)
            if not late:
                looks.begin()

    # --- groups

    def _ask(self, draw: _Draw, clients: dict[str, Client]) -> None:
        """Ask as many groups as there is room for, each of the server with the fewest, and where it has not failed."""
        while draw.waiting:
            free = [s for s in self._servers if s.ready and s.in_flight < self._limits.groups_per_server]
            if not free:
                return
            job = draw.waiting.popleft()
            server = min(free, key=lambda s: (s.address in job.failed_at, s.in_flight))
            server.in_flight += 1
            task = asyncio.create_task(self._answer(job.ask, draw.rules, clients[server.address]))
            draw.asked[task] = job, server

    async def _answer(self, ask: Ask, rules: AnswerRules, client: Client) -> list[Completion]:
        assert self._version is not None
        name = self._version.name
        reply = await client.complete(as_request(ask, rules, name), self._limits.answer_limit)
        return read_completions(reply, ask, rules, name)

    def _settle(self, draw: _Draw) -> None:
        """Take the answers that are there; what failed waits to be asked again."""
        for task in [task for task in draw.asked if task.done()]:
            job, server = draw.asked.pop(task)
            server.in_flight -= 1
            try:
                draw.answered[job.place] = task.result()
            except ServerFault as fault:
                self._note(server, fault)
                self._again(job, server, fault)
                draw.waiting.append(job)

    def _again(self, job: _Job, server: Server, fault: ServerFault) -> None:
        """Count a group that has to be asked again. Raises RunStopped where it has been asked too often."""
        job.tries += 1
        job.failed_at.add(server.address)
        if job.tries >= self._limits.most_tries:
            raise RunStopped(
                f"a prompt of {len(job.ask.prompt_ids)} tokens was asked {job.tries} times without an answer "
                f"(sampling.most_tries), last of {server.address}: {fault}\n"
                "what is learned is in the newest checkpoint; mend the servers, and the same command goes on"
            )
        self.asked_again += 1


def from_own_place(addresses: Sequence[str], *, process: int, processes: int) -> list[str]:
    """Servers in the order in which one of several processes takes them: each begins elsewhere.

    Pools know nothing of each other. With fewer groups each than there are servers all would ask the first ones.

    >>> [from_own_place(["a", "b", "c", "d"], process=process, processes=2) for process in range(2)]
    [['a', 'b', 'c', 'd'], ['c', 'd', 'a', 'b']]
    """
    first = process * len(addresses) // processes
    return [*addresses[first:], *addresses[:first]]
