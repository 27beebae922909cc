"""DPO from the command line: same bytes after a stop, clear errors before anything is written."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from dpo import dpo_trainer, eval, train_dpo
from groupwise.errors import UserError, exit_with_user_errors
from groupwise.observe.metrics import read_metrics
from tests.runs import assert_same_run, digests, stop_after

CONFIG = """
model: {path: MODEL}
lora: {rank: 4}
data: {train: [DATA], heldout_groups: 6}
optimizer: {learning_rate: 1.0e-2, warmup_steps: 1}
run: {name: run, folder: RUNS, groups_per_step: 9, tokens_per_forward: 150, checkpoint_every: 2, keep_checkpoints: 9}
epochs: 2
eval: {every: 3, prompts: 4, score: review_sentiment}
sampling: {max_new_tokens: 6}
"""

Command = Callable[..., list[str]]


@pytest.fixture
def command(
    tmp_path: Path,
    tiny_model: Path,
    review_file: Callable[[int], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> Command:
    """Arguments of a small run; keyword arguments replace words of its configuration."""
    monkeypatch.setattr(dpo_trainer, "CACHE", tmp_path / "cache")
    data = review_file(30)

    def arguments(*flags: str, runs: str = "runs") -> list[str]:
        file = tmp_path / "config.yaml"
        text = CONFIG.replace("MODEL", str(tiny_model)).replace("DATA", str(data)).replace("RUNS", str(tmp_path / runs))
        file.write_text(text)
        return ["--config", str(file), *flags]

    return arguments


def test_a_run_leaves_everything_a_person_needs(command: Command, tmp_path: Path) -> None:
    train_dpo.main(command())
    run = tmp_path / "runs" / "run"
    metrics = read_metrics(run / "metrics.jsonl")
    assert [row["step"] for row in metrics] == [1, 2, 3, 4, 5, 6]
    assert metrics[0]["loss"] == pytest.approx(0.693147, abs=1e-5)
    assert [row["step"] for row in metrics if "eval/rewards/accuracies" in row] == [3, 6]
    summary = json.loads((run / "summary.json").read_text())
    assert summary["before"].keys() == summary["after"].keys()
    wanted = {"rewards/accuracies", "rewards/margins", "score/mean", "score/positive_rate", "kl/sequence"}
    assert wanted <= summary["after"].keys()
    assert all(set(figure) == {"value", "low", "high", "n"} for figure in summary["after"].values())
    assert summary["before"]["rewards/margins"]["value"] == pytest.approx(0, abs=1e-5)
    assert summary["before"]["kl/sequence"]["value"] == pytest.approx(0, abs=1e-5)
    # Invariant 9: DPO ranks held-out pairs as labelled and the margin rises.
    assert summary["after"]["rewards/accuracies"]["value"] == 1.0
    assert summary["after"]["rewards/margins"]["low"] > 0
    assert summary["steps"] == 6 and summary["tokens"] > 0 and summary["train_seconds"] > 0
    assert len((run / "samples.jsonl").read_text().splitlines()) == 3
    assert (run / "learning_curve.png").stat().st_size > 10_000


def test_the_adapter_loads_with_peft_and_is_the_trained_policy(
    command: Command, tmp_path: Path, tiny_model: Path
) -> None:
    train_dpo.main(command())
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    tuned = peft.PeftModel.from_pretrained(base, str(tmp_path / "runs" / "run" / "adapter"))
    weights = tuned.state_dict()
    newest = load_file(tmp_path / "runs" / "run" / "checkpoints" / "step-000006" / "weights.safetensors")
    for name, trained in newest.items():
        assert torch.equal(weights[f"base_model.model.{name}"], trained)


@pytest.mark.parametrize("stop", [1, 2, 3, 5])
def test_a_stopped_and_continued_run_has_the_same_bytes(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    """Invariant 6, also where the stop lies between checkpoints (3, 5) and before the first (1)."""
    train_dpo.main(command(runs="straight"))
    stop_after(stop, lambda: train_dpo.main(command(runs="continued")), monkeypatch)
    train_dpo.main(command(runs="continued"))
    assert_same_run(
        tmp_path / "continued" / "run",
        tmp_path / "straight" / "run",
        last="checkpoints/step-000006",
        files=("optimizer.safetensors",),
    )


def test_a_finished_run_is_shown_and_not_touched(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_dpo.main(command())
    before = digests(tmp_path / "runs" / "run" / "adapter")
    capsys.readouterr()
    train_dpo.main(command())
    assert "is finished" in capsys.readouterr().out
    assert digests(tmp_path / "runs" / "run" / "adapter") == before


def test_another_configuration_never_continues_a_run(command: Command) -> None:
    train_dpo.main(command())
    with pytest.raises(UserError, match=r"loss\.beta: 0\.1 -> 0\.2"):
        train_dpo.main(command("--loss.beta", "0.2"))


def test_another_base_model_or_other_data_never_continue_a_run(
    command: Command, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The configuration names the same paths; what lies there is another model, whose adapter this is not."""
    arguments = command()
    train_dpo.main(arguments)
    run = tmp_path / "runs" / "run"
    summary = (run / "summary.json").read_text()
    (run / "summary.json").unlink()
    moved = tmp_path / "moved"
    shutil.copytree(tiny_model, moved)
    weights = load_file(moved / "model.safetensors")
    save_file({name: tensor * 1.01 for name, tensor in weights.items()}, moved / "model.safetensors", {"format": "pt"})
    config = run / "config.yaml"
    config.write_text(config.read_text().replace(str(tiny_model), str(moved)))
    with pytest.raises(UserError, match="another base model"):
        train_dpo.main([*arguments, "--model.path", str(moved)])
    (run / "summary.json").write_text(summary)
    with pytest.raises(UserError, match="is not the model"):
        eval.main([str(run)])
    assert (run / "summary.json").read_text() == summary


