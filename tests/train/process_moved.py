"""One of several processes that take optimizer steps; started by test_processes.py, not a test itself.

Writes all weights after three steps, whose tensors were moved together (`foreach`) as they are on a GPU, or one by one.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from groupwise.batch import pack
from groupwise.model.engine import LogprobEngine
from groupwise.model.policy import Policy
from groupwise.model.sharding import whole_tensor
from groupwise.sections import ModelSection, OptimizerSection
from groupwise.train.checkpoint import Generators, Position, read_checkpoint, whole_state, write_checkpoint
from groupwise.train.optimizer import clipped_step, make_optimizer
from groupwise.train.runtime import Runtime
from tests.conftest import random_groups


def main(model: Path, out: Path, name: str, together: bool) -> None:
    torch.set_num_threads(1)
    runtime = Runtime(sharding="fsdp2")
    section = OptimizerSection.model_validate({"name": name, "learning_rate": 1e-2})
    policy = Policy.load(ModelSection(path=str(model), dtype="float64"), None, seed=0, device="cpu", mesh=runtime.mesh)
    engine = LogprobEngine(policy, in_lockstep=runtime.in_lockstep)
    groups = random_groups(2, vocabulary=50)
    for step in range(3):
        trained = policy.trainable()
        optimizer = make_optimizer(section, trained.values())
        for group in optimizer.param_groups:
            group["foreach"] = together
        if step:  # each step goes on from a checkpoint, where the order of what is moved together must not matter
            read_checkpoint(out / f"step-{step:06d}", trained).put_back(trained, optimizer)
            for group in optimizer.param_groups:
                group["foreach"] = together
        for part in runtime.by_cost(groups, lambda group: 1):
            policy.backward(engine.score(pack([part])).logp_T.sum())
        runtime.wait()
        runtime.sum_gradients(trained.values())
        clipped_step(optimizer, trained.values(), 1.0)
        position = Position(step=step + 1, identity={}, offsets={}, tokens=0, seconds=0.0)
        state = whole_state(trained, optimizer, kept=runtime.is_main)
        if runtime.is_main:
            write_checkpoint(out, position, state, Generators.now())
        runtime.wait()
    weights = {name: whole_tensor(p).detach() for name, p in policy.trainable().items()}
    if runtime.is_main:
        save_file(weights, out / "weights.safetensors")
    runtime.wait()
    runtime.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4] == "together")
