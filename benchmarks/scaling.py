"""The cost model: measure a machine, fit its constants, check them on other configurations, look at large ones.

    python -m benchmarks.scaling --measure      # measures all configurations here, about ten minutes; docs/scaling.json
    python -m benchmarks.scaling                # fits, and prints the errors on the configurations that were held out
    python -m benchmarks.scaling --extrapolate  # what it says for 70B on 64 GPUs with 16 servers

Measured are CPU seconds of one thread, the least of three. The machine must be idle all the same: beside other programs
they were three times as many. Models are random; what they would say does not matter to time.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.memory import gpt2, llama, make_model
from benchmarks.scaling_large import extrapolate
from groupwise.batch import pack, split_by_tokens
from groupwise.cost.machine import Kind, Machine, prior
from groupwise.cost.shapes import GroupShape, ModelShape
from groupwise.cost.work import Work, learning_step, reading, sampling
from groupwise.groups import Completion, Group
from groupwise.model.drawing import SamplingParams
from groupwise.model.engine import LogprobEngine
from groupwise.model.loading import quiet_libraries
from groupwise.model.policy import Policy
from groupwise.model.sampling import sample_completions
from groupwise.sections import LoraSection, ModelSection, OptimizerSection
from groupwise.train.optimizer import make_optimizer

STORE = Path("docs/scaling.json")
PHASES = ("sampling", "reading", "learning")
ROWS_AT_ONCE = 256
_REPEATS, _ENOUGH = 3, 6.0  # times, and CPU seconds after which no more are taken


@dataclass(frozen=True, slots=True)
class Case:
    """A model, and groups of one size: `lengths` are those of a group's completions, repeated until there are `n`."""

    settings: Mapping[str, Any]
    prompt: int
    n: int
    lengths: tuple[int, ...]
    groups: int
    lora: bool = True
    recompute: bool = False
    tokens_per_forward: int = 4096
    heldout: bool = False

    @property
    def name(self) -> str:
        kind = self.settings["model_type"]
        wide = self.settings.get("n_embd", self.settings.get("hidden_size"))
        deep = self.settings.get("n_layer", self.settings.get("num_hidden_layers"))
        trained = ("LoRA" if self.lora else "all") + (", recomputed" if self.recompute else "")
        span = f"{min(self.lengths)}-{max(self.lengths)}" if len(set(self.lengths)) > 1 else f"{self.lengths[0]}"
        return f"{kind} {deep} x {wide}, {trained}, {self.groups} x {self.n}, {self.prompt} + {span} tokens"

    @property
    def shapes(self) -> list[GroupShape]:
        times = -(-self.n // len(self.lengths))
        return [GroupShape(self.prompt, (self.lengths * times)[: self.n])] * self.groups

    @property
    def sampled(self) -> list[GroupShape]:
        """As many tokens, each prompt's answers of one length: a limit of length is a prompt's."""
        return [GroupShape(self.prompt, (self.lengths[i % len(self.lengths)],) * self.n) for i in range(self.groups)]

    def works(self, shape: ModelShape) -> dict[str, Work]:
        """What each phase has to do."""
        tokens = self.tokens_per_forward
        return {
            "sampling": sampling(shape, self.sampled, rows_at_once=ROWS_AT_ONCE),
            "reading": reading(shape, self.shapes, tokens_per_forward=tokens),
            "learning": learning_step(shape, self.shapes, tokens_per_forward=tokens, recompute=self.recompute),
        }


TINY = {**gpt2(4, 192, 4), "vocab_size": 2048}
SMALL = {**gpt2(4, 128, 4), "vocab_size": 8192}
CASES = (
    Case(TINY, 40, 8, (10, 20, 40), 16),
    Case(TINY, 40, 8, (64,), 32, lora=False, tokens_per_forward=8192),
    Case(TINY, 20, 2, (60,), 64),
    Case(TINY, 200, 64, (32,), 4, recompute=True),
    Case(SMALL, 100, 4, (128,), 16, tokens_per_forward=1024),
    Case(SMALL, 400, 16, (16, 48), 4),
    Case(llama(6, 256, 8, 688), 64, 8, (64,), 8),
    Case(llama(6, 256, 8, 688), 256, 2, (200,), 8, lora=False, recompute=True),
    Case(llama(6, 256, 8, 688), 16, 32, (8, 24), 4, tokens_per_forward=1024),
    Case(gpt2(6, 384, 6), 128, 8, (48,), 4),
    Case(gpt2(6, 384, 6), 32, 16, (100,), 2, lora=False),
    Case(llama(12, 512, 8, 1408), 100, 8, (32,), 4),
    Case(llama(12, 512, 8, 1408), 300, 4, (64,), 2, recompute=True),
    Case(gpt2(12, 768, 12), 64, 4, (32,), 3),
    Case(TINY, 60, 16, (30, 50), 16, heldout=True),
    Case(TINY, 300, 8, (100,), 8, lora=False, heldout=True),
    Case(SMALL, 50, 32, (64,), 4, recompute=True, heldout=True),
    Case(SMALL, 30, 4, (200,), 12, lora=False, tokens_per_forward=2048, heldout=True),
    Case(llama(6, 256, 8, 688), 128, 16, (48,), 4, heldout=True),
    Case(llama(8, 320, 8, 864), 80, 8, (40, 80), 6, heldout=True),
    Case(llama(8, 320, 8, 864), 200, 2, (100,), 8, lora=False, heldout=True),
    Case(gpt2(8, 512, 8), 100, 8, (60,), 3, recompute=True, heldout=True),
    Case(llama(12, 512, 8, 1408), 50, 16, (50,), 2, lora=False, heldout=True),
    Case(gpt2(12, 768, 12), 150, 8, (24,), 2, heldout=True),
)


# --- measuring


def measure(case: Case) -> tuple[ModelShape, dict[str, float]]:
    """CPU seconds of every phase of one step."""
    with tempfile.TemporaryDirectory() as folder:
        make_model(case.settings, Path(folder))
        section = ModelSection(path=folder, gradient_checkpointing=case.recompute)
        policy = Policy.load(section, LoraSection(rank=16) if case.lora else None, seed=0, device="cpu")
    engine = LogprobEngine(policy)
    assert engine.method == "shared"
    groups = made_up(case.shapes)
    optimizer = make_optimizer(OptimizerSection(learning_rate=1e-5), policy.trainable().values())
    parts = split_by_tokens(groups, case.tokens_per_forward)

    def read() -> None:
        with torch.no_grad():
            for part in parts:
                engine.score(pack(part))

    def learn() -> None:
        for part in parts:
            engine.score(pack(part)).logp_T.sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def sample() -> None:
        # No token ends a text, so completions are as long as they may be.
        most = [shape.completions[0] for shape in case.sampled]
        prompts = [group.prompt_ids for group in groups]
        params = SamplingParams(max_new_tokens=max(most), rows_at_once=ROWS_AT_ONCE)
        sample_completions(engine, prompts, n=case.n, params=params, end_ids=(), seed=0, most_new_tokens=most)

    deeds = {"sampling": sample, "reading": read, "learning": learn}
    return ModelShape.of(policy.model), {phase: least(deeds[phase]) for phase in PHASES}


def made_up(shapes: Sequence[GroupShape]) -> list[Group]:
    """Groups of these sizes as they are learned from: with log-probs and advantages."""
    ids: list[int] = torch.randint(1, 1000, (max(shape.prompt + max(shape.completions) for shape in shapes),)).tolist()
    return [
        Group(
            key=f"made-up:{number}",
            prompt_ids=tuple(ids[: shape.prompt]),
            completions=tuple(
                Completion(
                    token_ids=tuple(ids[:length]),
                    finished=True,
                    score=0.0,
                    sampled_logp=torch.zeros(length),
                    advantage=torch.zeros(length),
                )
                for length in shape.completions
            ),
        )
        for number, shape in enumerate(shapes)
    ]


def least(deed: Callable[[], None]) -> float:
    """CPU seconds of the fastest of some repetitions, one that warms up left out."""
    deed()
    found: list[float] = []
    while len(found) < _REPEATS and sum(found) < _ENOUGH:
        started = time.process_time()
        deed()
        found.append(time.process_time() - started)
    return min(found)


# --- fitting


def points(store: Mapping[str, Any], *, heldout: bool) -> Iterator[tuple[Case, dict[str, Work], dict[str, float]]]:
    """Stored measurements beside what the phases had to do."""
    for case in CASES:
        if case.heldout == heldout:
            entry = store["cases"][case.name]
            yield case, case.works(ModelShape(**entry["shape"])), entry["seconds"]


def fit(store: Mapping[str, Any]) -> dict[Kind, Machine]:
    """A machine for passes over rows, and one for sampling, whose small products run at another speed."""
    found = list(points(store, heldout=False))
    kinds: dict[Kind, tuple[str, ...]] = {"rows": ("reading", "learning"), "sampling": ("sampling",)}
    return {
        kind: Machine.fitted(
            prior(kind, "cpu").name,
            [works[phase] for _, works, _ in found for phase in phases],
            [seconds[phase] for _, _, seconds in found for phase in phases],
        )
        for kind, phases in kinds.items()
    }


def errors(store: Mapping[str, Any], *, heldout: bool) -> list[tuple[Case, dict[str, float], float, float]]:
    """Of every case: relative error of each phase and of the whole step, and the measured seconds of the step."""
    machines = fit(store)
    rows: list[tuple[Case, dict[str, float], float, float]] = []
    for case, works, seconds in points(store, heldout=heldout):
        said = {p: machines["sampling" if p == "sampling" else "rows"].seconds(works[p]) for p in PHASES}
        whole = sum(seconds.values())
        own = {phase: said[phase] / seconds[phase] - 1 for phase in PHASES}
        rows.append((case, own, sum(said.values()) / whole - 1, whole))
    return rows


def table(store: Mapping[str, Any]) -> list[str]:
    """Rows of docs/scaling.md: what was measured of held-out cases, and the errors."""
    rows: list[str] = []
    for case, own, step, seconds in errors(store, heldout=True):
        parts = " | ".join(f"{own[phase]:+.0%}" for phase in PHASES)
        rows.append(f"| {case.name} | {seconds:.1f} s | {parts} | {step:+.0%} |")
    return rows


def as_source(kind: str, machine: Machine) -> str:
    """An entry of `_CPU` in groupwise/cost/machine.py."""
    constants = ", ".join(f'"{name}": {value:.4g}' for name, value in machine.seconds_per.items())
    return f'    "{kind}": Machine(\n        "{machine.name}",\n        {{{constants}}},\n    ),'


def stated(heldout: Sequence[float]) -> str:
    """Relative errors as docs/scaling.md states them."""
    sizes = [abs(error) for error in heldout]
    return f"{100 * median(sizes):.0f} % median, {100 * max(sizes):.0f} % at most"


def print_fit(store: Mapping[str, Any]) -> None:
    """Constants and figures as they stand in the program and in the documents."""
    for kind, machine in fit(store).items():
        print(as_source(kind, machine))
    for heldout in (False, True):
        steps = [step for _, _, step, _ in errors(store, heldout=heldout)]
        print(f"\n{len(steps)} {'held out' if heldout else 'fitted'}: whole step: {stated(steps)}")
    print("| held-out configuration | measured | sampling | reading | learning | whole step |\n|---" + "|---" * 5 + "|")
    print("\n".join(table(store)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true", help="measure this machine, and write docs/scaling.json")
    parser.add_argument("--extrapolate", action="store_true", help="what the model says for large machines")
    parser.add_argument("--store", type=Path, default=STORE, help="measurements (default %(default)s)")
    args = parser.parse_args()
    if args.extrapolate:
        extrapolate()
        return
    if args.measure:
        torch.set_num_threads(1)
        quiet_libraries()
        found: dict[str, Any] = {}
        # Recomputed layers come last: they change how the heap of this process gives memory back, for good.
        for case in sorted(CASES, key=lambda case: case.recompute):
            shape, seconds = measure(case)
            found[case.name] = {"shape": asdict(shape), "seconds": seconds}
            print(case.name, {phase: round(value, 3) for phase, value in seconds.items()}, flush=True)
        args.store.write_text(json.dumps({"cases": found}, indent=1) + "\n", encoding="utf-8")
    print_fit(json.loads(args.store.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
