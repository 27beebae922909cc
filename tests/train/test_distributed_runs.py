"""Whole runs in two processes, replicated and sharded, adapters and all weights: equal to one, and continued."""

import json
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from grpo.presets import PRESETS, SOURCES
from tests.train.test_processes import run_processes, start_processes

pytestmark = pytest.mark.distributed
COMMON = """
model: {path: MODEL}
lora: LORA
optimizer: {learning_rate: RATE, warmup_steps: 1}
run: {name: run, folder: RUNS, groups_per_step: 5, tokens_per_forward: 300, checkpoint_every: 1, keep_checkpoints: 9,
      sharding: SHARDING, transcripts_groups: 5, adapter_from: last}
"""
METHODS = {
    "grpo": """
data: {train: [DATA/prompts.jsonl], heldout_prompts: 3}
rewards: [{name: length, options: {unit: characters, scale: 20}}]
sampling: {max_new_tokens: 5}
rollout: {completions_per_prompt: 3}
steps: 4
eval: {every: 2, samples_per_prompt: 2, threshold: 0.5}
""",
    "grpo_halfway": """
data: {train: [DATA/prompts.jsonl], heldout_prompts: 3}
rewards: [{name: length, options: {unit: characters, scale: 20}}]
sampling: {max_new_tokens: 5}
rollout: {completions_per_prompt: 3, minibatches: 2, updates: 2}
steps: 6
eval: {every: 0, samples_per_prompt: 2, threshold: 0.5}
""",
    "dpo": """
data: {train: [DATA/pairs.jsonl], heldout_groups: 5}
loss: {beta: 0.5}
sampling: {max_new_tokens: 5}
eval: {every: 2, prompts: 4}
""",
}
KINDS = [
    (method, sharding, lora)
    for method in ("grpo", "dpo")
    for sharding in ("none", "fsdp2")
    for lora in ("adapter", "full")
]


class Site:
    """Data of one test, and commands that learn from it."""

    def __init__(self, folder: Path, model: Path, method: str, sharding: str, trained: str) -> None:
        self.folder, self.method = folder, method.split("_")[0]
        rows = [{"prompt": f"We saw film number {i}.", "chosen": f" A lovely film{i % 7 * ' indeed'}.",
                 "rejected": " A dull film."} for i in range(25)]  # fmt: skip
        for name in ("prompts", "pairs"):
            keys = ("prompt", "chosen") if name == "prompts" else ("prompt", "chosen", "rejected")
            lines = (json.dumps({key: row[key] for key in keys}) + "\n" for row in rows)
            (folder / f"{name}.jsonl").write_text("".join(lines))
        self._text = COMMON + METHODS[method]
        lora, rate = ("{rank: 4}", "1.0e-2") if trained == "adapter" else ("null", "1.0e-3")
        values = {"MODEL": model, "DATA": folder, "SHARDING": sharding, "LORA": lora, "RATE": rate}
        for name, value in values.items():
            self._text = self._text.replace(name, str(value))

    def add_to_run(self, keys: str) -> None:
        """More keys of the section `run`."""
        self.replace("run: {", f"run: {{{keys}, ")

    def replace(self, part: str, by: str) -> None:
        """Another setting."""
        assert part in self._text
        self._text = self._text.replace(part, by)

    def command(self, runs: str, loss: str | None = None) -> list[str]:
        """What trains into the folder `runs`, for GRPO by a preset if one is named."""
        text = self._text.replace("RUNS", str(self.folder / runs))
        if loss is not None:
            text += f"loss: {{preset: {loss}}}\n"
        if loss in SOURCES and SOURCES[loss] == "data":
            text = text.replace("completions_per_prompt: 3", "completions_per_prompt: 1, answer_column: chosen")
            text = text.replace("max_new_tokens: 5", "max_new_tokens: 20")
        config = self.folder / f"{runs}.yaml"
        config.write_text(text)
        return [f"{self.method}/train_{self.method}.py", "--config", str(config)]

    def run(self, runs: str, processes: int) -> Path:
        """The folder of a run that is trained, or continued, to its end."""
        run_processes(processes, self.command(runs))
        return self.folder / runs / "run"

    def killed(self, runs: str, processes: int) -> Path:
        """The folder of a run whose processes were killed after their second step."""
        started = start_processes(processes, self.command(runs))
        run = self.folder / runs / "run"
        wait_for(run / "checkpoints" / "step-000002" / "manifest.json")
        for process in started:
            process.kill()
        for process in started:
            process.communicate(timeout=60)
        assert not (run / "summary.json").is_file(), "it was over before it was killed"
        return run


