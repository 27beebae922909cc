"""Rows to groups: every row is used, counted or complained about."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpo.dataset_utils import load_preference_groups
from groupwise.data.rows import read_rows
from groupwise.data.text import TooLong
from groupwise.errors import UserError
from groupwise.groups import overlapping_prompts
from tests.dpo.preference_rows import encoder, load, made_tokenizer, pair, ranked, spelt, written

SHARED = Path(__file__).parents[2] / ".." / "shared" / "data"


def test_no_data_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the file is empty"):
        load(tmp_path, [])
    with pytest.raises(UserError, match="no data: name at least one"):
        load_preference_groups([], encoder())


def test_what_is_too_long_is_dropped_and_counted(tmp_path: Path) -> None:
    rows = [pair("p" * 10), pair("p" * 11), pair(chosen="c" * 9), pair(chosen="c" * 10), pair("p" * 11, "c" * 10)]
    groups, report = load(tmp_path, rows, encoder(prompt=10, completion=10))
    assert [group.key[-1] for group in groups] == ["1", "3"]
    assert report.dropped == {"prompt too long": 2, "completion too long": 1} and report.completions_too_long == 1


def test_a_ranking_goes_on_without_its_too_long_completion(tmp_path: Path) -> None:
    groups, report = load(tmp_path, [ranked([3, 2, 1], ["aa", "b" * 10, "cc"])], encoder(completion=10))
    assert spelt(groups[0])[1] == [("aa<eos>", 3.0), ("cc<eos>", 1.0)]
    assert report.completions_too_long == 1 and report.dropped == {}


def test_when_length_leaves_nothing_the_key_to_raise_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"of 2 rows none is left \(2 dropped, prompt too long\); raise max_prompt_tokens \(now 2\)"
    ):
        load(tmp_path, [pair("ppp"), pair("qqq")], encoder(prompt=2))
    with pytest.raises(UserError, match=r"raise max_completion_tokens \(now 3\) or cut"):
        load(tmp_path, [pair()], encoder(completion=3))


def test_completions_that_become_identical_by_the_cut_are_dropped_and_counted(tmp_path: Path) -> None:
    rows = [
        pair(chosen="aaaaab", rejected="aaaaac"),
        pair(chosen="aab", rejected="aac"),
        pair(chosen="x", rejected="x"),
    ]
    groups, report = load(tmp_path, rows, encoder(completion=4, long="cut_completion"))
    assert [group.key[-1] for group in groups] == ["2"]
    assert report.dropped == {"completions identical": 2} and report.completions_identical == 4
    assert report.completions_cut == 0


def test_in_a_ranking_only_identical_completions_with_other_scores_go(tmp_path: Path) -> None:
    # "a" is scored 1 and 0, so neither says anything; "b" is scored 2 twice, which agrees.
    groups, report = load(tmp_path, [ranked([1, 0, 2, 2, 3], ["a", "a", "b", "b", "c"])])
    assert spelt(groups[0])[1] == [("b<eos>", 2.0), ("b<eos>", 2.0), ("c<eos>", 3.0)]
    assert report.completions_identical == 2


def test_a_cut_completion_is_unfinished_and_counted(tmp_path: Path) -> None:
    groups, report = load(tmp_path, [pair(chosen="abcdef")], encoder(completion=4, long="cut_completion"))
    assert spelt(groups[0])[1] == [("abcd", 1.0), (" no<eos>", 0.0)]
    assert [c.finished for c in groups[0].completions] == [False, True] and report.completions_cut == 1


def test_equal_scores_are_no_signal(tmp_path: Path) -> None:
    groups, report = load(tmp_path, [ranked([2, 2, 2]), ranked([True, 1, 1.0]), ranked([1, 2, 2])])
    assert [group.key[-1] for group in groups] == ["3"]
    assert report.dropped == {"no signal: all scores equal": 2}
    with pytest.raises(UserError, match="none is left .* give completions that differ, with scores that differ"):
        load(tmp_path, [ranked([2, 2, 2])])


def test_overlapping_prompts_are_held_out_rows_that_are_trained_on(tmp_path: Path) -> None:
    train, _ = load_preference_groups([written(tmp_path, [pair("a"), pair("b")], "t.jsonl")], encoder())
    heldout, _ = load_preference_groups([written(tmp_path, [pair("c"), pair("b", " x", " y")], "h.jsonl")], encoder())
    assert overlapping_prompts(train, heldout) == [f"{tmp_path}/h.jsonl:2"]


_ROW = st.builds(
    ranked,
    st.lists(st.sampled_from([0, 1, None, math.nan]), min_size=2, max_size=2),
    st.lists(st.sampled_from(["a", "aaaa", "aaab", "", None]), min_size=2, max_size=2),
)


@given(rows=st.lists(_ROW, max_size=20), long=st.sampled_from(["drop", "cut_completion"]))
def test_every_row_is_accounted_for(
    rows: list[object], long: TooLong, tmp_path_factory: pytest.TempPathFactory
) -> None:
    rows = [*rows, ranked([1, 0], ["a", "b"])]
    groups, report = load(tmp_path_factory.mktemp("rows"), rows, encoder(completion=3, long=long), bad_rows="drop")
    assert report.rows_read == len(rows) == report.groups_used + sum(report.dropped.values())
    assert report.groups_used == len(groups)
    assert json.loads(json.dumps(report.as_dict(), allow_nan=False))["rows_read"] == len(rows)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real data sets are not beside the repository")
def test_model_written_solutions_of_word_problems() -> None:
    names = ["6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification"]
    columns = {
        "prompt": "question",
        "responses": [f"{name}.solution" for name in names],
        "scores": [f"{name}.is_correct" for name in names],
    }
    source = str(SHARED / "gsm8k_model_solutions.jsonl")
    rows = [row.values for row in read_rows(source)]
    tokenizer = made_tokenizer([str(row["question"]) for row in rows], size=1000)
    by = encoder(tokenizer, prompt=5000, completion=5000)
    groups, report = load_preference_groups([source], by, columns=columns)
    answers: list[list[Any]] = [[row[name] for name in names] for row in rows]
    mixed = [
        number for number, row in enumerate(answers, start=1) if len({answer["is_correct"] for answer in row}) == 2
    ]
    assert report.rows_read == 900 == len(groups) + sum(report.dropped.values())
    assert report.completions_identical == 0  # no solution is judged both right and wrong, so:
    assert [group.key for group in groups] == [f"{source}:{number}" for number in mixed]
    assert report.ignored_columns == ("ground_truth",)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real data sets are not beside the repository")
def test_human_preference_transcripts() -> None:
    source = str(SHARED / "hh_harmless.jsonl.gz")
    with pytest.raises(UserError, match=r"1 row is unusable(.|\n)*:87: the completion chosen is blank"):
        load_preference_groups([source], encoder(), limit=100)
    tokenizer = made_tokenizer([str(row.values["chosen"]) for row in read_rows(source, limit=300)], size=1000)
    by = encoder(tokenizer, prompt=20_000, completion=20_000)
    groups, report = load_preference_groups([source], by, bad_rows="drop")
    assert report.dropped == {"bad row": 4} and len(groups) == 1496 and report.further_turns == 1
    assert all(by.decode(group.prompt_ids[-12:]).endswith("\n\nAssistant:") for group in groups)
