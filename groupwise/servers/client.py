"""One vLLM server over HTTP: what is asked of it, and every way in which it fails as one exception.

Each request has a limit of wall time and of bytes, whatever the other side does. Knows nothing about other servers, and
does not look into completions.
"""

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import httpx

FaultKind = Literal["unreachable", "late", "status", "garbled", "wrong"]
_MOST_BYTES = 1 << 28
_CONTROL_LIMIT = 30.0  # s, for requests that sample nothing
_LOAD_LIMIT = 120.0


class ServerFault(Exception):
    """What a server did instead of answering; `status` is that of HTTP where there was one."""

    def __init__(self, kind: FaultKind, text: str, status: int | None = None) -> None:
        super().__init__(text)
        self.kind: FaultKind = kind
        self.status = status


class Client:
    """Requests to one server; it is used from one event loop, inside `async with`."""

    def __init__(self, address: str, *, api_key: str | None = None, connections: int = 100) -> None:
        self.address = address.rstrip("/")
        headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        # Nothing of the environment (proxies, .netrc) and no redirect may lead prompts or the key elsewhere.
        self._http = httpx.AsyncClient(
            base_url=self.address,
            headers=headers,
            trust_env=False,
            follow_redirects=False,
            timeout=None,
            limits=httpx.Limits(max_connections=connections + 4, max_keepalive_connections=connections + 4),
        )

    async def __aenter__(self) -> "Client":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def models(self) -> dict[str, Mapping[str, Any]]:
        """What the server answers for, by name: the base, and every version that is loaded."""
        reply = _mapping(await self._json("GET", "/v1/models", None, _CONTROL_LIMIT))
        entries = reply.get("data")
        if not isinstance(entries, list):
            raise ServerFault("garbled", "/v1/models has no list of models")
        return {str(entry["id"]): entry for entry in map(_mapping, cast(list[object], entries)) if "id" in entry}

    async def load(self, name: str, path: str) -> None:
        """Load an adapter from a folder of the server's machine under a name."""
        await self._send("POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": path}, _LOAD_LIMIT)

    async def unload(self, name: str) -> None:
        """Forget an adapter."""
        await self._send("POST", "/v1/unload_lora_adapter", {"lora_name": name}, _CONTROL_LIMIT)

    async def complete(self, request: Mapping[str, Any], limit: float) -> Mapping[str, Any]:
        """The answer to a request for completions, which is to be there after `limit` seconds."""
        return _mapping(await self._json("POST", "/v1/completions", request, limit))

    async def prompt_logprobs(self, model: str, token_ids: Sequence[int]) -> list[float]:
        """log p of every token of a text but the first, nats, under the whole distribution at temperature 1."""
        request = {"model": model, "prompt": list(token_ids), "max_tokens": 1, "temperature": 1.0, "prompt_logprobs": 0}
        reply = await self.complete(request, _LOAD_LIMIT)
        try:
            if reply["model"] != model:
                raise ServerFault("wrong", f"asked {model} for a text, {str(reply['model'])[:80]!r} answered")
            entries = reply["choices"][0]["prompt_logprobs"][1:]
            found = [float(entry[str(i)]["logprob"]) for i, entry in zip(token_ids[1:], entries, strict=True)]
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise ServerFault("garbled", "no log-probs of the prompt in the answer to prompt_logprobs") from error
        return found

    async def _json(self, method: str, path: str, body: Mapping[str, Any] | None, limit: float) -> object:
        text = await self._send(method, path, body, limit)
        try:
            return json.loads(text)
        except ValueError as error:
            raise ServerFault("garbled", f"{path} answered no JSON: {text[:80]!r}") from error

    async def _send(self, method: str, path: str, body: Mapping[str, Any] | None, limit: float) -> bytes:
        """The body of a reply with status 200."""
        try:
            async with asyncio.timeout(limit):
                return await self._exchange(method, path, body)
        except TimeoutError as error:
            raise ServerFault("late", f"{path} took longer than {limit:g} s") from error
        except httpx.RemoteProtocolError as error:
            raise ServerFault("garbled", f"{path}: {error}") from error
        except (httpx.HTTPError, OSError) as error:
            raise ServerFault("unreachable", f"{path}: {error or type(error).__name__}") from error

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


def _mapping(value: object) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ServerFault("garbled", f"a {type(value).__name__} where a JSON object belongs")
    return cast(Mapping[str, Any], value)
