"""QLoRA: four-bit codes stand for what the paper says, and a network on them is one function, learned from exactly."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from groupwise.batch import pack
from groupwise.config import load_config
from groupwise.errors import UserError
from groupwise.model import nf4
from groupwise.model.drawing import SamplingParams
from groupwise.model.engine import LogprobEngine
from groupwise.model.loading import load_network
from groupwise.model.policy import Policy
from groupwise.model.sampling import sample_completions
from groupwise.sections import LoraSection, ModelSection
from grpo import train_grpo
from grpo.config import GrpoConfig
from scripts import export
from tests.conftest import random_groups
from tests.families import VOCABULARY, make_model
from tests.grpo import test_train_grpo as small_runs
from tests.model.test_engine import gradients, no_tokenizer
from tests.model.test_sampling import PROMPTS, as_groups
from tests.runs import assert_same_run, stop_after

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes; make test-extras"
)
# QLoRA (arXiv 2305.14314), appendix E: quantiles of N(0, 1) scaled to [-1, 1], with an exact zero.
NF4 = torch.tensor([
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
])  # fmt: skip
FAMILIES = ["gpt2", "llama", "opt", "gemma2"]
command = small_runs.command
GROUPS = random_groups(3, vocabulary=VOCABULARY, completions=3, seed=2)


def saved(family: str, folder: Path) -> Path:
    make_model(family, dtype=torch.float32).save_pretrained(folder)
    return folder


def with_adapter(network: Any, *, checkpointing: bool = False) -> Policy:
    """An adapter that changes something; the same one for the same names."""
    policy = Policy(network, no_tokenizer(), lora=LoraSection(rank=4, alpha=8), gradient_checkpointing=checkpointing)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in policy.trainable().values():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.1)
    return policy


def in_four_bits(family: str, folder: Path, *, checkpointing: bool = False) -> Policy:
    section = ModelSection(path=str(saved(family, folder)), quantization="nf4")
    return with_adapter(load_network(section), checkpointing=checkpointing)


def spread_out(family: str, policy: Policy) -> Policy:
    """The same function as a plain network: made again, with the numbers that the codes stand for."""
    network = make_model(family, dtype=torch.float32)
    for name, layer in policy.model.named_modules():
        if name.endswith(".base_layer"):
            weight = nf4.plain_weight(layer)
            plain = network.get_submodule(name.removesuffix(".base_layer"))
            with torch.no_grad():
                plain.get_parameter("weight").copy_(weight.T if family == "gpt2" else weight)
    return with_adapter(network)


@needs_bitsandbytes
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_each_weight_is_the_nearest_of_sixteen_levels_times_the_largest_of_its_block(
    family: str, tmp_path: Path
) -> None:
    """Blocks of 64; their scales are stored in eight bits, hence the percent."""
    policy = in_four_bits(family, tmp_path)
    plain = make_model(family, dtype=torch.float32)
    seen = 0
    for name, layer in policy.model.named_modules():
        if not nf4.is_nf4(layer):
            continue
        weight = plain.get_submodule(name.removesuffix(".base_layer")).get_parameter("weight").detach()
        blocks_BK = (weight.T if family == "gpt2" else weight).flatten().split(64)
        for own_K, found_K in zip(blocks_BK, nf4.plain_weight(layer).flatten().split(64), strict=True):
            largest = own_K.abs().max().item()
            level_K = NF4[(own_K[:, None] / largest - NF4).abs().argmin(dim=1)]
            torch.testing.assert_close(found_K / found_K.abs().max(), level_K, atol=2e-6, rtol=0)
            assert found_K.abs().max().item() == pytest.approx(largest, rel=0.02)
            seen += 1
    assert seen > 100


@needs_bitsandbytes
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("family", FAMILIES)
def test_log_probs_and_gradients_are_those_of_the_plain_network_with_these_weights(
    family: str, checkpointing: bool, tmp_path: Path
) -> None:
    policy = in_four_bits(family, tmp_path, checkpointing=checkpointing)
    oracle = spread_out(family, policy)
    assert policy.trainable().keys() == oracle.trainable().keys()
    engine = LogprobEngine(policy)
    assert engine.method == "shared", engine.notices
    logp_T, plain_T = engine.score(pack(GROUPS)).logp_T, LogprobEngine(oracle).score(pack(GROUPS)).logp_T
    torch.testing.assert_close(logp_T, plain_T, atol=3e-5, rtol=0)
    own, plain = gradients(policy, logp_T), gradients(oracle, plain_T)
    torch.testing.assert_close(own, plain, atol=3e-5 * plain.abs().max().item(), rtol=0)


@needs_bitsandbytes
@pytest.mark.parametrize("family", FAMILIES)
def test_a_gradient_that_is_due_changes_no_log_prob(family: str, tmp_path: Path) -> None:
    """The library's own layers take a bfloat16 kernel without gradient on some CPUs, and could learn no more then."""
    engine = LogprobEngine(in_four_bits(family, tmp_path))
    with torch.no_grad():
        before_T = engine.score(pack(GROUPS)).logp_T
    logp_T = engine.score(pack(GROUPS)).logp_T
    assert torch.equal(logp_T, before_T)
    assert gradients(engine.policy, logp_T).norm() > 0


