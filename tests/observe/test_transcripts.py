"""Transcripts hold hostile text: whatever a model writes must come back as it was, one group per line."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest

from groupwise.groups import Completion, Group
from groupwise.observe.transcripts import TranscriptsFile, read_transcripts


def _decode(ids: Sequence[int]) -> str:
    return "".join(map(chr, ids))


def _ids(text: str) -> tuple[int, ...]:
    return tuple(map(ord, text))


def _group(*texts: str, scores: Sequence[float] | None = None) -> Group:
    scores = scores or [0.0] * len(texts)
    return Group(
        key="prompts.json:4",
        prompt_ids=_ids("2 + 2 ="),
        completions=tuple(
            Completion(token_ids=_ids(text), finished=text.endswith("."), score=score)
            for text, score in zip(texts, scores, strict=True)
        ),
    )


def test_a_line_is_one_group_in_full(tmp_path: Path) -> None:
    path = tmp_path / "transcripts.jsonl"
    with TranscriptsFile(path, _decode) as file:
        file.append(12, _group(" 4.", " 5", scores=[1.0, 0.0]), phase="eval", extra={"advantage": [0.7, -0.7]})
    assert read_transcripts(path) == [
        {
            "step": 12,
            "key": "prompts.json:4",
            "phase": "eval",
            "prompt": "2 + 2 =",
            "completions": [
                {"text": " 4.", "score": 1.0, "finished": True, "tokens": 3, "advantage": 0.7},
                {"text": " 5", "score": 0.0, "finished": False, "tokens": 2, "advantage": -0.7},
            ],
        }
    ]


@pytest.mark.parametrize(
    "text",
    ["two\nlines\r\n", "line\u2028separator\x85", 'quote " and \\ and \x00', "日本語 😀", "\ud800 alone", "</script>"],
)
def test_hostile_text_comes_back_as_it_was_on_one_line(tmp_path: Path, text: str) -> None:
    """A lone surrogate has no UTF-8 form; a line separator must not become a second line for a reader."""
    path = tmp_path / "transcripts.jsonl"
    with TranscriptsFile(path, _decode) as file:
        file.append(1, _group(text), phase="train")
        file.append(2, _group("after."), phase="train")
    raw = path.read_bytes()
    assert raw.count(b"\n") == 2
    raw.decode("utf-8")
    first = json.loads(raw.split(b"\n")[0])
    assert first["completions"][0]["text"] == text
    assert len(read_transcripts(path)) == 2


def test_readable_text_is_not_escaped(tmp_path: Path) -> None:
    path = tmp_path / "transcripts.jsonl"
    with TranscriptsFile(path, _decode) as file:
        file.append(1, _group("日本語"), phase="train")
    assert "日本語" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("extra", "why"),
    [
        ({"advantage": [1.0]}, "1 numbers named 'advantage' for 2 completions"),
        ({"advantage": [1.0, math.nan]}, "advantage is nan"),
        ({"score": [1.0, 2.0]}, "cannot be named 'score'"),
    ],
)
def test_bad_extras_name_the_group_and_write_nothing(tmp_path: Path, extra: dict[str, list[float]], why: str) -> None:
    path = tmp_path / "transcripts.jsonl"
    with TranscriptsFile(path, _decode) as file, pytest.raises(ValueError, match=f"prompts.json:4: .*{why}|{why}"):
        file.append(1, _group("a", "b"), phase="train", extra=extra)
    assert path.read_bytes() == b""


def test_a_score_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    with (
        TranscriptsFile(tmp_path / "t.jsonl", _decode) as file,
        pytest.raises(ValueError, match=r"prompts\.json:4: score is inf"),
    ):
        file.append(1, _group("a", scores=[math.inf]), phase="train")


def test_goes_back_to_a_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "transcripts.jsonl"
    with TranscriptsFile(path, _decode) as file:
        file.append(1, _group("日本"), phase="train")
        offset = file.offset
        before = path.read_bytes()
        file.append(2, _group("b"), phase="train")
        file.truncate(offset)
    assert path.read_bytes() == before and offset == len(before)
