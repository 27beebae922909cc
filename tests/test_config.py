"""The configuration machinery, tried on a schema of its own."""
# ruff: noqa: E501 -- the tables of bad input read best with one whole message a row.

import os
import string
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field, model_validator

from groupwise.config import CommandLine, Section, differences, load_config, read_command_line, to_yaml
from groupwise.errors import UserError, edit_distance, exit_with_user_errors, nearest

# Any two of these names are at least three edits apart, so that every single slip has one right answer.


class ModelSection(Section):
    path: str = Field(description="folder or hub name of the base model")
    dtype: Literal["float32", "bfloat16"] = Field(default="float32", description="how weights are stored")


class LossSection(Section):
    beta: float = Field(default=0.1, gt=0, description="1/nat; pull to the reference: usually 0.1-0.5 # not a length")
    variant: Literal["sigmoid", "hinge", "no", "off"] = "sigmoid"
    smoothing: float = Field(
        default=0.0, ge=0, lt=0.5, description="share of labels taken to be flipped, " + 9 * "very long "
    )


class OptimizerSection(Section):
    learning_rate: float = Field(default=1e-6, gt=0, description="step size [at its peak]")
    warmup_steps: int = Field(default=10, ge=0)
    epochs: int | Literal["endless"] = 1


class DataSection(Section):
    train: tuple[str, ...] = ("a.jsonl", "b.jsonl")
    shuffle: bool = True
    weights: dict[str, float] = {"math": 1.0}

    @model_validator(mode="after")
    def _weights_are_not_all_zero(self) -> "DataSection":
        if self.weights and not any(self.weights.values()):
            raise ValueError("every weight is 0; give one reward a weight")
        return self


class LoraSection(Section):
    rank: int = Field(default=16, ge=1)
    targets: tuple[str, ...] | Literal["all-linear"] = "all-linear"


class RewardSection(Section):
    function: str
    gain: float = 1.0


class ConstantSchedule(Section):
    kind: Literal["constant"] = "constant"


class CosineSchedule(Section):
    kind: Literal["cosine"] = "cosine"
    floor: float = Field(default=0.0, ge=0)


class Config(Section):
    model: ModelSection
    loss: LossSection = LossSection()
    optimizer: OptimizerSection = OptimizerSection()
    data: DataSection = DataSection()
    lora: LoraSection | None = Field(default=LoraSection(), description="low-rank adapter; null trains every weight")
    rewards: tuple[RewardSection, ...] = ()
    schedule: Annotated[ConstantSchedule | CosineSchedule, Field(discriminator="kind")] = ConstantSchedule()
    seed: int = 0
    note: str | None = None


KEYS = [
    *("model.path", "model.dtype", "loss.beta", "loss.variant", "loss.smoothing", "optimizer.learning_rate"),
    *("optimizer.warmup_steps", "optimizer.epochs", "data.train", "data.shuffle", "lora.rank", "lora.targets"),
]


@pytest.fixture
def config_path(tmp_path: Path) -> Path:
    return tmp_path / "my.yaml"


def load(path: Path, text: str, *overrides: str) -> Config:
    path.write_text(text, encoding="utf-8")
    return load_config(Config, path, overrides)


def problems(path: Path, text: str, *overrides: str) -> list[str]:
    """What is wrong with a file, one line a problem, the file called FILE."""
    with pytest.raises(UserError) as caught:
        load(path, text, *overrides)
    return str(caught.value).replace(str(path), "FILE").splitlines()


M = "model: {path: m}\n"  # line 1 of every file below: the one required key


# --- what is accepted ------------------------------------------------------------------------------------------------


def test_a_file_becomes_a_frozen_typed_object(config_path: Path):
    config = load(config_path, M + "loss:\n  beta: 1\ndata:\n  train: [x, y]\n")
    assert config == Config(
        model=ModelSection(path="m"), loss=LossSection(beta=1.0), data=DataSection(train=("x", "y"))
    )
    assert isinstance(config.loss.beta, float)
    with pytest.raises(ValueError, match="frozen"):
        config.loss.beta = 2.0  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("written", ["1e-6", "1E-6", "1.0e-6", "0.000001", "+1e-06", ".1e-5", "10e-7"])
