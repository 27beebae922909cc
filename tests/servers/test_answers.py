"""Whatever a server sends: the completions that were asked for, or a ServerFault."""

import copy
import json
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from groupwise.groups import Completion
from groupwise.model.drawing import SamplingParams
from groupwise.servers.answers import AnswerRules, Ask, read_completions
from groupwise.servers.replies import (
    ServerFault,
    check_model,
    read_drawn_logprobs,
    read_json,
    read_models,
    read_object,
    read_prompt_logprobs,
)

ASK = Ask(prompt_ids=(5, 6, 7), n=3, seed=1, most_new_tokens=4)
RULES = AnswerRules(params=SamplingParams(stop=("so",)), end_ids=frozenset([0]), vocabulary=50)
TEXT_IDS = [3, 4, 5]
ANSWER = {
    "model": "v",
    "choices": [
        {"index": 2, "token_ids": [8, 9, 10, 11], "logprobs": {"token_logprobs": [-1.0, -2.0, -0.5, 0]},
         "finish_reason": "length", "stop_reason": None, "prompt_token_ids": [5, 6, 7]},
        {"index": 0, "token_ids": [8, 0], "logprobs": {"token_logprobs": [-3.0, -0.25]},
         "finish_reason": "stop", "stop_reason": 0, "prompt_token_ids": [5, 6, 7]},
        {"index": 1, "token_ids": [12], "logprobs": {"token_logprobs": [-1.5]},
         "finish_reason": "stop", "stop_reason": "so", "prompt_token_ids": None},
    ],
}  # fmt: skip
OF_A_TEXT = {"model": "v", "choices": [{"prompt_logprobs": [None, {"4": {"logprob": -1.5}}, {"5": {"logprob": -2}}]}]}
MODELS = {"data": [{"id": "base", "parent": None, "max_model_len": 128}, {"id": "v", "parent": "base"}]}


def deep() -> object:
    nested: object = 1
    for _ in range(900):
        nested = [nested]
    return nested


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 60),
    st.sampled_from([10**400, -(10**400), 2**63, math.inf, -math.inf, math.nan, 1e300, -1e300, 0.7, 1.0, -1e-300]),
    st.sampled_from(["", "1", "v", "stop", "length", "so", "\ud800", "\x1b[2J", "x" * 500]),
)
VALUES = st.one_of(SCALARS, st.lists(SCALARS, max_size=3), st.dictionaries(st.text(max_size=3), SCALARS, max_size=2))


