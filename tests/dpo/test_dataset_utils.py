"""Rows to groups: what each format means, and that every row is used, counted or complained about."""

import json
import math
from collections.abc import Sequence
from os.path import commonprefix
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from dpo.dataset_utils import (
    DatasetReport,
    Quantiles,
    load_preference_groups,
    split_messages,
    split_transcripts,
)
from groupwise.data.rows import read_rows
from groupwise.data.text import TextEncoder, TooLong
from groupwise.errors import UserError
from groupwise.groups import Group, overlapping_prompts

SHARED = Path(__file__).parents[2] / ".." / "shared" / "data"
CHAT = (
    "{% for m in messages %}<turn>{{ m.role }}\n{{ m.content }}<eos>\n{% endfor %}"
    "{% if add_generation_prompt %}<turn>assistant\n{% endif %}"
)


def _tokenizer(texts: Sequence[str], *, size: int) -> Any:
    """Byte-level BPE with a chat template; size 258 is one token per byte, counted by hand."""
    inner: Any = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer: Any = trainers.BpeTrainer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(
        texts,
        trainer(vocab_size=size, special_tokens=["<eos>", "<turn>"], initial_alphabet=alphabet, show_progress=False),
    )
    tokenizer: Any = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>")
    tokenizer.chat_template = CHAT
    return tokenizer


TOKENIZER = _tokenizer([], size=258)


def _encoder(
    tokenizer: Any = TOKENIZER, *, prompt: int = 500, completion: int = 500, long: TooLong = "drop"
) -> TextEncoder:
    return TextEncoder(tokenizer, max_prompt_tokens=prompt, max_completion_tokens=completion, too_long=long)


def _file(tmp_path: Path, rows: Sequence[object], name: str = "x.jsonl") -> str:
    path = tmp_path / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def _load(
    tmp_path: Path, rows: Sequence[object], encoder: TextEncoder | None = None, **options: Any
) -> tuple[list[Group], DatasetReport]:
    return load_preference_groups([_file(tmp_path, rows)], encoder or _encoder(), **options)


def _spelt(group: Group) -> tuple[str, list[tuple[str, float]]]:
    return TOKENIZER.decode(list(group.prompt_ids)), [
        (TOKENIZER.decode(list(c.token_ids)), c.score) for c in group.completions
    ]


def _pair(
    prompt: object = "p", chosen: object = " yes", rejected: object = " no", **extra: object
) -> dict[str, object]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **extra}


def _ranked(scores: object, responses: object = (" a", " b", " c")) -> dict[str, object]:
    return {"prompt": "p", "responses": responses, "scores": scores}


# --- formats


def test_pairs(tmp_path: Path) -> None:
    groups, report = _load(tmp_path, [_pair(), _pair("q", " oui", " non", source="web", rating=5)])
    assert [_spelt(group) for group in groups] == [
        ("p", [(" yes<eos>", 1.0), (" no<eos>", 0.0)]),
        ("q", [(" oui<eos>", 1.0), (" non<eos>", 0.0)]),
    ]
    assert [group.key for group in groups] == [f"{tmp_path}/x.jsonl:1", f"{tmp_path}/x.jsonl:2"]
    assert all(c.reference_logp is None and c.sampled_logp is None for group in groups for c in group.completions)
    assert report.formats == {f"{tmp_path}/x.jsonl": "pairs"} and report.ignored_columns == ("source", "rating")
    assert "columns not used: source, rating" in report.lines()


def test_ranked_scores_may_be_numbers_or_truth(tmp_path: Path) -> None:
    groups, report = _load(tmp_path, [_ranked([0.5, -2, 7]), _ranked([True, False, True])])
    assert [[score for _, score in _spelt(group)[1]] for group in groups] == [[0.5, -2.0, 7.0], [1.0, 0.0, 1.0]]
    assert report.pairs_used == 3 + 2 and set(report.formats.values()) == {"ranked"}


def test_transcripts_share_their_prompt(tmp_path: Path) -> None:
    shared = "\n\nHuman: Sky?\n\nAssistant: Up.\n\nHuman: Colour?\n\nAssistant:"
    groups, report = _load(
        tmp_path, [{"chosen": shared + " The sky is blue.", "rejected": shared + " The sky is black."}]
    )
    # Story: a common prefix by characters gave the prompt "... The sky is bl".
    assert _spelt(groups[0]) == (shared, [(" The sky is blue.<eos>", 1.0), (" The sky is black.<eos>", 0.0)])
    assert set(report.formats.values()) == {"transcripts"} and report.further_turns == 0


