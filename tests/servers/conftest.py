"""A tiny Llama with the tests' tokenizer, two stand-ins that serve it, and the engine that trains it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from groupwise.model.engine import LogprobEngine
from groupwise.model.policy import Policy
from groupwise.sections import LoraSection, ModelSection
from tests.servers.stand_in import StandIn

RANK = 4


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
        one.api_key, one.run_time_lora, one.processed, one.most, one.rank = None, True, True, 128, RANK


@pytest.fixture(scope="session")
def engine(tiny_llama: Path) -> LogprobEngine:
    policy = Policy.load(ModelSection(path=str(tiny_llama)), LoraSection(rank=RANK), seed=0, device="cpu")
    return LogprobEngine(policy)