def wait_for(file: Path) -> None:
    for _ in range(2400):
        if file.is_file():
            return
        time.sleep(0.05)
    raise AssertionError(f"{file} did not come")


def weights(run: Path) -> dict[str, torch.Tensor]:
    (file,) = (run / "adapter").glob("*model.safetensors")
    return load_file(file)


def transcripts(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "transcripts.jsonl").read_text().splitlines()]


def what_was_seen(run: Path) -> list[tuple[Any, ...]]:
    """Keys and completions of every step's groups, in order."""
    return [
        (row["step"], row["key"], [{k: v for k, v in own.items() if k != "advantage"} for own in row["completions"]])
        for row in transcripts(run)
    ]


def advantages(run: Path) -> list[float]:
    """Of every completion that has one, in order; a KL in the reward makes them sums of log-probs."""
    return [own["advantage"] for row in transcripts(run) for own in row["completions"] if "advantage" in own]


def assert_equal_to_rounding(one: Path, other: Path) -> None:
    assert what_was_seen(one) == what_was_seen(other)
    assert advantages(other) == pytest.approx(advantages(one), rel=1e-4, abs=1e-5)
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.allclose(theirs[name], value, atol=2e-4), name
    rows = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (one, other)]
    for own, their in zip(*rows, strict=True):
        assert own.keys() == their.keys()
        for name, value in own.items():
            if not name.startswith(("time/", "tokens_per_second", "memory/")):
                assert their[name] == pytest.approx(value, rel=1e-2, abs=2e-3), (own["step"], name)
    figures = [json.loads((run / "summary.json").read_text()) for run in (one, other)]
    for part in ("before", "after"):
        for name, figure in figures[0][part].items():
            assert figures[1][part][name]["n"] == figure["n"], "every held-out row counts once"
            assert figures[1][part][name]["value"] == pytest.approx(figure["value"], rel=1e-2, abs=2e-2), name


def assert_goes_on_after_kills(site: Site, others: Sequence[tuple[int, int]] = ((2, 1), (1, 2))) -> None:
    """With as many processes to the same bytes, with fewer or more, before and after, to rounding."""
    straight = site.run("straight", 2)
    site.killed("same", 2)
    again = site.run("same", 2)
    assert what_was_seen(straight) == what_was_seen(again)
    for name, value in weights(straight).items():
        assert torch.equal(weights(again)[name], value), f"{name}: the same number of processes gives the same bytes"
    for before, after in others:
        runs = f"{before}-then-{after}"
        site.killed(runs, before)
        assert_equal_to_rounding(straight, site.run(runs, after))


@pytest.mark.parametrize(("method", "sharding", "trained"), KINDS)
def test_two_processes_learn_what_one_learns(
    tiny_model: Path, tmp_path: Path, method: str, sharding: str, trained: str
) -> None:
    site = Site(tmp_path, tiny_model, method, sharding, trained)
    assert_equal_to_rounding(site.run("one", 1), site.run("two", 2))