def test_transcripts_as_messages(tmp_path: Path) -> None:
    asked = [{"role": "user", "content": "Sky?"}]
    chosen, rejected = ([*asked, {"role": "assistant", "content": text}] for text in ("Blue.", "Black."))
    expected = ("<turn>user\nSky?<eos>\n<turn>assistant\n", [("Blue.<eos>", 1.0), ("Black.<eos>", 0.0)])
    without, with_prompt = (
        {"chosen": chosen, "rejected": rejected},
        {"prompt": "Sky?", "chosen": chosen, "rejected": rejected},
    )
    assert _spelt(_load(tmp_path, [without])[0][0]) == expected
    assert _spelt(_load(tmp_path, [with_prompt])[0][0]) == expected
    assert _spelt(_load(tmp_path, [_pair(asked, "Blue.", "Black.")])[0][0]) == expected
    assert _spelt(_load(tmp_path, [_pair(asked, chosen[1:], rejected[1:])])[0][0]) == expected
    with pytest.raises(UserError, match="prompt is not the message that chosen and rejected answer"):
        _load(tmp_path, [with_prompt | {"prompt": "Sea?"}])


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
    groups, report = _load(tmp_path, [row], columns=columns)
    assert _spelt(groups[0]) == ("p", [(" a<eos>", 0.0), (" b<eos>", 1.0), (" c<eos>", 0.5)])
    assert report.ignored_columns == ()
    groups, _ = _load(
        tmp_path, [row], columns={"prompt": "question", "chosen": "large.solution", "rejected": "small.solution"}
    )
    assert _spelt(groups[0])[1] == [(" b<eos>", 1.0), (" a<eos>", 0.0)]


