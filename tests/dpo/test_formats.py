"""Which format rows are of, and what each format means."""

from pathlib import Path
from typing import Any

import pytest

from dpo.dataset_utils import load_preference_groups
from groupwise.errors import UserError
from tests.dpo.preference_rows import encoder, load, pair, ranked, spelt, written


def test_pairs(tmp_path: Path) -> None:
    groups, report = load(tmp_path, [pair(), pair("q", " oui", " non", source="web", rating=5)])
    assert [spelt(group) for group in groups] == [
        ("p", [(" yes<eos>", 1.0), (" no<eos>", 0.0)]),
        ("q", [(" oui<eos>", 1.0), (" non<eos>", 0.0)]),
    ]
    assert [group.key for group in groups] == [f"{tmp_path}/x.jsonl:1", f"{tmp_path}/x.jsonl:2"]
    assert all(c.reference_logp is None and c.sampled_logp is None for group in groups for c in group.completions)
    assert report.formats == {f"{tmp_path}/x.jsonl": "pairs"} and report.ignored_columns == ("source", "rating")
    assert "columns not used: source, rating" in report.lines()


def test_ranked_scores_may_be_numbers_or_truth(tmp_path: Path) -> None:
    groups, report = load(tmp_path, [ranked([0.5, -2, 7]), ranked([True, False, True])])
    assert [[score for _, score in spelt(group)[1]] for group in groups] == [[0.5, -2.0, 7.0], [1.0, 0.0, 1.0]]
    assert report.pairs_used == 3 + 2 and set(report.formats.values()) == {"ranked"}


def test_transcripts_share_their_prompt(tmp_path: Path) -> None:
    shared = "\n\nHuman: Sky?\n\nAssistant: Up.\n\nHuman: Colour?\n\nAssistant:"
    groups, report = load(
        tmp_path, [{"chosen": shared + " The sky is blue.", "rejected": shared + " The sky is black."}]
    )
    # Story: a common prefix by characters gave the prompt "... The sky is bl".
    assert spelt(groups[0]) == (shared, [(" The sky is blue.<eos>", 1.0), (" The sky is black.<eos>", 0.0)])
    assert set(report.formats.values()) == {"transcripts"} and report.further_turns == 0


def test_transcripts_as_messages(tmp_path: Path) -> None:
    asked = [{"role": "user", "content": "Sky?"}]
    chosen, rejected = ([*asked, {"role": "assistant", "content": text}] for text in ("Blue.", "Black."))
    expected = ("<turn>user\nSky?<eos>\n<turn>assistant\n", [("Blue.<eos>", 1.0), ("Black.<eos>", 0.0)])
    without, with_prompt = (
        {"chosen": chosen, "rejected": rejected},
        {"prompt": "Sky?", "chosen": chosen, "rejected": rejected},
    )
    assert spelt(load(tmp_path, [without])[0][0]) == expected
    assert spelt(load(tmp_path, [with_prompt])[0][0]) == expected
    assert spelt(load(tmp_path, [pair(asked, "Blue.", "Black.")])[0][0]) == expected
    assert spelt(load(tmp_path, [pair(asked, chosen[1:], rejected[1:])])[0][0]) == expected
    with pytest.raises(UserError, match="prompt is not the message that chosen and rejected answer"):
        load(tmp_path, [with_prompt | {"prompt": "Sea?"}])


def test_columns_with_other_names_and_inside_objects(tmp_path: Path) -> None:
    row = {
        "question": "p",
        "small": {"solution": " a", "is_correct": False},
        "large": {"solution": " b", "is_correct": True},
        "a.b": " c",
        "list": [{"score": 0.5}],
    }
    columns = {
        "prompt": "question",
        "responses": ["small.solution", "large.solution", "a.b"],
        "scores": ["small.is_correct", "large.is_correct", "list.0.score"],
    }
    groups, report = load(tmp_path, [row], columns=columns)
    assert spelt(groups[0]) == ("p", [(" a<eos>", 0.0), (" b<eos>", 1.0), (" c<eos>", 0.5)])
    assert report.ignored_columns == ()
    groups, _ = load(
        tmp_path, [row], columns={"prompt": "question", "chosen": "large.solution", "rejected": "small.solution"}
    )
    assert spelt(groups[0])[1] == [(" b<eos>", 1.0), (" a<eos>", 0.0)]


def test_csv_scores_are_read_from_their_text(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("prompt,a,b,sa,sb\np, x, y,0.25,-1\nq, x, y,True,false\n")
    columns = {"responses": ["a", "b"], "scores": ["sa", "sb"]}
    groups, _ = load_preference_groups([str(tmp_path / "x.csv")], encoder(), columns=columns)
    assert [[score for _, score in spelt(group)[1]] for group in groups] == [[0.25, -1.0], [1.0, 0.0]]


def test_sources_may_have_different_formats_and_a_limit_each(tmp_path: Path) -> None:
    one, two = written(tmp_path, [pair(), pair("q")], "1.jsonl"), written(tmp_path, [ranked([1, 2, 3])] * 3, "2.jsonl")
    groups, report = load_preference_groups([one, two], encoder(), limit=1)
    assert [group.key for group in groups] == [f"{one}:1", f"{two}:1"]
    assert report.formats == {one: "pairs", two: "ranked"} and report.rows_read == 2


@pytest.mark.parametrize(
    ("row", "columns", "said"),
    [
        ({"question": "p", "chosen": "a"}, {}, "has the columns chosen, question, which are of no known format"),
        ({**pair(), **ranked([1, 2, 3])}, {}, "has the columns of pairs .* and of ranked"),
        (pair(), {"promt": "q"}, r"columns\.promt: unknown name; did you mean columns\.prompt\?"),
        (pair(), {"chosen": ["a", "b"]}, r"columns\.chosen: is one column"),
        (pair(), {"responses": ["a", "b"], "scores": ["c"]}, "names 2 columns, columns.scores 1"),
    ],
)
def test_unknown_formats_and_mappings_are_refused(
    row: object, columns: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=said):
        load(tmp_path, [row], columns=columns)


def test_a_mapping_decides_between_two_formats(tmp_path: Path) -> None:
    row = {**pair(), **ranked([1, 2, 3])}
    assert len(load(tmp_path, [row], columns={"chosen": "chosen"})[0][0].completions) == 2
    assert len(load(tmp_path, [row], columns={"scores": "scores"})[0][0].completions) == 3