@pytest.mark.parametrize(("sharding", "trained"), [("none", "adapter"), ("fsdp2", "full")])
def test_two_processes_learn_what_one_learns_by_every_preset(
    tiny_model: Path, tmp_path: Path, sharding: str, trained: str
) -> None:
    """All runs of a number of processes come from one start of them, which takes longer than the runs."""
    site = Site(tmp_path, tiny_model, "grpo", sharding, trained)
    for processes in (1, 2):
        configs = [site.command(f"{preset}-{processes}", loss=preset)[-1] for preset in PRESETS]
        run_processes(processes, ["tests/train/several_runs.py", *configs], limit=1500)
    for preset in PRESETS:
        assert_equal_to_rounding(tmp_path / f"{preset}-1" / "run", tmp_path / f"{preset}-2" / "run")


@pytest.mark.parametrize("sharding", ["none", "fsdp2"])
def test_bfloat16_with_float32_adapters_learns_alike(tiny_model: Path, tmp_path: Path, sharding: str) -> None:
    """Two processes cut a step into other rows, whose sums round to 8 bits elsewhere; the adapters keep 24."""
    site = Site(tmp_path, tiny_model, "dpo", sharding, "adapter")
    site.add_to_run("mixed_precision: bf16")
    one, two = site.run("one", 1), site.run("two", 2)
    assert what_was_seen(one) == what_was_seen(two)
    for name, value in weights(one).items():
        assert value.dtype == torch.float32
        assert torch.allclose(weights(two)[name], value, atol=1.5e-2), name  # of five steps of 1e-2 at most
    losses = [
        [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (one, two)
    ]
    assert losses[1] == pytest.approx(losses[0], abs=0.02)


@pytest.mark.parametrize(("method", "sharding", "trained"), KINDS)
def test_a_killed_run_goes_on_with_the_same_or_another_number_of_processes(
    tiny_model: Path, tmp_path: Path, method: str, sharding: str, trained: str
) -> None:
    assert_goes_on_after_kills(Site(tmp_path, tiny_model, method, sharding, trained))


@pytest.mark.parametrize(("first", "then"), [("none", "fsdp2"), ("fsdp2", "none")])
def test_a_killed_run_goes_on_with_weights_spread_otherwise(
    tiny_model: Path, tmp_path: Path, first: str, then: str
) -> None:
    """`run.sharding` says where weights lie, not what is computed; it was refused as another configuration."""
    site = Site(tmp_path, tiny_model, "dpo", first, "full")
    straight = site.run("straight", 2)
    site.killed("runs", 2)
    site.replace(f"sharding: {first}", f"sharding: {then}")
    assert_equal_to_rounding(straight, site.run("runs", 2))


@pytest.mark.parametrize("sharding", ["none", "fsdp2"])
def test_a_run_killed_within_a_rollout_goes_on_with_what_each_process_held(
    tiny_model: Path, tmp_path: Path, sharding: str
) -> None:
    """Four steps learn from a rollout; groups too long for a micro-batch are cut, and their parts lie on two processes.

    One process wrote what all held, and any number reads it.
    """
    site = Site(tmp_path, tiny_model, "grpo_halfway", sharding, "adapter")
    site.replace("tokens_per_forward: 300", "tokens_per_forward: 12")
    one = site.run("one", 1)
    assert_goes_on_after_kills(site, ((2, 1), (1, 3), (3, 2)))
    assert_equal_to_rounding(one, tmp_path / "straight" / "run")


@pytest.mark.parametrize("sharding", ["none", "fsdp2"])
def test_a_process_that_dies_ends_the_run_with_a_message_and_a_whole_checkpoint(
    tiny_model: Path, tmp_path: Path, sharding: str
) -> None:
    site = Site(tmp_path, tiny_model, "grpo", sharding, "adapter")
    first, second = start_processes(2, site.command("runs"))
    run = tmp_path / "runs" / "run"
    wait_for(run / "checkpoints" / "step-000002" / "manifest.json")
    second.send_signal(signal.SIGKILL)
    said = first.communicate(timeout=60)[0]
    second.communicate(timeout=60)
    assert first.returncode == 3, said
    assert "another process of this run has ended" in said and "step-00000" in said
    assert_equal_to_rounding(site.run("straight", 2), site.run("runs", 2))
