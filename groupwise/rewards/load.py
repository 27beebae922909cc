"""Scores of texts by name: built in, or a function in the user's own file. Knows nothing about training."""

import math
from collections.abc import Callable
from typing import cast

from groupwise.errors import UserError, nearest
from groupwise.rewards.review_sentiment import review_sentiment
from groupwise.rewards.user_file import function_of, run_file, split_name

Score = Callable[[str], float]
BUILT_IN: dict[str, Score] = {"review_sentiment": review_sentiment}


def load_score(name: str, *, key: str) -> Score:
    """The scoring function called `name`; `key` is the configuration key that error messages quote.

    `name` is built in, or `path/to/file.py:function`, whose function takes the whole text (prompt and completion) and
    returns a finite number. That file is run as code. Raises UserError when there is no such function, and later,
    quoting the text, when it returns something else than a finite number.

    >>> load_score("review_sentiment", key="eval.score")("A wonderful film.") > 0
    True
    """
    if name in BUILT_IN:
        return BUILT_IN[name]
    parts = split_name(name)
    if parts is None:
        guess = nearest(name, BUILT_IN)
        hint = f"; did you mean {guess}?" if guess else ""
        raise UserError(f"{key}: there is no built-in score {name!r}{hint} Or give path/to/file.py:function")
    path, attribute = parts
    return _checked(cast(Score, function_of(run_file(path, key=key), path, attribute, key=key)), name, key)


def _checked(function: Score, name: str, key: str) -> Score:
    def score(text: str) -> float:
        try:
            value = float(function(text))
        except Exception as error:
            raise UserError(
                f"{key}: {name} raised {type(error).__name__}: {error} on the text {text[:200]!r}"
            ) from error
        if not math.isfinite(value):
            raise UserError(f"{key}: {name} returned {value} on the text {text[:200]!r}; return a finite number")
        return value

    return score
