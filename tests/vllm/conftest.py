"""Two real vLLM servers for a tiny Llama, on CPUs; without vLLM everything here is skipped, with the reason."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from groupwise.servers.versions import VersionsFolder
from scripts.vllm_cpu import VENV, Server
from tests.ports import free_port
from tests.servers.conftest import engine as engine

LONGEST = 128
Start = Callable[..., Server]


def venv() -> Path:
    """Where vLLM lies: VLLM_VENV, or what scripts/vllm_cpu.py installed."""
    return Path(os.environ.get("VLLM_VENV", VENV))


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Starts a server that ends with the tests; the caller waits for it."""
    if not (venv() / "bin" / "vllm").is_file():
        pytest.skip(f"no vLLM in {venv()}; python scripts/vllm_cpu.py install")
    logs = tmp_path_factory.mktemp("vllm")
    with ExitStack() as stack:

        def run(model: Path, **options: object) -> Server:
            port = free_port()
            server = Server(model, port=port, log=logs / f"{port}.log", venv=venv(), **options)  # pyright: ignore[reportArgumentType]
            server.start()
            stack.callback(server.stop)
            return server

        yield run


@pytest.fixture(scope="session")
def tiny_llama(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Heads of 32, the narrowest that vLLM's attention has on a CPU; one head of keys for two of queries."""
    folder = tmp_path_factory.mktemp("models") / "llama"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=LONGEST, bos_token_id=0, eos_token_id=0, initializer_range=0.1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def pair(start: Start, tiny_llama: Path) -> list[Server]:
    """Two servers of the tiny Llama."""
    cores = sorted(os.sched_getaffinity(0))
    both = [
        start(
            tiny_llama,
            rank=8,
            flags=("--max-num-seqs", "32"),
            environment={"VLLM_CPU_OMP_THREADS_BIND": str(cores[place % len(cores)])},
        )
        for place in range(2)
    ]
    for server in both:
        server.wait()
    return both


@pytest.fixture
def real(pair: list[Server]) -> list[Server]:
    """The two, running, whatever the test before did to them."""
    for server in pair:
        if not server.runs:
            server.start()
            server.wait()
    return pair


@pytest.fixture
def versions(tmp_path: Path) -> VersionsFolder:
    return VersionsFolder.of_run(tmp_path / "versions", tmp_path / "test run")
