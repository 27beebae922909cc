"""What servers do wrong never becomes an answer: each fault of the table, and servers that go and come."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from groupwise.errors import Interrupted, RunStopped
from groupwise.model.engine import LogprobEngine
from groupwise.servers.fingerprint import fixed_text, probe_weights, text_logprobs
from groupwise.servers.pool import Limits, Pool
from groupwise.servers.versions import VersionsFolder
from tests.servers.faults import COMPLETIONS, FAULTS, LIMITS, asks_of, check_fault, version_of
from tests.servers.proxy import Gate, Handler, Proxy, Reply, asked_otherwise, changed, status
from tests.servers.stand_in import StandIn


@pytest.fixture
def versions(tmp_path: Path) -> VersionsFolder:
    return VersionsFolder.of_run(tmp_path / "versions", tmp_path / "test run")


@pytest.mark.parametrize("name", FAULTS)
def test_a_group_that_a_server_fails_is_answered_by_another(
    name: str, servers: list[StandIn], engine: LogprobEngine, versions: VersionsFolder
) -> None:
    check_fault(FAULTS[name], [one.address for one in servers], engine, versions)


def test_groups_are_spread_and_what_is_drawn_depends_on_the_seed_alone(
    servers: list[StandIn], engine: LogprobEngine, versions: VersionsFolder
) -> None:
    before = [one.answered for one in servers]
    asks, rules = asks_of(engine, 8)
    both = Pool([one.address for one in servers], limits=LIMITS)
    asyncio.run(both.publish(version_of(engine, versions)))
    drawn = asyncio.run(both.draw(asks, rules))
    asked = [one.answered - past - 1 for one, past in zip(servers, before, strict=True)]  # the fixed text is one
    assert sorted(asked) == [4, 4]
    alone = Pool([servers[1].address], limits=LIMITS)
    asyncio.run(alone.publish(version_of(engine, versions)))
    again = asyncio.run(alone.draw(asks[::-1], rules))[::-1]
    ids = [[one.token_ids for one in own] for own in drawn]
    assert ids == [[one.token_ids for one in own] for own in again]
    assert len({str(own) for own in ids}) == len(ids)


def test_an_old_version_is_unloaded_and_never_answers_again(
    servers: list[StandIn], engine: LogprobEngine, versions: VersionsFolder
) -> None:
    pool = Pool([one.address for one in servers], limits=LIMITS)
    first = version_of(engine, versions)
    asyncio.run(pool.publish(first))
    with engine.policy.holding(probe_weights(engine, fixed_text(engine))):
        second = version_of(engine, versions)
    asyncio.run(pool.publish(second))
    assert first.name != second.name
    assert [list(one.paths) for one in servers] == [[second.name]] * 2
    asyncio.run(pool.forget())
    assert [list(one.paths) for one in servers] == [[]] * 2


def test_a_server_with_other_weights_under_the_right_name_is_not_asked(
    servers: list[StandIn], engine: LogprobEngine, versions: VersionsFolder
) -> None:
    """It looks right by every name; only the log-probs of the fixed text tell."""
    base = servers[0].base
    proxy = Proxy(servers[0].address)
    proxy.faulty(COMPLETIONS, asked_otherwise(lambda request: request.update(model=base)), times=1000)
    renamed = Proxy(proxy.address)
    with engine.policy.holding(probe_weights(engine, fixed_text(engine))):
        version = version_of(engine, versions)
        renamed.faulty(COMPLETIONS, changed(lambda reply: reply.update(model=version.name)), times=1000)
        pool = Pool([renamed.address, servers[1].address], limits=LIMITS)
        asyncio.run(pool.publish(version))
        assert pool.up == 1 and pool.faults["wrong"] == 1
        assert text_logprobs(engine, fixed_text(engine)) == list(version.logprobs)


def test_a_server_that_comes_back_is_used_again(
    servers: list[StandIn], engine: LogprobEngine, versions: VersionsFolder
) -> None:
    proxy = Proxy(servers[0].address)
    lines: list[str] = []
    pool = Pool([proxy.address], limits=LIMITS, say=lines.append)
    asyncio.run(pool.publish(version_of(engine, versions)))
    servers[0].paths.clear()  # it was started anew
    asks, rules = asks_of(engine, 4)
    drawn = asyncio.run(pool.draw(asks, rules))
    assert len(drawn) == 4 and pool.up == 1
    assert any("is back" in line for line in lines)


def test_without_any_server_the_wait_is_bounded(
    servers: list[StandIn], engine: LogprobEngine, versions: VersionsFolder
) -> None:
    proxy = Proxy(servers[0].address)
    pool = Pool([proxy.address], limits=Limits(answer_limit=1, server_wait=0.5, most_gap=0.02))
    asyncio.run(pool.publish(version_of(engine, versions)))
    proxy.shutdown()
    proxy.server_close()
    asks, rules = asks_of(engine, 2)
    began = time.monotonic()
    with pytest.raises(RunStopped, match="none of 1 servers answers, for 0.5 s"):
        asyncio.run(pool.draw(asks, rules))
    assert time.monotonic() - began < 8


def test_a_group_that_nobody_can_answer_stops_the_run(
    servers: list[StandIn], engine: LogprobEngine, versions: VersionsFolder
) -> None:
    proxy = Proxy(servers[0].address)
    pool = Pool([proxy.address], limits=Limits(most_tries=2, server_wait=9, most_gap=0.02))
    asyncio.run(pool.publish(version_of(engine, versions)))
    asks, rules = asks_of(engine, 1)
    spoil = {"times": 0}

    def only_groups(request: dict[str, object]) -> None:
        if "prompt_logprobs" not in request:
            spoil["times"] += 1
            request.update(model="gone")

    proxy.faulty(COMPLETIONS, asked_otherwise(only_groups), times=1000)
    with pytest.raises(RunStopped, match="asked 2 times without an answer"):
        asyncio.run(pool.draw(asks, rules))
    assert spoil["times"] == 2


def test_a_server_that_refuses_the_adapter_is_left_out(
    servers: list[StandIn], engine: LogprobEngine, versions: VersionsFolder
) -> None:
    proxy = Proxy(servers[0].address)
    proxy.faulty("/v1/load_lora_adapter", status(400, '"no"'), times=1000)
    pool = Pool([proxy.address, servers[1].address], limits=LIMITS)
    asyncio.run(pool.publish(version_of(engine, versions)))
    asks, rules = asks_of(engine, 3)
    assert len(asyncio.run(pool.draw(asks, rules))) == 3
    assert pool.up == 1


def test_a_server_that_is_silent_is_waited_for_once(
    servers: list[StandIn], engine: LogprobEngine, versions: VersionsFolder, gate: Gate
) -> None:
    """The other answers meanwhile. Every version once waited until the silent one was late."""
    proxy = Proxy(servers[0].address)
    pool = Pool([proxy.address, servers[1].address], limits=LIMITS)
    proxy.faulty("/v1/models", status(500))
    asyncio.run(pool.publish(version_of(engine, versions)))
    proxy.faulty("/v1/models", gate, times=1000)
    with engine.policy.holding(probe_weights(engine, fixed_text(engine))):
        asyncio.run(pool.publish(version_of(engine, versions)))
        asks, rules = asks_of(engine, 3)
        assert len(asyncio.run(pool.draw(asks, rules))) == 3
    assert gate.reached.is_set() and pool.up == 1
    assert dict(pool.faults) == {"status": 1}, "it was waited for"


def test_a_signal_ends_the_wait_for_a_silent_server(
    servers: list[StandIn], engine: LogprobEngine, versions: VersionsFolder, gate: Gate
) -> None:
    """A look at a server once ran to its own limit, half a minute and more, before anybody asked for signals."""
    proxy = Proxy(servers[0].address)
    proxy.faulty("/v1/models", gate, times=1000)
    pool = Pool([proxy.address], limits=LIMITS)
    pool.stopped_by = lambda: 15 if gate.reached.is_set() else None
    with pytest.raises(Interrupted) as caught:
        asyncio.run(pool.publish(version_of(engine, versions)))
    assert caught.value.exit_code == 143 and not pool.faults


def test_a_version_that_another_process_has_loaded_meanwhile_is_taken(
    servers: list[StandIn], engine: LogprobEngine, versions: VersionsFolder
) -> None:
    """Both see that it is not there and have it loaded; the server refuses one of them, whatever its words."""

    def loaded_meanwhile(handler: Handler, fetch: Callable[[], Reply]) -> None:
        fetch()
        handler.answer(400, b"no")

    proxy = Proxy(servers[0].address)
    proxy.faulty("/v1/load_lora_adapter", loaded_meanwhile)
    pool = Pool([proxy.address], limits=LIMITS)
    asyncio.run(pool.publish(version_of(engine, versions)))
    assert proxy.spoiled == 1 and pool.up == 1 and not pool.faults


def test_all_that_a_run_left_is_forgotten_and_nothing_of_others(
    servers: list[StandIn], engine: LogprobEngine, versions: VersionsFolder, tmp_path: Path
) -> None:
    """Of a run of the same name elsewhere, and of one whose name begins alike."""
    others = [VersionsFolder.of_run(versions.folder, tmp_path / place) for place in ("x/test run", "test run-2")]
    theirs = {version_of(engine, other).name: "" for other in others}
    for one in servers:
        one.paths.update(theirs)
        one.paths[f"{versions.prefix}left"] = ""
    pool = Pool([one.address for one in servers], limits=LIMITS)
    version = version_of(engine, versions)
    asyncio.run(pool.publish(version))
    assert [set(one.paths) for one in servers] == [{*theirs, version.name}] * 2
    versions.keep(())
    asyncio.run(pool.forget())
    assert [set(one.paths) for one in servers] == [set(theirs)] * 2
    assert {place.name for place in versions.folder.iterdir()} == set(theirs)