def test_csv_scores_are_read_from_their_text(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("prompt,a,b,sa,sb\np, x, y,0.25,-1\nq, x, y,True,false\n")
    columns = {"responses": ["a", "b"], "scores": ["sa", "sb"]}
    groups, _ = load_preference_groups([str(tmp_path / "x.csv")], _encoder(), columns=columns)
    assert [[score for _, score in _spelt(group)[1]] for group in groups] == [[0.25, -1.0], [1.0, 0.0]]


def test_sources_may_have_different_formats_and_a_limit_each(tmp_path: Path) -> None:
    one, two = _file(tmp_path, [_pair(), _pair("q")], "1.jsonl"), _file(tmp_path, [_ranked([1, 2, 3])] * 3, "2.jsonl")
    groups, report = load_preference_groups([one, two], _encoder(), limit=1)
    assert [group.key for group in groups] == [f"{one}:1", f"{two}:1"]
    assert report.formats == {one: "pairs", two: "ranked"} and report.rows_read == 2


@pytest.mark.parametrize(
    ("row", "columns", "said"),
    [
        ({"question": "p", "chosen": "a"}, {}, "has the columns chosen, question, which are of no known format"),
        ({**_pair(), **_ranked([1, 2, 3])}, {}, "has the columns of pairs .* and of ranked"),
        (_pair(), {"promt": "q"}, r"columns\.promt: unknown name; did you mean columns\.prompt\?"),
        (_pair(), {"chosen": ["a", "b"]}, r"columns\.chosen: is one column"),
        (_pair(), {"responses": ["a", "b"], "scores": ["c"]}, "names 2 columns, columns.scores 1"),
    ],
)
def test_unknown_formats_and_mappings_are_refused(
    row: object, columns: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=said):
        _load(tmp_path, [row], columns=columns)


def test_a_mapping_decides_between_two_formats(tmp_path: Path) -> None:
    row = {**_pair(), **_ranked([1, 2, 3])}
    assert len(_load(tmp_path, [row], columns={"chosen": "chosen"})[0][0].completions) == 2
    assert len(_load(tmp_path, [row], columns={"scores": "scores"})[0][0].completions) == 3


# --- the transcript splitter

_WORDS = st.lists(st.sampled_from([*"ab :\n", "\n\n", "Assistant", "Assistant:", "Human:"]), max_size=6).map("".join)
_TRANSCRIPT = st.lists(st.tuples(_WORDS, _WORDS), max_size=3).map(
    lambda turns: "".join(f"\n\nHuman:{asked}\n\nAssistant:{said}" for asked, said in turns)
)


@given(shared=_TRANSCRIPT, asked=_WORDS, chosen=_WORDS, rejected=_WORDS, more=_TRANSCRIPT)
def test_the_prompt_is_everything_up_to_the_last_shared_marker(
    shared: str, asked: str, chosen: str, rejected: str, more: str
) -> None:
    start = f"{shared}\n\nHuman:{asked}\n\nAssistant:"
    good, bad = start + chosen + more, start + rejected
    prompt, better, worse = split_transcripts(good, bad)
    assert prompt + better == good and prompt + worse == bad  # no character lost, none doubled
    assert prompt.endswith("\n\nAssistant:")  # never inside a word
    assert len(prompt) >= len(start)
    assert "\n\nAssistant:" not in commonprefix([better, worse])  # and no later marker is shared


@given(start=_WORDS, chosen=_WORDS, rejected=_WORDS)
def test_how_answers_begin_does_not_move_the_end_of_the_prompt(start: str, chosen: str, rejected: str) -> None:
    assume("\n\nAssistant:" not in start + chosen and "\n\nAssistant:" not in start + rejected)
    prompt = "\n\nHuman: q\n\nAssistant:"
    assert split_transcripts(prompt + start + chosen, prompt + start + rejected) == (
        prompt,
        start + chosen,
        start + rejected,
    )


def test_one_answer_that_begins_with_the_other() -> None:
    # Story: a prefix by characters made the prompt "... Ye" of "Yes" and "Yes sir".
    prompt = "\n\nHuman: Ready?\n\nAssistant:"
    assert split_transcripts(prompt + " Yes", prompt + " Yes sir") == (prompt, " Yes", " Yes sir")


def test_transcripts_without_a_shared_marker_have_no_prompt() -> None:
    with pytest.raises(ValueError, match="share no"):
        split_transcripts("\n\nHuman: a\n\nAssistant: b", "\n\nHuman: c\n\nAssistant: d")


@given(st.integers(1, 4), st.integers(0, 3))
def test_messages_must_part_at_the_last_one(length: int, difference: int) -> None:
    def conversation(name: str) -> list[dict[str, object]]:
        return [{"role": "user", "content": name if i >= difference else "same"} for i in range(length)]

    chosen, rejected = conversation("a"), conversation("b")
    if 0 < length - 1 <= difference:
        assert split_messages(chosen, rejected) == (chosen[:-1], chosen[-1:], rejected[-1:])
    else:
        with pytest.raises(ValueError, match="part at message|no prompt is left"):
            split_messages(chosen, rejected)


def test_transcripts_that_part_early_are_used_and_counted(tmp_path: Path) -> None:
    start = "\n\nHuman: q\n\nAssistant:"
    rows = [{"chosen": start + " a\n\nHuman: r\n\nAssistant: b", "rejected": start + " c"}]
    groups, report = _load(tmp_path, rows)
    assert _spelt(groups[0])[0] == start and report.further_turns == 1
    assert any(line.startswith("1 rows whose transcripts part before the last turn") for line in report.lines())


# --- bad rows

BAD_ROWS: list[tuple[object, str]] = [
    ({"prompt": "p", "chosen": " a"}, "rejected is missing"),
    (_pair(None), "prompt must be a text or a list of chat messages, got nothing (null)"),
    (_pair(""), "prompt is empty"),
    (_pair(3), "prompt must be a text or a list of chat messages, got 3"),
    (_pair(chosen=None), "chosen must be a text or a list of chat messages, got nothing (null)"),
    (_pair(rejected=""), "rejected is empty"),
    (_pair(rejected=" \n"), "the completion rejected is blank"),
    (_pair(rejected=[]), "rejected must be a list of chat messages"),
    (_pair(rejected=[{"role": "assistant", "content": "b"}]), "chosen and rejected must both be texts"),
    (_pair(rejected=" x<eos>y"), "a completion contains '<eos>' before its end"),
    (_pair("a<eos>"), "the prompt contains '<eos>'"),
]
BAD_RANKED: list[tuple[object, str]] = [
    (_ranked([1, 2]), "has 3 responses and 2 scores"),
    (_ranked([1], [" a"]), "has 1 response(s); an order needs at least two"),
    (_ranked([]), "has 3 responses and 0 scores"),
    (_ranked(1.0), "scores must be a list, got 1.0"),
    (_ranked([1, 2, 3], "abc"), "responses must be a list, got 'abc'"),
    (_ranked([1, None, 3]), "scores.1 must be a number or true or false, got nothing (null)"),
    (_ranked([1, "high", 3]), "scores.1 must be a number or true or false, got 'high'"),
    (_ranked([1, math.nan, 3]), "scores.1 must be a finite number, got nan"),
    (_ranked([1, 2, -math.inf]), "scores.2 must be a finite number, got -inf"),
    (_ranked([1, 2, 10**400]), "scores.2 must be a finite number, got 1000"),
    (_ranked([1, 2, 3], [" a", None, " c"]), "responses.1 must be a text or a list of chat messages"),
    (_ranked([1, 2, 3], [" a", " b", ""]), "the completion responses.2 is empty"),
]


@pytest.mark.parametrize(("bad", "good"), [(BAD_ROWS, _pair()), (BAD_RANKED, _ranked([1, 2, 3]))])
def test_all_bad_rows_are_told_at_once_or_counted(bad: list[tuple[object, str]], good: object, tmp_path: Path) -> None:
    rows = [good, *(row for row, _ in bad)]
    with pytest.raises(UserError) as raised:
        _load(tmp_path, rows)
    told = str(raised.value)
    assert told.startswith(f"{len(bad)} rows are unusable")
    for number, (_, said) in enumerate(bad, start=2):
        assert f"x.jsonl:{number}: {said}" in told
    groups, report = _load(tmp_path, rows, bad_rows="drop")
    assert len(groups) == 1 and report.dropped == {"bad row": len(bad)}
    lines = report.lines()
    assert f"{len(bad)} rows dropped, bad row" in lines and f"  ... and {len(bad) - 3} more" in lines


def test_no_data_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the file is empty"):
        _load(tmp_path, [])
    with pytest.raises(UserError, match="no data: name at least one"):
        load_preference_groups([], _encoder())


# --- what length and equality leave


def test_what_is_too_long_is_dropped_and_counted(tmp_path: Path) -> None:
    rows = [_pair("p" * 10), _pair("p" * 11), _pair(chosen="c" * 9), _pair(chosen="c" * 10), _pair("p" * 11, "c" * 10)]
    groups, report = _load(tmp_path, rows, _encoder(prompt=10, completion=10))
    assert [group.key[-1] for group in groups] == ["1", "3"]
    assert report.dropped == {"prompt too long": 2, "completion too long": 1} and report.completions_too_long == 1


def test_a_ranking_goes_on_without_its_too_long_completion(tmp_path: Path) -> None:
    groups, report = _load(tmp_path, [_ranked([3, 2, 1], ["aa", "b" * 10, "cc"])], _encoder(completion=10))
    assert _spelt(groups[0])[1] == [("aa<eos>", 3.0), ("cc<eos>", 1.0)]
    assert report.completions_too_long == 1 and report.dropped == {}


def test_when_length_leaves_nothing_the_key_to_raise_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"of 2 rows none is left \(2 dropped, prompt too long\); raise max_prompt_tokens \(now 2\)"
    ):
        _load(tmp_path, [_pair("ppp"), _pair("qqq")], _encoder(prompt=2))
    with pytest.raises(UserError, match=r"raise max_completion_tokens \(now 3\) or cut"):
        _load(tmp_path, [_pair()], _encoder(completion=3))


