"""What is said to go over the network is what PyTorch really sends, in bytes and in number of exchanges."""

import json
from typing import Any, cast

import pytest

from benchmarks.memory import llama, make_model
from benchmarks.scaling_processes import SHARDINGS
from groupwise.cost.memory import held
from groupwise.cost.network import (
    Counted,
    parcel_bytes,
    rollout_bytes,
    rollout_exchanges,
    step_bytes,
    step_exchanges,
)
from groupwise.cost.processes import most_passes
from groupwise.cost.shapes import GroupShape, ModelShape, shapes_of
from groupwise.train.group_file import as_tensors
from tests.cost.process_counts import ROLLOUT, STEP, TOKENS_PER_FORWARD, step_groups
from tests.train.test_processes import run_processes

KINDS = [f"{sharding}, {trained}" for sharding in SHARDINGS for trained in ("LoRA", "all")]
LAYERS = 3


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What two processes counted, of every way of holding weights."""
    folder = tmp_path_factory.mktemp("counts")
    make_model({**llama(LAYERS, 64, 4, 160), "vocab_size": 512}, folder / "model")
    run_processes(2, ["-m", "tests.cost.process_counts", str(folder / "model"), str(folder / "found.json")])
    return json.loads((folder / "found.json").read_text())


def described(kind: str, entry: dict[str, Any]) -> tuple[Counted, ModelShape, int]:
    """Way of holding weights, model, micro-batches of the process that has most."""
    return cast(Counted, kind.split(",")[0]), ModelShape(**entry["shape"]), entry["micro_batches"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_of_two_processes_sends_what_is_said(kind: str, found: dict[str, Any]) -> None:
    sharding, shape, parts = described(kind, found[kind])
    assert shape.layers == LAYERS
    assert (
        parts == 2 == most_passes(shapes_of(step_groups(*STEP)), processes=2, tokens_per_forward=TOKENS_PER_FORWARD)
    ), "one has three groups, which are two micro-batches, the other two, which are one"
    exchanges, sent = found[kind]["learning"]
    assert exchanges == step_exchanges(shape, processes=2, sharding=sharding, learning=parts)
    assert sent == pytest.approx(step_bytes(shape, processes=2, sharding=sharding, learning=parts), rel=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_a_reading_of_two_processes_sends_what_is_said(kind: str, found: dict[str, Any]) -> None:
    sharding, shape, parts = described(kind, found[kind])
    exchanges, sent = found[kind]["reading"]
    assert exchanges == step_exchanges(
        shape, processes=2, sharding=sharding, learning=parts, reading=parts
    ) - step_exchanges(shape, processes=2, sharding=sharding, learning=parts)
    said = step_bytes(shape, processes=2, sharding=sharding, learning=parts, reading=parts) - step_bytes(
        shape, processes=2, sharding=sharding, learning=parts
    )
    assert sent == pytest.approx(said, rel=0.02, abs=100)


@pytest.mark.parametrize("kind", KINDS)
def test_a_rollout_goes_its_way_in_what_is_said(kind: str, found: dict[str, Any]) -> None:
    """Everything was once sent to everyone."""
    sharding, _, _ = described(kind, found[kind])
    exchanges, sent = found[kind]["way"]
    assert exchanges == rollout_exchanges(processes=2, sharding=sharding)
    assert sent == pytest.approx(rollout_bytes(shapes_of(step_groups(*ROLLOUT)), processes=2), rel=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_a_process_holds_what_is_said(kind: str, found: dict[str, Any]) -> None:
    sharding, shape, _ = described(kind, found[kind])
    assert found[kind]["held"] == pytest.approx(held(shape, processes=2, sharding=sharding), rel=0.02)


def test_a_parcel_is_as_large_as_its_tensors() -> None:
    """A field more or less in the file would make every figure of a rollout's way wrong."""
    groups = step_groups(7, 5, 3, 11)
    tensors = as_tensors(groups)
    places = 16 * len(groups)
    assert parcel_bytes(shapes_of(groups)) == places + sum(t.nbytes for name, t in tensors.items() if name != "keys")
    assert parcel_bytes([GroupShape(5, (11, 11, 11))] * 7, fields=2) == parcel_bytes(shapes_of(groups))
