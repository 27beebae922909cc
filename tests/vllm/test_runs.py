"""Whole runs and starts with real vLLM servers."""

import json
import shutil
from pathlib import Path

import httpx
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from groupwise.errors import UserError
from groupwise.observe.metrics import read_metrics
from grpo import train_grpo
from scripts.vllm_cpu import Server
from tests.runs import before_step
from tests.servers.conftest import CONFIG, REWARD, Command, start_training
from tests.vllm.conftest import LONGEST, Start

pytestmark = pytest.mark.vllm


@pytest.fixture
def command(tmp_path: Path, tiny_llama: Path) -> Command:
    """Arguments of a small run on servers."""
    data = tmp_path / "prompts.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"We saw film number {i}."}) + "\n" for i in range(40)))
    (tmp_path / "rewards.py").write_text(REWARD)

    def arguments(servers: list[Server], *flags: str) -> list[str]:
        values = {
            "MODEL": tiny_llama, "DATA": data, "REWARD": f"{tmp_path}/rewards.py:even", "RUNS": tmp_path / "runs",
            "SERVERS": ", ".join(one.address for one in servers), "VERSIONS": tmp_path / "versions",
        }  # fmt: skip
        text = CONFIG.replace("server_wait: 1", "server_wait: 120")
        for name, value in values.items():
            text = text.replace(name, str(value))
        file = tmp_path / "config.yaml"
        file.write_text(text)
        return ["--config", str(file), *flags]

    return arguments


def models_of(server: Server) -> list[str]:
    return [entry["id"] for entry in httpx.get(f"{server.address}/v1/models").json()["data"]]


@pytest.mark.parametrize("ahead", ["0", "1"])
def test_a_run_learns_from_what_its_own_policy_drew_though_a_server_dies(
    ahead: str, command: Command, tmp_path: Path, real: list[Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    before_step(3, real[1].kill, monkeypatch)
    train_grpo.main(command(real, "--steps", "5", "--sampling.ahead", ahead))
    rows = read_metrics(tmp_path / "runs" / "run" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    assert all(row["sampler/gap_largest"] < 1e-4 for row in rows)
    assert rows[0]["servers/up"] == 2 and rows[-1]["servers/up"] == 1
    assert sum(row["servers/faults"] for row in rows) >= 1
    if ahead == "0":
        assert all(row["ratio"] == pytest.approx(1, abs=1e-5) for row in rows)
    assert not list((tmp_path / "versions").iterdir())
    assert [name for name in models_of(real[0]) if name.startswith("groupwise-")] == []


def test_a_check_beside_a_run_costs_it_nothing_but_time(
    command: Command, tmp_path: Path, real: list[Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    """These servers keep one adapter in memory: the check's takes its place, and the run's is read from disk again."""

    def check() -> None:
        before = [models_of(server) for server in real]
        process = start_training(command(real, "--check"))
        said = process.communicate(timeout=300)[0]
        assert process.returncode == 0, said
        assert [models_of(server) for server in real] == before

    before_step(2, check, monkeypatch)
    train_grpo.main(command(real))
    rows = read_metrics(tmp_path / "runs" / "run" / "metrics.jsonl")
    assert all(row["servers/faults"] == 0 and row["servers/up"] == 2 for row in rows)
    assert all(row["sampler/gap_largest"] < 1e-4 for row in rows)


def test_what_cannot_work_is_refused_at_the_start_with_all_problems_of_all_servers(
    command: Command, real: list[Server], start: Start, tokenizer: PreTrainedTokenizerFast, tiny_llama: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    """Another base; too short texts and too small a rank; no loading at run time and a key; one that is not there."""
    other = tmp_path / "other"
    shutil.copytree(tiny_llama, other)
    weights = load_file(other / "model.safetensors")
    weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"].flip(0)
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    another = start(other)
    small = start(tiny_llama, rank=1, flags=("--max-model-len", "60"))
    closed = start(
        tiny_llama, flags=("--api-key", "very-secret-words"), environment={"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "False"}
    )
    for server in (another, small, closed):
        server.wait()
    with pytest.raises(UserError) as caught:
        longer = ("--sampling.top_p", "0.9", "--sampling.max_new_tokens", "60")
        train_grpo.main(command([another, small, closed, real[0]], *longer))
    text = str(caught.value)
    for server, part in (
        (another, "serves another base model"),
        (small, "takes texts of 60 tokens"),
        (small, "takes no adapter of rank 4: start it with --max-lora-rank"),
        (closed, "refuses the API key"),
        (real[0], "--logprobs-mode processed_logprobs"),
    ):
        assert any(server.address in line and part in line for line in text.splitlines()), (part, text)
    assert not (tmp_path / "runs").exists() and not list((tmp_path / "versions").iterdir())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KEY_OF_SERVERS", "very-secret-words")
        with pytest.raises(UserError, match="does not load adapters at run time"):
            train_grpo.main(command([closed], "--sampling.api_key_variable", "KEY_OF_SERVERS"))
    for server in (another, small, closed):
        server.stop()
    with pytest.raises(UserError, match="cannot be asked"):
        train_grpo.main(command([another]))


def test_a_group_of_queries_per_key_agrees(
    start: Start, tokenizer: PreTrainedTokenizerFast, command: Command, tmp_path: Path
) -> None:
    """The shape of Qwen2 and Llama 3: fewer heads of keys than of queries, biases, a tied head."""
    folder = tmp_path / "qwen"
    torch.manual_seed(1)
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=LONGEST, bos_token_id=0, eos_token_id=0, initializer_range=0.1,
        tie_word_embeddings=True,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    server = start(folder, rank=8)
    server.wait()
    train_grpo.main(command([server], "--model.path", str(folder), "--steps", "2"))
    rows = read_metrics(tmp_path / "runs" / "run" / "metrics.jsonl")
    assert all(row["sampler/gap_largest"] < 1e-4 for row in rows)
    server.stop()
