"""One of several processes that compute gradients of a step; started by test_processes.py, not a test itself.

Every objective of both methods, each as one file: the gradient and the metrics of the whole step.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from groupwise.model.engine import LogprobEngine
from groupwise.train.runtime import Runtime
from tests.dpo import test_dpo_objective as preference
from tests.grpo import test_objective as relative

TOKENS = 100


def gradients(engine: LogprobEngine) -> Iterator[tuple[str, Tensor, dict[str, float]]]:
    """Name, gradient and metrics; an odd number of groups, so that one process has more than the other."""
    groups = relative.rollout(engine, 5)
    for choice in relative.CHOICES:
        yield f"grpo {choice}", *relative.gradient(engine, groups, choice, TOKENS)
    for name in preference.NAMES:
        one = preference.objective(name)
        yield f"dpo {name}", *preference.gradient(engine, one, preference.step_groups(engine, one, 7), TOKENS)


def main(model: Path, out: Path) -> None:
    torch.set_num_threads(1)
    runtime = Runtime()
    for name, gradient, metrics in gradients(relative.make_engine(model)):
        values = torch.tensor([metrics[key] for key in sorted(metrics)], dtype=torch.float64)
        if runtime.is_main:
            save_file({"gradient": gradient, "metrics": values}, out / f"{name}.safetensors")
    runtime.wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
