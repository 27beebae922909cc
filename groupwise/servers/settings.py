"""The keys of sampling on servers: which exist, their limits, and which do not go together. Knows no server."""

from pathlib import Path
from typing import Literal, Self
from urllib.parse import SplitResult, urlsplit

from pydantic import Field, model_validator

from groupwise.sections import SamplingSection

SERVER_KEYS = (
    "servers", "versions_folder", "api_key_variable", "groups_per_server", "answer_limit", "most_tries", "server_wait",
    "most_gap", "ahead",
)  # fmt: skip


class ServedSamplingSection(SamplingSection):
    """How completions are drawn, and by whom; the order is temperature, top-k, top-p, min-p."""

    engine: Literal["builtin", "vllm"] = Field(
        default="builtin",
        description="who samples rollouts: this program, or vLLM servers; evaluation is always its own",
    )
    servers: tuple[str, ...] = Field(default=(), description="vllm: their addresses, http://host:port")
    versions_folder: Path | None = Field(
        default=None, description="vllm: where adapters are put for the servers, which see it under the same path"
    )
    api_key_variable: str | None = Field(
        default=None, description="vllm: environment variable that holds the servers' API key; null: none is sent"
    )
    groups_per_server: int = Field(default=64, ge=1, description="vllm: groups asked of one server at the same time")
    answer_limit: float = Field(default=300.0, gt=0, description="vllm: s; for one group, then it is asked elsewhere")
    most_tries: int = Field(default=8, ge=1, description="vllm: times that a group is asked before the run stops")
    server_wait: float = Field(
        default=600.0, ge=0, description="vllm: s without any server before the run stops, to be continued; 0: at once"
    )
    most_gap: float = Field(
        default=0.1,
        gt=0,
        description="vllm: nats per token of a fixed text; a server that differs more has other weights",
    )
    ahead: int = Field(
        default=0,
        ge=0,
        le=1,
        description="vllm: 1: the next step is sampled while this one is learned from, one update behind",
    )

    @model_validator(mode="after")
    def _the_servers_are_read(self) -> Self:
        if self.engine == "builtin":
            for key in SERVER_KEYS:
                if getattr(self, key) != type(self).model_fields[key].default:
                    raise ValueError(f"{key} is read by engine vllm alone; remove it, or set sampling.engine to vllm")
            return self
        if not self.servers:
            raise ValueError("engine vllm needs servers, such as [http://127.0.0.1:8000]; docs/servers.md starts one")
        if self.versions_folder is None:
            raise ValueError("engine vllm needs versions_folder, a folder that the servers see under the same path")
        if self.captured:
            raise ValueError("captured: engine vllm samples on servers; set captured to false, or engine to builtin")
        if self.min_p > 0 and self.top_p < 1:
            raise ValueError("min_p with top_p: vLLM applies min-p first and would draw otherwise; set one of them")
        return self

    @model_validator(mode="after")
    def _the_addresses_are_addresses(self) -> Self:
        for address in self.servers:
            parts = urlsplit(address)
            if parts.username or parts.password:
                raise ValueError("servers: an address holds a password, which would be written into config.yaml; use "
                                 "api_key_variable")  # fmt: skip
            if not _is_address(parts):
                raise ValueError(f"servers: {address!r} is no address like http://host:port, without a path")
        if len({address.rstrip("/") for address in self.servers}) < len(self.servers):
            raise ValueError("servers: an address is there twice; name every server once")
        return self


def _is_address(parts: SplitResult) -> bool:
    try:
        port = parts.port
    except ValueError:  # larger than there are
        return False
    whole = parts.path in ("", "/") and not parts.query and not parts.fragment
    return parts.scheme in ("http", "https") and bool(parts.hostname) and port != 0 and whole
