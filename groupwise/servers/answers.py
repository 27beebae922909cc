"""A group as a request, and the server's reply as completions: every part of it is checked before it is believed.

Knows nothing about HTTP, and not whether the log-probs are right.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch

from groupwise.groups import Completion
from groupwise.model.drawing import SamplingParams
from groupwise.servers.client import ServerFault


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One prompt that wants `n` answers of at most `most_new_tokens` tokens, drawn with a seed of its own."""

    prompt_ids: tuple[int, ...]
    n: int
    seed: int
    most_new_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What holds for every group of a rollout: how tokens are drawn, what ends a completion, ids there are."""

    params: SamplingParams
    end_ids: frozenset[int]
    vocabulary: int


def seed_of(seed: int, stream: int) -> int:
    """The server's seed of a prompt, which depends on the run's seed and the number of its stream alone, 61 bits.

    A server draws the j-th of n answers with this + j, so neighbouring numbers must not be near each other.

    >>> seed_of(0, 1) == seed_of(0, 1), abs(seed_of(0, 1) - seed_of(0, 2)) > 10**9
    (True, True)
    """
    digest = hashlib.sha256(f"server {seed} {stream}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 3


def as_request(ask: Ask, terms: Terms, version: str) -> dict[str, Any]:
    """The request's JSON. Every setting is named: what is not would come from the model's generation_config.json."""
    params = terms.params
    return {
        "model": version,
        "prompt": list(ask.prompt_ids),
        "n": ask.n,
        "seed": ask.seed,
        "max_tokens": ask.most_new_tokens,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "top_k": -1 if params.top_k is None else params.top_k,
        "min_p": params.min_p,
        "stop": list(params.stop),
        "stop_token_ids": sorted(terms.end_ids),
        "ignore_eos": True,  # the ids above are all that end a text
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "skip_special_tokens": False,
        "logprobs": 0,
        "return_token_ids": True,
        "stream": False,
    }


def read_completions(reply: Mapping[str, Any], ask: Ask, terms: Terms, version: str) -> list[Completion]:
    """The completions of a group with `drawn_logp`, in order, score 0. Raises ServerFault for anything else.

    A completion is finished when it ends with an end id or a stop text; one that was cut has all tokens it may have.
    """
    if reply.get("model") != version:
        raise ServerFault("wrong", f"asked version {version}, {str(reply.get('model'))[:80]!r} answered")
    choices = reply.get("choices")
    if not isinstance(choices, list) or len(cast(list[object], choices)) != ask.n:
        raise ServerFault("garbled", f"not {ask.n} completions in an answer")
    found: dict[int, Completion] = {}
    for choice in cast(list[object], choices):
        if not isinstance(choice, dict):
            raise ServerFault("garbled", "a completion that is no object")
        index, completion = _read_choice(cast(dict[str, Any], choice), ask, terms)
        found[index] = completion
    if sorted(found) != list(range(ask.n)):
        raise ServerFault("garbled", "completions of an answer are numbered wrongly")
    return [found[i] for i in range(ask.n)]


def _read_choice(choice: Mapping[str, Any], ask: Ask, terms: Terms) -> tuple[int, Completion]:
    try:
        index, ids, reason = int(choice["index"]), choice["token_ids"], choice["finish_reason"]
        logp = [float(value) for value in choice["logprobs"]["token_logprobs"]]
        prompt = choice["prompt_token_ids"]
    except (KeyError, TypeError, ValueError) as error:
        raise ServerFault("garbled", f"a completion without {error}") from error
    if prompt is not None and list(prompt) != list(ask.prompt_ids):
        raise ServerFault("wrong", "an answer to another prompt")
    if not isinstance(ids, list) or not ids or not all(_is_id(i, terms.vocabulary) for i in cast(list[object], ids)):
        raise ServerFault("garbled", "a completion without token ids, or with ids outside the vocabulary")
    token_ids = cast(list[int], ids)
    if len(logp) != len(token_ids) or not all(math.isfinite(value) and value <= 1e-3 for value in logp):
        raise ServerFault("garbled", f"{len(logp)} log-probs of {len(token_ids)} tokens, or some that are none")
    _check_end(token_ids, str(reason), choice.get("stop_reason"), ask, terms)
    drawn_T = torch.tensor(logp).clamp(max=0.0)
    return index, Completion(token_ids=tuple(token_ids), finished=reason == "stop", score=0.0, drawn_logp=drawn_T)


def _is_id(value: object, vocabulary: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < vocabulary


def _check_end(token_ids: Sequence[int], reason: str, stopped_by: object, ask: Ask, terms: Terms) -> None:
    """A completion ends where ours would."""
    ended = token_ids[-1] in terms.end_ids
    if any(i in terms.end_ids for i in token_ids[:-1]) or len(token_ids) > ask.most_new_tokens:
        raise ServerFault("wrong", "a completion goes on behind its end")
    if reason == "stop" and not ended and stopped_by not in terms.params.stop:
        raise ServerFault("wrong", "a completion stops without an end")
    if reason == "length" and (ended or len(token_ids) != ask.most_new_tokens):
        raise ServerFault("wrong", f"a completion is cut after {len(token_ids)} tokens of {ask.most_new_tokens}")
    if reason not in ("stop", "length"):
        raise ServerFault("wrong", f"a completion ended by {reason[:40]!r}")