def test_every_way_of_writing_a_small_number_is_a_number(config_path: Path, written: str):
    # PyYAML follows YAML 1.1, where `1e-6` without a dot is text and no number.
    text = f"{M}optimizer:\n  learning_rate: {written}\n"
    assert load(config_path, text).optimizer.learning_rate == 1e-6
    assert load(config_path, M, "--optimizer.learning_rate", written).optimizer.learning_rate == 1e-6


@pytest.mark.parametrize("word", ["no", "off"])
def test_no_and_off_are_words_not_false(config_path: Path, word: str):
    assert load(config_path, f"{M}loss: {{variant: {word}}}\n").loss.variant == word


@pytest.mark.parametrize("text", ["yes", "1e-6", "010", "1:30", "2024-01-01", "a: b", "null", "", " x ", "#", "é"])
def test_quoted_text_is_text(config_path: Path, text: str):
    assert load(config_path, f'{M}note: "{text}"\n').note == text


def test_a_discriminated_section_takes_the_keys_of_its_kind(config_path: Path):
    config = load(config_path, M + "schedule: {kind: cosine, floor: 0.1}\n")
    assert config.schedule == CosineSchedule(floor=0.1)
    assert load(config_path, M + "schedule: {kind: cosine}\n", "--schedule.floor", "0.3").schedule == CosineSchedule(
        floor=0.3
    )


def test_a_union_takes_either_member(config_path: Path):
    assert load(config_path, M + "optimizer: {epochs: endless}\n").optimizer.epochs == "endless"
    assert load(config_path, M + "lora: {targets: [q, v]}\n").lora == LoraSection(targets=("q", "v"))


# --- overrides -------------------------------------------------------------------------------------------------------


def test_overrides_win_over_the_file_and_later_ones_over_earlier(config_path: Path):
    config = load(config_path, M + "loss: {beta: 0.3}\n", "--loss.beta=0.2", "--seed", "-5", "--loss.beta", "0.4")
    assert (config.loss.beta, config.seed) == (0.4, -5)


def test_override_values_are_yaml(config_path: Path):
    overrides = ("--data.train", "[a, 'b c']", "--data.shuffle", "false", "--lora", "null", "--note", '"no # comment"')
    config = load(config_path, M, *overrides)
    assert (config.data.train, config.data.shuffle) == (("a", "b c"), False)
    assert (config.lora, config.note) == (None, "no # comment")


def test_a_key_set_in_a_section_that_is_off_creates_it(config_path: Path):
    assert load(config_path, M + "lora: null\n", "--lora.rank", "4").lora == LoraSection(rank=4)
    assert load(config_path, M, "--lora", "null", "--lora.rank", "4").lora == LoraSection(rank=4)
    assert load(config_path, "{}", "--model.path", "x").model.path == "x"


def test_a_mapping_replaces_its_section(config_path: Path):
    assert load(config_path, M + "lora: {rank: 4}\n", "--lora", "{targets: [q]}").lora == LoraSection(targets=("q",))


def test_a_key_set_in_a_mapping_keeps_the_others(config_path: Path):
    # With the mapping absent from the file, the others are the schema's defaults; losing them would be silent.
    assert load(config_path, M, "--data.weights.format", "2").data.weights == {"math": 1.0, "format": 2.0}
    given_weights = M + "data: {weights: {a: 3}}\n"
    assert load(config_path, given_weights, "--data.weights.format", "2").data.weights == {"a": 3.0, "format": 2.0}


# --- what is refused -------------------------------------------------------------------------------------------------

