"""Servers as a sampler: what it counts, and that it ends."""

import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from groupwise.model.drawing import SamplingParams
from groupwise.model.engine import LogprobEngine
from groupwise.servers.pool import Pool
from groupwise.servers.sampler import ServerSampler
from groupwise.servers.settings import ServedSamplingSection
from groupwise.servers.versions import VersionsFolder
from groupwise.train.runtime import Runtime
from tests.servers.faults import COMPLETIONS
from tests.servers.proxy import Gate, Proxy
from tests.servers.stand_in import StandIn

PARAMS = SamplingParams(max_new_tokens=4)


def sampler_on(addresses: list[str], engine: LogprobEngine, folder: Path) -> ServerSampler:
    section = ServedSamplingSection(engine="vllm", servers=tuple(addresses), versions_folder=folder / "versions")
    versions = VersionsFolder.of_run(folder / "versions", folder / "run")
    return ServerSampler(
        engine, [0], section, versions, Runtime(), tokens_per_forward=4096, say=lambda line: None
    )  # fmt: skip


def test_no_fault_is_lost_that_comes_while_metrics_are_read(
    servers: list[StandIn], engine: LogprobEngine, tmp_path: Path
) -> None:
    """Counts were once read and then set to 0; what the other thread had added in between was gone.

    Here it adds something before every line.
    """
    sampler = sampler_on([servers[0].address], engine, tmp_path)
    pool: Pool = vars(sampler)["_pool"]
    added = 0

    def add(frame: FrameType, event: str, arg: object) -> Any:
        nonlocal added
        if frame.f_code is ServerSampler.metrics.__code__ and event == "line":
            pool.faults["late"] += 1
            pool.asked_again += 1
            added += 1
        return add

    before = sys.gettrace()
    sys.settrace(add)
    try:
        told = [sampler.metrics() for _ in range(3)]
    finally:
        sys.settrace(before)
    told.append(sampler.metrics())
    sampler.close()
    assert added >= 6
    assert sum(values["servers/faults"] for values in told) == added
    assert sum(values["servers/asked_again"] for values in told) == added


def test_closing_ends_what_is_asked_and_the_thread(
    servers: list[StandIn], engine: LogprobEngine, tmp_path: Path, gate: Gate
) -> None:
    proxy = Proxy(servers[0].address)
    sampler = sampler_on([proxy.address], engine, tmp_path)
    sampler.publish()
    proxy.faulty(COMPLETIONS, gate, times=10**6)
    sampler.ask([[5, 6, 7]], n=2, params=PARAMS, seed=0, streams=[0])
    assert gate.reached.wait(60)
    sampler.close()
    assert "servers" not in [thread.name for thread in threading.enumerate()]
    assert servers[0].paths == {} and not list((tmp_path / "versions").iterdir())


def test_answers_belong_to_the_policy_that_was_published_when_they_were_asked(
    servers: list[StandIn], engine: LogprobEngine, tmp_path: Path
) -> None:
    """Asked for ahead, fetched when the policy has moved on: their log-probs are those of the policy that drew them."""
    sampler = sampler_on([one.address for one in servers], engine, tmp_path)
    fresh = engine.policy.snapshot()
    sampler.publish()
    answers = sampler.ask([[5, 6, 7]], n=4, params=PARAMS, seed=0, streams=[0])
    with engine.policy.holding({name: value + 0.3 for name, value in fresh.items()}):
        drawn = answers()
        assert answers() is drawn
        sampler.publish()
        later = sampler.ask([[5, 6, 7]], n=4, params=PARAMS, seed=0, streams=[0])()
    sampler.close()
    for one in (*drawn[0], *later[0]):
        assert one.sampled_logp is not None and one.drawn_logp is not None
        assert one.sampled_logp.tolist() == pytest.approx(one.drawn_logp.tolist(), abs=1e-4)
    assert [one.token_ids for one in drawn[0]] != [one.token_ids for one in later[0]]
