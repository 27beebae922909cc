"""What is wrong with a value is said in words, with its place and the remedy."""
# ruff: noqa: E501 -- the tables of bad input read best with one whole message a row.

from pathlib import Path

import pytest

from tests.config.example import M, problems

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
]  # fmt: skip


@pytest.mark.parametrize(("body", "problem"), BAD_FILES, ids=[body[:30] for body, _ in BAD_FILES])
def test_bad_files_are_refused_in_words(tmp_path: Path, body: str, problem: str):
    assert problem in problems(tmp_path, M + body + "\n")
