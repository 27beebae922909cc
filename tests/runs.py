"""What tests of whole runs share: comparing two runs, and stopping one."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from groupwise.observe.metrics import read_metrics
from groupwise.train import loop


class Stopped(Exception):
    """A run was stopped on purpose."""


def digests(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())}


def timeless(metrics: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if not k.startswith("time/") and k != "tokens_per_second"} for row in metrics]


def unreadable_at(position: int, model: Path, copy: Path) -> Path:
    """A copy of a GPT-2 that gives NaN from that position on, as after a damaged download."""
    shutil.copytree(model, copy)
    weights = load_file(copy / "model.safetensors")
    weights["transformer.wpe.weight"][position] = float("nan")
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    return copy


def before_step(step: int, deed: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the patch is undone, do something when the optimizer step of that number, counted from 1, begins."""
    original = loop.optimizer_step
    begun = 0

    def instrumented(*args: object, **options: object) -> dict[str, float]:
        nonlocal begun
        begun += 1
        if begun == step:
            deed()
        return original(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "optimizer_step", instrumented)


def stop_after(steps: int, train: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Train, and stop the run before it takes one more optimizer step than that."""

    def stop() -> None:
        raise Stopped

    with monkeypatch.context() as patch:
        before_step(steps + 1, stop, patch)
        with pytest.raises(Stopped):
            train()


def assert_same_run(continued: Path, straight: Path, *, last: str, files: tuple[str, ...]) -> None:
    """Same adapter, the same `files` of the checkpoint `last`, the same metrics but for times, the same texts."""
    assert digests(continued / "adapter") == digests(straight / "adapter")
    for file in files:
        assert digests(continued / last)[file] == digests(straight / last)[file]
    assert timeless(read_metrics(continued / "metrics.jsonl")) == timeless(read_metrics(straight / "metrics.jsonl"))
    for name in ("transcripts.jsonl", "heldout.jsonl", "samples.jsonl"):
        assert (continued / name).read_bytes() == (straight / name).read_bytes()
