"""Memory of a step in closed form against the prediction of `--check`: fits one, and prints the errors.

    python -m benchmarks.scaling_memory

The constants are fitted to three models and checked on two others; nothing is trained, every step runs on tensors
without values.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from unittest import mock

import numpy as np

from benchmarks.memory import gpt2, groups_of, llama, make_model
from groupwise.cost.machine import non_negative_least_squares
from groupwise.cost.memory import training
from groupwise.cost.shapes import GroupShape, ModelShape, shapes_of
from groupwise.model.engine import LogprobEngine
from groupwise.model.loading import quiet_libraries
from groupwise.model.policy import Policy
from groupwise.preflight import memory
from groupwise.preflight.memory import training_bytes
from groupwise.sections import LoraSection, ModelSection, OptimizerSection

MODELS = (
    (False, {**gpt2(4, 192, 4), "vocab_size": 2048}),
    (False, {**llama(6, 256, 8, 688), "vocab_size": 4096}),
    (False, {**gpt2(6, 384, 6), "vocab_size": 4096}),
    (True, {**llama(6, 256, 8, 1024), "vocab_size": 4096}),
    (True, {**llama(4, 512, 8, 1408), "vocab_size": 4096}),
)


@dataclass(frozen=True, slots=True)
class Found:
    """What `--check` says of one configuration."""

    heldout: bool
    shape: ModelShape
    row: list[GroupShape]
    recompute: bool
    bytes: int


def configurations() -> Iterator[Found]:
    for heldout, settings in MODELS:
        with tempfile.TemporaryDirectory() as folder:
            make_model(settings, Path(folder))
            for lora in (LoraSection(), None):
                for recompute in (False, True):
                    section = ModelSection(path=folder, gradient_checkpointing=recompute)
                    engine = LogprobEngine(Policy.load(section, lora, seed=0, device="cpu"))
                    shape = ModelShape.of(engine.policy.model)
                    for tokens in (2048, 8192):
                        groups = groups_of(tokens)
                        size = training_bytes(engine, groups, OptimizerSection(), several=False)
                        yield Found(heldout, shape, shapes_of(groups), recompute, size)


def main() -> None:
    quiet_libraries()
    # A processor's heap has holes, which small models feel most; a device's memory has none.
    with mock.patch.object(memory, "_HOLES", 1.0):
        found = list(configurations())
    for recompute in (False, True):
        own = [one for one in found if one.recompute == recompute and not one.heldout]
        states = [sum(group.row_tokens for group in one.row) * one.shape.width * 4.0 for one in own]
        kept = [(one.bytes - 12 * one.shape.trained) / size for one, size in zip(own, states, strict=True)]
        layers = np.asarray([one.shape.layers for one in own], dtype=float)
        if recompute:
            print(f"recomputed: 1 state per layer, {median(np.asarray(kept) - layers):.1f} once")
            continue
        counts = np.stack([layers, np.ones(len(own))], axis=1) / np.asarray(kept)[:, None]
        each, once = non_negative_least_squares(counts, np.ones(len(own)))
        print(f"kept: {each:.1f} states per layer, {once:.1f} once")
    for heldout in (False, True):
        errors = [
            training(one.shape, one.row, recompute=one.recompute) / one.bytes - 1
            for one in found
            if one.heldout == heldout
        ]
        worst = max(map(abs, errors))
        name = "held out" if heldout else "fitted"
        print(f"{name}: {len(errors)} configurations, error {median(map(abs, errors)):.0%} median, {worst:.0%} most")


if __name__ == "__main__":
    main()
