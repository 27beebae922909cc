"""How rows, completions and scores cross the pipe to a worker: as JSON. Knows nothing about processes or policies."""

import datetime
import decimal
import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, Literal, cast

from groupwise.errors import UserError
from groupwise.rewards.protocol import Answer, Steps, prompt_text

FaultKind = Literal["raised", "timed out", "died", "not finite", "wrong count", "not a number", "not a step"]


@dataclass(frozen=True, slots=True)
class Bad:
    """What stands in the place of a score that a reward failed to give."""

    kind: FaultKind
    message: str


def row_to_plain(row: Mapping[str, object]) -> dict[str, Any]:
    """A row of data as JSON can hold it.

    Dates and times become ISO 8601 text, decimals text, tuples and arrays lists, numpy numbers numbers. Raises
    UserError naming the column for anything else, such as bytes.

    >>> row_to_plain({"prompt": "2+2=", "when": datetime.date(2024, 2, 29)})
    {'prompt': '2+2=', 'when': '2024-02-29'}
    """
    plain: dict[str, Any] = {}
    for column, value in row.items():
        try:
            plain[column] = _plain(value)
            json.dumps(plain[column])  # a whole number of more than 4,300 digits cannot be written
        except (TypeError, ValueError) as error:
            raise UserError(
                f"column {column!r} of the row with prompt {prompt_text(row)[:100]!r} cannot be handed to a reward: "
                f"{error}; drop or convert the column"
            ) from None
    return plain


def _plain(value: object) -> Any:
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal):
        return str(value)
    if isinstance(value, Mapping):
        pairs = cast(Mapping[object, object], value).items()
        if not all(isinstance(name, str) for name, _ in pairs):
            raise TypeError("a mapping whose keys are not all text")
        return {cast(str, name): _plain(inner) for name, inner in pairs}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in cast(Sequence[object], value)]
    if hasattr(value, "tolist"):
        return _plain(cast(Any, value).tolist())
    raise TypeError(f"it holds {type(value).__name__}")


def answers_to_plain(answers: Iterable[Answer]) -> list[list[Any]]:
    """Completions as JSON can hold them."""
    return [[answer.text, answer.token_ids, answer.finished, answer.group] for answer in answers]


def answers_from_plain(plain: Iterable[Sequence[Any]]) -> list[Answer]:
    """The inverse of `answers_to_plain`."""
    return [
        Answer(text=text, token_ids=tuple(token_ids), finished=finished, group=group)
        for text, token_ids, finished, group in plain
    ]


Given = float | Steps | None | Bad
"""What a reward gave for one completion: a score, or the rewards of its steps; None: no opinion."""


def scores_of(result: object, count: int) -> list[float | None | Bad] | Bad:
    """What a reward returned, as one score, None or Bad for each of `count` completions; Bad when they do not match.

    True and False are 1 and 0; whatever `float()` takes is a number, but text is none: "1" is no score.

    >>> scores_of([1, None, True, float("nan"), "1"], 5)
    [1.0, None, 1.0, Bad(kind='not finite', message='returned nan'), Bad(kind='not a number', message="returned '1'")]
    >>> scores_of([1.0], 2)
    Bad(kind='wrong count', message='returned 1 score for 2 completions')
    """
    values = _values(result, count)
    return values if isinstance(values, Bad) else [_score(value) for value in values]


def steps_of(result: object, texts: Sequence[str]) -> list[Steps | None | Bad] | Bad:
    """What a process reward returned, as the steps of each completion, None or Bad; Bad when they do not match.

    >>> steps_of([[(3, 1), (5, 0.5)], [], None], ["a=b\\nc", "x", "y"])
    [((3, 1.0), (5, 0.5)), None, None]
    >>> steps_of([[(9, 1.0)], 0.5], ["a", "b"])  # doctest: +NORMALIZE_WHITESPACE
    [Bad(kind='not a step',
         message='returned a step that ends at 9; ends rise from 1 to 1, the characters of the text'),
     Bad(kind='not a step', message='returned 0.5, not a list of (end, value) pairs')]
    """
    values = _values(result, len(texts))
    return values if isinstance(values, Bad) else [_steps(v, text) for v, text in zip(values, texts, strict=True)]


