"""The cost model counts what the program does, and what the documents say of its errors is what the code gives."""

import json
import re
from collections.abc import Iterable
from dataclasses import astuple
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import scaling, scaling_processes, scaling_servers
from benchmarks.scaling_large import extrapolate
from groupwise.batch import cut_groups, pack, split_by_tokens
from groupwise.cost.machine import GLOO, prior
from groupwise.cost.processes import dealt
from groupwise.cost.shapes import GroupShape, ModelShape, cut, micro_batches, shapes_of
from groupwise.cost.work import forward, learn, sampling
from groupwise.groups import forward_tokens
from groupwise.model.drawing import SamplingParams
from groupwise.model.engine import LogprobEngine
from groupwise.model.policy import Policy
from groupwise.model.sampling import sample_completions
from groupwise.sections import LoraSection, ModelSection
from groupwise.train.exchange import deal
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
    whole = random_groups(9, vocabulary=200, completions=3)
    groups = cut_groups(whole, tokens)
    assert shapes_of(groups) == cut(shapes_of(whole), tokens)
    parts = split_by_tokens(groups, tokens)
    assert [shapes_of(part) for part in parts] == micro_batches(shapes_of(groups), tokens)


def test_every_process_is_dealt_what_the_program_deals() -> None:
    """A hand that is lighter in the model than in the program would hide who all wait for."""
    groups = random_groups(9, vocabulary=200, completions=3)
    places = deal([forward_tokens(group) for group in groups], 3)
    assert dealt(shapes_of(groups), 3) == [shapes_of([groups[i] for i in own]) for own in places]


def stored(file: Path) -> dict[str, Any]:
    return json.loads((ROOT / file).read_text())


def assert_stated(pattern: str, heldout: list[float], *, least: int) -> None:
    """The page says of at least so many errors what they are, in per cent: the median, and the largest."""
    assert len(heldout) >= least
    found = re.search(pattern + r" (\d+) % median, (\d+) % at most", (ROOT / "docs" / "scaling.md").read_text())
    assert found is not None
    figures = [median(map(abs, heldout)), max(map(abs, heldout))]
    assert [f"{100 * figure:.0f}" for figure in figures] == list(found.groups())


def assert_table(lines: Iterable[str]) -> None:
    """The page holds these lines."""
    text = (ROOT / "docs" / "scaling.md").read_text()
    missing = [line for line in lines if line not in text]
    assert not missing


def test_shipped_constants_and_stated_errors_are_what_the_measurements_give() -> None:
    """docs/scaling.md states errors on configurations that nothing was fitted to; nobody may tune them by hand."""
    store = stored(scaling.STORE)
    for kind, machine in scaling.fit(store).items():
        assert prior(kind, "cpu").seconds_per == pytest.approx(machine.seconds_per, rel=1e-3)
    assert_stated("whole step:", [step for _, _, step, _ in scaling.errors(store, heldout=True)], least=8)
    assert_table(scaling.table(store))


def test_constants_and_errors_of_two_processes_are_what_the_measurements_give() -> None:
    store = stored(scaling_processes.STORE)
    assert set(store["cases"]) <= {case.name for case in scaling_processes.CASES}
    link = scaling_processes.fit(store)
    assert astuple(GLOO)[1:] == pytest.approx(astuple(link)[1:], rel=1e-3)
    found = scaling_processes.errors(store, heldout=True)
    assert_stated("a step of two processes:", [one.step for one in found], least=8)
    assert_stated("from shapes alone", [one.from_shapes for one in found], least=8)
    assert_table([scaling_processes.sentence(link), *scaling_processes.table(store)])


def test_constants_and_errors_of_servers_are_what_the_measurements_give() -> None:
    store = stored(scaling_servers.STORE)
    assert set(store["cases"]) <= {case.key for case in scaling_servers.CASES}
    fitted = scaling_servers.fit(store)
    assert prior("serving", "cpu").seconds_per == pytest.approx(fitted.server.seconds_per, rel=1e-3)
    found = scaling_servers.errors(store, heldout=True)
    assert {case.servers for case, _, _ in found} == {1, 2}
    assert_stated("a rollout by servers:", [error for _, _, error in found], least=4)
    assert_table([scaling_servers.sentence(fitted), *scaling_servers.table(store)])


def test_the_page_says_of_large_machines_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    extrapolate()
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(rows) == 2 * (2 + 4)
    assert_table(rows)
