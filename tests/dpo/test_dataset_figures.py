"""What the report says of groups is what counting by hand gives."""

from pathlib import Path

from dpo.dataset_figures import Quantiles
from tests.dpo.preference_rows import load, pair


def test_longer_wins_is_the_probability_that_the_better_one_is_longer(tmp_path: Path) -> None:
    rows = [pair("1", "aaa", "a"), pair("2", "aa", "a"), pair("3", "a", "aa"), pair("4", "a", "b")]
    _, report = load(tmp_path, rows)
    assert report.longer_wins == (1 + 1 + 0 + 0.5) / 4
    _, report = load(tmp_path, [pair(chosen="aa", rejected="b")])
    assert report.longer_wins == 1.0
    assert any(line.startswith("warning: the longer completion mostly wins") for line in report.lines())


def test_token_lengths(tmp_path: Path) -> None:
    rows = [pair("p" * n, "a", "bb") for n in range(1, 101)]
    _, report = load(tmp_path, rows)
    assert report.prompt_tokens == Quantiles(1, 50, 95, 100)
    assert report.completion_tokens == Quantiles(2, 2, 3, 3)  # one end token each


def test_repetitions_and_contradictions_are_counted_and_kept(tmp_path: Path) -> None:
    rows = [
        pair("p", " a", " b"),
        pair("p", " a", " b"),  # again
        pair("p", " b", " a"),  # the other way round
        pair("q", " b", " a"),  # another prompt
        {"prompt": "p", "chosen": "p a", "rejected": "p b"},  # the prompt twice
    ]
    groups, report = load(tmp_path, rows)
    assert len(groups) == 5
    assert (report.duplicate_groups, report.contradictory_pairs, report.repeated_prompts) == (1, 1, 1)
    assert "warning: 1 pairs stand in the data in both orders" in report.lines()
