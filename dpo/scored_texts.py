"""One row to its texts and their scores, or to what is wrong with it.

Knows nothing about tokens, nor about other rows.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from dpo.formats import BadRow, Format
from dpo.transcripts import conversations_with_prompt, has_further_turns, split_messages, split_transcripts
from groupwise.data.rows import Row
from groupwise.data.text import Message, Refused, Text, TextGroup


@dataclass(frozen=True, slots=True)
class ScoredTexts:
    """One row: a prompt, its completions, and a score for each."""

    texts: TextGroup
    scores: tuple[float, ...]
    has_further_turns: bool = False

    @property
    def repeats_prompt(self) -> bool:
        """Whether every completion begins with the text of the prompt."""
        prompt = self.texts.prompt
        return isinstance(prompt, str) and all(
            isinstance(text, str) and text.startswith(prompt) for text in self.texts.completions
        )


def parsed_or_refused(row: Row, kind: Format, columns: Mapping[str, str | list[str]]) -> ScoredTexts | Refused:
    """What a row of this format says, or what keeps it from saying anything."""
    try:
        if kind == "labelled":
            return _labelled(row, columns)
        return _ranked(row, columns) if kind == "ranked" else _pair(row, kind, columns)
    except BadRow as bad:
        return Refused(f"{row.key}: {bad}")


def _ranked(row: Row, columns: Mapping[str, str | list[str]]) -> ScoredTexts:
    prompt = _text(row, "prompt", columns)
    responses, scores = _values(row, "responses", columns), _values(row, "scores", columns)
    if len(responses) != len(scores):
        raise BadRow(f"has {len(responses)} responses and {len(scores)} scores; each response needs its score")
    if len(responses) < 2:
        raise BadRow(f"has {len(responses)} response(s); an order needs at least two")
    texts = tuple(_filled(name, value) for name, value in responses)
    return ScoredTexts(
        TextGroup(key=row.key, prompt=prompt, completions=texts), tuple(_number(name, value) for name, value in scores)
    )


def _labelled(row: Row, columns: Mapping[str, str | list[str]]) -> ScoredTexts:
    prompt, completion = _text(row, "prompt", columns), _filled("completion", _text(row, "completion", columns))
    path = columns.get("label", "label")
    assert isinstance(path, str), "checked with the mapping"
    value = _value(row, path)
    try:
        score = _number(path, value)
    except BadRow:
        score = math.nan
    if score not in (0.0, 1.0):
        raise BadRow(f"{path} must be true or false, got {_shown(value)}")
    return ScoredTexts(TextGroup(key=row.key, prompt=prompt, completions=(completion,)), (score,))


def _pair(row: Row, kind: Format, columns: Mapping[str, str | list[str]]) -> ScoredTexts:
    chosen, rejected = _text(row, "chosen", columns), _text(row, "rejected", columns)
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise BadRow("chosen and rejected must both be texts or both chat messages")
    further = False
    if kind == "transcripts":
        if isinstance(chosen, str) and isinstance(rejected, str):
            prompt, chosen, rejected = split_transcripts(chosen, rejected)
            further = has_further_turns(chosen, rejected)
        else:
            prompt, chosen, rejected = split_messages(_messages(chosen), _messages(rejected))
    else:
        prompt = _text(row, "prompt", columns)
        if isinstance(prompt, str) and not isinstance(chosen, str) and len(chosen) > 1:
            prompt, chosen, rejected = conversations_with_prompt(prompt, chosen, _messages(rejected))
    completions = (_filled("chosen", chosen), _filled("rejected", rejected))
    return ScoredTexts(TextGroup(key=row.key, prompt=prompt, completions=completions), (1.0, 0.0), further)


def _value(row: Row, path: str) -> object:
    try:
        return row.at(path)
    except LookupError:
        raise BadRow(f"{path} is missing; add it") from None


def _values(row: Row, name: str, columns: Mapping[str, str | list[str]]) -> list[tuple[str, object]]:
    """The list at `responses` or `scores`, each element with its name for an error."""
    path = columns.get(name, name)
    if not isinstance(path, str):
        return [(part, _value(row, part)) for part in path]
    value = _value(row, path)
    if not isinstance(value, list):
        raise BadRow(f"{path} must be a list, got {_shown(value)}")
    return [(f"{path}.{index}", item) for index, item in enumerate(cast(list[object], value))]


def _text(row: Row, name: str, columns: Mapping[str, str | list[str]]) -> Text:
    path = columns.get(name, name)
    assert isinstance(path, str), "checked with the mapping"
    value = _value(row, path)
    if isinstance(value, list):
        return _messages(cast(list[object], value), path)
    if not isinstance(value, str):
        raise BadRow(f"{path} must be a text or a list of chat messages, got {_shown(value)}")
    if not value:
        raise BadRow(f"{path} is empty; fill it or remove the row")
    return value


def _messages(value: object, path: str = "chosen and rejected") -> list[Message]:
    items = cast(list[object], value) if isinstance(value, list) else []
    if not items or not all(isinstance(item, dict) for item in items):
        raise BadRow(f'{path} must be a list of chat messages {{"role": ..., "content": ...}}, got {_shown(value)}')
    messages = cast(list[Message], items)
    for number, message in enumerate(messages, start=1):
        if not isinstance(message.get("role"), str) or not isinstance(message.get("content"), str):
            raise BadRow(f'message {number} of {path} must be {{"role": text, "content": text}}, got {_shown(message)}')
    return messages


def _filled(name: str, value: object) -> Text:
    """A completion that says something; a blank one would teach the model to fall silent."""
    if isinstance(value, str):
        if not value.strip():
            raise BadRow(f"the completion {name} is {'blank' if value else 'empty'}; fill it or remove the row")
        return value
    if not isinstance(value, list):
        raise BadRow(f"{name} must be a text or a list of chat messages, got {_shown(value)}")
    messages = _messages(cast(list[object], value), name)
    if not any(str(message["content"]).strip() for message in messages):
        raise BadRow(f"the completion {name} is empty; fill it or remove the row")
    return messages


def _number(name: str, value: object) -> float:
    """A finite score; true and false are 1 and 0. A text that is one of these counts too, since CSV has only texts."""
    number: float | None = None
    if isinstance(value, bool | int | float):
        try:
            number = float(value)
        except OverflowError:  # an integer of hundreds of digits
            number = math.inf
    elif isinstance(value, str):
        number = _number_in(value.strip().lower())
    if number is None:
        raise BadRow(f"{name} must be a number or true or false, got {_shown(value)}")
    if not math.isfinite(number):
        raise BadRow(f"{name} must be a finite number, got {_shown(value)}")
    return number


def _number_in(text: str) -> float | None:
    if text in ("true", "false"):
        return float(text == "true")
    try:
        return float(text)
    except ValueError:
        return None


def _shown(value: object) -> str:
    text = "nothing (null)" if value is None else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
