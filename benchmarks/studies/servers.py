"""The default GRPO task sampled by two real vLLM servers, one killed on the way, and by the built-in sampler.

    python -m benchmarks.studies.servers [--seeds 3]

Both train the embedded base's twin of another family, for vLLM has no LoRA for GPT-2: model/base_qwen2, which is
trained first where it is not there (25 minutes). They are measured by the built-in sampler. The second server gets
SIGKILL in the middle of its answers for the eleventh step, and stays away until the run is over. Servers come from
scripts/vllm_cpu.py; VLLM_VENV names another environment that has vLLM.
"""

import os
import subprocess
import sys
import threading
from argparse import Namespace
from contextlib import ExitStack
from pathlib import Path

from benchmarks.studies.arithmetic import EVERY, Curve, accuracy, draw, table
from benchmarks.studies.training import Training, parser, train_all, write_study
from groupwise.observe.metrics import read_metrics
from scripts.vllm_cpu import VENV, Server

STEPS = 30
KILLED_AFTER = 10
PORTS = (8701, 8702)
COMMON = {"steps": STEPS, "eval.every": EVERY, "eval.samples_per_prompt": 4, "run.report": "false"}


def base() -> Path:
    """A Qwen2 that the project's own script has trained."""
    place = Path("model/base_qwen2")
    if not (place / "README.md").is_file():  # written last
        subprocess.run([sys.executable, "scripts/train_base_model.py", "--architecture", "qwen2"], check=True)
    return place.resolve()


def pair(model: Path, logs: Path) -> list[Server]:
    """Two servers, not started, each bound to a core of its own."""
    cores = sorted(os.sched_getaffinity(0))
    return [
        Server(
            model,
            port=port,
            flags=("--max-num-seqs", "128"),
            environment={"VLLM_CPU_OMP_THREADS_BIND": str(cores[place % len(cores)])},
            log=logs / f"{port}.log",
            venv=Path(os.environ.get("VLLM_VENV", VENV)),
        )
        for place, port in enumerate(PORTS)
    ]


def train_served(training: Training, servers: list[Server], options: Namespace) -> Path:
    """One run on both servers, the second of which is killed; a run that is there is read."""
    if (options.folder / training.folder_name / "summary.json").is_file():
        return options.folder / training.folder_name
    for server in servers:
        if not server.runs:
            server.start()
    for server in servers:
        server.wait()
    metrics = options.folder / training.folder_name / "metrics.jsonl"
    over = threading.Event()

    def kill_in_time() -> None:
        while not over.wait(0.1):
            done = metrics.is_file() and len(read_metrics(metrics)) >= KILLED_AFTER
            if done and servers[1].busy:  # it answers for the next step
                servers[1].kill()
                return

    killer = threading.Thread(target=kill_in_time)
    killer.start()
    try:
        return train_all([training], options)[0]
    finally:
        over.set()
        killer.join()


def train_both(options: Namespace) -> tuple[list[Path], list[Path]]:
    """Run folders of the built-in sampler and of the servers, seed by seed."""
    model = base()
    own = {**COMMON, "model.path": model}
    builtin = train_all([Training("grpo", "builtin", own, seed) for seed in range(options.seeds)], options)
    servers = pair(model, options.folder / "logs")
    addresses = ", ".join(server.address for server in servers)
    theirs = {
        **own, "sampling.engine": "vllm", "sampling.servers": f"[{addresses}]",
        "sampling.versions_folder": (options.folder / "versions").resolve(),
    }  # fmt: skip
    with ExitStack() as stack:
        for server in servers:
            stack.callback(server.stop)
        served = [
            train_served(Training("grpo", "servers", theirs, seed), servers, options) for seed in range(options.seeds)
        ]
    return builtin, served


def faults_of(run: Path) -> dict[str, float]:
    """What the kill did to a run: faults, groups asked again, servers at the end, largest gap in any token."""
    rows = read_metrics(run / "metrics.jsonl")
    return {
        "faults": sum(row["servers/faults"] for row in rows),
        "groups asked again": sum(row["servers/asked_again"] for row in rows),
        "servers at the end": rows[-1]["servers/up"],
        "largest gap": max(row["sampler/gap_largest"] for row in rows),
    }


def main() -> None:
    options = parser(__doc__, "runs/studies/servers").parse_args()
    builtin, served = train_both(options)
    curves: dict[str, list[Curve]] = {
        "built-in sampler": [accuracy(run) for run in builtin],
        "two servers, one killed": [accuracy(run) for run in served],
    }
    title = "Word problems, sampled by servers and by the program"
    draw(curves, options.out / "servers.png", title=title, marks=[KILLED_AFTER])
    lines = ["", "| seed | faults | groups asked again | servers at the end | largest gap, nats |", "|---" * 5 + "|"]
    found = [faults_of(run) for run in served]
    for seed, one in enumerate(found):
        counts = " | ".join(f"{one[name]:.0f}" for name in ("faults", "groups asked again", "servers at the end"))
        lines.append(f"| {seed} | {counts} | {one['largest gap']:.1e} |")
    text = table(curves, [0, *range(EVERY, STEPS + 1, EVERY)]) + "\n".join(lines) + "\n"
    write_study(options.out, "servers", text, {"curves": curves, "faults": found})


if __name__ == "__main__":
    main()
