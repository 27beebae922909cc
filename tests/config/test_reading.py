"""YAML to plain values: what is a number, what is text, and what is no YAML at all."""
# ruff: noqa: E501 -- the tables of bad input read best with one whole message a row.

from pathlib import Path

import pytest

from groupwise.config import load_config
from groupwise.errors import UserError
from tests.config.example import Config, M, load, problems


@pytest.mark.parametrize("written", ["1e-6", "1E-6", "1.0e-6", "0.000001", "+1e-06", ".1e-5", "10e-7"])
def test_every_way_of_writing_a_small_number_is_a_number(tmp_path: Path, written: str):
    # PyYAML follows YAML 1.1, where `1e-6` without a dot is text and no number.
    text = f"{M}optimizer:\n  learning_rate: {written}\n"
    assert load(tmp_path, text).optimizer.learning_rate == 1e-6
    assert load(tmp_path, M, "--optimizer.learning_rate", written).optimizer.learning_rate == 1e-6


@pytest.mark.parametrize("word", ["no", "off"])
def test_no_and_off_are_words_not_false(tmp_path: Path, word: str):
    assert load(tmp_path, f"{M}loss: {{variant: {word}}}\n").loss.variant == word


@pytest.mark.parametrize("text", ["yes", "1e-6", "010", "1:30", "2024-01-01", "a: b", "null", "", " x ", "#", "é"])
def test_quoted_text_is_text(tmp_path: Path, text: str):
    assert load(tmp_path, f'{M}note: "{text}"\n').note == text


BAD_YAML: list[tuple[str, str]] = [
    ("loss:\n  beta: 1\n  beta: 2", "FILE:4: loss.beta: given twice, on lines 3 and 4; keep one"),
    ("seed: 1\nloss: {}\nseed: 1", "FILE:4: seed: given twice, on lines 2 and 4; keep one"),
    ("model: {path: n}", "FILE:2: model: given twice, on lines 1 and 2; keep one"),
    ("loss: &x {beta: 1}\nlora: *x", "FILE:3:7: not valid YAML: aliases (*name) are not allowed; write the value out"),
    ("loss:\n\tbeta: 1", "FILE:3:1: not valid YAML: found character '\\t' that cannot start any token; indent with spaces"),
    ("note: a: b", "FILE:2:8: not valid YAML: mapping values are not allowed here; put a text that contains ': ' in quotes, and check the indentation"),
    ("data: {train: [a", "FILE:3:1: not valid YAML: expected ',' or ']', but got '<stream end>' (while parsing a flow sequence, line 2)"),
    ("note: 'open", "FILE:3:1: not valid YAML: found unexpected end of stream (while scanning a quoted scalar, line 2)"),
    ("--- \nseed: 1", "FILE:2:1: not valid YAML: but found another document (expected a single document in the stream, line 1)"),
    ("note: \x07", "FILE:2:7: character '\\x07' is not allowed in YAML; remove it"),
    ("note: !!python/object:os.system {}", "FILE:2: note: the tag !!python/object:os.system cannot be used here; write the value without it"),
    ("seed: !!int x", "FILE:2: seed: the tag !!int cannot be used here; write the value without it"),
    ("? [a]\n: 1", "FILE:2: a key must be a single word"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "problem"), BAD_YAML, ids=[body[:30] for body, _ in BAD_YAML])
def test_bad_yaml_is_refused_in_words(tmp_path: Path, body: str, problem: str):
    assert problem in problems(tmp_path, M + body + "\n")


WHOLE_FILES: list[tuple[str, str]] = [
    ("", "FILE: holds no keys; write {} to use every default"),
    ("# only a comment\n", "FILE: holds no keys; write {} to use every default"),
    ("- a\n- b\n", "FILE:1: must hold keys with values, got [a, b]"),
    ("seed:3\n", "FILE:1: must hold keys with values, got 'seed:3'; a space must follow the colon"),
    ("{}", "FILE: model: required section is missing; add it with its required keys: path"),
    ("seed: 1\nmodel: {}\n", "FILE:2: model.path: required key is missing; add it, or give --model.path VALUE"),
]


@pytest.mark.parametrize(("text", "problem"), WHOLE_FILES)
def test_bad_whole_files_are_refused_in_words(tmp_path: Path, text: str, problem: str):
    assert problem in problems(tmp_path, text)


def test_files_that_cannot_be_read(tmp_path: Path):
    (tmp_path / "dpo_config.yaml").write_text(M)
    with pytest.raises(UserError, match="no such file; did you mean .*dpo_config.yaml"):
        load_config(Config, tmp_path / "dpo_confg.yaml")
    with pytest.raises(UserError, match="no such file; give another with --config PATH"):
        load_config(Config, tmp_path / "nowhere" / "x.yaml")
    with pytest.raises(UserError, match="cannot be read"):
        load_config(Config, tmp_path)
    (tmp_path / "latin.yaml").write_bytes(M.encode() + "note: é\n".encode("latin-1"))
    with pytest.raises(UserError, match="latin.yaml:2: not UTF-8 text"):
        load_config(Config, tmp_path / "latin.yaml")
