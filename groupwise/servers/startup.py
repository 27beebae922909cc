"""Before a run: can every server answer for this policy? All problems of all servers are found at once.

A made-up adapter is loaded that changes the fixed text a good deal: a server that cannot load it, does not see the
folder, leaves layers out or has another base is told from one that agrees. It has a name of its own and is forgotten
again, so that a run that is answered by the same servers does not notice. Knows nothing about rollouts.
"""

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from groupwise.errors import UserError, listed
from groupwise.model.engine import LogprobEngine
from groupwise.servers.client import Client
from groupwise.servers.fingerprint import fixed_text, mean_gap, probe_weights, text_logprobs
from groupwise.servers.loading import Version, bring
from groupwise.servers.replies import ServerFault, read_drawn_logprobs
from groupwise.servers.settings import ServedSamplingSection
from groupwise.servers.versions import VersionsFolder

_WITHOUT_LORA = {"gpt2": "GPT-2"}  # families that vLLM puts no adapter on
_ALLOW = "start it with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True in its environment"


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What a server must be able to do."""

    base: Sequence[float]  # log-probs of the fixed text by the base, nats
    probe: Version  # the made-up adapter
    longest: int  # tokens of a prompt and its answer
    rank: int  # of adapters
    processed: bool  # tokens are drawn from another distribution than the plain one
    most_gap: float  # nats per token of the fixed text


@dataclass(frozen=True, slots=True)
class _Verdict:
    """What is wrong with a server; a line for the user where nothing is."""

    problems: Sequence[str]
    line: str = ""


def check_servers(
    engine: LogprobEngine, section: ServedSamplingSection, *, api_key: str | None, longest: int, rank: int
) -> list[str]:
    """Ask every server all that a run will need, and return a line about each; `longest`: tokens of prompt and answer.

    Raises UserError with the problems of all servers. The probe is gone again in the end, whatever that is.
    """
    family = str(engine.policy.model.config.model_type)
    if family in _WITHOUT_LORA:
        raise UserError(
            f"sampling.engine vllm: vLLM has no LoRA for {_WITHOUT_LORA[family]}; use another base (for the embedded "
            "one: python scripts/make_opt_base.py, then --model.path model/base_opt), or sampling.engine builtin"
        )
    assert section.versions_folder is not None
    versions = VersionsFolder.of_check(section.versions_folder)
    ids = fixed_text(engine)
    with engine.policy.base():
        base = text_logprobs(engine, ids)
    whole = section.temperature == 1 and section.top_p == 1 and section.top_k is None and section.min_p == 0
    try:
        with engine.policy.holding(probe_weights(engine, ids)):
            probe = Version.of(engine, versions, versions.write(engine.policy))
        wanted = _Wanted(base, probe, longest, rank, not whole, section.most_gap)
        verdicts = asyncio.run(_check_all(section.servers, wanted, api_key))
    finally:
        versions.keep(())
    problems = [f"{address}: {problem}" for address, own in verdicts.items() for problem in own.problems]
    if problems:
        raise UserError("sampling.servers: " + listed(problems))
    return [f"server {address}: {own.line}" for address, own in verdicts.items()]


async def _check_all(addresses: Sequence[str], wanted: _Wanted, api_key: str | None) -> dict[str, _Verdict]:
    verdicts = await asyncio.gather(*(_check_one(address, wanted, api_key) for address in addresses))
    return dict(zip(addresses, verdicts, strict=True))


async def _check_one(address: str, wanted: _Wanted, api_key: str | None) -> _Verdict:
    async with Client(address, api_key=api_key) as client:
        try:
            models = await client.models()
        except ServerFault as fault:
            return _Verdict([_cannot_be_asked(fault)])
        bases = {name: entry for name, entry in models.items() if entry.get("parent") is None}
        if not bases:
            return _Verdict(["names no base model in /v1/models; is it a vLLM server?"])
        name, entry = next(iter(bases.items()))
        shortest = len(wanted.probe.text_ids) + 1  # the fixed text, and the token that each request draws
        problems = _length_problems(entry, max(wanted.longest, shortest))
        if _length_problems(entry, shortest):
            return _Verdict(problems)  # nothing more can be asked of it
        try:
            gap = mean_gap(wanted.base, await client.prompt_logprobs(name, wanted.probe.text_ids))
        except ServerFault as fault:
            return _Verdict([*problems, f"gives no log-probs of a prompt: {fault}; vLLM from 0.8 on does"])
        if not gap <= wanted.most_gap:
            problems.append(
                f"serves another base model than model.path ({name}): a fixed text differs by {gap:.2g} nats per token "
                f"(sampling.most_gap {wanted.most_gap:g}); start it with the folder or revision that is trained"
            )
        problems += await _adapter_problems(client, wanted)
        if wanted.processed and not await _reports_what_it_draws_with(client, name, wanted.probe.text_ids):
            problems.append(
                "reports log-probs of the plain distribution, but tokens are drawn from another one (temperature, "
                "top_p, top_k or min_p); start it with --logprobs-mode processed_logprobs"
            )
        return _Verdict(problems, f"base and adapters agree with ours to {gap:.1g} nats per token")


def _cannot_be_asked(fault: ServerFault) -> str:
    if fault.status in (401, 403):
        return f"refuses the API key (HTTP {fault.status}); sampling.api_key_variable names the variable that holds it"
    remedy = "is it a vLLM server?" if fault.kind in ("garbled", "status") else "is it started, and can it be reached?"
    return f"cannot be asked: {fault}; {remedy}"


def _length_problems(base: Mapping[str, Any], longest: int) -> list[str]:
    most = base.get("max_model_len")
    if most is None or longest <= most:
        return []
    return [
        f"takes texts of {most} tokens, the longest prompt with its answer has {longest}; start it with "
        f"--max-model-len {longest}, or lower sampling.max_new_tokens or data.max_prompt_tokens"
    ]


async def _adapter_problems(client: Client, wanted: _Wanted) -> list[str]:
    """Whether it loads the probe, and then computes what we do."""
    try:
        await bring(client, wanted.probe, most_gap=wanted.most_gap)
    except ServerFault as fault:
        text = str(fault)
        if fault.kind == "wrong":
            return [f"loads adapters and applies them otherwise: {text}; is lora.target_modules what vLLM supports?"]
        if "max_lora_rank" in text:
            return [f"takes no adapter of rank {wanted.rank}: start it with --max-lora-rank {wanted.rank} or more"]
        if fault.status == 404 and "No adapter found" not in text:
            return [f"does not load adapters at run time; {_ALLOW}"]
        return [
            f"cannot load an adapter from {wanted.probe.path}: {text}; let it see sampling.versions_folder under the "
            f"same path, and {_ALLOW}"
        ]
    finally:
        with contextlib.suppress(ServerFault):  # it may never have been loaded
            await client.unload(wanted.probe.name)
    return []


async def _reports_what_it_draws_with(client: Client, name: str, ids: Sequence[int]) -> bool:
    """With top_k 1 a token is drawn with certainty, whatever its probability is."""
    request = {"model": name, "prompt": list(ids[:4]), "max_tokens": 4, "temperature": 1.0, "top_k": 1, "logprobs": 0}
    try:
        drawn = read_drawn_logprobs(await client.complete(request, 60.0))
    except ServerFault:
        return False
    return all(abs(logp) < 1e-4 for logp in drawn)
