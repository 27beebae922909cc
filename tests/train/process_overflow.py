"""One of several processes under ZeRO, in one of which a gradient is infinite; started by test_zero.py, not a test."""

import sys
from pathlib import Path
from typing import Literal, cast

import torch

from groupwise.batch import pack
from groupwise.model.engine import LogprobEngine
from groupwise.model.policy import Policy
from groupwise.model.sharding import whole_tensor
from groupwise.sections import LoraSection, ModelSection, OptimizerSection
from groupwise.train.optimizer import clipped_step
from groupwise.train.runtime import Runtime
from tests.conftest import random_groups


def main(model: Path, settings: Path, sharding: Literal["zero2", "zero3"]) -> None:
    torch.set_num_threads(1)
    runtime = Runtime(sharding=sharding, zero_settings=settings)
    policy = Policy.load(ModelSection(path=str(model)), LoraSection(rank=4), seed=0, device=runtime.device)
    section = OptimizerSection(learning_rate=0.1)
    runtime.spread_policy(policy, section)
    parameters = policy.trainable().values()
    optimizer = runtime.optimizer(section, parameters)
    engine = LogprobEngine(policy, in_lockstep=runtime.in_lockstep)
    batch = pack(random_groups(2, vocabulary=50))

    def weights() -> torch.Tensor:
        return torch.cat([whole_tensor(p).detach().flatten() for p in parameters])

    def step(factor: float) -> float:
        runtime.expect_backward(1)
        policy.backward(engine.score(batch).logp_T.sum() * factor)
        runtime.wait()
        return clipped_step(optimizer, parameters, 1.0).item()

    before = weights()
    assert not torch.isfinite(torch.tensor(step(1.0 if runtime.is_main else float("inf"))))
    assert torch.equal(weights(), before), "a step was taken along a gradient that is not finite"
    assert 0 < step(1.0) < float("inf")
    assert not torch.equal(weights(), before)
    runtime.wait()
    runtime.close()


if __name__ == "__main__":
    model, settings, sharding = sys.argv[1:]
    main(Path(model), Path(settings), cast(Literal["zero2", "zero3"], sharding))
