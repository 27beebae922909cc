"""Scores of whole texts by name, as the evaluation uses them: found, or refused with the remedy."""

from pathlib import Path

import pytest

from groupwise.errors import UserError
from groupwise.rewards.load import load_score

FILE = """
from dataclasses import dataclass

@dataclass
class Weight:  # dataclasses look up the module they stand in
    value: float = 2.0

def size(text): return Weight().value * len(text)
def broken(text): raise KeyError("oh")
def endless(text): return float("inf")
number = 3
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "scores.py"
    path.write_text(FILE)
    return path


def test_a_function_of_a_file_is_found_by_name(file: Path) -> None:
    assert load_score(f"{file}:size", key="eval.score")("abc") == 6.0


def test_files_of_one_name_are_told_apart(tmp_path: Path) -> None:
    found: list[float] = []
    for value in (1, 2):
        path = tmp_path / str(value) / "scores.py"
        path.parent.mkdir()
        path.write_text(f"def value(text): return {value}")
        found.append(load_score(f"{path}:value", key="eval.score")(""))
    assert found == [1.0, 2.0]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("review_sentimnt", "did you mean review_sentiment"),
        ("nowhere.py:size", "there is no file 'nowhere.py'"),
        ("FILE:sise", "no function 'sise'; did you mean size"),
        ("FILE:number", "no function 'number'"),
    ],
)
def test_a_wrong_name_is_refused(file: Path, name: str, words: str) -> None:
    with pytest.raises(UserError, match=f"^eval.score: .*{words}"):
        load_score(name.replace("FILE", str(file)), key="eval.score")


@pytest.mark.parametrize(("function", "words"), [("broken", "raised KeyError"), ("endless", "returned inf")])
def test_a_score_that_fails_quotes_the_text(file: Path, function: str, words: str) -> None:
    with pytest.raises(UserError, match=f"{words}.* on the text 'abc'"):
        load_score(f"{file}:{function}", key="eval.score")("abc")
