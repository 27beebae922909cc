"""Two processes against one: measure a step here, fit what it takes them to meet, check that on other configurations.

    python -m benchmarks.scaling_processes --measure    # some minutes on an idle machine; docs/scaling_processes.json
    python -m benchmarks.scaling_processes              # fits; prints constants and table for machine.py and scaling.md

Two processes of one thread each are joined by gloo on this machine, once for all configurations, and one alone is
started the same way. Seconds are wall time from a barrier to the end of the slower process, the least of three. Parts
of a step are a whole optimizer step, a reading without gradients, and the way of groups that all lie on one process to
those that learn from them, of sixteen steps' groups, for one step's take milliseconds. The prediction starts from what
one process took, as `--check` starts from a trial; the last column starts from shapes alone, by the machine that
`benchmarks.scaling` fitted.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from benchmarks.memory import gpt2, llama, make_model
from benchmarks.scaling import SMALL, TINY, Case, made_up, stated
from groupwise.batch import GroupBatch
from groupwise.cost.machine import GLOO, Link, prior
from groupwise.cost.network import Counted, rollout_bytes, rollout_exchanges, step_bytes, step_exchanges
from groupwise.cost.processes import learning_hands, most_passes, reading_hands
from groupwise.cost.shapes import ModelShape
from groupwise.model.engine import LogprobEngine, TokenScores, sampled_logprobs
from groupwise.model.loading import quiet_libraries
from groupwise.model.policy import Policy
from groupwise.observe.metrics import MetricSums
from groupwise.sections import LoraSection, ModelSection, OptimizerSection
from groupwise.train.objective import Objective
from groupwise.train.optimizer import make_optimizer
from groupwise.train.runtime import Runtime
from groupwise.train.share import StepShare, StepTotals, packed, unpacked
from groupwise.train.step import optimizer_step

STORE = Path("docs/scaling_processes.json")
SHARDINGS: tuple[Counted, ...] = ("none", "fsdp2")
PROCESSES = 2
PHASES = ("learning", "reading", "way")
ROLLOUT = 16  # steps whose groups are sent at once
_REPEATS, _ENOUGH = 3, 6.0  # times, and seconds after which no more are taken

CASES = (
    Case(TINY, 40, 8, (10, 20, 40), 24),
    Case(SMALL, 100, 4, (64,), 12, tokens_per_forward=512),
    Case(TINY, 20, 2, (60,), 24, lora=False, tokens_per_forward=1024),
    Case(llama(6, 256, 8, 688), 32, 8, (16,), 6, tokens_per_forward=512),
    Case(llama(6, 256, 8, 688), 64, 4, (24,), 6, lora=False, recompute=True, tokens_per_forward=256),
    Case(TINY, 60, 16, (15, 25), 8, recompute=True, tokens_per_forward=1024, heldout=True),
    Case(TINY, 100, 8, (30,), 8, lora=False, heldout=True),
    Case(SMALL, 30, 4, (100,), 9, lora=False, tokens_per_forward=1024, heldout=True),
    Case(SMALL, 50, 32, (32,), 3, tokens_per_forward=2048, heldout=True),
    Case(gpt2(6, 384, 6), 64, 4, (32,), 4, tokens_per_forward=512, heldout=True),
    Case(llama(8, 320, 8, 864), 40, 8, (20,), 4, tokens_per_forward=256, heldout=True),
    Case(llama(6, 256, 8, 688), 64, 4, (24,), 6, recompute=True, tokens_per_forward=512, heldout=True),
    Case(llama(12, 512, 8, 1408), 50, 4, (16,), 2, lora=False, heldout=True),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Likelihood(Objective):
    """The mean log-prob of the completions' tokens, with no method's arithmetic around it."""

    @property
    def metric_names(self) -> Sequence[str]:
        return ()

    def loss_sum(self, batch: GroupBatch, scores: TokenScores, sums: MetricSums) -> Tensor:
        return -scores.logp_T.sum()

    def denominator(self, totals: StepTotals) -> int:
        return totals.tokens


# --- measuring


def launch(processes: int, numbers: Sequence[int], models: Path) -> list[dict[str, Any]]:
    """What so many processes measure of these cases, whose models lie in folders of their numbers."""
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    out = models / f"{processes}.json"
    elastic_launch(config, worker)(list(numbers), models, out)
    return json.loads(out.read_text(encoding="utf-8"))


def worker(numbers: Sequence[int], models: Path, out: Path) -> None:
    """One of the processes; the main one writes what all found together."""
    torch.set_num_threads(1)
    quiet_libraries()
    runtime = Runtime()
    found: list[dict[str, Any]] = []
    for number in numbers:
        case, folder = CASES[number], models / str(number)
        if runtime.processes == 1:
            found.append(Bench(case, folder, Runtime()).alone())
        else:
            found.append({sharding: Bench(case, folder, Runtime(sharding=sharding)).shared() for sharding in SHARDINGS})
        if runtime.is_main:
            print(f"{case.name}, {runtime.processes} processes: {found[-1]}", flush=True)
    if runtime.is_main:
        out.write_text(json.dumps(found), encoding="utf-8")


class Bench:
    """A model, loaded as a run of several processes loads it, and groups to learn from."""

    def __init__(self, case: Case, folder: Path, runtime: Runtime) -> None:
        self._tokens = case.tokens_per_forward
        self._runtime = runtime
        self._policy = Policy.load(
            ModelSection(path=str(folder), gradient_checkpointing=case.recompute),
            LoraSection(rank=16) if case.lora else None,
            seed=0,
            device=runtime.device,
            keep_base=False,
            mesh=runtime.mesh,
        )
        self._engine = LogprobEngine(self._policy, in_lockstep=runtime.in_lockstep)
        section = OptimizerSection(learning_rate=1e-5)
        self._optimizer = make_optimizer(section, self._policy.trainable().values())
        self._groups = made_up(case.shapes)
        self._rollout = made_up(case.shapes * ROLLOUT)

    def alone(self) -> dict[str, Any]:
        """Seconds of one process; of the way of a rollout what both ends do, for nothing is sent."""
        parts = StepShare.of(self._rollout, self._runtime, cut_to=self._tokens).parts
        content = packed(parts)
        seconds = {
            "learning": self._least(self._learn),
            "reading": self._least(self._read),
            "packing": self._least(lambda: packed(parts)),
            "unpacking": self._least(lambda: unpacked(content)),
        }
        return {"shape": asdict(ModelShape.of(self._policy.model)), "seconds": seconds}

    def shared(self) -> dict[str, float]:
        """Seconds of several processes."""
        deeds = {"learning": self._learn, "reading": self._read, "way": self._send}
        return {phase: self._least(deeds[phase]) for phase in PHASES}

    def _learn(self) -> None:
        optimizer_step(
            Likelihood(), self._share(), engine=self._engine, optimizer=self._optimizer, runtime=self._runtime,
            tokens_per_forward=self._tokens, max_grad_norm=1.0,
        )  # fmt: skip

    def _read(self) -> None:
        share = self._share()
        self._runtime.together(lambda: sampled_logprobs(self._engine, share.groups, tokens_per_forward=self._tokens))

    def _send(self) -> None:
        own = list(enumerate(self._rollout)) if self._runtime.is_main else []
        StepShare.collected(own, self._runtime, cut_to=self._tokens)

    def _share(self) -> StepShare:
        return StepShare.of(self._groups, self._runtime, cut_to=self._tokens)

    def _least(self, deed: Callable[[], object]) -> float:
        """Seconds of the fastest of some repetitions on the slower process, one that warms up left out."""
        deed()
        found: list[float] = []
        while len(found) < _REPEATS and sum(found) < _ENOUGH:
            self._runtime.wait()
            started = time.perf_counter()
            deed()
            found.append(self._runtime.most(time.perf_counter() - started))
        return min(found)


def measure(numbers: Sequence[int]) -> dict[str, Any]:
    """All that is stored of these cases, by their names."""
    os.environ["OMP_NUM_THREADS"] = "1"
    # Recomputed layers come last: they change how the heap of a process gives memory back, for good.
    numbers = sorted(numbers, key=lambda number: CASES[number].recompute)
    with tempfile.TemporaryDirectory() as folder:
        for number in numbers:
            make_model(CASES[number].settings, Path(folder) / str(number))
        one, two = (launch(processes, numbers, Path(folder)) for processes in (1, PROCESSES))
    return {
        CASES[number].name: {**alone, "shared": shared} for number, alone, shared in zip(numbers, one, two, strict=True)
    }


# --- fitting


@dataclass(frozen=True, slots=True)
class Point:
    """One case with one way of holding weights: what was measured, and what a link is asked about, by phase.

    alone       seconds of the step by one process
    seconds     of two
    counts      seconds of the busiest process's part by what one process took, bytes it sends, exchanges
    by_machine  seconds of that part by the fitted machine
    """

    case: Case
    sharding: Counted
    alone: float
    seconds: Mapping[str, float]
    counts: Mapping[str, tuple[float, float, float]]
    by_machine: Mapping[str, float]


def points(store: Mapping[str, Any], *, heldout: bool) -> Iterator[Point]:
    """Stored measurements beside what the processes had to do and to send."""
    for case in CASES:
        if case.heldout != heldout or case.name not in store["cases"]:
            continue
        entry = store["cases"][case.name]
        shape, alone = ModelShape(**entry["shape"]), entry["seconds"]
        for sharding in SHARDINGS:
            by_machine = {n: pass_seconds(case, shape, sharding, processes=n) for n in (1, PROCESSES)}
            own = {phase: alone[phase] * value / by_machine[1][phase] for phase, value in by_machine[PROCESSES].items()}
            own["way"] = alone["packing"] + alone["unpacking"] / PROCESSES
            counts = {phase: (own[phase], *both) for phase, both in traffic(case, shape, sharding).items()}
            step = alone["learning"] + alone["reading"]
            yield Point(case, sharding, step, entry["shared"][sharding], counts, by_machine[PROCESSES])


def pass_seconds(case: Case, shape: ModelShape, sharding: Counted, *, processes: int) -> dict[str, float]:
    """By the fitted machine, of the busiest of so many processes."""
    machine, tokens = prior("rows", "cpu"), case.tokens_per_forward
    learning = learning_hands(
        shape, case.shapes, processes=processes, sharding=sharding, tokens_per_forward=tokens, recompute=case.recompute
    )
    reading = reading_hands(shape, case.shapes, processes=processes, tokens_per_forward=tokens)
    hands = {"learning": learning, "reading": reading}
    return {phase: machine.busiest(own, lockstep=sharding == "fsdp2") for phase, own in hands.items()}


def traffic(case: Case, shape: ModelShape, sharding: Counted) -> dict[str, tuple[float, float]]:
    """Bytes and exchanges of each phase."""
    passes = most_passes(case.shapes, processes=PROCESSES, tokens_per_forward=case.tokens_per_forward)

    def of_step(reading: int) -> tuple[float, int]:
        return (
            step_bytes(shape, processes=PROCESSES, sharding=sharding, learning=passes, reading=reading),
            step_exchanges(shape, processes=PROCESSES, sharding=sharding, learning=passes, reading=reading),
        )

    learning, both = of_step(0), of_step(passes)
    return {
        "learning": learning,
        "reading": (both[0] - learning[0], both[1] - learning[1]),
        "way": (
            rollout_bytes(case.shapes * ROLLOUT, processes=PROCESSES),
            rollout_exchanges(processes=PROCESSES, sharding=sharding),
        ),
    }


def fit(store: Mapping[str, Any]) -> Link:
    """What it takes two processes of this machine to meet."""
    found = [(point.counts[p], point.seconds[p]) for point in points(store, heldout=False) for p in PHASES]
    return Link.fitted(GLOO.name, *zip(*found, strict=True))


@dataclass(frozen=True, slots=True)
class Error:
    """Relative errors of one case: each phase, the whole step, and learning and reading from shapes alone."""

    point: Point
    phases: Mapping[str, float]
    step: float
    from_shapes: float


def errors(store: Mapping[str, Any], *, heldout: bool) -> list[Error]:
    """Of every case and way of holding weights."""
    link = fit(store)
    found: list[Error] = []
    for point in points(store, heldout=heldout):
        said = {p: link.seconds(own, sent=sent, exchanges=met) for p, (own, sent, met) in point.counts.items()}
        bare = sum(
            link.seconds(own, sent=point.counts[p][1], exchanges=point.counts[p][2])
            for p, own in point.by_machine.items()
        )
        passes = sum(point.seconds[p] for p in point.by_machine)
        own_errors = {p: said[p] / point.seconds[p] - 1 for p in PHASES}
        step = sum(said.values()) / sum(point.seconds.values()) - 1
        found.append(Error(point, own_errors, step, bare / passes - 1))
    return found


def sentence(link: Link) -> str:
    """The constants as docs/scaling.md states them."""
    return (
        f"own work takes {link.crowding:.2f} times as long, bytes go at {1e-6 / link.s_per_byte:.0f} MB/s, an exchange "
        f"takes {1e3 * link.s_per_exchange:.2f} ms"
    )


def table(store: Mapping[str, Any]) -> list[str]:
    """Rows of docs/scaling.md: what was measured of held-out cases, and the errors."""
    rows: list[str] = []
    for one in errors(store, heldout=True):
        point = one.point
        times = [f"{value:.2f} s" for value in (point.alone, sum(point.seconds.values()))]
        parts = [f"{value:+.0%}" for value in (*(one.phases[p] for p in PHASES), one.step, one.from_shapes)]
        rows.append(f"| {' | '.join([point.case.name, point.sharding, *times, *parts])} |")
    return rows


def print_fit(store: Mapping[str, Any]) -> None:
    """Constants and figures as they stand in the program and in the documents."""
    link = fit(store)
    print(f'GLOO = Link(\n    "{link.name}",\n    crowding={link.crowding:.4g},')
    print(f"    s_per_byte={link.s_per_byte:.4g},\n    s_per_exchange={link.s_per_exchange:.4g},\n)\n{sentence(link)}")
    for heldout in (False, True):
        found = errors(store, heldout=heldout)
        print(f"\n{len(found)} {'held out' if heldout else 'fitted'}: ", end="")
        print(f"a step of two processes: {stated([one.step for one in found])}, ", end="")
        print(f"from shapes alone {stated([one.from_shapes for one in found])}")
    columns = ("held-out configuration", "sharding", "one process", "two", *PHASES, "step", "from shapes alone")
    print(f"| {' | '.join(columns)} |\n" + "|---" * len(columns) + "|")
    print("\n".join(table(store)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true", help=f"measure this machine, and write {STORE}")
    parser.add_argument(
        "--only", type=int, nargs="+", help="numbers of cases to measure, from 0; some of both kinds (all)"
    )
    parser.add_argument("--store", type=Path, default=STORE, help="measurements (default %(default)s)")
    args = parser.parse_args()
    if args.measure:
        found = measure(args.only or range(len(CASES)))
        args.store.write_text(json.dumps({"cases": found}, indent=1) + "\n", encoding="utf-8")
    print_fit(json.loads(args.store.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
