"""A group as a request, and the server's reply as completions: every part of it is checked before it is believed.

Knows nothing about HTTP, and not whether the log-probs are right.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from groupwise.groups import Completion
from groupwise.model.drawing import SamplingParams
from groupwise.servers.replies import (
    ServerFault,
    check_model,
    read_list,
    read_object,
    read_token_logprobs,
    read_wholes,
)

_ABOVE_ZERO = 1e-3  # nats by which a log-prob may lie above 0: what rounding of a probability near 1 gives


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One prompt that wants `n` answers of at most `most_new_tokens` tokens, drawn with a seed of its own."""

    prompt_ids: tuple[int, ...]
    n: int
    seed: int
    most_new_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerRules:
    """What all answers of a rollout keep to: how tokens are drawn, what ends a completion, the number of ids."""

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


def as_request(ask: Ask, rules: AnswerRules, version: str) -> dict[str, Any]:
    """The request's JSON. Every setting is named: what is not would come from the model's generation_config.json."""
    params = rules.params
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
        "stop_token_ids": sorted(rules.end_ids),
        "ignore_eos": True,  # the ids above are all that end a text
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "skip_special_tokens": False,
        "logprobs": 0,
        "return_token_ids": True,
        "stream": False,
    }


def read_completions(reply: Mapping[str, Any], ask: Ask, rules: AnswerRules, version: str) -> list[Completion]:
    """The completions of a group with `drawn_logp`, in order, score 0. Raises ServerFault for anything else.

    A completion is finished when it ends with an end id or a stop text; one that was cut has all tokens it may have.
    """
    check_model(reply, version)
    choices = read_list(reply.get("choices"), "choices")
    if len(choices) != ask.n:
        raise ServerFault("garbled", f"{len(choices)} completions where {ask.n} were asked")
    known = [read_object(choice, "a completion") for choice in choices]
    indices = read_wholes([choice.get("index") for choice in known], "the list of indices", below=ask.n)
    if len(set(indices)) < ask.n:
        raise ServerFault("garbled", "two completions with one index")
    found = {index: _read_completion(choice, ask, rules) for index, choice in zip(indices, known, strict=True)}
    return [found[index] for index in range(ask.n)]


def _read_completion(choice: Mapping[str, Any], ask: Ask, rules: AnswerRules) -> Completion:
    prompt = choice.get("prompt_token_ids")  # not every server repeats it
    if prompt is not None and prompt != list(ask.prompt_ids):
        raise ServerFault("wrong", "an answer to another prompt")
    token_ids = read_wholes(choice.get("token_ids"), "token_ids", below=rules.vocabulary)
    logp_T = torch.tensor(read_token_logprobs(choice), dtype=torch.float32)
    if not token_ids or len(logp_T) != len(token_ids):
        raise ServerFault("garbled", f"{len(logp_T)} log-probs of a completion of {len(token_ids)} tokens")
    if not (logp_T.isfinite() & (logp_T <= _ABOVE_ZERO)).all():
        raise ServerFault("garbled", "a log-prob that no probability has")
    finished = _ends_by_itself(choice, token_ids, ask, rules)
    return Completion(token_ids=tuple(token_ids), finished=finished, score=0.0, drawn_logp=logp_T.clamp(max=0.0))


def _ends_by_itself(choice: Mapping[str, Any], token_ids: Sequence[int], ask: Ask, rules: AnswerRules) -> bool:
    """Whether a completion was not cut. Raises ServerFault where it does not end as one of the built-in sampler."""
    reason = choice.get("finish_reason")
    ended = token_ids[-1] in rules.end_ids
    if any(i in rules.end_ids for i in token_ids[:-1]) or len(token_ids) > ask.most_new_tokens:
        raise ServerFault("wrong", "a completion goes on behind its end")
    if reason == "stop":
        if not ended and choice.get("stop_reason") not in rules.params.stop:
            raise ServerFault("wrong", "a completion stops without an end")
        return True
    if reason != "length":
        raise ServerFault("wrong", "a completion that has neither stopped nor reached its length")
    if ended or len(token_ids) != ask.most_new_tokens:
        raise ServerFault("wrong", f"a completion is cut after {len(token_ids)} tokens of {ask.most_new_tokens}")
    return False
