"""Groups spread over servers by load; what fails is asked again elsewhere, bounded in tries and in time.

A server that does anything but answer rightly is asked nothing more until it has loaded the version that answers now
and gives its log-probs for the fixed text. Knows nothing about training, and is used from one thread at a time.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from groupwise.errors import Interrupted, RunStopped
from groupwise.groups import Completion
from groupwise.servers.answers import Ask, Terms, as_request, read_completions
from groupwise.servers.client import Client, ServerFault
from groupwise.servers.fingerprint import mean_gap

_LOOK_AGAIN = 1.0  # s before a server that failed is looked at again; doubled each time
_LONGEST_PAUSE = 30.0
_STEPPED = 0.2  # s between looks at the clock while nothing happens


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """An adapter that servers answer with; `logprobs` is what the engine says of the fixed text `text_ids` under it."""

    name: str
    path: str
    prefix: str  # of all versions of this run
    text_ids: Sequence[int]
    logprobs: Sequence[float]


@dataclass(slots=True)
class _Server:
    address: str
    ready: bool = False  # has the version that answers now
    in_flight: int = 0
    pause: float = _LOOK_AGAIN
    next_look: float = 0.0
    was_up: bool = True

    def fail(self) -> None:
        """Ask it nothing, and look at it again later each time; groups that were in flight fail together."""
        now = time.monotonic()
        if not self.ready and now < self.next_look:
            return
        self.ready = False
        self.next_look = now + self.pause
        self.pause = min(2 * self.pause, _LONGEST_PAUSE)


@dataclass(slots=True)
class _Job:
    place: int
    ask: Ask
    tries: int = 0
    failed_at: set[str] = field(default_factory=set[str])


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of a pool: groups asked of a server at once, seconds and tries for a group, seconds without a server."""

    groups_per_server: int = 64
    answer_limit: float = 300.0
    most_tries: int = 8
    server_wait: float = 600.0
    most_gap: float = 0.1


