"""FlexAttention over a packed row equals the padded blocks and the definition, for every family, values and gradients.

It has no backward pass on a CPU by PyTorch's own decision; the computation behind it has one, so the tests lift that
guard where they look at gradients. The fused kernel itself needs a GPU.
"""

import itertools
import random

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import flex_attention as flex_module

from groupwise.batch import Span, pack
from groupwise.errors import UserError
from groupwise.model.attention import RowLayout, Rules
from groupwise.model.engine import LogprobEngine
from groupwise.model.flex import TILE, FlexLayout
from tests.conftest import random_groups
from tests.families import VOCABULARY
from tests.model.test_engine import ATTENTION_FAMILIES, gradients, make_policy, plain_logprobs, tolerance


@pytest.fixture
def with_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flex_module, "_validate_device", lambda *tensors: None)  # pyright: ignore[reportUnknownLambdaType]
    monkeypatch.setattr(flex_module, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)  # no tracing, which takes seconds


def spans_of(sizes: list[tuple[int, tuple[int, ...]]]) -> list[Span]:
    starts = itertools.accumulate((prompt + sum(fed) for prompt, fed in sizes), initial=0)
    return [Span(start, prompt, fed) for start, (prompt, fed) in zip(starts, sizes, strict=False)]


def random_spans(seed: int, most: int | None = None) -> list[Span]:
    """Groups shorter and longer than a tile, completions of which nothing is fed included."""
    dice = random.Random(seed)
    most = most or dice.choice([5, 60, 300])
    sizes = [
        (dice.randint(1, most), tuple(dice.randint(0, most) for _ in range(dice.randint(1, 4))))
        for _ in range(dice.randint(1, 4))
    ]
    return spans_of(sizes)


def by_definition(spans: list[Span], window: int | None) -> Tensor:
    """[S, S] bool: who sees whom, from the sequences that the row stands for, one after the other."""
    length = max(span.start + span.prompt + sum(span.completions) for span in spans)
    seen = torch.zeros(length, length, dtype=torch.bool)
    for span in spans:
        prompt = list(range(span.start, span.start + span.prompt))
        start = span.start + span.prompt
        for fed in span.completions:
            sequence = [*prompt, *range(start, start + fed)]
            for place, row in enumerate(sequence):
                first = 0 if window is None else max(0, place - window + 1)
                seen[row, sequence[first : place + 1]] = True
            start += fed
    return seen


def rule_of(layout: FlexLayout, window: int | None) -> Tensor:
    every = torch.arange(layout.length)
    zero = torch.tensor(0)
    return layout.visible(window)(zero, zero, every[:, None], every[None, :])


@pytest.mark.parametrize("window", [None, 1, 7, 130])
@pytest.mark.parametrize("seed", range(6))
def test_the_rule_is_the_definition(seed: int, window: int | None) -> None:
    spans = random_spans(seed)
    assert torch.equal(rule_of(FlexLayout(spans, "cpu"), window), by_definition(spans, window))


@pytest.mark.parametrize("seed", range(12))
def test_no_visible_pair_is_left_out_and_none_hidden_is_taken_for_visible(seed: int) -> None:
    """A tile left out by mistake is a wrong sum without any error."""
    spans = random_spans(seed)
    layout = FlexLayout(spans, "cpu")
    some, whole = layout.tiles()
    assert not (some & whole).any()
    seen = by_definition(spans, None)
    for q, k in itertools.product(range(len(some)), repeat=2):
        tile = seen[q * TILE : (q + 1) * TILE, k * TILE : (k + 1) * TILE]
        assert bool((some | whole)[q, k]) >= bool(tile.any()), (q, k)
        if whole[q, k]:
            assert tile.shape == (TILE, TILE) and tile.all(), (q, k)


def test_tiles_follow_the_groups_and_not_the_row() -> None:
    """Many groups in one row cost what they cost alone: tiles between them are never touched."""
    sizes = [(2 * TILE, (TILE,) * 4)] * 5
    some, whole = FlexLayout(spans_of(sizes), "cpu").tiles()
    each = 2 + 1 + 4 * 3  # of the prompt two on the diagonal and one below; of each completion itself and the prompt
    assert int((some | whole).sum()) == 5 * each
    assert int(whole.sum()) == 5 * (1 + 4 * 2)


