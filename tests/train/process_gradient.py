"""One of several processes that compute the gradient of a step; started by test_processes.py, not a test itself."""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from groupwise.train.runtime import Runtime
from groupwise.train.step import accumulate_gradient
from tests.grpo.test_objective import PRESETS, make_engine, objective, rollout


def main(model: Path, out: Path) -> None:
    torch.set_num_threads(1)
    runtime = Runtime()
    engine = make_engine(model)
    groups = rollout(engine, 5)  # an odd number: one process has more than the other
    for preset in PRESETS:
        sums = accumulate_gradient(objective(preset), groups, engine=engine, runtime=runtime, tokens_per_forward=100)
        parameters = engine.policy.trainable()
        found = {name: p.grad.clone() for name, p in parameters.items() if p.grad is not None}
        metrics = sums.means()
        found["metrics"] = torch.tensor([metrics[name] for name in sorted(metrics)], dtype=torch.float64)
        for p in parameters.values():
            p.grad = None
        if runtime.is_main:
            save_file(found, out / f"{preset}.safetensors")
    runtime.wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