BAD_FILES: list[tuple[str, str]] = [
    # unknown keys
    ("loss:\n  bta: 1", "FILE:3: loss.bta: unknown key; did you mean loss.beta?"),
    ("loss: {Beta: 1}", "FILE:2: loss.Beta: unknown key; did you mean loss.beta?"),
    ("data:\n  beta: 1", "FILE:3: data.beta: unknown key; did you mean loss.beta?"),
    ("learning_rate: 1", "FILE:2: learning_rate: unknown key; did you mean optimizer.learning_rate?"),
    ("optimizer: {learning-rate: 1}", "FILE:2: optimizer.learning-rate: unknown key; did you mean optimizer.learning_rate?"),
    ("los: {beta: 1}", "FILE:2: los: unknown key; did you mean loss?"),
    ("loss: {lora: {rank: 3}}", "FILE:2: loss.lora: unknown key; did you mean lora?"),
    ("xyzzy: 1", "FILE:2: xyzzy: unknown key; --help lists every key"),
    ("loss.beta: 1", "FILE:2: loss.beta: unknown key; in YAML sections nest: write loss: and, indented below it, beta:"),
    ("rewards:\n- {function: f}\n- {function: g, gian: 2}", "FILE:4: rewards.1.gian: unknown key; did you mean rewards.1.gain?"),
    ("schedule: {kind: constant, floor: 1}", "FILE:2: schedule.floor: does not belong to this kind of schedule; choose another kind or remove the key"),
    ("on: 1", "FILE:2: on: unknown key; --help lists every key"),
    # kinds of value
    ("seed: true", "FILE:2: seed: must be a whole number, got true"),
    ("seed: 1.5", "FILE:2: seed: must be a whole number, got 1.5"),
    ("seed: 1e3", "FILE:2: seed: must be a whole number, got 1000.0; write 1000"),
    ('seed: "3"', "FILE:2: seed: must be a whole number, got '3'; remove the quotes"),
    ("seed: 010", "FILE:2: seed: must be a whole number, got '010'"),
    ("seed: 1_000", "FILE:2: seed: must be a whole number, got '1_000'"),
    ("seed:", "FILE:2: seed: must be a whole number, got nothing (null)"),
    ("seed: " + 5000 * "9", f"FILE:2: seed: must be a whole number, got '{56 * '9'}..."),
    ("loss: {beta: true}", "FILE:2: loss.beta: must be a number, got true"),
    ("loss: {beta: .nan}", "FILE:2: loss.beta: must be a finite number, got .nan"),
    ("loss: {beta: .inf}", "FILE:2: loss.beta: must be a finite number, got .inf"),
    ("loss: {beta: 1e999}", "FILE:2: loss.beta: must be a finite number, got .inf"),
    ("loss: {beta: nan}", "FILE:2: loss.beta: must be a number, got 'nan'"),
    ("loss: {beta: '1e-6'}", "FILE:2: loss.beta: must be a number, got '1e-6'; remove the quotes"),
    ("data: {shuffle: yes}", "FILE:2: data.shuffle: must be true or false, got 'yes'; write true"),
    ("data: {shuffle: Off}", "FILE:2: data.shuffle: must be true or false, got 'Off'; write false"),
    ("data: {shuffle: 1}", "FILE:2: data.shuffle: must be true or false, got 1"),
    ("data: {train: a.jsonl}", "FILE:2: data.train: must be a list, got 'a.jsonl'; write ['a.jsonl']"),
    ("data:\n  train:\n  - a\n  - 3", "FILE:5: data.train.1: must be text, got 3; put the text in quotes"),
    ("data: {weights: {math: x}}", "FILE:2: data.weights.math: must be a number, got 'x'"),
    ("data: {weights: 3}", "FILE:2: data.weights: must be a mapping, got 3"),
    ("note: true", "FILE:2: note: must be text, got true; put the text in quotes"),
    ("loss: 3", "FILE:2: loss: must be a section of keys, got 3"),
    ("loss:\n  beta:0.1", "FILE:2: loss: must be a section of keys, got 'beta:0.1'; a space must follow the colon"),
    ("loss:\n#  beta: 0.1", "FILE:2: loss: must be a section of keys, got nothing (null); remove the key to use the section's defaults"),
    ("lora: false", "FILE:2: lora: must be a section of keys, got false"),
    ("optimizer: {epochs: 1.5}", "FILE:2: optimizer.epochs: must be a whole number or be 'endless', got 1.5"),
    ("optimizer: {epochs: endles}", "FILE:2: optimizer.epochs: must be a whole number or be 'endless', got 'endles'; did you mean endless?"),
    # limits and choices
    ("loss:\n\n  beta: -0.1", "FILE:4: loss.beta: must be greater than 0, got -0.1"),
    ("loss: {smoothing: 0.5}", "FILE:2: loss.smoothing: must be less than 0.5, got 0.5"),
    ("lora: {rank: 0}", "FILE:2: lora.rank: must be at least 1, got 0"),
    ("model2: 1\nloss: {variant: sigmiod}", "FILE:3: loss.variant: must be one of 'sigmoid', 'hinge', 'no' or 'off', got 'sigmiod'; did you mean sigmoid?"),
    ("loss: {variant: false}", "FILE:2: loss.variant: must be one of 'sigmoid', 'hinge', 'no' or 'off', got false"),
    ("schedule: {kind: cosin}", "FILE:2: schedule: must have 'kind' one of 'constant', 'cosine', got {kind: cosin}; did you mean cosine?"),
    ("schedule: {floor: 1}", "FILE:2: schedule: the key 'kind' is missing; it chooses among the kinds"),
    ("data: {weights: {a: 0}}", "FILE:2: data: every weight is 0; give one reward a weight"),
    ("rewards: [{gain: 1}]", "FILE:2: rewards.0.function: required key is missing; add it"),
    # YAML itself
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


@pytest.mark.parametrize(("body", "problem"), BAD_FILES, ids=[body[:30] for body, _ in BAD_FILES])
def test_bad_files_are_refused_in_words(config_path: Path, body: str, problem: str):
    assert problem in problems(config_path, M + body + "\n")


WHOLE_FILES: list[tuple[str, str]] = [
    ("", "FILE: holds no keys; write {} to use every default"),
    ("# only a comment\n", "FILE: holds no keys; write {} to use every default"),
    ("- a\n- b\n", "FILE:1: must hold keys with values, got [a, b]"),
    ("seed:3\n", "FILE:1: must hold keys with values, got 'seed:3'; a space must follow the colon"),
    ("{}", "FILE: model: required section is missing; add it with its required keys: path"),
    ("seed: 1\nmodel: {}\n", "FILE:2: model.path: required key is missing; add it, or give --model.path VALUE"),
]


@pytest.mark.parametrize(("text", "problem"), WHOLE_FILES)
def test_bad_whole_files_are_refused_in_words(config_path: Path, text: str, problem: str):
    assert problem in problems(config_path, text)


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
def test_bad_overrides_are_refused_by_name(config_path: Path, flags: Sequence[str], problem: str):
    assert problems(config_path, M, *flags) == [problem]


def test_all_problems_come_at_once_in_the_order_of_the_file(config_path: Path):
    text = M + "loss:\n  bta: 1\n  beta: -1\nseed: 1\nseed: 2\nlora: {rank: x}\n"
    found = problems(config_path, text, "--data.shuffle", "maybe", "--optimiser.epochs", "2")
    assert [line.split(":")[1] for line in found[:4]] == ["3", "4", "6", "7"]
    assert found[4:] == [
        "--data.shuffle: must be true or false, got 'maybe'",
        "--optimiser.epochs: unknown key; did you mean --optimizer.epochs?",
    ]


def test_an_override_mends_a_bad_value_of_the_file(config_path: Path):
    assert load(config_path, M + "lora: {rank: 0}\n", "--lora.rank", "2").lora == LoraSection(rank=2)


def test_the_first_twenty_problems_and_a_count(config_path: Path):
    found = problems(config_path, M + "".join(f"unknown_{i}: 1\n" for i in range(25)))
    assert len(found) == 21 and found[-1] == "... and 5 more"


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


@st.composite
def slips(draw: st.DrawFn) -> tuple[str, str]:
    """A dotted key and the same with one letter of its last part changed, dropped, added, or swapped with the next."""
    key = draw(st.sampled_from(KEYS))
    section, _, name = key.rpartition(".")
    letters = st.sampled_from(string.ascii_letters + string.digits + "_-")
    i = draw(st.integers(0, len(name) - 1))
    slip = draw(
        st.one_of(
            letters.map(lambda letter: name[:i] + letter + name[i + 1 :]),
            letters.map(lambda letter: name[:i] + letter + name[i:]),
            st.just(name[:i] + name[i + 1 :]),
            st.just(name[:i] + name[i + 1 : i + 2] + name[i] + name[i + 2 :]),
        ).filter(lambda slip: slip != name)
    )
    return key, f"{section}.{slip}"


@settings(deadline=None)
@given(slips())
def test_any_slip_in_a_key_is_refused_and_the_right_key_suggested(tmp_path_factory: Any, slip: tuple[str, str]):
    key, wrong = slip
    section, _, name = wrong.rpartition(".")
    path = tmp_path_factory.getbasetemp() / "slip.yaml"
    in_file = problems(path, f"{'' if section == 'model' else M}{section}:\n  {name}: 1\n")
    assert any(line.endswith(f": {wrong}: unknown key; did you mean {key}?") for line in in_file)
    assert problems(path, M, f"--{wrong}", "1") == [f"--{wrong}: unknown key; did you mean --{key}?"]


@settings(deadline=None)
@given(st.text(max_size=60), st.text(max_size=20).filter(lambda text: "\0" not in text))
def test_no_text_whatever_gets_past_as_anything_but_a_user_error(tmp_path_factory: Any, text: str, value: str):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError):
        load_config(Config, path, ["--note", value])  # the required model.path is never there


