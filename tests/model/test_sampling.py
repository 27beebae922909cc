"""Drawn completions: right log-probs, right frequencies, independent of their neighbours, the base left alone."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from groupwise.batch import pack
from groupwise.groups import Completion, Group
from groupwise.model import sampling
from groupwise.model.engine import LogprobEngine
from groupwise.model.policy import Policy
from groupwise.model.sampling import sample_completions
from groupwise.sections import LoraSection
from tests.families import FAMILIES, VOCABULARY, make_model
from tests.model.test_engine import make_policy

PROMPTS = [(5, 6, 7), (8, 9), (11, 12, 13, 14, 15, 16, 17, 18), (9, 8, 7)]


def draw(policy: Policy, prompts: list[tuple[int, ...]] = PROMPTS, **options: object) -> list[list[Completion]]:
    settings: dict[str, object] = {"n": 3, "temperature": 0.9, "max_new_tokens": 9, "end_ids": [0, 1, 2], "seed": 4}
    return sample_completions(policy, prompts, **(settings | options))  # type: ignore[arg-type]


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_sampling_logprobs_are_the_engines(family: str, checkpointing: bool) -> None:
    """Invariant 4, with an adapter at work; absolute positions and windows included.

    Layers that are marked for recomputation drop the cache, and every token after the first is drawn blind.
    """
    if checkpointing and family not in ("gpt2", "llama", "gemma2", "opt"):
        pytest.skip("one family of each kind is enough")
    policy = make_policy(family, checkpointing=checkpointing)
    engine = LogprobEngine(policy)
    drawn = draw(policy)
    groups = [
        Group(key=str(i), prompt_ids=prompt, completions=tuple(completions))
        for i, (prompt, completions) in enumerate(zip(PROMPTS, drawn, strict=True))
    ]
    batch = pack(groups)
    assert batch.sampled_logp_T is not None
    with torch.no_grad():
        scored_T = engine.score(batch, temperature=0.9).logp_T
    assert (scored_T - batch.sampled_logp_T).abs().max().item() < 1e-5


def test_completions_end_at_an_end_token_or_at_the_limit() -> None:
    drawn = draw(make_policy("gpt2"), max_new_tokens=30, n=20)
    completions = [c for own in drawn for c in own]
    assert any(c.finished for c in completions) and any(len(c.token_ids) > 1 for c in completions)
    for completion in completions:
        assert completion.finished == (completion.token_ids[-1] in (0, 1, 2))
        assert not set(completion.token_ids[:-1]) & {0, 1, 2}
        assert completion.finished or len(completion.token_ids) == 30


def test_a_prompts_completions_do_not_depend_on_its_neighbours() -> None:
    policy = make_policy("llama")
    together = draw(policy)
    alone = draw(policy, PROMPTS[:1])
    assert [c.token_ids for c in together[0]] == [c.token_ids for c in alone[0]]
    assert [c.token_ids for own in draw(policy, rows_at_once=3) for c in own] == [
        c.token_ids for own in together for c in own
    ]


def test_frequencies_are_the_models_probabilities() -> None:
    """20,000 first tokens against the exact distribution; the chance of a false alarm is below 1e-6."""
    policy = make_policy("gpt2")
    n = 20_000
    counts = torch.zeros(VOCABULARY, dtype=torch.float64)
    for completion in draw(policy, PROMPTS[:1], n=n, max_new_tokens=1, temperature=1.5, rows_at_once=n)[0]:
        counts[completion.token_ids[0]] += 1
    with torch.no_grad(), policy.as_loaded():
        logits = policy.model(torch.tensor([PROMPTS[0]])).logits[0, -1].double()
    p = (logits / 1.5).softmax(-1)
    deviation = (counts - n * p).abs() / (n * p * (1 - p)).sqrt()
    assert deviation[n * p > 20].max() < 6.2


def test_a_number_just_below_one_never_draws_an_impossible_token() -> None:
    logits = torch.tensor([[0.0, 1.0, float("-inf")]])
    token, logp = sampling._draw(logits, torch.tensor([1 - 2**-40], dtype=torch.float64), 1.0)  # pyright: ignore
    assert token.item() == 1 and torch.isfinite(logp).all()


def test_temperature_zero_is_greedy() -> None:
    policy = make_policy("qwen2")
    (greedy,) = draw(policy, PROMPTS[:1], n=1, temperature=0.0)
    ids = list(PROMPTS[0])
    with torch.no_grad(), policy.as_loaded():
        for token in greedy[0].token_ids:
            assert token == policy.model(torch.tensor([ids])).logits[0, -1].argmax().item()
            ids.append(token)


def test_the_models_generation_settings_are_never_applied() -> None:
    """GPT-2's shipped settings once cut the distribution at the 50 likeliest tokens, and the ratio was off."""
    model = make_model("gpt2")
    assert model.generation_config is not None
    model.generation_config.top_k = 1
    model.generation_config.do_sample = False
    policy = Policy(model, AutoTokenizer.from_pretrained, lora=LoraSection(rank=2))  # type: ignore[arg-type]
    first = {c.token_ids[0] for c in draw(policy, PROMPTS[:1], n=200, max_new_tokens=1, temperature=3.0)[0]}
    assert len(first) > 5


def test_sampling_under_the_reference_ignores_the_adapter(tiny_model: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    policy = Policy(model, AutoTokenizer.from_pretrained(tiny_model), lora=LoraSection(rank=4))
    before = [c.token_ids for own in draw(policy) for c in own]
    with torch.no_grad():
        for p in policy.trainable().values():
            p.add_(0.3)
    with policy.reference():
        assert [c.token_ids for own in draw(policy) for c in own] == before
    assert [c.token_ids for own in draw(policy) for c in own] != before
