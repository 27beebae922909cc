"""When a server is looked at, and what becomes of a look."""

import asyncio
import math

import pytest

from groupwise.servers.health import Looks, Server


def test_a_look_that_fails_in_its_own_way_is_heard_of() -> None:
    """A fault of ours in a look once disappeared with its task: the server stayed out, and nobody knew why."""

    async def broken(server: Server) -> None:
        raise ZeroDivisionError

    async def look() -> None:
        looks = Looks([Server("a")], broken)
        looks.begin()
        await looks.some_time(5)

    with pytest.raises(ZeroDivisionError):
        asyncio.run(look())


def test_each_server_is_looked_at_once_when_it_is_due() -> None:
    """Not while it is ready, pauses, or is looked at already; those that are quick do not wait for one that hangs."""
    seen: list[str] = []
    servers = [Server("ready", ready=True), Server("pauses", next_look=math.inf), Server("quick"), Server("hangs")]

    async def look(server: Server) -> None:
        seen.append(server.address)
        await asyncio.sleep(3600 if server.address == "hangs" else 0)

    async def looked() -> None:
        looks = Looks(servers, look)
        for _ in range(3):
            looks.begin()
            await looks.some_time(5)
        assert len(looks.tasks) == 1 and looks.at_well_servers
        servers[-1].fail()
        assert not looks.at_well_servers
        await looks.end()

    asyncio.run(looked())
    assert seen == ["quick", "hangs", "quick", "quick"]


def test_pauses_get_longer_up_to_half_a_minute_and_start_anew() -> None:
    """All groups in flight fail together: that is one failure, not sixty."""
    server = Server("a")
    pauses: list[float] = []
    for _ in range(7):
        server.ready = True
        for _ in range(60):
            server.fail()
        pauses.append(server.pause)
    assert pauses == [2, 4, 8, 16, 30, 30, 30]
    server.recover()
    assert server.pause == 1 and server.ready and server.well