# --- writing ---------------------------------------------------------------------------------------------------------

texts = st.text(st.characters(codec="utf-8"), max_size=12) | st.sampled_from(["1e-6", "no", "null", "1_0", "~", "a\nb"])
numbers = st.floats(min_value=1e-30, max_value=1e30)
whole = st.integers(-(10**30), 10**30)  # a whole number of more digits is text to the reader, by its own rule
configs = st.builds(
    Config,
    model=st.builds(ModelSection, path=texts, dtype=st.sampled_from(["float32", "bfloat16"])),
    loss=st.builds(LossSection, beta=numbers),
    optimizer=st.builds(OptimizerSection, epochs=whole | st.just("endless"), learning_rate=numbers),
    data=st.builds(
        DataSection,
        train=st.lists(texts, max_size=3).map(tuple),
        shuffle=st.booleans(),
        weights=st.dictionaries(texts, numbers, max_size=2),
    ),
    lora=st.none() | st.builds(LoraSection, targets=st.lists(texts, max_size=2).map(tuple)),
    rewards=st.lists(st.builds(RewardSection, function=texts, gain=numbers), max_size=2).map(tuple),
    schedule=st.builds(CosineSchedule, floor=numbers) | st.builds(ConstantSchedule),
    note=st.none() | texts,
)