def places(value: object, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every part of a JSON value."""
    yield path
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()  # pyright: ignore
    for key, part in parts:  # pyright: ignore
        yield from places(part, (*path, key))  # pyright: ignore


@st.composite
def mutated(draw: st.DrawFn, right: object) -> Any:
    """A right reply in which up to three parts are replaced, removed, or there twice; as it comes over the wire."""
    reply: Any = copy.deepcopy(right)
    for _ in range(draw(st.integers(1, 3))):
        way = draw(st.sampled_from(list(places(reply))))
        if not way:
            reply = draw(VALUES)
            continue
        holder = reply
        for key in way[:-1]:
            holder = holder[key]
        deed = draw(st.sampled_from(["replace", "replace", "remove", "again"]))
        if deed == "remove":
            del holder[way[-1]]
        elif deed == "again" and isinstance(holder, list):
            holder.insert(draw(st.integers(0, len(holder))), copy.deepcopy(holder[way[-1]]))  # pyright: ignore
        else:
            holder[way[-1]] = draw(VALUES)
    return read_json(json.dumps(reply).encode())


def read(reply: object) -> list[Completion]:
    return read_completions(read_object(reply, "an answer"), ASK, RULES, "v")


def test_a_right_answer_is_read_in_the_order_of_its_indices() -> None:
    first, second, third = read(ANSWER)
    assert [one.token_ids for one in (first, second, third)] == [(8, 0), (12,), (8, 9, 10, 11)]
    assert [one.finished for one in (first, second, third)] == [True, True, False]
    assert first.drawn_logp is not None and first.drawn_logp.tolist() == [-3.0, -0.25]


@given(mutated(ANSWER))
def test_a_mutated_answer_is_what_it_says_or_a_fault(reply: Any) -> None:
    """No other exception, which would end the run; and nothing is taken for what it is not, such as 0.7 for 0."""
    try:
        found = read(reply)
    except ServerFault:
        return
    assert reply["model"] == "v" and len(reply["choices"]) == len(found) == 3
    by_index = {choice["index"]: choice for choice in reply["choices"]}
    assert sorted(by_index) == [0, 1, 2] and all(type(index) is int for index in by_index)
    for i, one in enumerate(found):
        choice = by_index[i]
        ids, logp = choice["token_ids"], choice["logprobs"]["token_logprobs"]
        assert one.token_ids == tuple(ids) and 1 <= len(ids) <= 4 and all(type(i) is int for i in ids)
        assert all(0 <= i < 50 for i in ids) and 0 not in ids[:-1]
        assert len(logp) == len(ids) and all(type(value) in (int, float) for value in logp)
        assert one.drawn_logp is not None and one.drawn_logp.isfinite().all() and (one.drawn_logp <= 0).all()
        assert torch.allclose(one.drawn_logp, torch.tensor(logp, dtype=torch.float64).float(), atol=1e-3)
        assert choice.get("prompt_token_ids") in (None, [5, 6, 7])
        assert one.finished == (choice["finish_reason"] == "stop")
        assert one.finished or (choice["finish_reason"] == "length" and len(ids) == 4 and ids[-1] != 0)
        assert not one.finished or ids[-1] == 0 or choice["stop_reason"] == "so"


@given(mutated(OF_A_TEXT))
def test_mutated_log_probs_of_a_text_are_what_they_say_or_a_fault(reply: Any) -> None:
    try:
        answer = read_object(reply, "an answer")
        check_model(answer, "v")
        found = read_prompt_logprobs(answer, TEXT_IDS)
    except ServerFault:
        return
    _, *entries = reply["choices"][0]["prompt_logprobs"]
    said = [entry[str(i)]["logprob"] for i, entry in zip(TEXT_IDS[1:], entries, strict=True)]
    assert found == said and all(type(value) in (int, float) and math.isfinite(value) for value in said)


@given(mutated(MODELS))
def test_a_mutated_list_of_models_is_what_it_says_or_a_fault(reply: Any) -> None:
    try:
        found = read_models(reply)
    except ServerFault:
        return
    assert {entry["id"] for entry in reply["data"]} == set(found)
    for name, entry in found.items():
        assert entry in reply["data"] and entry["id"] == name == name.encode().decode()
        most = entry.get("max_model_len")
        assert most is None or (type(most) is int and most >= 0)


@pytest.mark.parametrize(
    "entry",
    [
        {}, {"id": None}, {"id": 5}, {"id": ["v"]}, {"id": "groupwise-run-\ud800"}, deep(),
        *({"id": "v", "max_model_len": most} for most in (True, "128", 128.0, -1, math.nan, math.inf, 10**400, deep())),
    ],
    ids=lambda _: "",
)  # fmt: skip
def test_a_model_that_cannot_be_asked_by_its_name_is_a_fault(entry: object) -> None:
    """Half a character in a name could not be sent back, which ended the run; `true` was a length of one token."""
    with pytest.raises(ServerFault):
        read_models(read_json(json.dumps({"data": [{"id": "base"}, entry]}).encode()))


def with_first(part: str, value: object) -> object:
    """The right answer with another value in its first completion."""
    first, *rest = ANSWER["choices"]
    return {**ANSWER, "choices": [{**first, part: value}, *rest]}  # pyright: ignore


WRONG = {
    "index": [math.inf, 1.7, "2", True, 10**400, -1],
    "prompt_token_ids": [5, "567", [5, 6], deep()],
    "token_ids": ["abcd", {}, [8, 9, 10, 1.0], [True] * 4],
    "finish_reason": [None, [], "abort", "stop", deep()],
    "logprobs": [
        None, [], 7, {"token_logprobs": {}}, {"token_logprobs": "1234"},
        *({"token_logprobs": [-1.0, value, -0.5, 0]}
          for value in (10**400, math.nan, -math.inf, -1e300, "-1", None, True, [-1.0], deep())),
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    "reply",
    [
        *(with_first(part, value) for part, values in WRONG.items() for value in values),
        {**ANSWER, "choices": {}},
        {**ANSWER, "choices": [deep()] * 3},
        {**ANSWER, "choices": ANSWER["choices"][:1] * 3},
        {**ANSWER, "model": deep()},
        {**ANSWER, "model": None},
        deep(),
        None,
    ],
    ids=lambda _: "",
)
def test_what_once_was_believed_or_ended_a_run_is_a_fault(reply: object) -> None:
    """1.7 was index 1 and "-1" a log-prob; infinity, 10**400 and a number for a list of ids ended the run."""
    with pytest.raises(ServerFault):
        read(reply)


@pytest.mark.parametrize(
    "text", [b"", b"{", b"\xff\xfe", b"[" * 10**5, b'{"a":' * 10**5, b"1" * 5000], ids=lambda _: ""
)
def test_what_is_no_json_is_a_fault(text: bytes) -> None:
    """Deep nesting raises RecursionError, a number of thousands of digits ValueError."""
    with pytest.raises(ServerFault, match="no JSON"):
        read_json(text)


@pytest.mark.parametrize("part", [deep(), None, [], {}, {"logprobs": {}}, {"logprobs": {"token_logprobs": ["0"]}}])
def test_drawn_log_probs_that_are_none_are_a_fault(part: object) -> None:
    with pytest.raises(ServerFault):
        read_drawn_logprobs({"choices": [part]})
