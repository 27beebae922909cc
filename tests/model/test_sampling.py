"""Drawn completions: right log-probs, right frequencies, independent of their neighbours, the base left alone."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from groupwise.batch import pack
from groupwise.groups import Completion, Group
from groupwise.model import decoding
from groupwise.model.drawing import SamplingParams
from groupwise.model.engine import LogprobEngine
from groupwise.model.policy import Policy
from groupwise.model.sampling import sample_completions
from groupwise.sections import LoraSection
from tests.families import FAMILIES, VOCABULARY, make_model
from tests.model.test_engine import make_policy

PROMPTS = [(5, 6, 7), (8, 9), (11, 12, 13, 14, 15, 16, 17, 18), (9, 8, 7)]


def draw(
    policy: Policy | LogprobEngine,
    prompts: list[tuple[int, ...]] = PROMPTS,
    *,
    n: int = 3,
    streams: list[int] | None = None,
    most_new_tokens: list[int] | None = None,
    **options: Any,
) -> list[list[Completion]]:
    settings: dict[str, Any] = {"temperature": 0.9, "max_new_tokens": 9} | options
    return sample_completions(
        policy if isinstance(policy, LogprobEngine) else LogprobEngine(policy),
        prompts,
        n=n,
        params=SamplingParams(**settings),
        end_ids=[0, 1, 2],
        seed=4,
        streams=streams,
        most_new_tokens=most_new_tokens,
    )


def as_groups(drawn: list[list[Completion]]) -> list[Group]:
    return [
        Group(key=str(i), prompt_ids=prompt, completions=tuple(completions))
        for i, (prompt, completions) in enumerate(zip(PROMPTS, drawn, strict=True))
    ]


@pytest.mark.parametrize("method", ["shared", "repeat"])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_method_draws_what_running_the_whole_text_again_draws(
    family: str, method: Literal["shared", "repeat"], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shared prompt, and the model's own cache, long enough for every window to slide and for rows to leave."""
    engine = LogprobEngine(make_policy(family), "repeat" if method == "repeat" else "auto")
    if engine.method != method:
        pytest.skip("this family cannot share prompts")
    drawn = draw(engine, n=5, max_new_tokens=40)
    monkeypatch.setattr(decoding, "_has_cache", lambda model: False)
    plain = draw(LogprobEngine(make_policy(family), "repeat"), n=5, max_new_tokens=40)
    assert [[c.token_ids for c in own] for own in drawn] == [[c.token_ids for c in own] for own in plain]
    for own, other in zip(drawn, plain, strict=True):
        for a, b in zip(own, other, strict=True):
            assert a.sampled_logp is not None and b.sampled_logp is not None
            # Rotary angles and some softmaxes are float32 in every family: invariant 4's bound.
            assert (a.sampled_logp - b.sampled_logp).abs().max().item() < 1e-5


def test_small_updates_are_not_lost_under_bfloat16(tiny_model: Path) -> None:
    """Weights on the bfloat16 grid swallow an update that is folded in before a cast: samples came from the base.

    The engine keeps base and side path apart. Half of what the adapter changes must still be seen by the sampler.
    """
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p.bfloat16().float() * 4)
    policy = Policy(model, AutoTokenizer.from_pretrained(tiny_model), lora=LoraSection(rank=4))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in policy.trainable().items():
            if "lora_B" in name:
                p.copy_(torch.randn(p.shape, generator=generator) * 1e-3)
    engine = LogprobEngine(policy, autocast=lambda: torch.autocast("cpu", dtype=torch.bfloat16))
    before = {name: p.clone() for name, p in model.named_parameters()}
    drawn = draw(engine, n=20, max_new_tokens=20, temperature=1.0)
    batch = pack(as_groups(drawn))
    assert batch.sampled_logp_T is not None
    with torch.no_grad():
        logp_T = engine.score(batch).logp_T
        with policy.reference():
            reference_T = engine.score(batch).logp_T
    noise = (logp_T - batch.sampled_logp_T).abs().mean().item()
    moved = (logp_T - reference_T).abs().mean().item()
    assert noise < moved / 2
    assert all(torch.equal(before[name], p) and p.dtype == torch.float32 for name, p in model.named_parameters())


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
    batch = pack(as_groups(draw(engine)))
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
    for i, prompt in enumerate(PROMPTS):
        (alone,) = draw(policy, [prompt], streams=[i])
        assert [c.token_ids for c in together[i]] == [c.token_ids for c in alone]
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


def test_truncated_draws_know_both_log_probs() -> None:
    """`sampled_logp` stays the engine's; `drawn_logp` is larger by the log of the share that was kept."""
    engine = LogprobEngine(make_policy("gpt2"))
    groups = as_groups(draw(engine, top_k=3, max_new_tokens=12))
    batch = pack(groups)
    with torch.no_grad():
        logp_T = engine.score(batch, temperature=0.9).logp_T
    assert batch.sampled_logp_T is not None
    assert (logp_T - batch.sampled_logp_T).abs().max().item() < 1e-5
    start = 0
    with torch.no_grad(), engine.policy.as_loaded():
        for group in groups:
            for completion in group.completions:
                ids = torch.tensor([[*group.prompt_ids, *completion.token_ids]])
                p = (engine.policy.model(ids).logits[0, len(group.prompt_ids) - 1 : -1] / 0.9).softmax(-1)
                assert completion.drawn_logp is not None and completion.sampled_logp is not None
                kept = p.topk(3).values.sum(-1).log()
                gap = completion.sampled_logp - kept - completion.drawn_logp
                assert gap.abs().max().item() < 1e-6
                start += len(completion.token_ids)
    assert start == batch.n_tokens


def test_limits_of_single_prompts_hold() -> None:
    drawn = draw(make_policy("gpt2"), most_new_tokens=[1, 4, 9, 2], n=8)
    for limit, own in zip([1, 4, 9, 2], drawn, strict=True):
        assert max(len(c.token_ids) for c in own) <= limit
        assert all(c.finished or len(c.token_ids) == limit for c in own)


def test_a_stop_text_ends_a_completion_with_the_token_that_completes_it(tiny_model: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    policy = Policy(model, AutoTokenizer.from_pretrained(tiny_model), lora=LoraSection(rank=4))
    free = [c for own in draw(policy, n=20, max_new_tokens=30) for c in own]
    stopped = [c for own in draw(policy, n=20, max_new_tokens=30, stop=("e", "th")) for c in own]
    decode: Callable[[Sequence[int]], str] = lambda ids: str(policy.tokenizer.decode(list(ids)))  # noqa: E731
    assert any("e" in decode(c.token_ids) for c in free)
    for before, after in zip(free, stopped, strict=True):
        assert before.token_ids[: len(after.token_ids)] == after.token_ids
        has_stop = any(text in decode(after.token_ids) for text in ("e", "th"))
        assert after.finished == (has_stop or after.token_ids[-1] in (0, 1, 2))
        assert not any(text in decode(after.token_ids[:-1]) for text in ("e", "th"))


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
