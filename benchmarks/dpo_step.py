"""Time DPO steps on a model and a file of pairs; print one JSON line: seconds per step and peak memory.

    python benchmarks/dpo_step.py MODEL PAIRS.jsonl [--groups 4] [--steps 6] [--targets c_attn c_proj c_fc]

The reference pass is computed inside every step, as a peer without a cache does; float32, LoRA r 16, AdamW, no gradient
checkpointing, two threads. The first step is not counted.
"""

import argparse
import json
import resource
import statistics
import time

import torch

from dpo.dataset_utils import load_preference_groups
from dpo.loss_config import DpoLossSection
from dpo.objective import DpoObjective
from groupwise.data.text import TextEncoder
from groupwise.model.engine import LogprobEngine, reference_logprobs
from groupwise.model.policy import Policy
from groupwise.sections import LoraSection, ModelSection, OptimizerSection
from groupwise.train.optimizer import make_optimizer
from groupwise.train.runtime import Runtime
from groupwise.train.share import StepShare
from groupwise.train.step import optimizer_step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("pairs")
    parser.add_argument("--groups", type=int, default=4, help="pairs per step")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--targets", nargs="+", default=["c_attn", "c_proj", "c_fc"], help="layers with an adapter")
    args = parser.parse_args()
    torch.set_num_threads(2)

    lora = LoraSection(rank=16, alpha=32, target_modules=tuple(args.targets))
    policy = Policy.load(ModelSection(path=args.model), lora, seed=0, device="cpu")
    encoder = TextEncoder(policy.tokenizer, max_prompt_tokens=10_000, max_completion_tokens=10_000)
    groups, _ = load_preference_groups([args.pairs], encoder, limit=args.groups * args.steps)
    engine = LogprobEngine(policy)
    optimizer = make_optimizer(OptimizerSection(learning_rate=5e-5), policy.trainable().values())
    runtime = Runtime()
    seconds: list[float] = []
    for step in range(args.steps):
        started = time.perf_counter()
        part = groups[step * args.groups : (step + 1) * args.groups]
        scored = reference_logprobs(engine, part, tokens_per_forward=10**6)
        optimizer_step(
            DpoObjective.of(DpoLossSection(beta=0.1)),
            StepShare.of(scored, runtime),
            engine=engine,
            optimizer=optimizer,
            runtime=runtime,
            tokens_per_forward=10**6,
            max_grad_norm=1.0,
        )
        seconds.append(time.perf_counter() - started)
    print(
        json.dumps(
            {
                "model": args.model,
                "attention": engine.method,
                "step_s": round(statistics.median(seconds[1:]), 3),
                "all_s": [round(s, 2) for s in seconds],
                "peak_rss_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
            }
        )
    )


if __name__ == "__main__":
    main()
