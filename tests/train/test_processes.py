"""One process or two, joined by gloo: the same gradient, the same run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.dpo import test_dpo_objective as preference
from tests.grpo import test_objective as relative
from tests.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
GRPO = """
model: {path: MODEL}
lora: {rank: 4}
data: {train: [DATA], heldout_prompts: 3}
rewards: [{name: length, options: {unit: characters, scale: 20}}]
sampling: {max_new_tokens: 5}
rollout: {completions_per_prompt: 3}
optimizer: {learning_rate: 1.0e-2, warmup_steps: 1}
run: {name: run, folder: RUNS, groups_per_step: 5, checkpoint_every: 2}
steps: 3
eval: {every: 0, samples_per_prompt: 2, threshold: 0.5}
"""


GRADIENTS = [
    ("none", "adapter"),
    *(pytest.param("fsdp2", trained, marks=pytest.mark.distributed) for trained in ("adapter", "full", "recomputed")),
    pytest.param("none", "full", marks=pytest.mark.distributed),
]


def start_processes(count: int, arguments: list[str]) -> list[subprocess.Popen[str]]:
    """Start a program in several processes as torchrun does, one thread each."""
    common = os.environ | {
        "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()),
    }  # fmt: skip
    return [
        subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(count)
    ]


def run_processes(count: int, arguments: list[str], *, exit_code: int = 0, limit: float = 240) -> str:
    """Start them and wait for the end, at most `limit` seconds; what they print."""
    started = start_processes(count, arguments)
    try:
        outputs = [process.communicate(timeout=limit)[0] for process in started]
    finally:
        for process in started:
            process.kill()  # of one that is over nothing comes; of one that hangs nobody else would be rid
    assert [process.returncode for process in started] == [exit_code] * count, "\n".join(outputs)
    return "\n".join(outputs)


@pytest.mark.parametrize(("sharding", "trained"), GRADIENTS)
def test_the_gradient_of_a_step_is_the_same_for_every_objective(
    tiny_model: Path, tmp_path: Path, sharding: str, trained: str
) -> None:
    """Each process once divided by its own count; half the groups then weighed as much as all of them.

    Sharded layers once hung: what FSDP2 gathers ahead in a backward pass followed forward passes long past, of which
    processes had run different numbers.
    """
    for count, kind, tokens in ((1, "none", 1000), (2, sharding, 40)):
        out = tmp_path / str(count)
        out.mkdir()
        run_processes(count, ["tests/train/process_gradient.py", str(tiny_model), str(out), kind, trained, str(tokens)])
    files = sorted((tmp_path / "1").iterdir())
    assert len(files) == len(relative.CHOICES) + len(preference.NAMES)
    for file in files:
        one, two = load_file(file), load_file(tmp_path / "2" / file.name)
        for name, value in one.items():
            largest = value.abs().max().item()
            assert largest > 1e-6
            assert torch.allclose(two[name], value, rtol=1e-8, atol=1e-10 * largest), (file.name, name)


@pytest.mark.distributed
@pytest.mark.parametrize("name", ["adamw", "rmsprop"])
def test_spread_and_whole_weights_are_moved_together_as_on_a_gpu(tiny_model: Path, tmp_path: Path, name: str) -> None:
    """There tensors of one group are moved by one operation, which takes whole tensors or parts of them, not both.

    On a CPU they are moved one by one, so that the first step with all weights spread failed on GPUs alone.
    """
    found: list[dict[str, torch.Tensor]] = []
    for processes, how in ((1, "alone"), (2, "together")):
        out = tmp_path / how
        out.mkdir()
        run_processes(processes, ["-m", "tests.train.process_moved", str(tiny_model), str(out), name, how])
        found.append(load_file(out / "weights.safetensors"))
    for key, value in found[0].items():
        assert torch.allclose(found[1][key], value, rtol=1e-7, atol=1e-9), key


def small_run(tmp_path: Path, tiny_model: Path, runs: str) -> list[str]:
    data = tmp_path / "prompts.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"We saw film number {i}."}) + "\n" for i in range(30)))
    config = tmp_path / f"{runs}.yaml"
    text = GRPO.replace("MODEL", str(tiny_model)).replace("DATA", str(data))
    config.write_text(text.replace("RUNS", str(tmp_path / runs)))
    return ["grpo/train_grpo.py", "--config", str(config)]


@pytest.mark.distributed
@pytest.mark.parametrize("updates", ["1", "2"])
def test_a_whole_run_is_the_same_to_rounding(tiny_model: Path, tmp_path: Path, updates: str) -> None:
    """Rollouts are shared by prompts whose random numbers are their own, so both runs see the same answers."""
    adapters: list[dict[str, torch.Tensor]] = []
    for count in (1, 2):
        run_processes(count, [*small_run(tmp_path, tiny_model, f"runs{count}"), "--rollout.updates", updates])
        run = tmp_path / f"runs{count}" / "run"
        adapters.append(load_file(run / "adapter" / "adapter_model.safetensors"))
        assert (run / "summary.json").is_file()
    for name, value in adapters[0].items():
        assert torch.allclose(adapters[1][name], value, atol=2e-4), name
    assert any(value.abs().max() > 0 for name, value in adapters[0].items() if "lora_B" in name)


@pytest.mark.distributed
@pytest.mark.parametrize("held", [(), ("--run.sharding", "fsdp2"), ("--run.sharding", "fsdp2", "--lora", "null")])
def test_all_processes_skip_and_stop_together(tiny_model: Path, tmp_path: Path, held: tuple[str, ...]) -> None:
    """A step that is infinite in one process's share is skipped by all: none waits for another for ever."""
    arguments = small_run(tmp_path, tiny_model, "runs")
    skip = ["--run.on_not_finite", "skip", "--run.most_skipped_steps", "1", "--rollout.updates", "3"]
    explode = ["--optimizer.learning_rate", "1e30", "--optimizer.warmup_steps", "0"]
    said = run_processes(2, [*arguments, *held, *skip, *explode], exit_code=3)
    assert "the step is skipped" in said and "step 3" in said and "newest checkpoint is" in said
    assert len(list((tmp_path / "runs" / "run" / "not-finite").iterdir())) == 2


@pytest.mark.distributed
@pytest.mark.parametrize("sharding", ["none", "fsdp2"])
def test_a_check_speaks_of_the_processes_it_was_started_with(tiny_model: Path, tmp_path: Path, sharding: str) -> None:
    """What goes over the network depends on how many there are; one of them says it, and the run's folder stays as it
    was."""
    said = run_processes(2, [*small_run(tmp_path, tiny_model, "runs"), "--check", "--run.sharding", sharding])
    assert said.count("each of 2 processes sends") == 1 and "exchanges; their time is left out above" in said
    assert not (tmp_path / "runs").exists()
