"""Rows that say nothing usable: every one is told of, all at once."""

import math
from pathlib import Path

import pytest

from groupwise.errors import UserError
from tests.dpo.preference_rows import load, pair, ranked

BAD_ROWS: list[tuple[object, str]] = [
    ({"prompt": "p", "chosen": " a"}, "rejected is missing"),
    (pair(None), "prompt must be a text or a list of chat messages, got nothing (null)"),
    (pair(""), "prompt is empty"),
    (pair(3), "prompt must be a text or a list of chat messages, got 3"),
    (pair(chosen=None), "chosen must be a text or a list of chat messages, got nothing (null)"),
    (pair(rejected=""), "rejected is empty"),
    (pair(rejected=" \n"), "the completion rejected is blank"),
    (pair(rejected=[]), "rejected must be a list of chat messages"),
    (pair(rejected=[{"role": "assistant", "content": "b"}]), "chosen and rejected must both be texts"),
    (pair(rejected=" x<eos>y"), "a completion contains '<eos>' before its end"),
    (pair("a<eos>"), "the prompt contains '<eos>'"),
]
BAD_RANKED: list[tuple[object, str]] = [
    (ranked([1, 2]), "has 3 responses and 2 scores"),
    (ranked([1], [" a"]), "has 1 response(s); an order needs at least two"),
    (ranked([]), "has 3 responses and 0 scores"),
    (ranked(1.0), "scores must be a list, got 1.0"),
    (ranked([1, 2, 3], "abc"), "responses must be a list, got 'abc'"),
    (ranked([1, None, 3]), "scores.1 must be a number or true or false, got nothing (null)"),
    (ranked([1, "high", 3]), "scores.1 must be a number or true or false, got 'high'"),
    (ranked([1, math.nan, 3]), "scores.1 must be a finite number, got nan"),
    (ranked([1, 2, -math.inf]), "scores.2 must be a finite number, got -inf"),
    (ranked([1, 2, 10**400]), "scores.2 must be a finite number, got 1000"),
    (ranked([1, 2, 3], [" a", None, " c"]), "responses.1 must be a text or a list of chat messages"),
    (ranked([1, 2, 3], [" a", " b", ""]), "the completion responses.2 is empty"),
]


@pytest.mark.parametrize(("bad", "good"), [(BAD_ROWS, pair()), (BAD_RANKED, ranked([1, 2, 3]))])
def test_all_bad_rows_are_told_at_once_or_counted(bad: list[tuple[object, str]], good: object, tmp_path: Path) -> None:
    rows = [good, *(row for row, _ in bad)]
    with pytest.raises(UserError) as raised:
        load(tmp_path, rows)
    told = str(raised.value)
    assert told.startswith(f"{len(bad)} rows are unusable")
    for number, (_, said) in enumerate(bad, start=2):
        assert f"x.jsonl:{number}: {said}" in told
    groups, report = load(tmp_path, rows, bad_rows="drop")
    assert len(groups) == 1 and report.dropped == {"bad row": len(bad)}
    lines = report.lines()
    assert f"{len(bad)} rows dropped, bad row" in lines and f"  ... and {len(bad) - 3} more" in lines
