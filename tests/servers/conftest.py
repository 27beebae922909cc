"""A tiny Llama with the tests' tokenizer, two stand-ins that serve it, and the engine that trains it."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from groupwise.model.engine import LogprobEngine
from groupwise.model.policy import Policy
from groupwise.sections import LoraSection, ModelSection
from tests.servers.proxy import Gate
from tests.servers.stand_in import StandIn

ROOT = Path(__file__).resolve().parents[2]
RANK = 4
CONFIG = """
model: {path: MODEL}
lora: {rank: 4}
data: {train: [DATA], heldout_prompts: 4}
rewards: [{name: "REWARD"}]
sampling: {max_new_tokens: 5, engine: vllm, servers: [SERVERS], versions_folder: VERSIONS, server_wait: 1}
rollout: {completions_per_prompt: 4}
optimizer: {learning_rate: 2.0e-2, warmup_steps: 1}
run: {name: run, folder: RUNS, groups_per_step: 4, checkpoint_every: 2, report: false}
steps: 4
eval: {every: 0, samples_per_prompt: 2, threshold: 0.5}
"""
REWARD = """
def even(rows, completions):
    return [sum(i % 2 == 0 for i in c.token_ids) / len(c.token_ids) for c in completions]
"""
Command = Callable[..., list[str]]


def start_training(arguments: list[str]) -> subprocess.Popen[str]:
    """The same program in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "grpo/train_grpo.py", *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture(scope="session")
def tiny_llama(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "llama"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=128, bos_token_id=0, eos_token_id=0, initializer_range=0.1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def stand_ins(tiny_llama: Path) -> list[StandIn]:
    return [StandIn(tiny_llama, rank=RANK), StandIn(tiny_llama, rank=RANK)]


@pytest.fixture
def servers(stand_ins: list[StandIn]) -> Iterator[list[StandIn]]:
    """The stand-ins, as they were made when the test is over."""
    yield stand_ins
    for one in stand_ins:
        one.paths.clear()
        one.loads.clear()
        one.api_key, one.run_time_lora, one.processed, one.most, one.rank = None, True, True, 128, RANK


@pytest.fixture(scope="session")
def engine(tiny_llama: Path) -> LogprobEngine:
    policy = Policy.load(ModelSection(path=str(tiny_llama)), LoraSection(rank=RANK), seed=0, device="cpu")
    return LogprobEngine(policy)


@pytest.fixture
def command(tmp_path: Path, tiny_llama: Path, servers: list[StandIn]) -> Command:
    """Arguments of a small run on the two stand-ins."""
    data = tmp_path / "prompts.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"We saw film number {i}."}) + "\n" for i in range(40)))
    (tmp_path / "rewards.py").write_text(REWARD)

    def arguments(*flags: str, runs: str = "runs", addresses: list[str] | None = None) -> list[str]:
        values = {
            "MODEL": tiny_llama, "DATA": data, "REWARD": f"{tmp_path}/rewards.py:even", "RUNS": tmp_path / runs,
            "SERVERS": ", ".join(addresses or [one.address for one in servers]), "VERSIONS": tmp_path / "versions",
        }  # fmt: skip
        text = CONFIG
        for name, value in values.items():
            text = text.replace(name, str(value))
        file = tmp_path / "config.yaml"
        file.write_text(text)
        return ["--config", str(file), *flags]

    return arguments


@pytest.fixture
def gate() -> Iterator[Gate]:
    """Opened when the test is over."""
    made = Gate()
    yield made
    made.opened.set()
