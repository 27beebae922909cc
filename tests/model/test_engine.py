"""Invariant 1: the shared-prompt pass equals one row per completion, values and gradients, for every family."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from groupwise.batch import pack
from groupwise.errors import UserError
from groupwise.groups import Group
from groupwise.model.engine import LogprobEngine, reference_logprobs
from groupwise.model.policy import Policy
from groupwise.sections import LoraSection, ModelSection
from tests.conftest import random_groups
from tests.families import FAMILIES, RECURRENT, VOCABULARY, make_model

# Families whose layers round to float32 inside, so that float64 weights do not make them exact.
EXACT = {"gpt2", "gpt_neox", "opt"}
ATTENTION_FAMILIES = sorted(set(FAMILIES) - RECURRENT)


def make_policy(family: str, *, lora: bool = True, checkpointing: bool = False) -> Policy:
    # The grouped matrix product of mixtures of experts has no float64 kernel.
    dtype = torch.float32 if family == "gpt_oss" else torch.float64
    targets: str | tuple[str, ...] = ("in_proj", "x_proj") if family == "mamba" else "all-linear"
    section = LoraSection(rank=4, alpha=8, target_modules=targets) if lora else None
    policy = Policy(make_model(family, dtype=dtype), no_tokenizer(), lora=section, gradient_checkpointing=checkpointing)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # a fresh adapter changes nothing, so its gradient would test only half of it
        for p in policy.trainable().values() if lora else []:
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64) * 0.1)
    return policy


def no_tokenizer() -> PreTrainedTokenizerBase:
    """The engine never looks at the tokenizer."""
    return cast(PreTrainedTokenizerBase, None)


def plain_logprobs(policy: Policy, group: Group, temperature: float = 1.0) -> Tensor:
    """The definition, with the model's own forward and nothing of ours: log_softmax of the logits, gathered."""
    rows: list[Tensor] = []
    for completion in group.completions:
        ids = torch.tensor([group.prompt_ids + completion.token_ids])
        with policy.as_loaded():
            logits = policy.model(input_ids=ids, use_cache=False).logits[0, len(group.prompt_ids) - 1 : -1]
        logp = (logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature).log_softmax(-1)
        rows.append(logp.gather(1, torch.tensor(completion.token_ids)[:, None]).squeeze(1))
    return torch.cat(rows)


def gradients(policy: Policy, logp_T: Tensor) -> Tensor:
    """Gradient of a fixed mixture of the log-probs with respect to everything trained, flat."""
    weight_T = torch.linspace(-1, 1, len(logp_T), dtype=logp_T.dtype)
    names, parameters = zip(*policy.trainable().items(), strict=True)
    grads = torch.autograd.grad((logp_T * weight_T).sum(), parameters, allow_unused=True)
    reached: list[Tensor] = []
    for name, grad in zip(names, cast(Sequence[Tensor | None], grads), strict=True):
        assert grad is not None, f"no gradient reached {name}"
        reached.append(grad.flatten().double())
    return torch.cat(reached)


def tolerance(family: str) -> float:
    return 1e-10 if family in EXACT else 3e-5


@pytest.mark.parametrize("family", ATTENTION_FAMILIES)
@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_shared_equals_plain_forward(family: str, lora: bool) -> None:
    policy = make_policy(family, lora=lora)
    engine = LogprobEngine(policy)
    assert engine.method == "shared", engine.notices
    assert engine.notices == []
    groups = random_groups(3, vocabulary=VOCABULARY, completions=3, seed=2)
    shared_T = engine.score(pack(groups)).logp_T
    plain_T = torch.cat([plain_logprobs(policy, group) for group in groups])
    torch.testing.assert_close(shared_T, plain_T, atol=tolerance(family), rtol=0)
    shared, plain = gradients(policy, shared_T), gradients(policy, plain_T)
    torch.testing.assert_close(shared, plain, atol=tolerance(family) * plain.abs().max().item(), rtol=0)


