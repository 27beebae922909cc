"""One of two processes that count what they really send in a step; started by test_network.py, not a test itself.

Every operation of torch.distributed passes PyTorch's dispatcher, where it is seen with its tensors.
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.scaling_processes import SHARDINGS, Likelihood
from groupwise.batch import split_by_tokens
from groupwise.cost.network import Counted
from groupwise.cost.shapes import ModelShape
from groupwise.groups import Completion, Group
from groupwise.model.engine import LogprobEngine, sampled_logprobs
from groupwise.model.policy import Policy
from groupwise.sections import LoraSection, ModelSection, OptimizerSection
from groupwise.train.optimizer import make_optimizer
from groupwise.train.runtime import Runtime
from groupwise.train.share import StepShare
from groupwise.train.step import optimizer_step

TOKENS_PER_FORWARD = 120
STEP = (5, 8, 3, 16)  # groups, tokens of a prompt, completions, tokens of each
ROLLOUT = (40, 30, 8, 60)


class Counter(TorchDispatchMode):
    """Counts exchanges, and the bytes that this process sends in them where they go round in a ring."""

    def __init__(self, processes: int, process: int) -> None:
        super().__init__()
        self.exchanges, self.sent = 0, 0.0
        self._processes, self._process = processes, process

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func.namespace == "c10d" or "all_reduce" in str(func):
            self.exchanges += 1
            self.sent += self._bytes(str(func), args)
        return func(*args, **(kwargs or {}))

    def _bytes(self, name: str, args: Sequence[Any]) -> float:
        """Of a gathering the first argument is what comes out, of a scattering the second is what goes in."""
        share = (self._processes - 1) / self._processes
        if "allreduce" in name or "all_reduce" in name:
            return 2 * share * _size(args[0])
        if "allgather" in name:
            return share * _size(args[0])
        if "reduce_scatter" in name:
            return share * _size(args[1])
        if "alltoall" in name:
            parts: list[int] = list(args[4]) or [args[1].numel() // self._processes] * self._processes
            return (sum(parts) - parts[self._process]) * args[1].element_size()
        raise ValueError(f"{name} is an exchange that this does not know")


def _size(tensors: object) -> int:
    return sum(leaf.nbytes for leaf in tree_leaves(tensors) if isinstance(leaf, Tensor))


def step_groups(count: int, prompt: int, n: int, length: int) -> list[Group]:
    """Groups as they come from sampling, with as many numbers per token as are sent of them."""
    one = Completion(
        token_ids=tuple(range(1, length + 1)),
        finished=True,
        score=0.0,
        sampled_logp=torch.zeros(length),
        advantage=torch.zeros(length),
    )
    return [Group(key=f"x:{i}", prompt_ids=tuple(range(1, prompt + 1)), completions=(one,) * n) for i in range(count)]


def counted(folder: Path, sharding: Counted, *, lora: bool) -> dict[str, Any]:
    """Exchanges and bytes of each phase, and bytes that are held after a step."""
    runtime = Runtime(sharding=sharding)
    (process,) = runtime.in_turn(range(runtime.processes))
    policy = Policy.load(
        ModelSection(path=str(folder)),
        LoraSection(rank=4) if lora else None,
        seed=0,
        device="cpu",
        keep_base=False,
        mesh=runtime.mesh,
    )
    engine = LogprobEngine(policy, in_lockstep=runtime.in_lockstep)
    optimizer = make_optimizer(OptimizerSection(), policy.trainable().values())
    share = StepShare.of(step_groups(*STEP), runtime)
    rollout = list(enumerate(step_groups(*ROLLOUT))) if runtime.is_main else []

    def learn() -> None:
        optimizer_step(
            Likelihood(), share, engine=engine, optimizer=optimizer, runtime=runtime,
            tokens_per_forward=TOKENS_PER_FORWARD, max_grad_norm=1.0,
        )  # fmt: skip

    def read() -> None:
        runtime.together(lambda: sampled_logprobs(engine, share.groups, tokens_per_forward=TOKENS_PER_FORWARD))

    def send() -> None:
        StepShare.collected(rollout, runtime)

    deeds: dict[str, Callable[[], None]] = {"learning": learn, "reading": read, "way": send}
    found: dict[str, Any] = {}
    for phase, deed in deeds.items():
        runtime.wait()
        with Counter(runtime.processes, process) as counter:
            deed()
        found[phase] = [counter.exchanges, counter.sent]
    moments = [value for state in optimizer.state.values() for value in state.values() if value.ndim]
    parts = len(split_by_tokens(share.groups, TOKENS_PER_FORWARD))
    return found | {
        "shape": asdict(ModelShape.of(policy.model)),
        "micro_batches": int(runtime.most(parts)),
        "held": sum(map(_held, policy.model.parameters())) + 1.5 * sum(map(_held, moments)),  # and a gradient
    }


def _held(tensor: Tensor) -> int:
    """Bytes of what this process has of a tensor."""
    return tensor.to_local().nbytes if isinstance(tensor, DTensor) else tensor.nbytes


def main(folder: Path, out: Path) -> None:
    torch.set_num_threads(1)
    found = {
        f"{sharding}, {trained}": counted(folder, sharding, lora=trained == "LoRA")
        for sharding in SHARDINGS
        for trained in ("LoRA", "all")
    }
    runtime = Runtime()
    if runtime.is_main:
        out.write_text(json.dumps(found))
    runtime.wait()
    runtime.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