def _values(result: object, count: int) -> list[object] | Bad:
    """One value for each completion."""
    # The keys of a mapping, or a set in whatever order, would be scores by accident.
    if isinstance(result, str | bytes | bytearray | Mapping | Set) or not isinstance(result, Iterable):
        return Bad("wrong count", f"returned {shown(cast(object, result))}, not a list of {count} scores")
    values = list(itertools.islice(cast(Iterable[object], result), count + 1))
    if len(values) > count:
        return Bad("wrong count", f"returned more than {count} {_scores(count)}")
    if len(values) < count:
        return Bad("wrong count", f"returned {len(values)} {_scores(len(values))} for {count} completions")
    return values


def _steps(value: object, text: str) -> Steps | None | Bad:
    if value is None:
        return None
    if isinstance(value, str | bytes | bytearray | Mapping | Set) or not isinstance(value, Sequence):
        return Bad("not a step", f"returned {shown(cast(object, value))}, not a list of (end, value) pairs")
    steps: list[tuple[int, float]] = []
    for pair in cast(Sequence[object], value):
        if not isinstance(pair, list | tuple) or len(cast(Sequence[object], pair)) != 2:
            return Bad("not a step", f"returned the step {shown(cast(object, pair))}, not (end, value)")
        end, reward = cast(Sequence[object], pair)
        if isinstance(end, bool) or not isinstance(end, int):
            return Bad("not a step", f"returned a step that ends at {shown(end)}, not at a whole number")
        least = steps[-1][0] + 1 if steps else min(1, len(text))
        if not least <= end <= len(text):
            return Bad(
                "not a step",
                f"returned a step that ends at {shown(end)}; ends rise from {least} to {len(text)}, the characters of "
                "the text",
            )
        score = _score(reward)
        if score is None:
            return Bad("not a number", "returned a step without a value")
        if isinstance(score, Bad):
            return score
        steps.append((end, score))
    return tuple(steps) or None


def _scores(count: int) -> str:
    return "score" if count == 1 else "scores"


def _score(value: object) -> float | None | Bad:
    if value is None:
        return None
    if isinstance(value, str | bytes | bytearray):
        return Bad("not a number", f"returned {shown(value)}")
    try:
        number = float(cast(Any, value))
    except OverflowError:
        return Bad("not finite", "returned a whole number beyond the range of a float")
    except Exception:
        return Bad("not a number", f"returned {shown(value)}")
    return number if math.isfinite(number) else Bad("not finite", f"returned {number}")


def shown(value: object, most: int = 200) -> str:
    """A value as a message quotes it; never raises.

    >>> shown(10 ** 5000)
    'a value of type int'
    """
    try:
        text = repr(value)
    except Exception:
        return f"a value of type {type(value).__name__}"
    return text if len(text) <= most else text[:most] + "..."


def scores_to_plain(scores: Iterable[Given]) -> list[Any]:
    """Scores as JSON can hold them: a number, null, [kind, message], or the steps by name."""
    return [
        [score.kind, score.message]
        if isinstance(score, Bad)
        else {"steps": score}
        if isinstance(score, tuple)
        else score
        for score in scores
    ]


def scores_from_plain(plain: Iterable[Any]) -> list[Given]:
    """The inverse of `scores_to_plain`.

    >>> given = [1.0, None, Bad("raised", "no"), ((3, 1.0),)]
    >>> scores_from_plain(json.loads(json.dumps(scores_to_plain(given)))) == given
    True
    """
    return [_from_plain(score) for score in plain]


def _from_plain(score: Any) -> Given:
    if isinstance(score, list):
        return Bad(*score)  # pyright: ignore[reportUnknownArgumentType]
    return tuple((end, value) for end, value in score["steps"]) if isinstance(score, dict) else score
