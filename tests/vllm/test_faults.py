"""The table of faults before real vLLM servers: those of the wire by a proxy, the others done to the servers."""

import asyncio
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from groupwise.errors import RunStopped
from groupwise.groups import Completion, Group
from groupwise.model.engine import LogprobEngine, sampled_logprobs
from groupwise.servers.answers import Ask, as_request
from groupwise.servers.client import Client
from groupwise.servers.fingerprint import fixed_text, probe_weights
from groupwise.servers.loading import Version
from groupwise.servers.pool import Limits, Pool
from groupwise.servers.replies import ServerFault
from groupwise.servers.versions import VersionsFolder
from scripts.vllm_cpu import Server
from tests.servers.faults import FAULTS, LIMITS, asks_of, check_fault, version_of

pytestmark = pytest.mark.vllm


def addresses(servers: list[Server]) -> list[str]:
    return [one.address for one in servers]


def assert_of_the_policy(engine: LogprobEngine, asks: list[Ask], drawn: list[list[Completion]]) -> None:
    """Every token was drawn with the probability that the policy gives it."""
    groups = [
        Group(key="", prompt_ids=ask.prompt_ids, completions=tuple(own)) for ask, own in zip(asks, drawn, strict=True)
    ]
    for group in sampled_logprobs(engine, groups, tokens_per_forward=4096):
        for one in group.completions:
            assert one.sampled_logp is not None and one.drawn_logp is not None
            assert (one.sampled_logp - one.drawn_logp).abs().max() < 1e-4


@pytest.fixture
def version(engine: LogprobEngine, versions: VersionsFolder) -> Iterator[Version]:
    """A policy far from its base, published under a version."""
    with engine.policy.holding(probe_weights(engine, fixed_text(engine))):
        yield version_of(engine, versions)


@contextmanager
def during(deed: Callable[[], None], after: float) -> Generator[None, None, None]:
    """Something happens while the block runs."""
    timer = threading.Timer(after, deed)
    timer.start()
    try:
        yield
    finally:
        timer.join()


@pytest.mark.parametrize("name", FAULTS)
def test_a_group_that_a_server_fails_is_answered_by_another(
    name: str, real: list[Server], engine: LogprobEngine, versions: VersionsFolder
) -> None:
    check_fault(FAULTS[name], addresses(real), engine, versions)


def test_a_server_killed_while_it_answers_loses_no_group_and_is_used_when_it_is_back(
    real: list[Server], engine: LogprobEngine, version: Version
) -> None:
    lines: list[str] = []
    limits = Limits(answer_limit=60, server_wait=120, groups_per_server=4)
    pool = Pool(addresses(real), limits=limits, say=lines.append)
    asyncio.run(pool.publish(version))
    asks, rules = asks_of(engine, 48)
    with during(real[1].kill, after=0.3):
        drawn = asyncio.run(pool.draw(asks, rules))
    assert_of_the_policy(engine, asks, drawn)
    assert pool.up == 1 and pool.faults.total() >= 1 and pool.asked_again >= 1, lines
    assert set(pool.faults) <= {"unreachable", "garbled"}
    real[1].start()
    real[1].wait()
    deadline = time.monotonic() + 60
    while pool.up < 2 and time.monotonic() < deadline:
        drawn = asyncio.run(pool.draw(asks, rules))
    assert pool.up == 2 and any("is back" in line for line in lines)
    assert_of_the_policy(engine, asks, drawn)
    asyncio.run(pool.forget())


def test_a_server_that_freezes_is_waited_for_no_longer_than_said(
    real: list[Server], engine: LogprobEngine, version: Version
) -> None:
    pool = Pool(addresses(real), limits=Limits(answer_limit=3, server_wait=30, groups_per_server=4))
    asyncio.run(pool.publish(version))
    asks, rules = asks_of(engine, 16)
    real[0].signal(signal.SIGSTOP)
    try:
        drawn = asyncio.run(pool.draw(asks, rules))
    finally:
        real[0].signal(signal.SIGCONT)
    assert set(pool.faults) == {"late"} and pool.asked_again == 4
    assert_of_the_policy(engine, asks, drawn)
    asyncio.run(pool.forget())


def test_all_servers_killed_ends_in_a_bounded_wait(real: list[Server], engine: LogprobEngine, version: Version) -> None:
    pool = Pool(addresses(real), limits=Limits(answer_limit=5, server_wait=2))
    asyncio.run(pool.publish(version))
    for server in real:
        server.kill()
    asks, rules = asks_of(engine, 4)
    began = time.monotonic()
    with pytest.raises(RunStopped, match="none of 2 servers answers, for 2 s"):
        asyncio.run(pool.draw(asks, rules))
    assert time.monotonic() - began < 15


def test_only_the_newest_version_answers(real: list[Server], engine: LogprobEngine, versions: VersionsFolder) -> None:
    """The server itself refuses the old name once the new one is published: nothing can be drawn from it."""
    first = version_of(engine, versions)
    pool = Pool(addresses(real), limits=LIMITS)
    asyncio.run(pool.publish(first))
    with engine.policy.holding(probe_weights(engine, fixed_text(engine))):
        second = version_of(engine, versions)
        asyncio.run(pool.publish(second))
        asks, rules = asks_of(engine, 4)
        assert_of_the_policy(engine, asks, asyncio.run(pool.draw(asks, rules)))

    async def ask_the_old_one(address: str) -> None:
        async with Client(address) as client:
            await client.complete(as_request(asks[0], rules, first.name), 30)

    for address in addresses(real):
        with pytest.raises(ServerFault, match="HTTP 404"):
            asyncio.run(ask_the_old_one(address))
    asyncio.run(pool.forget())


def test_a_version_that_is_damaged_on_disk_is_never_drawn_from(
    real: list[Server], engine: LogprobEngine, versions: VersionsFolder
) -> None:
    """The servers load what lies in the folder; the fixed text tells that it is not what was written."""
    with engine.policy.holding(probe_weights(engine, fixed_text(engine))):
        version = version_of(engine, versions)
    file = Path(version.path) / "adapter_model.safetensors"
    save_file({name: 0.5 * tensor for name, tensor in load_file(file).items()}, file)
    pool = Pool(addresses(real), limits=Limits(answer_limit=5, server_wait=1, most_gap=0.02))
    with pytest.raises(RunStopped, match="none of 2 servers answers"):
        asyncio.run(pool.publish(version))
    assert pool.faults["wrong"] >= 2
    asyncio.run(pool.forget())
