"""The cost model counts what the program does, and what the documents say of its errors is what the code gives."""

import json
import re
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.scaling import STORE, errors, fit
from groupwise.batch import cut_groups, pack, split_by_tokens
from groupwise.cost.machine import prior
from groupwise.cost.shapes import GroupShape, ModelShape, micro_batches, shapes_of
from groupwise.cost.work import forward, learn, sampling
from groupwise.model.drawing import SamplingParams
from groupwise.model.engine import LogprobEngine
from groupwise.model.policy import Policy
from groupwise.model.sampling import sample_completions
from groupwise.sections import LoraSection, ModelSection
from tests.conftest import random_groups

ROOT = Path(__file__).resolve().parents[2]


def engine_of(model: Path, lora: bool, recompute: bool = False) -> LogprobEngine:
    section = ModelSection(path=str(model), gradient_checkpointing=recompute)
    return LogprobEngine(Policy.load(section, LoraSection(rank=4) if lora else None, seed=0, device="cpu"))


def products(counter: FlopCounterMode) -> int:
    """Floating point operations of matrix products, attention left out."""
    counts = counter.get_flop_counts()["Global"]
    return sum(count for operation, count in counts.items() if "attention" not in str(operation))


@pytest.mark.parametrize("lora", [True, False])
def test_products_of_a_pass_are_those_that_pytorch_counts(tiny_model: Path, lora: bool) -> None:
    engine = engine_of(tiny_model, lora)
    groups = random_groups(3, vocabulary=200, completions=3)
    shape = ModelShape.of(engine.policy.model)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        engine.score(pack(groups))
    # The head's derivative is prepared though nobody asks for it here: one product more than a reading counts.
    said = forward(shape, shapes_of(groups)).products
    assert said <= products(counter) <= said + 2 * shape.head * sum(g.predicted for g in shapes_of(groups))


@pytest.mark.parametrize(("lora", "recompute"), [(True, False), (False, False), (True, True)])
def test_products_of_learning_are_those_that_pytorch_counts(tiny_model: Path, lora: bool, recompute: bool) -> None:
    engine = engine_of(tiny_model, lora, recompute)
    groups = random_groups(3, vocabulary=200, completions=3)
    with FlopCounterMode(display=False) as counter:
        engine.score(pack(groups)).logp_T.sum().backward()
    said = learn(ModelShape.of(engine.policy.model), shapes_of(groups), recompute=recompute).products
    assert said == pytest.approx(products(counter), rel=0.1)


def test_products_of_sampling_are_those_that_pytorch_counts(tiny_model: Path) -> None:
    engine = engine_of(tiny_model, lora=True)
    params = SamplingParams(max_new_tokens=9)
    prompts = [[5, 6, 7], [8, 9, 10, 11, 12]]
    with FlopCounterMode(display=False) as counter:
        sample_completions(engine, prompts, n=4, params=params, end_ids=(), seed=0, most_new_tokens=[6, 9])
    shape = ModelShape.of(engine.policy.model)
    said = sampling(shape, [GroupShape(3, (6,) * 4), GroupShape(5, (9,) * 4)], rows_at_once=64).products
    assert said == pytest.approx(products(counter), rel=0.25)  # folding adapters, and the last token is not fed


@pytest.mark.parametrize("tokens", [1, 30, 61, 10_000])
def test_micro_batches_of_shapes_are_those_of_the_step(tokens: int) -> None:
    groups = cut_groups(random_groups(9, vocabulary=200, completions=3), tokens)
    cut = split_by_tokens(groups, tokens)
    assert [shapes_of(part) for part in cut] == micro_batches(shapes_of(groups), tokens)


def test_shipped_constants_and_stated_errors_are_what_the_measurements_give() -> None:
    """docs/scaling.md states errors on configurations that nothing was fitted to; nobody may tune them by hand."""
    store = json.loads((ROOT / STORE).read_text())
    for kind, machine in fit(store).items():
        shipped = prior(kind, "cpu")  # pyright: ignore[reportArgumentType]
        assert shipped.seconds_per == pytest.approx(machine.seconds_per, rel=1e-3)
    heldout = sorted(abs(step) for _, _, step, _ in errors(store, heldout=True))
    assert len(heldout) >= 8
    text = (ROOT / "docs" / "scaling.md").read_text()
    found = re.search(r"whole step: (\d+) % median, (\d+) % at most", text)
    assert found is not None
    middle = (heldout[len(heldout) // 2] + heldout[(len(heldout) - 1) // 2]) / 2
    assert [round(100 * middle), round(100 * heldout[-1])] == [int(figure) for figure in found.groups()]