@settings(deadline=None)
@given(configs)
def test_written_configurations_load_back_equal(tmp_path_factory: Any, config: Config):
    path = tmp_path_factory.getbasetemp() / "resolved.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    assert load_config(Config, path) == config
    # Any other YAML 1.1 reader must see the same values.
    assert yaml.safe_load(to_yaml(config)) == config.model_dump(mode="json")


def test_every_default_is_written_and_every_key_commented():
    text = to_yaml(Config(model=ModelSection(path="m")))
    assert "  beta: 0.1         # 1/nat; pull to the reference: usually 0.1-0.5 # not a length\n" in text
    assert "  learning_rate: 1.0e-06  # step size [at its peak]\n" in text
    assert "lora:  # low-rank adapter; null trains every weight\n  rank: 16\n" in text
    assert "  # share of labels taken to be flipped, very long" in text  # too long to stand beside the value
    assert max(map(len, text.splitlines())) <= 120


def test_differences_name_key_and_both_values():
    a = Config(model=ModelSection(path="m"))
    b = Config(
        model=ModelSection(path="n"), loss=LossSection(beta=0.5), lora=None, data=DataSection(weights={"math": 2.0})
    )
    assert differences(a, b) == [
        "model.path: m -> n",
        "loss.beta: 0.1 -> 0.5",
        "data.weights: {math: 1.0} -> {math: 2.0}",
        "lora: {rank: 16, targets: all-linear} -> null",
    ]
    assert differences(a, Config(model=ModelSection(path="m"))) == []


# --- the whole command line ------------------------------------------------------------------------------------------


def command_line(argv: Sequence[str], default_path: Path) -> CommandLine[Config]:
    return read_command_line(
        Config,
        argv,
        default_path=default_path,
        description="Train with preferences.",
        epilog="Example: train --loss.beta 0.2",
        flags={"check": "Load everything [twice] and stop."},
    )


def test_the_default_file_another_file_and_the_programs_own_flags(tmp_path: Path):
    default, other = tmp_path / "default.yaml", tmp_path / "other.yaml"
    default.write_text(M)
    other.write_text("model: {path: o}\n")
    plain = command_line([], default)
    assert (plain.config.model.path, plain.path, plain.flags) == ("m", default, frozenset())
    chosen = command_line(["--check", "--config", str(other), "--seed", "3"], default)
    assert (chosen.config.model.path, chosen.config.seed) == ("o", 3)
    assert (chosen.path, chosen.flags) == (other, {"check"})


