"""Whole runs of other objectives: labelled data, mixtures, no reference, a reference that moves."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dpo import dpo_trainer, train_dpo
from groupwise.errors import UserError
from groupwise.observe.metrics import read_metrics
from tests.runs import assert_same_run, stop_after

CONFIG = """
model: {path: MODEL}
lora: {rank: 4}
data: {train: [DATA], heldout_groups: 4}
optimizer: {learning_rate: 1.0e-2, warmup_steps: 1}
run: {name: run, folder: RUNS, groups_per_step: 6, tokens_per_forward: 150, checkpoint_every: 2, keep_checkpoints: 9,
      report: false}
eval: {every: 2, prompts: 2}
sampling: {max_new_tokens: 3}
"""
Command = Callable[..., list[str]]


@pytest.fixture
def command(
    tmp_path: Path, tiny_model: Path, review_file: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch
) -> Command:
    monkeypatch.setattr(dpo_trainer, "CACHE", tmp_path / "cache")
    pairs = review_file(22)

    def arguments(*flags: str, runs: str = "runs", data: Path = pairs) -> list[str]:
        file = tmp_path / "config.yaml"
        text = CONFIG.replace("MODEL", str(tiny_model)).replace("DATA", str(data)).replace("RUNS", str(tmp_path / runs))
        file.write_text(text)
        return ["--config", str(file), *flags]

    return arguments


@pytest.fixture
def labels(tmp_path: Path, review_file: Callable[[int], Path]) -> Path:
    rows = [json.loads(line) for line in review_file(11).read_text().splitlines()]
    file = tmp_path / "labels.jsonl"
    file.write_text("".join(
        json.dumps({"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}) + "\n"
        for row in rows for side in ("chosen", "rejected")
    ))  # fmt: skip
    return file


def figures(run: Path) -> dict[str, dict[str, float]]:
    summary = json.loads((run / "summary.json").read_text())
    return {part: {name: figure["value"] for name, figure in summary[part].items()} for part in ("before", "after")}


def test_kto_learns_from_labels(command: Command, tmp_path: Path, labels: Path) -> None:
    train_dpo.main(command("--loss.objective", "kto", "--epochs", "2", data=labels))
    run = tmp_path / "runs" / "run"
    metrics = read_metrics(run / "metrics.jsonl")
    assert metrics[0]["loss"] == pytest.approx(0.5, abs=1e-6) and metrics[0]["kto/kl_baseline"] == pytest.approx(
        0, abs=1e-4
    )
    found = figures(run)
    assert (found["before"]["rewards/accuracies"], found["before"]["rewards/margins"]) == (0.5, 0)
    assert found["after"]["rewards/margins"] > 0
    summary = json.loads((run / "summary.json").read_text())
    assert summary["data"]["train"]["desirable"] + summary["data"]["train"]["undesirable"] == 22


def test_bco_and_labels_for_it(command: Command, tmp_path: Path, labels: Path) -> None:
    train_dpo.main(command("--loss.objective", "bco_unpaired", "--loss.beta", "0.1", data=labels))
    metrics = read_metrics(tmp_path / "runs" / "run" / "metrics.jsonl")
    assert metrics[0]["bco/reward_shift"] == 0 and metrics[-1]["bco/reward_shift"] != 0


def test_an_objective_without_reference_computes_none(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: object, **__: object) -> object:
        raise AssertionError("a reference was computed")

    for name in ("dpo.dpo_trainer.cached_reference", "dpo.eval.shared_reference"):
        monkeypatch.setattr(name, forbidden)
    train_dpo.main(command("--loss.objective", "simpo", "--epochs", "2"))
    assert not (tmp_path / "cache").exists()
    found = figures(tmp_path / "runs" / "run")
    assert found["after"]["rewards/margins"] > found["before"]["rewards/margins"] != 0


@pytest.mark.parametrize(
    ("reference", "lora"), [("copy", ()), ("average", ("--lora", "null", "--optimizer.learning_rate", "1e-3"))]
)
def test_a_run_with_a_moving_reference_continues_to_the_same_bytes(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lora: tuple[str, ...], reference: str
) -> None:
    flags = ("--loss.reference", reference, "--loss.reference_every", "2", "--epochs", "2", *lora)
    train_dpo.main(command(*flags, runs="straight"))
    stop_after(5, lambda: train_dpo.main(command(*flags, runs="continued")), monkeypatch)
    train_dpo.main(command(*flags, runs="continued"))
    straight = tmp_path / "straight" / "run"
    names = ["reference.safetensors", "optimizer.safetensors"]
    assert_same_run(tmp_path / "continued" / "run", straight, last="checkpoints/step-000007", files=tuple(names))
    metrics = read_metrics(straight / "metrics.jsonl")
    assert abs(metrics[1]["rewards/margins"]) > 0
    if reference == "copy":  # a step that begins with a copy begins at the start again
        assert [metrics[step]["loss"] == pytest.approx(0.693147, abs=1e-5) for step in range(6)] == [
            True, False, True, False, True, False,
        ]  # fmt: skip
    moved = load_file(straight / "checkpoints" / "step-000004" / "reference.safetensors")
    assert all(torch.isfinite(value).all() for value in moved.values())


def test_the_shift_of_bco_survives_a_stop(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mixture = "[{objective: sigmoid, weight: 0.8}, {objective: bco, weight: 0.2}, {objective: sft_per_token}]"
    flags = ("--loss.mixture", mixture, "--loss.beta", "0.1")
    train_dpo.main(command(*flags, runs="straight"))
    stop_after(2, lambda: train_dpo.main(command(*flags, runs="continued")), monkeypatch)
    train_dpo.main(command(*flags, runs="continued"))
    both = [tmp_path / name / "run" for name in ("continued", "straight")]
    assert_same_run(*both, last="checkpoints/step-000004", files=("optimizer.safetensors", "objective.json"))
    assert json.loads((both[0] / "checkpoints" / "step-000004" / "objective.json").read_text())["reward_shift"] != 0


def test_data_must_fit_the_objective(command: Command, labels: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="kto learns from single completions .* holds pairs"):
        train_dpo.main(command("--loss.objective", "kto"))
    with pytest.raises(UserError, match="sigmoid learns from pairs .* single labelled completions; choose one of kto"):
        train_dpo.main(command(data=labels))
    with pytest.raises(UserError, match="groups_per_step: kto compares"):
        train_dpo.main(command("--loss.objective", "kto", "--run.groups_per_step", "1", data=labels))
    good = tmp_path / "good.jsonl"
    good.write_text("".join(line + "\n" for line in labels.read_text().splitlines() if "true" in line))
    with pytest.raises(UserError, match="all .* completions have the same label"):
        train_dpo.main(command("--loss.objective", "kto", data=good))
    crossed = tmp_path / "crossed.jsonl"  # each row fits, its completion behind the other's prompt does not
    long, short = " film" * 25, " good"
    rows = [{"prompt": a, "completion": b, "label": a == long} for a, b in ((long, short), (short, long))]
    crossed.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match="behind the prompts of others.*75 and 76 tokens"):
        train_dpo.main([*command("--loss.objective", "kto", data=crossed), "--data.heldout", f"[{crossed}]"])
    with pytest.raises(UserError, match="labelled completions and pairs cannot be learned from together"):
        train_dpo.main([*command("--loss.objective", "kto"), "--data.heldout", "[]", "--data.train",
                        f"[{labels}, {write_pairs(tmp_path)}]"])  # fmt: skip
    assert not (tmp_path / "runs").exists()


def write_pairs(folder: Path) -> Path:
    file = folder / "pairs.jsonl"
    file.write_text(json.dumps({"prompt": "a", "chosen": "b", "rejected": "c"}) + "\n")
    return file


@pytest.mark.parametrize("label", ["2", '"maybe"', "null", "[]"])
def test_a_label_that_is_none_is_refused_with_its_line(command: Command, tmp_path: Path, label: str) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text('{"prompt": "a", "completion": "b", "label": true}\n{"prompt": "a", "completion": "c", "label": '
                    + label + "}\n")  # fmt: skip
    with pytest.raises(UserError, match=r"bad.jsonl:2: label must be true or false"):
        train_dpo.main(command("--loss.objective", "kto", data=file))