class Pool:
    """All servers of a run, as one that answers."""

    def __init__(
        self,
        addresses: Sequence[str],
        *,
        limits: Limits,
        api_key: str | None = None,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._servers = [_Server(address.rstrip("/")) for address in addresses]
        self._limits = limits
        self._api_key = api_key
        self._say = say
        self.stopped_by: Callable[[], int | None] = lambda: None  # a signal that asks to stop
        self._version: Version | None = None
        self.faults: Counter[str] = Counter()  # by kind, since they were last taken
        self.asked_again = 0

    @property
    def up(self) -> int:
        """Servers that answer now."""
        return sum(server.ready for server in self._servers)

    def publish(self, version: Version) -> None:
        """From now on all answers are of this version.

        Raises RunStopped when no server takes it in time, Interrupted when the wait for one was asked to stop.
        """
        self._version = version
        for server in self._servers:
            server.ready, server.next_look = False, 0.0
        asyncio.run(self._publish())

    def draw(self, asks: Sequence[Ask], terms: Terms) -> list[list[Completion]]:
        """The completions of every ask.

        Raises RunStopped when servers are gone for too long, or a group is refused; Interrupted as `publish` does.
        """
        return asyncio.run(self._draw(asks, terms))

    def forget(self) -> None:
        """Unload this run's versions where that is possible."""
        if self._version is not None:
            asyncio.run(self._forget(self._version))

    # --- publishing

    async def _publish(self) -> None:
        async with AsyncExitStack() as stack:
            clients = await self._clients(stack)
            await asyncio.gather(*(self._look(server, clients[server.address]) for server in self._servers))
            await self._until_one_is_up(clients)

    async def _look(self, server: _Server, client: Client) -> None:
        """Make a server ready to answer with the current version, or note why it is not."""
        version = self._version
        assert version is not None
        try:
            await bring(client, version, most_gap=self._limits.most_gap)
        except ServerFault as fault:
            self._note(server, fault)
            return
        if not server.was_up:
            self._say(f"server {server.address} is back and answers with the current version")
        server.ready, server.was_up, server.pause = True, True, _LOOK_AGAIN

    def _note(self, server: _Server, fault: ServerFault) -> None:
        self.faults[fault.kind] += 1
        if server.was_up:
            self._say(
                f"warning: server {server.address}: {fault}; its groups are asked elsewhere until it is well again"
            )
        server.was_up = False
        server.fail()

    async def _until_one_is_up(self, clients: dict[str, Client]) -> None:
        began = time.monotonic()
        said = False
        while not self.up:
            if (signal := self.stopped_by()) is not None:
                raise Interrupted(
                    "stopped while no server answered; the same command continues from the newest checkpoint", signal
                )
            if time.monotonic() - began >= self._limits.server_wait:
                raise RunStopped(
                    f"none of {len(self._servers)} servers answers, for {self._limits.server_wait:g} s now "
                    "(sampling.server_wait); what is learned is in the newest checkpoint\n"
                    "start the servers, and the same command goes on"
                )
            if not said:
                self._say(f"warning: no server answers; waiting up to {self._limits.server_wait:g} s for one")
                said = True
            await asyncio.sleep(_STEPPED)
            now = time.monotonic()
            due = [server for server in self._servers if server.next_look <= now]
            await asyncio.gather(*(self._look(server, clients[server.address]) for server in due))

    # --- drawing

    async def _draw(self, asks: Sequence[Ask], terms: Terms) -> list[list[Completion]]:
        waiting = [_Job(place, ask) for place, ask in enumerate(asks)]
        found: dict[int, list[Completion]] = {}
        running: dict[asyncio.Task[list[Completion]], tuple[_Job, _Server]] = {}
        looks: set[asyncio.Task[None]] = set()
        looked_at: set[str] = set()
        async with AsyncExitStack() as stack:
            clients = await self._clients(stack)
            try:
                while len(found) < len(asks):
                    looks = {look for look in looks if not look.done()}
                    if not looks:
                        looked_at.clear()
                    for server in self._due(looked_at):
                        looked_at.add(server.address)
                        looks.add(asyncio.create_task(self._look(server, clients[server.address])))
                    self._start(waiting, running, clients, terms)
                    if not running:
                        await self._until_one_is_up(clients)
                        continue
                    done, _ = await asyncio.wait(
                        (*running, *looks), timeout=_STEPPED, return_when=asyncio.FIRST_COMPLETED
                    )
                    for task in done:
                        if task in running:
                            job, server = running.pop(task)  # pyright: ignore[reportArgumentType]
                            self._settle(task, job, server, waiting, found)  # pyright: ignore[reportArgumentType]
            finally:
                for task in (*running, *looks):
                    task.cancel()
                await asyncio.gather(*running, *looks, return_exceptions=True)
                for server in self._servers:
                    server.in_flight = 0
        return [found[place] for place in range(len(asks))]

    def _due(self, looked_at: set[str]) -> list[_Server]:
        now = time.monotonic()
        return [s for s in self._servers if not s.ready and s.next_look <= now and s.address not in looked_at]

    def _start(
        self,
        waiting: list[_Job],
        running: dict[asyncio.Task[list[Completion]], tuple[_Job, _Server]],
        clients: dict[str, Client],
        terms: Terms,
    ) -> None:
        """Ask as many groups as there is room for, each of the server with the fewest, and where it has not failed."""
        while waiting:
            free = [s for s in self._servers if s.ready and s.in_flight < self._limits.groups_per_server]
            if not free:
                return
            job = waiting.pop(0)
            server = min(free, key=lambda s: (s.address in job.failed_at, s.in_flight))
            server.in_flight += 1
            task = asyncio.create_task(self._answer(job.ask, terms, clients[server.address]))
            running[task] = job, server

    async def _answer(self, ask: Ask, terms: Terms, client: Client) -> list[Completion]:
        assert self._version is not None
        name = self._version.name
        reply = await client.complete(as_request(ask, terms, name), self._limits.answer_limit)
        return read_completions(reply, ask, terms, name)

    def _settle(
        self,
        task: asyncio.Task[list[Completion]],
        job: _Job,
        server: _Server,
        waiting: list[_Job],
        found: dict[int, list[Completion]],
    ) -> None:
        """Take an answer, or ask the group again."""
        server.in_flight -= 1
        fault = task.exception()
        if fault is None:
            found[job.place] = task.result()
            return
        if not isinstance(fault, ServerFault):
            raise fault
        self._note(server, fault)
        job.tries += 1
        job.failed_at.add(server.address)
        if job.tries >= self._limits.most_tries:
            raise RunStopped(
                f"a prompt of {len(job.ask.prompt_ids)} tokens was asked {job.tries} times without an answer "
                f"(sampling.most_tries), last of {server.address}: {fault}\n"
                "what is learned is in the newest checkpoint; mend the servers, and the same command goes on"
            )
        self.asked_again += 1
        waiting.append(job)

    # --- the rest

    async def _clients(self, stack: AsyncExitStack) -> dict[str, Client]:
        made = [
            Client(server.address, api_key=self._api_key, connections=self._limits.groups_per_server)
            for server in self._servers
        ]
        return {client.address: await stack.enter_async_context(client) for client in made}

    async def _forget(self, version: Version) -> None:
        async with AsyncExitStack() as stack:
            clients = await self._clients(stack)
            forgotten = (client.unload(version.name) for client in clients.values())  # also where it was found wrong
            await asyncio.gather(*forgotten, return_exceptions=True)


def from_own_place(addresses: Sequence[str], *, process: int, processes: int) -> list[str]:
    """Servers in the order in which one of several processes takes them: each begins elsewhere.

    Pools know nothing of each other. With fewer groups each than there are servers all would ask the first ones.

    >>> [from_own_place(["a", "b", "c", "d"], process=process, processes=2) for process in range(2)]
    [['a', 'b', 'c', 'd'], ['c', 'd', 'a', 'b']]
    """
    first = process * len(addresses) // processes
    return [*addresses[first:], *addresses[:first]]


async def bring(client: Client, version: Version, *, most_gap: float) -> None:
    """Have a server answer with a version: forget older ones, load this one, compare the fixed text.

    Raises ServerFault where it cannot, or where its weights are others.
    """
    loaded = await client.models()
    for name in loaded:
        if name.startswith(version.prefix) and name != version.name:
            await _unload(client, name)
    if version.name not in loaded:
        try:
            await client.load(version.name, version.path)
        except ServerFault as fault:
            if "already" not in str(fault):  # another process of this run was faster
                raise
    gap = mean_gap(version.logprobs, await client.prompt_logprobs(version.name, version.text_ids))
    if not gap <= most_gap:
        raise ServerFault(
            "wrong", f"its log-probs of a fixed text under {version.name} differ by {gap:.2g} nats per token from ours"
        )


async def _unload(client: Client, name: str) -> None:
    """Forget a version; one that is gone already is forgotten."""
    try:
        await client.unload(name)
    except ServerFault as fault:
        if fault.status != 404:
            raise
