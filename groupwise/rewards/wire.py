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
from groupwise.rewards.protocol import Answer, prompt_text

FaultKind = Literal["raised", "timed out", "died", "not finite", "wrong count", "not a number"]


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


def scores_of(result: object, count: int) -> list[float | None | Bad] | Bad:
    """What a reward returned, as one score, None or Bad for each of `count` completions; Bad when they do not match.

    True and False are 1 and 0; whatever `float()` takes is a number, but text is none: "1" is no score.

    >>> scores_of([1, None, True, float("nan"), "1"], 5)
    [1.0, None, 1.0, Bad(kind='not finite', message='returned nan'), Bad(kind='not a number', message="returned '1'")]
    >>> scores_of([1.0], 2)
    Bad(kind='wrong count', message='returned 1 score for 2 completions')
    """
    # The keys of a mapping, or a set in whatever order, would be scores by accident.
    if isinstance(result, str | bytes | bytearray | Mapping | Set) or not isinstance(result, Iterable):
        return Bad("wrong count", f"returned {shown(cast(object, result))}, not a list of {count} scores")
    values = list(itertools.islice(cast(Iterable[object], result), count + 1))
    if len(values) > count:
        return Bad("wrong count", f"returned more than {count} {_scores(count)}")
    if len(values) < count:
        return Bad("wrong count", f"returned {len(values)} {_scores(len(values))} for {count} completions")
    return [_score(value) for value in values]


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


def scores_to_plain(scores: Iterable[float | None | Bad]) -> list[Any]:
    """Scores as JSON can hold them: a number, null, or [kind, message]."""
    return [[score.kind, score.message] if isinstance(score, Bad) else score for score in scores]


def scores_from_plain(plain: Iterable[Any]) -> list[float | None | Bad]:
    """The inverse of `scores_to_plain`."""
    return [Bad(*score) if isinstance(score, list) else score for score in plain]  # pyright: ignore
