"""What crosses the pipe arrives as it was sent, and what a reward returns is taken for no more than it is."""

import datetime
import decimal

import numpy as np
import pytest

from groupwise.errors import UserError
from groupwise.rewards.protocol import Answer
from groupwise.rewards.wire import Bad, answers_from_plain, answers_to_plain, row_to_plain, scores_of


class Unspeakable:
    def __repr__(self) -> str:
        raise RuntimeError("no")

    def __float__(self) -> float:
        raise RuntimeError("no")


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (datetime.datetime(2024, 2, 29, 12, 30, tzinfo=datetime.UTC), "2024-02-29T12:30:00+00:00"),
        (datetime.time(8, 5), "08:05:00"),
        (decimal.Decimal("0.10"), "0.10"),
        (np.float64(0.5), 0.5),
        (np.arange(3), [0, 1, 2]),
        ((1, (2, None)), [1, [2, None]]),
        ({"a": {"b": (True,)}}, {"a": {"b": [True]}}),
    ],
)
def test_columns_become_plain_by_rule(value: object, plain: object) -> None:
    assert row_to_plain({"column": value}) == {"column": plain}


@pytest.mark.parametrize("value", [b"x", {1: "x"}, [b"x"], object(), [10**5000], {1, 2}], ids=type)
def test_what_json_cannot_hold_is_refused_by_column(value: object) -> None:
    with pytest.raises(UserError, match="column 'odd' of the row with prompt 'why'"):
        row_to_plain({"prompt": "why", "odd": value})


def test_answers_make_the_round_trip() -> None:
    answers = [Answer(text="a\n\u2028", token_ids=(1, 2), finished=False, group=3)]
    assert answers_from_plain(answers_to_plain(answers)) == answers


@pytest.mark.parametrize(
    ("value", "score"),
    [
        (np.float32(0.25), 0.25),
        (np.bool_(True), 1.0),
        (np.array(3), 3.0),
        (decimal.Decimal("0.5"), 0.5),
        (decimal.Decimal("1e400"), Bad("not finite", "returned inf")),
        (10**400, Bad("not finite", "returned a whole number beyond the range of a float")),
        (float("-inf"), Bad("not finite", "returned -inf")),
        (1j, Bad("not a number", "returned 1j")),
        ("0.5", Bad("not a number", "returned '0.5'")),
        (Unspeakable(), Bad("not a number", "returned a value of type Unspeakable")),
    ],
)
def test_one_score(value: object, score: object) -> None:
    assert scores_of([value], 1) == [score]


@pytest.mark.parametrize("result", ["1", b"1", {0: 1.0}, {1.0}, 1.0, None, [], [1.0, 1.0], np.zeros(0)])
def test_what_is_no_list_of_one_score(result: object) -> None:
    found = scores_of(result, 1)
    assert isinstance(found, Bad) and found.kind == "wrong count"


@pytest.mark.parametrize("result", [(1.0, 2.0), iter([1.0, 2.0]), np.array([1.0, 2.0])])
def test_any_sequence_of_scores_will_do(result: object) -> None:
    assert scores_of(result, 2) == [1.0, 2.0]
