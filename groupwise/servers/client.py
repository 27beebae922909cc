"""One vLLM server over HTTP: what is asked of it, and every way in which it fails as one exception.

Each request has a limit of wall time and of bytes, whatever the other side does. Knows nothing about other servers, and
does not look into completions.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import httpx

from groupwise.errors import first_line
from groupwise.servers.replies import (
    ServerFault,
    check_model,
    read_json,
    read_models,
    read_object,
    read_prompt_logprobs,
)

_MOST_BYTES = 1 << 28
_CONTROL_LIMIT = 30.0  # s, for what neither computes nor reads weights
_LOAD_LIMIT = 120.0  # s, for an adapter, or for one short text: a server may be busy with others' answers
_IDLE = 2.0  # s that a connection is kept unused; uvicorn closes one after 5, and a request sent just then is lost


class Client:
    """Requests to one server; it is used from one event loop, inside `async with`."""

    def __init__(self, address: str, *, api_key: str | None = None, connections: int = 100) -> None:
        self.address = address.rstrip("/")
        headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        most = connections + 4  # loads and looks beside the groups
        # Nothing of the environment (proxies, .netrc) and no redirect may lead prompts or the key elsewhere.
        self._http = httpx.AsyncClient(
            base_url=self.address,
            headers=headers,
            trust_env=False,
            follow_redirects=False,
            timeout=None,
            limits=httpx.Limits(max_connections=most, max_keepalive_connections=most, keepalive_expiry=_IDLE),
        )

    async def __aenter__(self) -> "Client":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def models(self) -> dict[str, Mapping[str, Any]]:
        """What the server answers for, by name: the base, and every version that is loaded."""
        return read_models(read_json(await self._send("GET", "/v1/models", None, _CONTROL_LIMIT)))

    async def load(self, name: str, path: str) -> None:
        """Load an adapter from a folder of the server's machine under a name."""
        await self._send("POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": path}, _LOAD_LIMIT)

    async def unload(self, name: str) -> None:
        """Forget an adapter; one that is gone already is forgotten."""
        try:
            await self._send("POST", "/v1/unload_lora_adapter", {"lora_name": name}, _CONTROL_LIMIT)
        except ServerFault as fault:
            if fault.status != 404:
                raise

    async def complete(self, request: Mapping[str, Any], limit: float) -> Mapping[str, Any]:
        """The answer to a request for completions, which is to be there after `limit` seconds."""
        return read_object(read_json(await self._send("POST", "/v1/completions", request, limit)), "an answer")

    async def prompt_logprobs(self, model: str, token_ids: Sequence[int]) -> list[float]:
        """log p of every token of a text but the first, nats, under the whole distribution at temperature 1."""
        request = {"model": model, "prompt": list(token_ids), "max_tokens": 1, "temperature": 1.0, "prompt_logprobs": 0}
        reply = await self.complete(request, _LOAD_LIMIT)
        check_model(reply, model)
        return read_prompt_logprobs(reply, token_ids)

    async def _send(self, method: str, path: str, body: Mapping[str, Any] | None, limit: float) -> bytes:
        """The body of a reply with status 200."""
        try:
            async with asyncio.timeout(limit):
                return await self._exchange(method, path, body)
        except TimeoutError as error:
            raise ServerFault("late", f"{path} took longer than {limit:g} s") from error
        except (httpx.RemoteProtocolError, httpx.DecodingError, httpx.InvalidURL) as error:
            raise ServerFault("garbled", f"{path}: {first_line(error)}") from error
        except (httpx.HTTPError, OSError) as error:
            raise ServerFault("unreachable", f"{path}: {first_line(error)}") from error

    async def _exchange(self, method: str, path: str, body: Mapping[str, Any] | None) -> bytes:
        parts: list[bytes] = []
        size = 0
        async with self._http.stream(method, path, json=body) as reply:
            async for part in reply.aiter_bytes():
                parts.append(part)
                size += len(part)
                if size > _MOST_BYTES:
                    raise ServerFault("garbled", f"{path} answered more than {_MOST_BYTES >> 20} MiB")
        text = b"".join(parts)
        if reply.status_code != 200:
            said = text[:300].decode("utf-8", errors="replace")
            raise ServerFault("status", f"{path} answered HTTP {reply.status_code}: {said}", reply.status_code)
        return text
