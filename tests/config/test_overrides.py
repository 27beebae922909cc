"""Values of the command line take the place of the file's, one key or one section at a time."""
# ruff: noqa: E501 -- the tables of bad input read best with one whole message a row.

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.config.example import LoraSection, M, load, problems


def test_overrides_win_over_the_file_and_later_ones_over_earlier(tmp_path: Path):
    config = load(tmp_path, M + "loss: {beta: 0.3}\n", "--loss.beta=0.2", "--seed", "-5", "--loss.beta", "0.4")
    assert (config.loss.beta, config.seed) == (0.4, -5)


def test_override_values_are_yaml(tmp_path: Path):
    overrides = ("--data.train", "[a, 'b c']", "--data.shuffle", "false", "--lora", "null", "--note", '"no # comment"')
    config = load(tmp_path, M, *overrides)
    assert (config.data.train, config.data.shuffle) == (("a", "b c"), False)
    assert (config.lora, config.note) == (None, "no # comment")


def test_a_key_set_in_a_section_that_is_off_creates_it(tmp_path: Path):
    assert load(tmp_path, M + "lora: null\n", "--lora.rank", "4").lora == LoraSection(rank=4)
    assert load(tmp_path, M, "--lora", "null", "--lora.rank", "4").lora == LoraSection(rank=4)
    assert load(tmp_path, "{}", "--model.path", "x").model.path == "x"


def test_a_mapping_replaces_its_section(tmp_path: Path):
    assert load(tmp_path, M + "lora: {rank: 4}\n", "--lora", "{targets: [q]}").lora == LoraSection(targets=("q",))


def test_a_key_set_in_a_mapping_keeps_the_others(tmp_path: Path):
    # With the mapping absent from the file, the others are the schema's defaults; losing them would be silent.
    assert load(tmp_path, M, "--data.weights.format", "2").data.weights == {"math": 1.0, "format": 2.0}
    given_weights = M + "data: {weights: {a: 3}}\n"
    assert load(tmp_path, given_weights, "--data.weights.format", "2").data.weights == {"a": 3.0, "format": 2.0}


BAD_FLAGS: list[tuple[Sequence[str], str]] = [
    (["--loss.beta", "-0.1"], "--loss.beta: must be greater than 0, got -0.1"),
    (["--loss.bta", "1"], "--loss.bta: unknown key; did you mean --loss.beta?"),
    (["--beta", "1"], "--beta: unknown key; did you mean --loss.beta?"),
    (["--los.beta=1"], "--los.beta: unknown key; did you mean --loss.beta?"),
    (["--data.train.0", "a"], "--data.train.0: unknown key; did you mean --data.train?"),
    (["--xyzzy", "1"], "--xyzzy: unknown key; --help lists every key"),
    (["--data.shuffle"], "--data.shuffle: needs a value: --data.shuffle true"),
    (["--lora.rank"], "--lora.rank: needs a value: --lora.rank VALUE"),
    (["--data.shuffle", "--seed", "1"], "--data.shuffle: needs a value: --data.shuffle true"),
    (["0.1"], "0.1: unexpected argument; a value follows its flag, as in --section.key VALUE"),
    (["-x"], "-x: unexpected argument; a value follows its flag, as in --section.key VALUE"),
    (["--lora", "{rnk: 3}"], "--lora: lora.rnk: unknown key; did you mean lora.rank?"),
    (["--lora", "{rank: 3, rank: 4}"], "--lora: lora.rank: given twice; keep one"),
    (["--model", "null"], "--model: must be a section of keys, got nothing (null); remove the key to use the section's defaults"),
    (["--note", "a # b"], "--note: a # starts a comment in YAML; put the text in quotes: '\"a # b\"'"),
    (["--note", "#b"], "--note: a # starts a comment in YAML; put the text in quotes: '\"#b\"'"),
    (["--note", "a: b"], "--note: must be text, got {a: b}; put the text in quotes"),
    (["--seed", "[1"], "--seed: not valid YAML: expected ',' or ']', but got '<stream end>' (while parsing a flow sequence, line 1); a text may need quotes: '\"...\"'"),
]  # fmt: skip


@pytest.mark.parametrize(("flags", "problem"), BAD_FLAGS)
def test_bad_overrides_are_refused_by_name(tmp_path: Path, flags: Sequence[str], problem: str):
    assert problems(tmp_path, M, *flags) == [problem]


def test_an_override_mends_a_bad_value_of_the_file(tmp_path: Path):
    assert load(tmp_path, M + "lora: {rank: 0}\n", "--lora.rank", "2").lora == LoraSection(rank=2)
