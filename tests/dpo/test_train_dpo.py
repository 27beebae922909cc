"""DPO from the command line: same bytes after a stop, clear errors before anything is written."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from dpo import dpo_trainer, eval, train_dpo
from groupwise.errors import RunStopped, UserError, exit_with_user_errors
from groupwise.groups import NotFinite
from groupwise.observe.heldout import Evaluation
from groupwise.observe.metrics import read_metrics
from tests.conftest import random_groups
from tests.runs import assert_same_run, before_step, digests, stop_after, unreadable_at

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

ROOT = Path(__file__).resolve().parents[2]
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
    for name in ("kl/sequence", "score/mean"):
        assert [row["step"] for row in metrics if f"eval/{name}" in row] == [3, 6]
        assert metrics[-1][f"eval/{name}"] == pytest.approx(summary["after"][name]["value"], abs=1e-6)
    # Invariant 9: DPO ranks held-out pairs as labelled and the margin rises.
    # A policy that is its reference ranks by chance; to call its ties wrong would make every run look like a gain.
    assert summary["before"]["rewards/accuracies"]["value"] == 0.5
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


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_finishes_the_step_and_saves(
    command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
    code: int,
) -> None:
    """The documented exit codes; step 3 lies between checkpoints, and nothing is lost or done twice."""
    train_dpo.main(command(runs="straight"))
    with pytest.raises(SystemExit) as left, exit_with_user_errors():
        before_step(3, lambda: os.kill(os.getpid(), number), monkeypatch)
        train_dpo.main(command(runs="continued"))
    monkeypatch.undo()
    assert left.value.code == code
    said = capsys.readouterr()
    assert "finishing this step and saving" in said.out
    assert "stopped after step 3 of 6; the same command continues from" in said.err and "step-000003" in said.err
    train_dpo.main(command(runs="continued"))
    assert_same_run(
        tmp_path / "continued" / "run",
        tmp_path / "straight" / "run",
        last="checkpoints/step-000006",
        files=("optimizer.safetensors",),
    )


def test_two_processes_never_train_in_one_folder(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both would append to the same files; the second one is told, and the first one is not disturbed."""
    train_dpo.main(command(runs="straight"))

    def start_another() -> None:
        with pytest.raises(UserError, match="another process is training in this folder"):
            train_dpo.main(command(runs="continued"))

    before_step(3, start_another, monkeypatch)
    train_dpo.main(command(runs="continued"))
    assert digests(tmp_path / "continued/run/adapter") == digests(tmp_path / "straight/run/adapter")


def test_a_second_signal_leaves_at_once_and_damages_nothing(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1.5)  # at once it would be the same wish
        os.kill(os.getpid(), signal.SIGINT)

    train_dpo.main(command(runs="straight"))
    with pytest.raises(SystemExit) as left, exit_with_user_errors():
        before_step(3, twice, monkeypatch)
        train_dpo.main(command(runs="continued"))
    monkeypatch.undo()
    assert left.value.code == 130
    assert [path.name for path in (tmp_path / "continued/run/checkpoints").iterdir()] == ["step-000002"]
    train_dpo.main(command(runs="continued"))
    assert digests(tmp_path / "continued/run/adapter") == digests(tmp_path / "straight/run/adapter")


