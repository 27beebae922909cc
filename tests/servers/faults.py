"""The faults that servers are made to have, and what must come of each; docs/servers.md holds the same rows."""

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from groupwise.groups import Group
from groupwise.model.drawing import SamplingParams
from groupwise.model.engine import LogprobEngine, sampled_logprobs
from groupwise.servers.answers import AnswerRules, Ask, seed_of
from groupwise.servers.fingerprint import fixed_text, probe_weights
from groupwise.servers.loading import Version
from groupwise.servers.pool import Limits, Pool
from groupwise.servers.versions import VersionsFolder
from tests.servers.proxy import (
    Deed,
    Proxy,
    asked_otherwise,
    changed,
    cut_in_half,
    drip,
    hang,
    noise,
    redirect,
    reset,
    status,
    text,
)

COMPLETIONS = "/v1/completions"


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens to a group's request, and the kind that it is counted as."""

    deed: Deed
    kind: str


def _first(change: Callable[[dict[str, Any]], object]) -> Deed:
    """Something changed in the first completion of a reply."""
    return changed(lambda reply: change(reply["choices"][0]))


def _overlong(choice: dict[str, Any]) -> None:
    choice["token_ids"] += [1] * 9
    choice["logprobs"]["token_logprobs"] += [-1.0] * 9


FAULTS: dict[str, Fault] = {
    "connection reset": Fault(reset, "unreachable"),
    "half of an answer": Fault(cut_in_half, "garbled"),
    "no answer": Fault(hang, "late"),
    "an answer byte by byte": Fault(drip, "late"),
    "bytes that are no HTTP": Fault(noise, "garbled"),
    "HTTP 500": Fault(status(500), "status"),
    "HTTP 503, overloaded": Fault(status(503), "status"),
    "a redirect elsewhere": Fault(redirect, "status"),
    "no JSON": Fault(text("<html>"), "garbled"),
    "JSON of another shape": Fault(text("[1, 2]"), "garbled"),
    "JSON nested too deeply": Fault(text("[" * 10**5), "garbled"),
    "fewer completions than asked": Fault(changed(lambda reply: reply["choices"].pop()), "garbled"),
    "one completion twice": Fault(_first(lambda choice: choice.update(index=1)), "garbled"),
    "an index that is infinite": Fault(_first(lambda choice: choice.update(index=math.inf)), "garbled"),
    "a number for a list of ids": Fault(_first(lambda choice: choice.update(token_ids=5)), "garbled"),
    "ids outside the vocabulary": Fault(_first(lambda c: c["token_ids"].__setitem__(0, 10**6)), "garbled"),
    "no token ids": Fault(_first(lambda choice: choice.pop("token_ids")), "garbled"),
    "a log-prob missing": Fault(_first(lambda c: c["logprobs"]["token_logprobs"].pop()), "garbled"),
    "a log-prob that is NaN": Fault(
        _first(lambda c: c["logprobs"]["token_logprobs"].__setitem__(0, math.nan)), "garbled"
    ),
    "a log-prob above 0": Fault(_first(lambda c: c["logprobs"]["token_logprobs"].__setitem__(0, 0.5)), "garbled"),
    "an answer longer than allowed": Fault(_first(_overlong), "wrong"),
    "an answer to another prompt": Fault(_first(lambda c: c["prompt_token_ids"].append(1)), "wrong"),
    "another version answers, under its name": Fault(changed(lambda reply: reply.update(model="other")), "wrong"),
    "the version was unloaded": Fault(asked_otherwise(lambda request: request.update(model="gone")), "status"),
}  # fmt: skip
LIMITS = Limits(answer_limit=4.0, server_wait=30.0, most_gap=0.02)


def version_of(engine: LogprobEngine, versions: VersionsFolder) -> Version:
    """The policy as it is, written for servers."""
    return Version.of(engine, versions, versions.write(engine.policy))


def asks_of(engine: LogprobEngine, count: int) -> tuple[list[Ask], AnswerRules]:
    vocabulary = int(engine.policy.model.config.vocab_size)
    asks = [Ask(prompt_ids=tuple(range(5, 9 + i)), n=3, seed=seed_of(0, i), most_new_tokens=6) for i in range(count)]
    return asks, AnswerRules(params=SamplingParams(max_new_tokens=6), end_ids=frozenset([0]), vocabulary=vocabulary)


def check_fault(fault: Fault, upstreams: list[str], engine: LogprobEngine, versions: VersionsFolder) -> None:
    """With one of two servers faulty once, all groups come back, from the right version, and the fault is counted."""
    with engine.policy.holding(probe_weights(engine, fixed_text(engine))):
        version = version_of(engine, versions)
        proxy = Proxy(upstreams[0])
        lines: list[str] = []
        pool = Pool([proxy.address, upstreams[1]], limits=LIMITS, say=lines.append)
        try:
            asyncio.run(pool.publish(version))
            assert pool.up == 2 and not pool.faults
            proxy.faulty(COMPLETIONS, fault.deed)
            asks, rules = asks_of(engine, 4)
            drawn = asyncio.run(pool.draw(asks, rules))
            assert proxy.spoiled == 1
            assert dict(pool.faults) == {fault.kind: 1}, lines
            assert pool.asked_again == 1
            assert [len(own) for own in drawn] == [3] * 4
            assert len(lines) >= 1 and proxy.address in lines[0]
            groups = [
                Group(key="", prompt_ids=ask.prompt_ids, completions=tuple(own))
                for ask, own in zip(asks, drawn, strict=True)
            ]
            for group in sampled_logprobs(engine, groups, tokens_per_forward=4096):
                for one in group.completions:
                    assert one.sampled_logp is not None and one.drawn_logp is not None
                    assert (one.sampled_logp - one.drawn_logp).abs().max() < 1e-3
        finally:
            asyncio.run(pool.forget())
            proxy.shutdown()
            proxy.server_close()
