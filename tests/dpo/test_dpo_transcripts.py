"""The prompt of two conversations is what both begin with, to the last turn and no character further."""

from os.path import commonprefix
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from dpo.transcripts import split_messages, split_transcripts
from tests.dpo.preference_rows import load, spelt

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
    groups, report = load(tmp_path, rows)
    assert spelt(groups[0])[0] == start and report.further_turns == 1
    assert any(line.startswith("1 rows whose transcripts part before the last turn") for line in report.lines())
