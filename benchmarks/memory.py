"""Predicted and measured peak memory of training on ten models and batches; prints a table in Markdown.

    python benchmarks/memory.py [--only 3 7]

Every prediction and every measurement is a process of its own. Measured is the peak resident set (VmHWM) of a process
that takes two optimizer steps of DPO, on a GPU torch.cuda.max_memory_allocated. The models are random; what they would
say does not matter to memory. Prompts have 120 tokens, completions 180 to 200.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from dpo.loss_config import DpoLossSection
from dpo.objective import DpoObjective
from groupwise.groups import Completion, Group, forward_tokens
from groupwise.model.engine import LogprobEngine
from groupwise.model.loading import quiet_libraries
from groupwise.model.policy import Policy
from groupwise.preflight.memory import Prediction, loaded_bytes, peak_resident_bytes, training_bytes
from groupwise.sections import LoraSection, ModelSection, OptimizerSection
from groupwise.train.optimizer import make_optimizer
from groupwise.train.runtime import Runtime
from groupwise.train.share import StepShare
from groupwise.train.step import optimizer_step

TOKENIZER = Path("model/base_gpt2")
GPT2 = {"model_type": "gpt2", "n_positions": 1024, "vocab_size": 50257}
LLAMA = {"model_type": "llama", "max_position_embeddings": 2048, "vocab_size": 32000, "tie_word_embeddings": True}


@dataclass(frozen=True)
class Case:
    """One model and one size of micro-batch."""

    name: str
    settings: dict[str, Any]
    tokens: int
    lora: bool
    checkpointing: bool = False


def gpt2(layers: int, width: int, heads: int) -> dict[str, Any]:
    return {**GPT2, "n_layer": layers, "n_embd": width, "n_head": heads}


def llama(layers: int, width: int, heads: int, inner: int) -> dict[str, Any]:
    shape = {"num_hidden_layers": layers, "hidden_size": width, "intermediate_size": inner}
    return {**LLAMA, **shape, "num_attention_heads": heads, "num_key_value_heads": heads // 2}


CASES = (
    Case("GPT-2 8M", gpt2(4, 128, 4), 512, lora=True),
    Case("GPT-2 8M", gpt2(4, 128, 4), 8192, lora=False),
    Case("Llama 13M", llama(6, 256, 8, 688), 4096, lora=True),
    Case("Llama 13M", llama(6, 256, 8, 688), 8192, lora=False, checkpointing=True),
    Case("GPT-2 30M", gpt2(6, 384, 6), 2048, lora=False),
    Case("GPT-2 30M", gpt2(6, 384, 6), 8192, lora=True, checkpointing=True),
    Case("Llama 54M", llama(12, 512, 8, 1408), 8192, lora=True),
    Case("Llama 54M", llama(12, 512, 8, 1408), 1024, lora=False),
    Case("GPT-2 124M", gpt2(12, 768, 12), 2048, lora=True),
    Case("GPT-2 124M", gpt2(12, 768, 12), 2048, lora=False, checkpointing=True),
)


def groups_of(tokens: int) -> list[Group]:
    """Pairs that fill one micro-batch of exactly that many tokens."""
    groups: list[Group] = []
    left = tokens
    while left > 0:
        wanted = [180, 200] if left >= 2 * 498 else [left // 2 - 60, left - left // 2 - 60]
        group = Group(
            key=f"made-up:{len(groups)}",
            prompt_ids=tuple(range(100, 220)),
            completions=tuple(
                Completion(
                    token_ids=tuple(range(300, 301 + length)),
                    finished=True,
                    score=float(place),
                    reference_logp=torch.zeros(length + 1),
                )
                for place, length in enumerate(wanted)
            ),
        )
        groups.append(group)
        left -= forward_tokens(group)
    return groups


def load(case: Case, folder: str) -> tuple[LogprobEngine, Runtime]:
    quiet_libraries()
    runtime = Runtime()
    section = ModelSection(path=folder, gradient_checkpointing=case.checkpointing)
    policy = Policy.load(section, LoraSection() if case.lora else None, seed=0, device=runtime.device)
    return LogprobEngine(policy, autocast=runtime.autocast), runtime


def predict(case: Case, folder: str) -> int:
    engine, _ = load(case, folder)
    groups = groups_of(case.tokens)
    loaded = loaded_bytes(engine, groups_of(140), OptimizerSection())
    return Prediction(loaded, training_bytes(engine, groups, OptimizerSection(), several=False)).peak


def measure(case: Case, folder: str) -> int:
    engine, runtime = load(case, folder)
    groups = groups_of(case.tokens)
    optimizer = make_optimizer(OptimizerSection(), engine.policy.trainable().values())
    for _ in range(2):
        optimizer_step(
            DpoObjective.of(DpoLossSection()), StepShare.of(groups, runtime), engine=engine, optimizer=optimizer,
            runtime=runtime, tokens_per_forward=case.tokens, max_grad_norm=1.0,
        )  # fmt: skip
    device = engine.policy.device
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_resident_bytes()


def make_model(settings: Mapping[str, Any], folder: Path) -> int:
    """Write a random model; returns its number of weights."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(bos_token_id=0, eos_token_id=0, **settings)
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TOKENIZER / name, folder / name)
    return model.num_parameters()


def in_own_process(deed: str, number: int, folder: Path) -> int:
    command = [sys.executable, __file__, "--only", str(number), "--deed", deed, "--folder", str(folder)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=int, nargs="+", help="numbers of cases, counted from 1")
    parser.add_argument("--deed", choices=("predict", "measure"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    numbers = args.only or range(1, len(CASES) + 1)
    if args.deed:
        deed = predict if args.deed == "predict" else measure
        print(deed(CASES[numbers[0] - 1], args.folder))
        return
    print("| model | weights | tokens | trained | recomputed | predicted | measured | error |")
    print("|---|---|---|---|---|---|---|---|")
    for number in numbers:
        case = CASES[number - 1]
        with tempfile.TemporaryDirectory() as folder:
            weights = make_model(case.settings, Path(folder))
            predicted, measured = (in_own_process(deed, number, Path(folder)) for deed in ("predict", "measure"))
        row = [
            case.name, f"{weights / 1e6:.1f} M", str(case.tokens), "LoRA" if case.lora else "all",
            "layers" if case.checkpointing else "nothing", f"{predicted / 1e9:.2f} GB", f"{measured / 1e9:.2f} GB",
            f"{predicted / measured - 1:+.1%}",
        ]  # fmt: skip
        print(f"| {' | '.join(row)} |", flush=True)
        print(json.dumps({"predicted": predicted, "measured": measured}), file=sys.stderr)


if __name__ == "__main__":
    main()