def test_completions_that_become_identical_by_the_cut_are_dropped_and_counted(tmp_path: Path) -> None:
    rows = [
        _pair(chosen="aaaaab", rejected="aaaaac"),
        _pair(chosen="aab", rejected="aac"),
        _pair(chosen="x", rejected="x"),
    ]
    groups, report = _load(tmp_path, rows, _encoder(completion=4, long="cut_completion"))
    assert [group.key[-1] for group in groups] == ["2"]
    assert report.dropped == {"completions identical": 2} and report.completions_identical == 4
    assert report.completions_cut == 0


def test_in_a_ranking_only_identical_completions_with_other_scores_go(tmp_path: Path) -> None:
    # "a" is scored 1 and 0, so neither says anything; "b" is scored 2 twice, which agrees.
    groups, report = _load(tmp_path, [_ranked([1, 0, 2, 2, 3], ["a", "a", "b", "b", "c"])])
    assert _spelt(groups[0])[1] == [("b<eos>", 2.0), ("b<eos>", 2.0), ("c<eos>", 3.0)]
    assert report.completions_identical == 2


def test_a_cut_completion_is_unfinished_and_counted(tmp_path: Path) -> None:
    groups, report = _load(tmp_path, [_pair(chosen="abcdef")], _encoder(completion=4, long="cut_completion"))
    assert _spelt(groups[0])[1] == [("abcd", 1.0), (" no<eos>", 0.0)]
    assert [c.finished for c in groups[0].completions] == [False, True] and report.completions_cut == 1


