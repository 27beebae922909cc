"""Time GRPO steps on a model and a file of prompts; print one JSON line: seconds per step and peak memory.

    python benchmarks/grpo_step.py MODEL PROMPTS.jsonl [--prompts-per-step 8] [--group 8] [--new 128] [--kl 0.04]

Sampling, scoring (distinct characters of an answer, in this process), reference pass and update are all inside the
step; float32, LoRA r 16, AdamW, no gradient checkpointing, two threads. No group is skipped. The first step is not
counted.
"""

import argparse
import json
import resource
import statistics
import time
from collections import defaultdict
from dataclasses import replace

import torch

from groupwise.data.text import TextEncoder
from groupwise.groups import Group
from groupwise.model.drawing import SamplingParams
from groupwise.model.engine import LogprobEngine, reference_logprobs
from groupwise.model.policy import Policy
from groupwise.model.sampling import sample_completions
from groupwise.sections import LoraSection, ModelSection, OptimizerSection
from groupwise.train.optimizer import make_optimizer
from groupwise.train.runtime import Runtime
from groupwise.train.share import StepShare
from groupwise.train.step import optimizer_step
from grpo.advantages import group_advantages
from grpo.config import GrpoLossSection
from grpo.objective import GrpoObjective


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("prompts")
    parser.add_argument("--prompts-per-step", type=int, default=8)
    parser.add_argument("--group", type=int, default=8, help="completions per prompt")
    parser.add_argument("--new", type=int, default=128, help="most tokens of a completion")
    parser.add_argument("--kl", type=float, default=0.04, help="0: no reference pass")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--tokens-per-forward", type=int, default=16384)
    parser.add_argument("--targets", nargs="+", default=["c_attn", "c_proj", "c_fc"], help="layers with an adapter")
    args = parser.parse_args()
    torch.set_num_threads(2)

    lora = LoraSection(rank=16, alpha=32, target_modules=tuple(args.targets))
    policy = Policy.load(ModelSection(path=args.model), lora, seed=0, device="cpu")
    encoder = TextEncoder(policy.tokenizer, max_prompt_tokens=10_000, max_completion_tokens=args.new)
    with open(args.prompts, encoding="utf-8") as file:
        texts = [json.loads(line)["prompt"] for line in file]
    encoded = encoder.encode_prompts([str(i) for i in range(len(texts))], texts)
    prompts = [ids for ids in encoded if ids is not None]
    engine = LogprobEngine(policy)
    optimizer = make_optimizer(OptimizerSection(learning_rate=5e-5), policy.trainable().values())
    runtime = Runtime()
    objective = GrpoObjective(GrpoLossSection(kl_coefficient=args.kl), temperature=1.0, constant_length=args.new)
    seconds: list[float] = []
    phases: dict[str, list[float]] = defaultdict(list)
    for step in range(args.steps):
        started = mark = time.perf_counter()
        part = prompts[step * args.prompts_per_step : (step + 1) * args.prompts_per_step]
        drawn = sample_completions(
            engine,
            part,
            n=args.group,
            params=SamplingParams(max_new_tokens=args.new),
            end_ids=encoder.stop_ids,
            seed=step,
        )
        phases["sample"].append(time.perf_counter() - mark)
        scores = [[float(len(set(encoder.decode(c.token_ids)))) for c in own] for own in drawn]
        advantages = group_advantages(scores, scale="group_std")
        groups = [
            Group(
                key=str(i),
                prompt_ids=ids,
                completions=tuple(
                    replace(c, score=score, advantage=torch.full((len(c.token_ids),), advantage))
                    for c, score, advantage in zip(own, own_scores, own_advantages, strict=True)
                ),
            )
            for i, (ids, own, own_scores, own_advantages) in enumerate(
                zip(part, drawn, scores, advantages, strict=True)
            )
        ]
        mark = time.perf_counter()
        if args.kl > 0:
            groups = reference_logprobs(engine, groups, tokens_per_forward=args.tokens_per_forward)
        phases["reference"].append(time.perf_counter() - mark)
        mark = time.perf_counter()
        optimizer_step(
            objective,
            StepShare.of(groups, runtime, cut_to=args.tokens_per_forward),
            engine=engine,
            optimizer=optimizer,
            runtime=runtime,
            tokens_per_forward=args.tokens_per_forward,
            max_grad_norm=1.0,
        )
        phases["learn"].append(time.perf_counter() - mark)
        seconds.append(time.perf_counter() - started)
    print(
        json.dumps(
            {
                "model": args.model,
                "attention": engine.method,
                "step_s": round(statistics.median(seconds[1:]), 3),
                "all_s": [round(s, 2) for s in seconds],
                **{f"{name}_s": round(statistics.median(values[1:]), 2) for name, values in phases.items()},
                "peak_rss_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
            }
        )
    )


if __name__ == "__main__":
    main()
