"""DeepSpeed's ZeRO: two processes learn what one learns without it, go on after a kill, and refuse the rest."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from groupwise.config import load_config
from groupwise.errors import UserError
from groupwise.model.zero import read_settings
from grpo.config import GrpoConfig
from tests.train.test_distributed_runs import Site, assert_equal_to_rounding, assert_goes_on_after_kills, weights
from tests.train.test_processes import run_processes

ROOT = Path(__file__).resolve().parents[2]
needs_deepspeed = [
    pytest.mark.distributed,
    pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs DeepSpeed; make test-extras"),
]
KINDS = [
    pytest.param(method, sharding, trained, marks=needs_deepspeed)
    for method in ("grpo", "dpo")
    for sharding in ("zero2", "zero3")
    for trained in ("adapter", "full")
]


def under_zero(folder: Path, model: Path, method: str, sharding: str, trained: str, **settings: object) -> Site:
    """Nothing stays whole for being small, as everything of a tiny model would."""
    file = folder / "zero.json"
    own = {"stage": int(sharding[-1]), "stage3_param_persistence_threshold": 0} | settings
    file.write_text(json.dumps({"zero_optimization": own}))
    site = Site(folder, model, method, sharding, trained)
    site.add_to_run(f"zero_settings: {file}")
    return site


@pytest.mark.parametrize(("method", "sharding", "trained"), KINDS)
def test_two_processes_learn_what_one_learns(
    tiny_model: Path, tmp_path: Path, method: str, sharding: str, trained: str
) -> None:
    """One process alone never meets DeepSpeed."""
    site = under_zero(tmp_path, tiny_model, method, sharding, trained)
    assert_equal_to_rounding(site.run("one", 1), site.run("two", 2))


@pytest.mark.parametrize(("method", "sharding", "trained"), [KINDS[0], KINDS[3], KINDS[5], KINDS[6]])
def test_a_killed_run_goes_on_with_the_same_or_another_number_of_processes(
    tiny_model: Path, tmp_path: Path, method: str, sharding: str, trained: str
) -> None:
    assert_goes_on_after_kills(under_zero(tmp_path, tiny_model, method, sharding, trained))


@pytest.mark.parametrize("trained", [pytest.param(one, marks=needs_deepspeed) for one in ("adapter", "full")])
def test_offloading_changes_where_things_lie_and_nothing_else(tiny_model: Path, tmp_path: Path, trained: str) -> None:
    shipped = json.loads((ROOT / "configs" / "launch" / "zero3_offload.json").read_text())["zero_optimization"]
    parts = {name: {"device": "cpu"} for name in shipped if name.startswith("offload_")}
    assert len(parts) == 2
    site = under_zero(tmp_path, tiny_model, "dpo", "zero3", trained, **parts)
    assert_equal_to_rounding(site.run("one", 1), site.run("two", 2))


@pytest.mark.parametrize("trained", [pytest.param("recomputed", marks=needs_deepspeed)])
def test_recomputed_layers_in_bfloat16_learn_alike(tiny_model: Path, tmp_path: Path, trained: str) -> None:
    """DeepSpeed switches another's autocast off inside its forward pass."""
    site = under_zero(tmp_path, tiny_model, "dpo", "zero3", "adapter")
    site.add_to_run("mixed_precision: bf16")
    recomputed = ["--model.gradient_checkpointing", "true"]
    for runs, processes in (("one", 1), ("two", 2)):
        run_processes(processes, [*site.command(runs), *recomputed])
    one, two = tmp_path / "one" / "run", tmp_path / "two" / "run"
    for name, value in weights(one).items():
        assert torch.allclose(weights(two)[name], value, atol=1.5e-2), name
    losses = [
        [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (one, two)
    ]
    assert losses[1] == pytest.approx(losses[0], abs=0.02)


@pytest.mark.parametrize("sharding", [pytest.param(one, marks=needs_deepspeed) for one in ("zero2", "zero3")])
def test_a_gradient_that_is_not_finite_in_one_process_moves_nothing(
    tiny_model: Path, tmp_path: Path, sharding: str
) -> None:
    under_zero(tmp_path, tiny_model, "dpo", sharding, "adapter")
    run_processes(2, ["tests/train/process_overflow.py", str(tiny_model), str(tmp_path / "zero.json"), sharding])


@pytest.mark.parametrize("sharding", [pytest.param("zero3", marks=needs_deepspeed)])
def test_what_is_not_finite_stops_all_processes(tiny_model: Path, tmp_path: Path, sharding: str) -> None:
    """The first step is so long that nothing can be computed behind it."""
    site = under_zero(tmp_path, tiny_model, "dpo", sharding, "adapter")
    said = run_processes(2, [*site.command("runs"), "--optimizer.learning_rate", "1e20"], exit_code=3)
    assert "not finite" in said and "newest checkpoint" in said


@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is not None, reason="DeepSpeed is installed")
@pytest.mark.distributed
def test_without_the_library_the_remedy_is_named(tiny_model: Path, tmp_path: Path) -> None:
    said = run_processes(2, under_zero(tmp_path, tiny_model, "dpo", "zero2", "adapter").command("runs"), exit_code=2)
    assert "pip install 'groupwise[deepspeed]'" in said and "fsdp2" in said


# --- refusals


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--run.on_not_finite", "skip"), "cannot take back what a step has added"),
        (("--loss.reference", "copy"), "does not go with run.sharding zero3"),
        (("--model.dtype", "float64"), "keeps what it trains in float32"),
        (("--lora", "null", "--model.dtype", "bfloat16"), "keeps what it trains in float32"),
        (("--run.sharding", "none", "--run.zero_settings", "x.json"), "read by run.sharding zero2 and zero3 alone"),
        (
            ("--sampling", "{engine: vllm, servers: ['http://127.0.0.1:1'], versions_folder: v}"),
            "needs adapters whole",
        ),
    ],
)
def test_what_does_not_go_together_is_said_at_once(flags: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config(GrpoConfig, ROOT / "configs" / "grpo_config.yaml", ["--run.sharding", "zero3", *flags])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "no section zero_optimization"),
        ('{"zero_optimization": {}, "fp16": {}, "optimizer": {}}', "fp16, optimizer: batch, precision"),
        ('{"zero_optimization": {"stage": 2}}', "is for stage 2, and run.sharding is zero3"),
    ],
)
def test_settings_of_other_things_are_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "zero.json"
    file.write_text(text)
    with pytest.raises(UserError, match=message):
        read_settings(file, 3)


def test_settings_that_ship_are_of_the_stage_in_their_name() -> None:
    for name, stage in (("zero2", 2), ("zero3", 3), ("zero3_offload", 3)):
        assert read_settings(ROOT / "configs" / "launch" / f"{name}.json", 2 if stage == 2 else 3)["stage"] == stage
