"""A version of the adapter on one server: loaded, and known to be what answers. Knows nothing about other servers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from groupwise.model.engine import LogprobEngine
from groupwise.servers.client import Client
from groupwise.servers.fingerprint import fixed_text, mean_gap, text_logprobs
from groupwise.servers.replies import ServerFault
from groupwise.servers.versions import VersionsFolder


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """An adapter that servers answer with; `logprobs` is what the engine says of the fixed text `text_ids` under it."""

    name: str
    path: str
    prefix: str  # of all versions that this one takes the place of
    text_ids: Sequence[int]
    logprobs: Sequence[float]

    @classmethod
    def of(cls, engine: LogprobEngine, versions: VersionsFolder, name: str) -> Self:
        """The engine's adapter as it is now, which lies among the versions under that name."""
        ids = fixed_text(engine)
        return cls(
            name=name,
            path=versions.path(name),
            prefix=versions.prefix,
            text_ids=ids,
            logprobs=text_logprobs(engine, ids),
        )


async def bring(client: Client, version: Version, *, most_gap: float) -> None:
    """Have a server answer with a version: forget those before, load this one, compare the fixed text.

    Raises ServerFault where it cannot, or where its weights are others.
    """
    loaded = await client.models()
    for name in loaded:
        if name.startswith(version.prefix) and name != version.name:
            await client.unload(name)
    if version.name not in loaded:
        await _load(client, version)
    gap = mean_gap(version.logprobs, await client.prompt_logprobs(version.name, version.text_ids))
    if not gap <= most_gap:
        raise ServerFault(
            "wrong", f"its log-probs of a fixed text under {version.name} differ by {gap:.2g} nats per token from ours"
        )


async def forget(client: Client, prefix: str) -> None:
    """Have a server forget all versions with that prefix. Raises ServerFault where it does not."""
    for name in await client.models():
        if name.startswith(prefix):
            await client.unload(name)


async def _load(client: Client, version: Version) -> None:
    """Load a version; a server loads none twice, but another process of this run may have had it load this one."""
    try:
        await client.load(version.name, version.path)
    except ServerFault:
        if version.name not in await client.models():
            raise