@needs_bitsandbytes
@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_are_drawn_with_the_log_probs_that_learning_sees(family: str, tmp_path: Path) -> None:
    engine = LogprobEngine(in_four_bits(family, tmp_path))
    params = SamplingParams(temperature=0.9, max_new_tokens=9)
    groups = as_groups(sample_completions(engine, PROMPTS, n=3, params=params, end_ids=[0, 1, 2], seed=4))
    scored_T = engine.score(pack(groups), temperature=0.9).logp_T
    drawn: list[Tensor] = [c.sampled_logp for group in groups for c in group.completions if c.sampled_logp is not None]
    torch.testing.assert_close(torch.cat(drawn), scored_T.detach(), atol=3e-5, rtol=0, check_dtype=False)


@needs_bitsandbytes
def test_bfloat16_passes_are_within_its_rounding_and_leave_biases_alone(tmp_path: Path) -> None:
    """The library's layers round a bias for good when they are run in another precision."""
    policy = in_four_bits("opt", tmp_path)
    before = {name: p.clone() for name, p in policy.model.named_parameters()}
    exact_T = LogprobEngine(policy).score(pack(GROUPS)).logp_T
    engine = LogprobEngine(policy, autocast=lambda: torch.autocast("cpu", torch.bfloat16))
    rough_T = engine.score(pack(GROUPS)).logp_T
    assert 0 < (rough_T - exact_T).abs().max() < 0.3
    assert gradients(policy, rough_T).isfinite().all()
    assert all(torch.equal(p, before[name]) for name, p in policy.model.named_parameters())


@needs_bitsandbytes
def test_a_run_learns_continues_to_the_same_bytes_and_is_exported_as_a_plain_model(
    command: small_runs.Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ("--model.quantization", "nf4")
    train_grpo.main(command(*flags, runs="straight"))
    stop_after(3, lambda: train_grpo.main(command(*flags, runs="continued")), monkeypatch)
    train_grpo.main(command(*flags, runs="continued"))
    run = tmp_path / "straight" / "run"
    assert_same_run(tmp_path / "continued" / "run", run, last="checkpoints/step-000006", files=())
    export.main([str(run), "--merged", str(tmp_path / "merged")])  # proves that it is the same function, or raises
    config = (tmp_path / "merged" / "config.json").read_text()
    assert "quantization" not in config


@needs_bitsandbytes
def test_weights_are_counted_not_bytes(tmp_path: Path) -> None:
    plain = make_model("llama", dtype=torch.float32)
    network = load_network(ModelSection(path=str(saved("llama", tmp_path)), quantization="nf4"))
    assert sum(map(nf4.weight_count, network.parameters())) == sum(p.numel() for p in plain.parameters())
    linear = [m for m in network.modules() if nf4.is_nf4(m)]
    assert sum(m.get_parameter("weight").nbytes for m in linear) == sum(map(nf4.weight_count, weights(linear))) / 2


def weights(layers: list[nn.Module]) -> list[Tensor]:
    return [layer.get_parameter("weight") for layer in layers]


@needs_bitsandbytes
def test_a_file_that_is_stored_in_four_bits_itself_is_not_trained_in_full(tmp_path: Path) -> None:
    section = ModelSection(path=str(saved("llama", tmp_path / "plain")), quantization="nf4")
    load_network(section).save_pretrained(tmp_path / "stored")
    network = load_network(ModelSection(path=str(tmp_path / "stored")))
    with pytest.raises(UserError, match="four bits; train an adapter"):
        Policy(network, no_tokenizer(), lora=None)


# --- refusals


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--lora", "null"), "cannot be trained; train an adapter"),
        (("--run.sharding", "fsdp2"), "set run.sharding to none"),
        (("--model.quantization", "int3"), "model.quantization"),
    ],
)
def test_what_does_not_go_together_is_said_at_once(flags: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config(GrpoConfig, Path("configs/grpo_config.yaml"), ["--model.quantization", "nf4", *flags])


def test_without_the_library_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        return None

    monkeypatch.setattr(nf4.importlib.util, "find_spec", absent)
    with pytest.raises(UserError, match=r"not installed; pip install 'groupwise\[qlora\]' .* none"):
        load_network(ModelSection(path="model/base_gpt2", quantization="nf4"))


@needs_bitsandbytes
def test_a_machine_that_the_library_does_not_support_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.integrations import bitsandbytes

    def refuse(raise_exception: bool) -> None:
        raise RuntimeError("None of the available devices are supported")

    monkeypatch.setattr(bitsandbytes, "validate_bnb_backend_availability", refuse)
    with pytest.raises(UserError, match="cannot run here: None of the available devices .* set model.quantization"):
        load_network(ModelSection(path="model/base_gpt2", quantization="nf4"))