def test_eval_reproduces_the_figures_of_the_run(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_dpo.main(command())
    file = tmp_path / "runs" / "run" / "summary.json"
    first = json.loads(file.read_text())
    eval.main([str(file.parent)])
    again = json.loads(file.read_text())
    for part in ("before", "after"):
        for name, figure in first[part].items():
            assert again[part][name]["value"] == pytest.approx(figure["value"], abs=1e-5), name
    assert "samples side by side" in capsys.readouterr().out


def test_full_fine_tuning_keeps_a_frozen_reference(command: Command, tmp_path: Path) -> None:
    train_dpo.main(command("--lora", "null", "--optimizer.learning_rate", "1e-3"))
    run = tmp_path / "runs" / "run"
    assert read_metrics(run / "metrics.jsonl")[0]["loss"] == pytest.approx(0.693147, abs=1e-5)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["before"]["rewards/margins"]["value"] == pytest.approx(0, abs=1e-5)
    assert summary["after"]["rewards/margins"]["low"] > 0
    eval.main([str(run)])
    AutoModelForCausalLM.from_pretrained(run / "adapter")


def test_the_reference_cache_is_used_again_and_only_where_it_belongs(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    """The peer loses the cache when the learning rate changes, and keeps a stale one when the limits do."""
    train_dpo.main(command())
    assert "computed and kept" in capsys.readouterr().out
    train_dpo.main(command("--run.name", "other-rate", "--optimizer.learning_rate", "1e-3", "--loss.beta", "0.3"))
    assert "computed" not in capsys.readouterr().out
    train_dpo.main(
        command("--run.name", "other-limit", "--data.max_completion_tokens", "20", "--data.too_long", "cut_completion")
    )
    assert "computed and kept" in capsys.readouterr().out


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


MISTAKES: dict[str, tuple[Callable[[Path], list[str]], list[str]]] = {
    "mistyped key": (lambda _: ["--loss.bta", "0.1"], ["loss.bta", "did you mean", "loss.beta"]),
    "negative beta": (lambda _: ["--loss.beta", "-0.1"], ["loss.beta", "greater than 0", "-0.1"]),
    "missing file": (lambda _: ["--data.train", "[nowhere.jsonl]"], ["nowhere.jsonl"]),
    "missing model": (lambda _: ["--model.path", "model/nowhere"], ["model.path", "model/nowhere", "download_model"]),
    "row without rejected": (
        lambda folder: ["--data.train", "[" + write(folder / "x.jsonl", '{"prompt": "a", "chosen": "b"}\n') + "]"],
        ["x.jsonl", "rejected"],
    ),
    "null in a row": (
        lambda folder: [
            "--data.train",
            "[" + write(folder / "x.jsonl", '{"prompt":"a","chosen":"b","rejected":"c"}\n' * 2
                        + '{"prompt":"a","chosen":"b","rejected":null}\n') + "]",
        ],
        ["x.jsonl:3", "rejected"],
    ),
    "empty completion": (
        lambda folder: [
            "--data.train", "[" + write(folder / "x.jsonl", '{"prompt":"a","chosen":"","rejected":"c"}\n') + "]",
        ],
        ["x.jsonl:1", "chosen", "empty"],
    ),
    "empty data set": (lambda folder: ["--data.train", "[" + write(folder / "x.jsonl", "") + "]"], ["x.jsonl"]),
    "all prompts too long": (lambda _: ["--data.max_prompt_tokens", "1"], ["max_prompt_tokens"]),
    "unknown score": (lambda _: ["--eval.score", "review_sentimnt"], ["eval.score", "did you mean review_sentiment"]),
    "unknown layer": (lambda _: ["--lora.target_modules", "[q_proj]"], ["lora.target_modules", "c_attn"]),
    "longer than the model": (lambda _: ["--sampling.max_new_tokens", "127"], ["sampling.max_new_tokens", "128"]),
    "mistyped loss name": (lambda _: ["--optimizer.name", "adam"], ["optimizer.name", "adamw"]),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_get_one_clear_error_and_nothing_is_written(
    name: str, command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags, parts = MISTAKES[name]
    with pytest.raises(SystemExit) as exit, exit_with_user_errors():
        train_dpo.main(command(*flags(tmp_path)))
    message = capsys.readouterr().err
    assert exit.value.code == 2
    assert message.startswith("error: ")
    for part in parts:
        assert part in message, f"{part!r} is not in {message!r}"
    assert not (tmp_path / "runs").exists() and not (tmp_path / "cache").exists()