@pytest.mark.parametrize("family", ["gpt2", "qwen3", "mistral", "gemma2", "opt"])
def test_gradient_checkpointing_changes_nothing(family: str) -> None:
    groups = random_groups(2, vocabulary=VOCABULARY, completions=2, seed=3)
    results: list[tuple[Tensor, Tensor]] = []
    for checkpointing in (False, True):
        policy = make_policy(family, checkpointing=checkpointing)
        assert policy.model.is_gradient_checkpointing == checkpointing
        logp_T = LogprobEngine(policy).score(pack(groups)).logp_T
        results.append((logp_T.detach(), gradients(policy, logp_T)))
    (plain_T, plain), (again_T, again) = results
    torch.testing.assert_close(again_T, plain_T, atol=tolerance(family), rtol=0)
    torch.testing.assert_close(again, plain, atol=tolerance(family) * plain.abs().max().item(), rtol=0)


def test_recurrent_family_falls_back_with_one_line_and_is_right() -> None:
    policy = make_policy("mamba")
    engine = LogprobEngine(policy)
    assert engine.method == "repeat"
    assert len(engine.notices) == 1 and "slower" in engine.notices[0]
    groups = random_groups(2, vocabulary=VOCABULARY, seed=4)
    plain_T = torch.cat([plain_logprobs(policy, group) for group in groups])
    logp_T = engine.score(pack(groups)).logp_T
    torch.testing.assert_close(logp_T, plain_T.to(logp_T.dtype), atol=1e-5, rtol=0)
    torch.testing.assert_close(gradients(policy, logp_T), gradients(policy, plain_T), atol=1e-4, rtol=1e-4)


def test_shared_on_demand_refuses_a_family_that_cannot() -> None:
    with pytest.raises(RuntimeError, match="cannot share prompts"):
        LogprobEngine(make_policy("mamba"), "shared")


@pytest.mark.parametrize("family", ["gpt2", "granite", "cohere", "gemma2"])
def test_temperature_divides_the_scaled_and_capped_logits(family: str) -> None:
    policy = make_policy(family)
    groups = random_groups(2, vocabulary=VOCABULARY, seed=5)
    plain_T = torch.cat([plain_logprobs(policy, group, temperature=0.7) for group in groups])
    scores = LogprobEngine(policy).score(pack(groups), temperature=0.7)
    torch.testing.assert_close(scores.logp_T, plain_T, atol=tolerance(family), rtol=0)


def test_a_head_that_is_no_plain_projection_uses_the_models_own_logits() -> None:
    model = make_model("llama")
    model.config.logit_scale = 2.0  # announces a scale that this model's forward does not apply
    policy = Policy(model, no_tokenizer(), lora=LoraSection(rank=2))
    engine = LogprobEngine(policy)
    assert any("output head" in notice for notice in engine.notices)
    groups = random_groups(2, vocabulary=VOCABULARY, seed=6)
    plain_T = torch.cat([plain_logprobs(policy, group) for group in groups])
    torch.testing.assert_close(engine.score(pack(groups)).logp_T, plain_T, atol=3e-5, rtol=0)


def test_a_window_that_never_reaches_the_attention_function_is_not_trusted() -> None:
    """A window longer than the made-up batch would agree there and be wrong on long rows."""
    policy = make_policy("llama")
    policy.model.config.sliding_window = 10_000
    engine = LogprobEngine(policy)
    assert engine.method == "repeat"
    assert "sliding window" in engine.notices[0]


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_reference_is_the_policy_before_training(lora: bool) -> None:
    """The peer reloads the reference from disk and silently gets another model when the policy came from memory."""
    policy = make_policy("gpt2", lora=lora)
    if lora:
        for name, p in policy.trainable().items():
            if "lora_B" in name:
                p.data.zero_()
    groups = random_groups(2, vocabulary=VOCABULARY, seed=7)
    before_T = torch.cat([plain_logprobs(policy, group) for group in groups]).detach()
    with torch.no_grad():
        for p in policy.trainable().values():
            p.add_(0.05)
    engine = LogprobEngine(policy)
    scored = reference_logprobs(engine, groups, tokens_per_forward=30)
    reference_T = pack(scored).reference_logp_T
    assert reference_T is not None
    torch.testing.assert_close(reference_T, before_T, atol=1e-10, rtol=0)
    after_T = engine.score(pack(groups)).logp_T
    assert (after_T - before_T).abs().max() > 1e-3


