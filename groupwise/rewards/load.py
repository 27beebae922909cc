"""Scores of texts by name: built in, or a function in the user's own file. Knows nothing about training."""

import importlib.util
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import cast

from groupwise.errors import UserError, nearest
from groupwise.rewards.review_sentiment import review_sentiment

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
    path, separator, attribute = name.rpartition(":")
    if not separator:
        guess = nearest(name, BUILT_IN)
        hint = f"; did you mean {guess}?" if guess else ""
        raise UserError(f"{key}: there is no built-in score {name!r}{hint} Or give path/to/file.py:function")
    return _checked(_function_in(Path(path), attribute, key), name, key)


def _function_in(path: Path, attribute: str, key: str) -> Score:
    if not path.is_file():
        raise UserError(f"{key}: there is no file {str(path)!r}")
    spec = importlib.util.spec_from_file_location(f"score_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"{key}: {path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(f"{key}: {path} cannot be run: {type(error).__name__}: {error}") from error
    function = getattr(module, attribute, None)
    if not callable(function):
        guess = nearest(attribute, [n for n in vars(module) if callable(getattr(module, n)) and not n.startswith("_")])
        hint = f"; did you mean {guess}?" if guess else ""
        raise UserError(f"{key}: {path} has no function {attribute!r}{hint}")
    return cast(Score, function)


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