def test_equal_scores_are_no_signal(tmp_path: Path) -> None:
    groups, report = _load(tmp_path, [_ranked([2, 2, 2]), _ranked([True, 1, 1.0]), _ranked([1, 2, 2])])
    assert [group.key[-1] for group in groups] == ["3"]
    assert report.dropped == {"no signal: all scores equal": 2}
    with pytest.raises(UserError, match="none is left .* give completions that differ, with scores that differ"):
        _load(tmp_path, [_ranked([2, 2, 2])])


# --- the figures of the report


def test_longer_wins_is_the_probability_that_the_better_one_is_longer(tmp_path: Path) -> None:
    rows = [_pair("1", "aaa", "a"), _pair("2", "aa", "a"), _pair("3", "a", "aa"), _pair("4", "a", "b")]
    _, report = _load(tmp_path, rows)
    assert report.longer_wins == (1 + 1 + 0 + 0.5) / 4
    _, report = _load(tmp_path, [_pair(chosen="aa", rejected="b")])
    assert report.longer_wins == 1.0
    assert any(line.startswith("warning: the longer completion mostly wins") for line in report.lines())


def test_token_lengths(tmp_path: Path) -> None:
    rows = [_pair("p" * n, "a", "bb") for n in range(1, 101)]
    _, report = _load(tmp_path, rows)
    assert report.prompt_tokens == Quantiles(1, 50, 95, 100)
    assert report.completion_tokens == Quantiles(2, 2, 3, 3)  # one end token each


def test_repetitions_and_contradictions_are_counted_and_kept(tmp_path: Path) -> None:
    rows = [
        _pair("p", " a", " b"),
        _pair("p", " a", " b"),  # again
        _pair("p", " b", " a"),  # the other way round
        _pair("q", " b", " a"),  # another prompt
        {"prompt": "p", "chosen": "p a", "rejected": "p b"},  # the prompt twice
    ]
    groups, report = _load(tmp_path, rows)
    assert len(groups) == 5
    assert (report.duplicate_groups, report.contradictory_pairs, report.repeated_prompts) == (1, 1, 1)
    assert "warning: 1 pairs stand in the data in both orders" in report.lines()


def test_overlapping_prompts_are_held_out_rows_that_are_trained_on(tmp_path: Path) -> None:
    train, _ = load_preference_groups([_file(tmp_path, [_pair("a"), _pair("b")], "t.jsonl")], _encoder())
    heldout, _ = load_preference_groups([_file(tmp_path, [_pair("c"), _pair("b", " x", " y")], "h.jsonl")], _encoder())
    assert overlapping_prompts(train, heldout) == [f"{tmp_path}/h.jsonl:2"]


_ROW = st.builds(
    _ranked,
    st.lists(st.sampled_from([0, 1, None, math.nan]), min_size=2, max_size=2),
    st.lists(st.sampled_from(["a", "aaaa", "aaab", "", None]), min_size=2, max_size=2),
)


@given(rows=st.lists(_ROW, max_size=20), long=st.sampled_from(["drop", "cut_completion"]))
def test_every_row_is_accounted_for(
    rows: list[object], long: TooLong, tmp_path_factory: pytest.TempPathFactory
) -> None:
    rows = [*rows, _ranked([1, 0], ["a", "b"])]
    groups, report = _load(tmp_path_factory.mktemp("rows"), rows, _encoder(completion=3, long=long), bad_rows="drop")
    assert report.rows_read == len(rows) == report.groups_used + sum(report.dropped.values())
    assert report.groups_used == len(groups)
    assert json.loads(json.dumps(report.as_dict(), allow_nan=False))["rows_read"] == len(rows)


# --- real data


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
    tokenizer = _tokenizer([str(row["question"]) for row in rows], size=1000)
    encoder = _encoder(tokenizer, prompt=5000, completion=5000)
    groups, report = load_preference_groups([source], encoder, columns=columns)
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
        load_preference_groups([source], _encoder(), limit=100)
    tokenizer = _tokenizer([str(row.values["chosen"]) for row in read_rows(source, limit=300)], size=1000)
    encoder = _encoder(tokenizer, prompt=20_000, completion=20_000)
    groups, report = load_preference_groups([source], encoder, bad_rows="drop")
    assert report.dropped == {"bad row": 4} and len(groups) == 1496 and report.further_turns == 1
    assert all(encoder.decode(group.prompt_ids[-12:]).endswith("\n\nAssistant:") for group in groups)