def test_plain_calls_while_prompts_are_shared_say_what_to_do() -> None:
    policy = make_policy("llama")
    engine = LogprobEngine(policy)
    with pytest.raises(RuntimeError, match=r"Policy\.as_loaded"):
        policy.model(torch.tensor([[1, 2, 3]]))
    batch = pack(random_groups(2, vocabulary=VOCABULARY))
    torch.testing.assert_close(LogprobEngine(policy, "repeat").score(batch).logp_T, engine.score(batch).logp_T)


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_rotary_embeddings_that_depend_on_the_row_are_not_shared(kind: str) -> None:
    """One long group would turn the positions of every short group in its row."""
    policy = make_policy("llama")
    policy.model.config.rope_parameters["rope_type"] = kind
    assert LogprobEngine(policy).method == "repeat"


def test_bfloat16_autocast_still_shares_prompts() -> None:
    """A check that demands float32 rounding of bfloat16 arithmetic would send every such run the slow way."""
    policy = Policy(make_model("gpt2", dtype=torch.float32), no_tokenizer(), lora=LoraSection(rank=2))
    engine = LogprobEngine(policy, autocast=lambda: torch.autocast("cpu", dtype=torch.bfloat16))
    assert engine.method == "shared", engine.notices
    batch = pack(random_groups(2, vocabulary=VOCABULARY))
    assert (engine.score(batch).logp_T - LogprobEngine(policy).score(batch).logp_T).abs().max() < 0.5


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
@pytest.mark.parametrize("moved", [False, True], ids=["base", "moved"])
def test_entropy_and_kl_over_the_vocabulary_equal_the_plain_formula(lora: bool, moved: bool) -> None:
    """Values and gradients, to the base and to a reference that has left it; the policy comes out as it went in."""
    policy = make_policy("gpt2", lora=lora)
    if moved:
        policy.move_reference(0.5)
    with torch.no_grad():
        for p in policy.trainable().values():
            p.mul_(1.1)
    groups = random_groups(3, vocabulary=VOCABULARY)
    scores = LogprobEngine(policy).score(pack(groups), temperature=0.9, extras=("entropy_gradient", "kl"))
    assert scores.kl_T is not None

    def every_logp() -> Tensor:
        rows: list[Tensor] = []
        for group in groups:
            for completion in group.completions:
                ids = torch.tensor([group.prompt_ids + completion.token_ids])
                rows.append(policy.active(input_ids=ids, use_cache=False).logits[0, len(group.prompt_ids) - 1 : -1])
        return (torch.cat(rows) / 0.9).log_softmax(-1)

    with policy.own_attention():
        with torch.no_grad(), policy.reference():
            reference_TV = every_logp()
        logp_TV = every_logp()
    kl_T = (logp_TV.exp() * (logp_TV - reference_TV)).sum(-1)
    entropy_T = -(logp_TV.exp() * logp_TV).sum(-1)
    assert kl_T.min() > 1e-6
    torch.testing.assert_close(scores.kl_T, kl_T, atol=1e-10, rtol=0)
    torch.testing.assert_close(scores.entropy_T, entropy_T, atol=1e-10, rtol=0)
    ours = gradients(policy, scores.kl_T + scores.entropy_T.flip(0))
    torch.testing.assert_close(ours, gradients(policy, kl_T + entropy_T.flip(0)), atol=1e-9, rtol=1e-9)


def test_unshared_prompts_are_refused_where_layers_are_spread(tiny_model: Path) -> None:
    """A pass for every completion: processes counted other numbers of them and waited for each other for ever."""
    policy = Policy.load(ModelSection(path=str(tiny_model)), LoraSection(rank=2), seed=0, device="cpu")
    policy.sharded = True
    with pytest.raises(UserError, match="model.attention repeat does not go with"):
        LogprobEngine(policy, method="repeat")