@pytest.mark.parametrize(
    "rules",
    [
        Rules(0.3, None, None, None),
        Rules(0.3, 9, None, None),
        Rules(0.3, None, 2.0, None),
        Rules(0.3, 150, 2.0, torch.tensor([0.5, -1.0, 2.0, 0.0], dtype=torch.float64)),
    ],
    ids=["plain", "window", "softcap", "all"],
)
@pytest.mark.parametrize("seed", [1, 2])
def test_one_call_gives_what_the_blocks_give(with_backward: None, rules: Rules, seed: int) -> None:
    spans = random_spans(seed, most=70)
    generator = torch.Generator().manual_seed(seed)
    layouts = FlexLayout(spans, "cpu"), RowLayout(spans, "cpu")
    length = layouts[0].length
    states = [torch.randn(length, heads, 16, dtype=torch.float64, generator=generator) for heads in (4, 2, 2)]
    weight = torch.randn(length, 4, 16, dtype=torch.float64, generator=generator)
    found: list[list[Tensor]] = []
    for layout in layouts:
        own = [value.clone().requires_grad_() for value in states]
        out = layout.attend(nn.Identity(), own[0], own[1], own[2], rules)
        found.append([out, *torch.autograd.grad((out * weight).sum(), own)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=1e-9)


@pytest.mark.parametrize("family", ATTENTION_FAMILIES)
def test_log_probs_and_gradients_are_those_of_one_row_per_completion(with_backward: None, family: str) -> None:
    policy = make_policy(family)
    groups = random_groups(3, vocabulary=VOCABULARY, completions=3)
    engine = LogprobEngine(policy)
    if engine.method != "shared":
        pytest.skip(engine.notices[-1])
    found: list[tuple[Tensor, Tensor]] = []
    for layout in (FlexLayout, RowLayout):
        engine.layout = layout
        logp_T = engine.score(pack(groups)).logp_T
        found.append((logp_T.detach(), gradients(policy, logp_T)))
    with torch.no_grad():
        oracle_T = torch.cat([plain_logprobs(policy, group) for group in groups])
    allowed = tolerance(family)
    torch.testing.assert_close(found[0][0].to(oracle_T.dtype), oracle_T, atol=10 * allowed, rtol=allowed)
    size = found[1][1].abs().max().item()
    torch.testing.assert_close(found[0][1], found[1][1], atol=10 * allowed * size, rtol=0)


def test_recomputed_layers_and_bfloat16_go_the_same_way(with_backward: None) -> None:
    """Tolerance in bfloat16: twice the engine's, for what runs here keeps even scores in 8 bits of mantissa."""
    groups = random_groups(2, vocabulary=VOCABULARY, completions=3)
    exact, recomputed = (make_policy("llama", checkpointing=checkpointing) for checkpointing in (False, True))
    found: list[Tensor] = []
    for policy in (exact, recomputed):
        engine = LogprobEngine(policy)
        engine.layout = FlexLayout
        found.append(gradients(policy, engine.score(pack(groups)).logp_T))
    torch.testing.assert_close(found[0], found[1], atol=1e-10, rtol=1e-9)
    rough = make_policy("llama")
    rough.model.float()
    engine = LogprobEngine(rough, autocast=lambda: torch.autocast("cpu", torch.bfloat16))
    with torch.no_grad():
        truth_T = LogprobEngine(exact).score(pack(groups)).logp_T.float()
        blocks_T = engine.score(pack(groups)).logp_T
        engine.layout = FlexLayout
        flex_T = engine.score(pack(groups)).logp_T
    allowed = 2 * engine.rounding * truth_T.abs().max().item()
    assert (flex_T - truth_T).abs().max().item() < allowed
    assert (flex_T - blocks_T).abs().max().item() < allowed


def test_on_a_cpu_it_is_refused_with_the_remedy() -> None:
    with pytest.raises(UserError, match="no backward pass on a CPU; set it to auto"):
        LogprobEngine(make_policy("llama"), "flex")
