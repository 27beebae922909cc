"""What servers send, read part by part: each part has the type that it must have, or all of it is a ServerFault.

Knows nothing about HTTP, and not what becomes of a fault.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

FaultKind = Literal["unreachable", "late", "status", "garbled", "wrong"]


class ServerFault(Exception):
    """What a server did instead of answering; `status` is that of HTTP where there was one."""

    def __init__(self, kind: FaultKind, text: str, status: int | None = None) -> None:
        super().__init__(text)
        self.kind: FaultKind = kind
        self.status = status


def read_json(text: bytes) -> object:
    """The value that a body holds.

    >>> read_json(b'{"n": 1}')
    {'n': 1}
    >>> read_json(b"[" * 100_000)
    Traceback (most recent call last):
    groupwise.servers.replies.ServerFault: no JSON: b'[[[[[[[[[[[[[[[[[[[['
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ServerFault("garbled", f"no JSON: {text[:20]!r}") from error


def read_object(value: object, what: str) -> Mapping[str, Any]:
    """A JSON object; `what` names it in the fault."""
    if not isinstance(value, dict):
        raise ServerFault("garbled", f"{what} is {_shown(value)} where a JSON object belongs")
    return cast(Mapping[str, Any], value)


def read_list(value: object, what: str) -> Sequence[object]:
    """A JSON list."""
    if not isinstance(value, list):
        raise ServerFault("garbled", f"{what} is {_shown(value)} where a list belongs")
    return cast(Sequence[object], value)


def read_numbers(value: object, what: str) -> list[float]:
    """A list of finite numbers. Truth values are none, and neither is what is larger than any float.

    >>> read_numbers([-1, -0.5], "log-probs")
    [-1.0, -0.5]
    >>> read_numbers([-0.5, 10**400], "log-probs")
    Traceback (most recent call last):
    groupwise.servers.replies.ServerFault: log-probs holds a number that is not finite
    """
    values = read_list(value, what)
    if not set(map(type, values)) <= {int, float}:
        raise ServerFault("garbled", f"{what} holds what is no number")
    try:
        numbers = list(map(float, cast(Sequence[float], values)))
    except OverflowError:
        numbers = [math.inf]
    if not all(map(math.isfinite, numbers)):
        raise ServerFault("garbled", f"{what} holds a number that is not finite")
    return numbers


def read_wholes(value: object, what: str, *, below: int) -> Sequence[int]:
    """A list of whole numbers from 0 to `below` - 1.

    >>> read_wholes([3, 0.7], "indices", below=4)
    Traceback (most recent call last):
    groupwise.servers.replies.ServerFault: indices holds what is no whole number from 0 to 3
    """
    values = cast(Sequence[int], read_list(value, what))
    if not set(map(type, values)) <= {int} or (values and not 0 <= min(values) <= max(values) < below):
        raise ServerFault("garbled", f"{what} holds what is no whole number from 0 to {below - 1}")
    return values


def read_name(value: object, what: str) -> str:
    """A text that can be sent back: JSON may escape half a character, which no encoding has.

    >>> read_name(read_json(b'"\\\\ud800"'), "a name")
    Traceback (most recent call last):
    groupwise.servers.replies.ServerFault: a name is '\\ud800' where a text belongs
    """
    if not isinstance(value, str) or any("\ud800" <= character <= "\udfff" for character in value):
        raise ServerFault("garbled", f"{what} is {_shown(value)} where a text belongs")
    return value


def check_model(reply: Mapping[str, Any], asked: str) -> None:
    """Whether the model that was asked has answered. Raises ServerFault where it was another one."""
    if reply.get("model") != asked:
        raise ServerFault("wrong", f"{asked} was asked, {_shown(reply.get('model'))} answered")


def read_models(reply: object) -> dict[str, Mapping[str, Any]]:
    """The entries of /v1/models by name; where an entry has a `max_model_len`, that is a number of tokens or null."""
    listed = read_list(read_object(reply, "/v1/models").get("data"), "the list of models")
    entries = [read_object(entry, "a model") for entry in listed]
    for entry in entries:
        if entry.get("max_model_len") is not None:
            read_wholes([entry["max_model_len"]], "max_model_len", below=2**63)
    return {read_name(entry.get("id"), "the name of a model"): entry for entry in entries}


def read_prompt_logprobs(reply: Mapping[str, Any], token_ids: Sequence[int]) -> list[float]:
    """log p of every token of a prompt but the first, nats, from the answer to a request with `prompt_logprobs`."""
    first = read_object(_first_choice(reply), "a completion")
    entries = read_list(first.get("prompt_logprobs"), "prompt_logprobs")
    if len(entries) != len(token_ids):
        raise ServerFault("garbled", f"{len(entries)} log-probs of a prompt of {len(token_ids)} tokens")
    logp = [_logprob_of(i, entry) for i, entry in zip(token_ids[1:], entries[1:], strict=True)]
    return read_numbers(logp, "prompt_logprobs")


def read_drawn_logprobs(reply: Mapping[str, Any]) -> list[float]:
    """log p of every token of the first completion, nats."""
    return read_token_logprobs(read_object(_first_choice(reply), "a completion"))


def read_token_logprobs(choice: Mapping[str, Any]) -> list[float]:
    """log p of every token of a completion, nats."""
    logprobs = read_object(choice.get("logprobs"), "logprobs")
    return read_numbers(logprobs.get("token_logprobs"), "token_logprobs")


def _first_choice(reply: Mapping[str, Any]) -> object:
    choices = read_list(reply.get("choices"), "choices")
    if not choices:
        raise ServerFault("garbled", "an answer without completions")
    return choices[0]


def _logprob_of(token_id: int, entry: object) -> object:
    known = read_object(entry, "the log-probs of a token")
    return read_object(known.get(str(token_id)), "a log-prob of the prompt").get("logprob")


def _shown(value: object) -> str:
    """A text shortened, of anything else its type alone: it may be nested deeper than Python prints."""
    return repr(value[:80]) if isinstance(value, str) else f"a {type(value).__name__}"