def test_a_learning_rate_that_explodes_stops_the_run(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The peer logs losses of 0 and 0.688, saves NaN weights and ends with exit code 0."""
    with pytest.raises(SystemExit) as left, exit_with_user_errors():
        train_dpo.main(command("--optimizer.learning_rate", "1e30", "--optimizer.warmup_steps", "0"))
    assert left.value.code == 3
    message = capsys.readouterr().err
    assert "step 2: loss or log-probs are not finite" in message and "optimizer.learning_rate too high" in message
    run = tmp_path / "runs" / "run"
    assert not (run / "adapter").exists() and not (run / "summary.json").exists()
    kept = [json.loads(line) for line in (run / "not-finite" / "step-000002.jsonl").read_text().splitlines()]
    assert kept and all(group["key"] in message or len(kept) > 5 for group in kept)
    assert "A lovely film" in kept[0]["completions"][0]["text"]


def test_a_row_that_the_model_cannot_read_is_named(
    command: Command, tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One position of the base is NaN, as after a damaged download; only row 7 is that long."""
    broken = unreadable_at(60, tiny_model, tmp_path / "broken")
    rows = [
        {"prompt": f"Film {i}.", "chosen": " Good." + "~" * 80 * (i == 7), "rejected": " Bad."} for i in range(1, 30)
    ]
    data = write(tmp_path / "rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(SystemExit) as left, exit_with_user_errors():
        train_dpo.main(command("--data.train", f"[{data}]", "--model.path", str(broken)))
    message = capsys.readouterr().err
    assert left.value.code == 3
    assert "reference log-probs are not finite with" in message and "rows.jsonl:7" in message
    assert "rows.jsonl:8" not in message
    (kept,) = (tmp_path / "runs" / "run" / "not-finite").iterdir()
    assert "~" in kept.read_text()


def test_a_disk_that_is_full_costs_nothing_but_time(command: Command, tmp_path: Path) -> None:
    """No file may grow beyond 10 kB: checkpoints fail, the run goes on to its end, and says what to do."""
    train_dpo.main(command(runs="straight"))
    program = f"""
import resource, signal, sys
from pathlib import Path
from dpo import dpo_trainer, train_dpo
from groupwise.errors import exit_with_user_errors
dpo_trainer.CACHE = Path({str(tmp_path / "cache")!r})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
with exit_with_user_errors():
    train_dpo.main(sys.argv[1:])
"""
    arguments = command(runs="full")
    ended = subprocess.run([sys.executable, "-c", program, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 2, ended.stdout + ended.stderr
    assert "the checkpoint of step 2 could not be saved" in ended.stdout
    assert "full/run/adapter: cannot be written" in ended.stderr and "Traceback" not in ended.stderr
    train_dpo.main(arguments)
    assert digests(tmp_path / "full/run/adapter") == digests(tmp_path / "straight/run/adapter")


def test_steps_that_are_not_finite_can_be_skipped_up_to_a_limit(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails() -> None:
        raise NotFinite("loss or log-probs are", random_groups(1, vocabulary=50))

    skip = ("--run.on_not_finite", "skip", "--run.most_skipped_steps", "1")
    before_step(2, fails, monkeypatch)
    train_dpo.main(command(*skip))
    run = tmp_path / "runs" / "run"
    metrics = read_metrics(run / "metrics.jsonl")
    assert [row["groups/used"] for row in metrics][:3] == [9, 0, 9] and "loss" not in metrics[1]
    assert json.loads((run / "summary.json").read_text())["skipped_steps"] == 1
    assert "the step is skipped" in capsys.readouterr().out
    monkeypatch.undo()
    before_step(2, fails, monkeypatch)
    before_step(4, fails, monkeypatch)
    with pytest.raises(RunStopped, match="step 4"):
        train_dpo.main(command(*skip, runs="second"))


def test_the_adapter_is_that_of_the_best_step(
    command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Accuracies are made up so that step 2 is best by far; its weights are then saved, judged and said."""
    real: Callable[..., Evaluation] = dpo_trainer.evaluate
    calls: list[float] = []

    def made_up(*args: object) -> Evaluation:
        found = real(*args)
        calls.append(1.0 if not calls else 0.0)
        keys = [f"x:{i}" for i in range(20)]
        figures = {**found.figures, "rewards/accuracies": calls[-1]}
        figures |= {"rewards/accuracies/low": calls[-1], "rewards/accuracies/high": calls[-1]}
        return Evaluation(figures, keys, {"rewards/accuracies": calls[-1:] * 20, "rewards/margins": [0.0] * 20})

    monkeypatch.setattr(dpo_trainer, "evaluate", made_up)
    train_dpo.main(command("--eval.every", "2", "--run.keep_checkpoints", "9"))
    run = tmp_path / "runs" / "run"
    assert len(calls) == 3
    said = " ".join(capsys.readouterr().out.split())
    assert "was best at step 2, by +1" in said and "the adapter is that step's" in said
    adapter = load_file(run / "adapter" / "adapter_model.safetensors")
    best = load_file(run / "checkpoints" / "step-000002" / "weights.safetensors")
    last = load_file(run / "checkpoints" / "step-000006" / "weights.safetensors")
    sizes = [
        sorted(value.double().abs().sum().item() for value in weights.values()) for weights in (adapter, best, last)
    ]
    assert sizes[0] == sizes[1] != sizes[2]


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
    "steps captured on a CPU": (lambda _: ["--sampling.captured", "true"], ["sampling.captured", "set it to false"]),
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