@pytest.mark.parametrize(
    ("argv", "problem"),
    [
        (["--chek"], "--chek: unknown key; did you mean --check?"),
        (["--confg", "x"], "--confg: unknown key; did you mean --config?"),
        (["--check=true"], "--check: takes no value"),
        (["--check", "true"], "true: unexpected argument; a value follows its flag, as in --section.key VALUE"),
        (["--config"], "--config: needs the path of a YAML file"),
        (["--config="], "--config: needs the path of a YAML file"),
    ],
)
def test_bad_command_lines(config_path: Path, argv: Sequence[str], problem: str):
    config_path.write_text(M)
    with pytest.raises(UserError) as caught:
        command_line(argv, config_path)
    assert str(caught.value) == problem


def test_print_config_prints_what_would_run(config_path: Path, capsys: pytest.CaptureFixture[str]):
    config_path.write_text(M)
    with pytest.raises(SystemExit) as ended:
        command_line(["--print-config", "--loss.beta", "0.25"], config_path)
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert load(config_path, printed) == Config(model=ModelSection(path="m"), loss=LossSection(beta=0.25))


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_help_shows_every_key_within_the_terminal(
    columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", str(columns))
    with pytest.raises(SystemExit) as ended:
        command_line(["--help", "--nonsense"], Path("there/is/no/such/file.yaml"))
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= min(columns, 100)
    flags = {word for word in text.split() if word.startswith("--")}
    own = {"--config", "--print-config", "--help", "--check"}
    assert flags >= {f"--{key}" for key in KEYS} | own | {"--schedule.floor", "--seed", "--note"}
    assert "[at its peak]" in text and "[twice]" in text  # square brackets are text, not markup
    words = " ".join(text.split())
    assert "--loss.beta 1/nat; pull to the reference" in words and "float > 0, default 0.1" in words
    assert "float32 | bfloat16, default float32" in words
    assert "text, required" in words
    assert "--lora null switches it off" in words
    assert "Example: train --loss.beta 0.2" in words


def test_help_needs_neither_torch_nor_transformers():
    # Importing them takes seconds, and a user who asks for help waits for it.
    code = "import sys, groupwise.config; print([m for m in ('torch', 'transformers', 'peft') if m in sys.modules])"
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root, env={**os.environ}
    )
    assert done.stdout.strip() == "[]"


# --- mistakes of whoever writes a schema -----------------------------------------------------------------------------


def test_a_default_that_a_file_would_silently_lose_is_refused():
    # `loss: {variant: hinge}` in a file would build LossSection from scratch, and beta would be 0.1 again.
    with pytest.raises(TypeError, match="put the defaults into LossSection itself"):
        type("Bad", (Section,), {"__annotations__": {"loss": LossSection}, "loss": LossSection(beta=0.5)})


def test_a_choice_among_numbers_is_refused():
    # Literal compares by equality, so `true` would pass for 1.
    with pytest.raises(TypeError, match="Literal choices must be text"):
        type("Bad", (Section,), {"__annotations__": {"ddof": Literal[0, 1]}, "ddof": 0})


# --- errors ----------------------------------------------------------------------------------------------------------


def test_user_errors_end_a_program_with_code_2_and_no_traceback(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended, exit_with_user_errors():
        raise UserError("a.yaml:1: bad\na.yaml:2: worse")
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: a.yaml:1: bad\n       a.yaml:2: worse\n"


def test_interrupts_end_a_program_with_code_130_and_one_line(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended, exit_with_user_errors():
        raise KeyboardInterrupt
    assert (ended.value.code, capsys.readouterr().err) == (130, "interrupted\n")


def test_other_errors_propagate():
    with pytest.raises(ZeroDivisionError), exit_with_user_errors():
        _ = 1 / 0


short = st.text("ab", max_size=6)


@settings(deadline=None)
@given(short, short, short)
def test_edit_distance_against_first_principles(a: str, b: str, c: str):
    assert edit_distance(a, b) == edit_distance(b, a)
    assert (edit_distance(a, b) == 0) == (a == b)
    assert abs(len(a) - len(b)) <= edit_distance(a, b) <= max(len(a), len(b))
    assert edit_distance(c + a, c + b) == edit_distance(a, b)  # what two words share costs nothing


def test_nearest_prefers_fewer_edits_then_the_first():
    assert nearest("adm", ["adam", "adamw"]) == "adam"
    assert nearest("lr", ["lx", "ly"]) == "lx"
    assert nearest("completely", ["different"]) is None
    assert nearest("x", []) is None
