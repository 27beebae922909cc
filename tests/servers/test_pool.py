"""What servers do wrong never becomes an answer: each fault of the table, and servers that go and come."""

import time
from pathlib import Path

import pytest

from groupwise.errors import RunStopped
from groupwise.model.engine import LogprobEngine
from groupwise.servers.fingerprint import fixed_text, probe_weights, text_logprobs
from groupwise.servers.pool import Limits, Pool
from groupwise.servers.versions import Versions
from tests.servers.faults import COMPLETIONS, FAULTS, LIMITS, asks_of, check_fault, version_of
from tests.servers.proxy import Proxy, asked_otherwise, changed, status
from tests.servers.stand_in import StandIn


@pytest.fixture
def versions(tmp_path: Path) -> Versions:
    return Versions(tmp_path / "versions", "test run")


@pytest.mark.parametrize("name", FAULTS)
def test_a_group_that_a_server_fails_is_answered_by_another(
    name: str, servers: list[StandIn], engine: LogprobEngine, versions: Versions
) -> None:
    check_fault(FAULTS[name], [one.address for one in servers], engine, versions)


def test_groups_are_spread_and_what_is_drawn_depends_on_the_seed_alone(
    servers: list[StandIn], engine: LogprobEngine, versions: Versions
) -> None:
    before = [one.answered for one in servers]
    asks, terms = asks_of(engine, 8)
    both = Pool([one.address for one in servers], limits=LIMITS)
    both.publish(version_of(engine, versions))
    drawn = both.draw(asks, terms)
    asked = [one.answered - past - 1 for one, past in zip(servers, before, strict=True)]  # the fixed text is one
    assert sorted(asked) == [4, 4]
    alone = Pool([servers[1].address], limits=LIMITS)
    alone.publish(version_of(engine, versions))
    again = alone.draw(asks[::-1], terms)[::-1]
    ids = [[one.token_ids for one in own] for own in drawn]
    assert ids == [[one.token_ids for one in own] for own in again]
    assert len({str(own) for own in ids}) == len(ids)


def test_an_old_version_is_unloaded_and_never_answers_again(
    servers: list[StandIn], engine: LogprobEngine, versions: Versions
) -> None:
    pool = Pool([one.address for one in servers], limits=LIMITS)
    first = version_of(engine, versions)
    pool.publish(first)
    with engine.policy.holding(probe_weights(engine, fixed_text(engine))):
        second = version_of(engine, versions)
    pool.publish(second)
    assert first.name != second.name
    assert [list(one.paths) for one in servers] == [[second.name]] * 2
    pool.forget()
    assert [list(one.paths) for one in servers] == [[]] * 2


def test_a_server_with_other_weights_under_the_right_name_is_not_asked(
    servers: list[StandIn], engine: LogprobEngine, versions: Versions
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
        pool.publish(version)
        assert pool.up == 1 and pool.faults["wrong"] == 1
        assert text_logprobs(engine, fixed_text(engine)) == list(version.logprobs)


def test_a_server_that_comes_back_is_used_again(
    servers: list[StandIn], engine: LogprobEngine, versions: Versions
) -> None:
    proxy = Proxy(servers[0].address)
    lines: list[str] = []
    pool = Pool([proxy.address], limits=LIMITS, say=lines.append)
    pool.publish(version_of(engine, versions))
    servers[0].paths.clear()  # it was started anew
    asks, terms = asks_of(engine, 4)
    drawn = pool.draw(asks, terms)
    assert len(drawn) == 4 and pool.up == 1
    assert any("is back" in line for line in lines)


def test_without_any_server_the_wait_is_bounded(
    servers: list[StandIn], engine: LogprobEngine, versions: Versions
) -> None:
    proxy = Proxy(servers[0].address)
    pool = Pool([proxy.address], limits=Limits(answer_limit=1, server_wait=0.5, most_gap=0.02))
    pool.publish(version_of(engine, versions))
    proxy.shutdown()
    proxy.server_close()
    asks, terms = asks_of(engine, 2)
    began = time.monotonic()
    with pytest.raises(RunStopped, match="none of 1 servers answers, for 0.5 s"):
        pool.draw(asks, terms)
    assert time.monotonic() - began < 8


def test_a_group_that_nobody_can_answer_stops_the_run(
    servers: list[StandIn], engine: LogprobEngine, versions: Versions
) -> None:
    proxy = Proxy(servers[0].address)
    pool = Pool([proxy.address], limits=Limits(most_tries=2, server_wait=9, most_gap=0.02))
    pool.publish(version_of(engine, versions))
    asks, terms = asks_of(engine, 1)
    spoil = {"times": 0}

    def only_groups(request: dict[str, object]) -> None:
        if "prompt_logprobs" not in request:
            spoil["times"] += 1
            request.update(model="gone")

    proxy.faulty(COMPLETIONS, asked_otherwise(only_groups), times=1000)
    with pytest.raises(RunStopped, match="asked 2 times without an answer"):
        pool.draw(asks, terms)
    assert spoil["times"] == 2


def test_a_server_that_refuses_the_adapter_is_left_out(
    servers: list[StandIn], engine: LogprobEngine, versions: Versions
) -> None:
    proxy = Proxy(servers[0].address)
    proxy.faulty("/v1/load_lora_adapter", status(400, '"no"'), times=1000)
    pool = Pool([proxy.address, servers[1].address], limits=LIMITS)
    pool.publish(version_of(engine, versions))
    asks, terms = asks_of(engine, 3)
    assert len(pool.draw(asks, terms)) == 3
    assert pool.up == 1
