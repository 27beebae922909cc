"""How long a vLLM server takes for a new version of an adapter, by its size.

    python scripts/vllm_cpu.py install
    python -m benchmarks.scaling_adapters [--ranks 8 32 128] [--port 8791]

Models with random weights and adapters that change something; each version is written and loaded as a run does it, and
answers one token of one prompt, for a server may put an adapter where it computes only when it is asked for. Prints
megabytes and seconds, and the line through them.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any, cast

import httpx
import numpy as np
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from groupwise.model.policy import Policy
from groupwise.sections import LoraSection
from scripts.vllm_cpu import VENV, Server

REPEATS = 5
WIDTHS = ((4, 256), (8, 1024))  # layers, width


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 32, 128])
    parser.add_argument("--port", type=int, default=8791)
    parser.add_argument("--venv", type=Path, default=VENV, help="where vLLM is installed (default %(default)s)")
    args = parser.parse_args()
    found: list[tuple[float, float, float]] = []
    print("| model | rank | MB | written, s | loaded and first answer, s |\n|---|---|---|---|---|")
    for layers, width in WIDTHS:
        with tempfile.TemporaryDirectory() as folder:
            base = write_model(Path(folder) / "base", layers, width)
            server = Server(base, port=args.port, rank=max(args.ranks), log=Path(folder) / "log", venv=args.venv)
            server.start()
            try:
                server.wait()
                for rank in args.ranks:
                    size, written, loaded = publish(server.address, base, rank, Path(folder))
                    found.append((size, written, loaded))
                    name = f"{layers} layers of {width}"
                    print(f"| {name} | {rank} | {size:.2f} | {written:.3f} | {loaded:.3f} |", flush=True)
            finally:
                server.stop()
    table = np.asarray(found)
    for column, name in ((1, "writing"), (2, "loading")):
        slope, once = np.polyfit(table[:, 0], table[:, column], 1)
        print(f"{name}: {once:.3f} s + {1000 * slope:.2f} ms per MB")


def write_model(folder: Path, layers: int, width: int) -> Path:
    """A random Llama with the embedded tokenizer."""
    tokenizer: Any = AutoTokenizer.from_pretrained("model/base_gpt2")
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 64,
        max_position_embeddings=256,
        bos_token_id=0,
        eos_token_id=0,
    )
    torch.manual_seed(0)
    cast(Any, LlamaForCausalLM(config)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def publish(address: str, base: Path, rank: int, folder: Path) -> tuple[float, float, float]:
    """Megabytes of a version, and the least seconds of writing it and of loading it up to the first answer."""
    network = LlamaForCausalLM.from_pretrained(base)
    policy = Policy(network, cast(PreTrainedTokenizerBase, None), lora=LoraSection(rank=rank))
    writing: list[float] = []
    loading: list[float] = []
    with httpx.Client(base_url=address, timeout=120.0) as client:
        for number in range(REPEATS):
            with torch.no_grad():
                for p in policy.trainable().values():
                    p.normal_(std=0.01)
            name, place = f"rank-{rank}-{number}", folder / f"rank-{rank}-{number}"
            began = time.perf_counter()
            policy.save_adapter(place)
            writing.append(time.perf_counter() - began)
            began = time.perf_counter()
            load = {"lora_name": name, "lora_path": str(place)}
            client.post("/v1/load_lora_adapter", json=load).raise_for_status()
            client.post("/v1/completions", json={"model": name, "prompt": [1, 2], "max_tokens": 1}).raise_for_status()
            loading.append(time.perf_counter() - began)
            client.post("/v1/unload_lora_adapter", json={"lora_name": name}).raise_for_status()
    size = (folder / f"rank-{rank}-0" / "adapter_model.safetensors").stat().st_size / 1e6
    return size, min(writing), min(loading)


if __name__ == "__main__":
    main()
