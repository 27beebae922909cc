"""Tokens per second and utilisation of learning and sampling, for Qwen2-shaped models with random weights.

    python -m benchmarks.gpu [--sizes 0.1 0.5 1.5] [--methods shared flex repeat] [--peak 989e12]
    python -m benchmarks.gpu --tiny          # a toy, on whatever machine: does it run?

Utilisation is the work that a step needs when prompts are shared (groupwise/cost), over its time, against what one
large matrix product reaches on the same device, and against `--peak` where that is given: a method that computes the
prompt once per completion does not get credit for it. bfloat16 passes over float32 weights, LoRA r 16, AdamW. Sampling
is timed with steps that Python starts and, on an NVIDIA or AMD GPU, with captured ones. Each time is the least of
three; the first run, which compiles, is not counted.
"""

import argparse
import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase, Qwen2Config

from groupwise.batch import pack
from groupwise.cost.shapes import GroupShape, ModelShape
from groupwise.cost.work import learn
from groupwise.groups import Completion, Group
from groupwise.model.drawing import SamplingParams
from groupwise.model.engine import LogprobEngine
from groupwise.model.policy import Policy
from groupwise.model.sampling import sample_completions
from groupwise.sections import LoraSection, OptimizerSection
from groupwise.train.optimizer import clipped_step, make_optimizer

Method = Literal["shared", "flex", "repeat"]
SHAPES = {  # billions of weights: layers, width, heads, key-value heads, inner width, vocabulary
    0.0: (2, 64, 4, 2, 128, 1000),
    0.1: (12, 768, 12, 4, 2048, 32_000),
    0.5: (24, 896, 14, 2, 4864, 151_936),
    1.5: (28, 1536, 12, 2, 8960, 151_936),
}


@dataclass(frozen=True, slots=True)
class Workload:
    """Groups of one micro-batch: how many, tokens of the prompt, completions, tokens of each."""

    name: str
    groups: int
    prompt: int
    n: int
    tokens: int


WORKLOADS = (
    Workload("GRPO, 8 answers of 512 tokens", 4, 512, 8, 512),
    Workload("GRPO, 16 answers of 256 tokens to 1,024", 4, 1024, 16, 256),
    Workload("DPO, pairs of 256 tokens to 512", 16, 512, 2, 256),
)
TINY = (Workload("a toy", 2, 24, 3, 8),)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=float, nargs="+", choices=sorted(SHAPES), default=[0.1, 0.5, 1.5])
    parser.add_argument(
        "--methods", nargs="+", choices=("shared", "flex", "repeat"), default=["shared", "flex", "repeat"]
    )
    parser.add_argument("--peak", type=float, help="floating point operations per second that the maker names")
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    place = device or torch.device("cpu")
    reached = product_rate(place, 256 if args.tiny else 8192)
    print(f"{place}: one product of bfloat16 matrices reaches {reached / 1e12:.3g} TFLOP/s")
    print("| weights | work | method | s | tokens/s | of one product | of the peak | GB |\n" + 8 * "|---" + "|")
    for size in [0.0] if args.tiny else args.sizes:
        for method in cast(list[Method], args.methods):
            if method == "flex" and device is None:
                continue  # it has no backward pass on a CPU
            bench = Bench(size, method, place)
            for workload in TINY if args.tiny else WORKLOADS:
                print_row(size, workload.name, method, bench.learning(workload), reached, args.peak)
            if method == "shared":
                for captured in (False, True) if place.type == "cuda" else (False,):
                    drawn = bench.sampling(tiny=args.tiny, captured=captured)
                    work = f"sampling {drawn['tokens']:,} tokens, 8 answers each{', captured' if captured else ''}"
                    print_row(size, work, method, drawn, reached, args.peak)


