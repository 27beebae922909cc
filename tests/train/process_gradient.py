"""One of several processes that compute gradients of a step; started by test_processes.py, not a test itself.

Every objective of both methods, each as one file: the gradient and the metrics of the whole step.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, cast

import torch
from safetensors.torch import save_file
from torch import Tensor

from groupwise.model.drawing import SamplingParams
from groupwise.model.engine import LogprobEngine
from groupwise.model.policy import Policy
from groupwise.model.sampling import sample_completions
from groupwise.model.sharding import like, whole_tensor
from groupwise.sections import LoraSection, ModelSection
from groupwise.train.objective import Objective
from groupwise.train.runtime import Runtime
from groupwise.train.share import StepShare
from groupwise.train.step import accumulate_gradient
from grpo.config import GrpoLossSection
from grpo.objective import GrpoObjective
from tests.dpo import test_dpo_objective as preference
from tests.grpo import test_objective as relative


def make_engine(folder: Path, runtime: Runtime, *, lora: bool, recompute: bool) -> LogprobEngine:
    """The tiny model in float64, what is trained of it away from the start."""
    policy = Policy.load(
        ModelSection(path=str(folder), dtype="float64", gradient_checkpointing=recompute),
        LoraSection(rank=4) if lora else None,
        seed=0,
        device=runtime.device,
        mesh=runtime.mesh,
    )
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in policy.trainable().values():
            p.add_(like(torch.randn(p.shape, generator=generator, dtype=p.dtype) * 0.05, p))
    return LogprobEngine(policy, in_lockstep=runtime.in_lockstep)


def gradients(engine: LogprobEngine, runtime: Runtime, tokens: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Of every objective: gradient and metrics; the number of groups is odd, so one process has more than the other."""
    relative_share = StepShare.of(relative.rollout(engine, 5), runtime, cut_to=tokens)
    steps: list[tuple[str, Objective, StepShare]] = []
    for choice, keys in relative.CHOICES.items():
        section = GrpoLossSection.model_validate(keys)
        steps.append((f"grpo {choice}", GrpoObjective(section, temperature=0.8, constant_length=10), relative_share))
    for name in preference.NAMES:
        one = preference.objective(name)
        share = StepShare.of(preference.step_groups(engine, one, 7), runtime)
        steps.append((f"dpo {name}", one, share))
    for name, one, share in steps:
        own = one.for_step(share, engine=engine, runtime=runtime, tokens_per_forward=tokens)
        # Passes that one process alone runs must leave nothing behind that the others' backward passes miss.
        alone = [[5, 6, 7]] if runtime.is_main else []
        sample_completions(engine, alone, n=2, params=SamplingParams(max_new_tokens=3), end_ids=(), seed=0)
        sums = accumulate_gradient(own, share, engine=engine, runtime=runtime, tokens_per_forward=tokens)
        trained = engine.policy.trainable().values()
        flat = torch.cat([whole_tensor(p.grad).flatten() for p in trained if p.grad is not None])
        for p in trained:
            p.grad = None
        metrics = sums.means()
        values = torch.tensor([metrics[key] for key in sorted(metrics)], dtype=torch.float64)
        yield name, {"gradient": flat, "metrics": values}


def main(model: Path, out: Path, sharding: Literal["none", "fsdp2"], trained: str, tokens: int) -> None:
    torch.set_num_threads(1)
    runtime = Runtime(sharding=sharding)
    engine = make_engine(model, runtime, lora=trained != "full", recompute=trained == "recomputed")
    for name, found in gradients(engine, runtime, tokens):
        if runtime.is_main:
            save_file(found, out / f"{name}.safetensors")
    runtime.wait()
    runtime.close()


if __name__ == "__main__":
    model, out, sharding, trained, tokens = sys.argv[1:]
    main(Path(model), Path(out), cast(Literal["none", "fsdp2"], sharding), trained, int(tokens))