class Bench:
    """One model on one device, read by one method."""

    def __init__(self, size: float, method: Method, device: torch.device) -> None:
        layers, width, heads, kv_heads, inner, self.vocabulary = SHAPES[size]
        config = Qwen2Config(
            num_hidden_layers=layers,
            hidden_size=width,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            intermediate_size=inner,
            vocab_size=self.vocabulary,
            max_position_embeddings=8192,
            tie_word_embeddings=True,
        )
        torch.manual_seed(0)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
        self.device = device
        no_tokenizer = cast(PreTrainedTokenizerBase, None)  # text never comes into it
        self.policy = Policy(cast(Any, model).to(device), no_tokenizer, lora=LoraSection(rank=16))
        self.engine = LogprobEngine(self.policy, method, autocast=self._bfloat16)
        parameters = self.policy.trainable().values()
        self.optimizer = make_optimizer(OptimizerSection(learning_rate=1e-5), parameters)

    def _bfloat16(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16)

    def learning(self, workload: Workload) -> dict[str, float]:
        """Forward and backward pass and the update, of one micro-batch."""
        groups = made_up(workload, self.vocabulary)
        batch = pack(groups).to(self.device)

        def step() -> None:
            self.engine.score(batch).logp_T.sum().backward()
            clipped_step(self.optimizer, self.policy.trainable().values(), 1.0)

        done = learn(ModelShape.of(self.policy.model), [GroupShape.of(group) for group in groups])
        tokens = sum(len(c.token_ids) for group in groups for c in group.completions)
        return {**timed(step, self.device), "tokens": tokens, "operations": done.products + done.attention}

    def sampling(self, *, tiny: bool, captured: bool) -> dict[str, float]:
        """Answers that nothing ends; `captured`: a step is recorded as a CUDA graph and replayed."""
        prompts, n, length, new = (4, 8, 16, 4) if tiny else (64, 8, 512, 256)
        ids = torch.randint(1, self.vocabulary, (prompts, length)).tolist()
        params = SamplingParams(max_new_tokens=new, captured=captured)

        def draw() -> None:
            sample_completions(self.engine, ids, n=n, params=params, end_ids=(), seed=0)

        return {**timed(draw, self.device), "tokens": prompts * n * new}


def made_up(workload: Workload, vocabulary: int) -> list[Group]:
    """Groups of random ids."""

    def ids(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(1, vocabulary, (count,)).tolist())

    return [
        Group(
            key=str(number),
            prompt_ids=ids(workload.prompt),
            completions=tuple(
                Completion(token_ids=ids(workload.tokens), finished=True, score=0.0) for _ in range(workload.n)
            ),
        )
        for number in range(workload.groups)
    ]


def timed(deed: Callable[[], object], device: torch.device) -> dict[str, float]:
    """Seconds, the least of three, and the most memory that was held, in GB (0 on a CPU)."""
    seconds: list[float] = []
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    for _ in range(4):
        started = time.perf_counter()
        deed()
        wait_for(device)
        seconds.append(time.perf_counter() - started)
    held = torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else 0.0
    return {"seconds": min(seconds[1:]), "gb": held}


def product_rate(device: torch.device, width: int) -> float:
    """Operations per second of a product of two square bfloat16 matrices."""
    one = torch.randn(width, width, device=device, dtype=torch.bfloat16)
    return 2.0 * width**3 / timed(lambda: torch.mm(one, one), device)["seconds"]


def wait_for(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize()


def print_row(size: float, work: str, method: str, found: dict[str, float], reached: float, peak: float | None) -> None:
    """A line of the table; figures that were not measured stay empty."""
    rate = found.get("operations", 0.0) / found["seconds"]
    shares = [f"{rate / one:.0%}" if one and rate else "" for one in (reached, peak)]
    cells = [
        f"{size} B",
        work,
        method,
        f"{found['seconds']:.3f}",
        f"{found['tokens'] / found['seconds']:,.0f}",
        *shares,
    ]
    print("| " + " | ".join([*cells, json.dumps(round(found["gb"], 1))]) + " |", flush=True)


if __name__ == "__main__":
    main()
