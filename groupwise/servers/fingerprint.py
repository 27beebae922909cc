"""Do a server and this program hold the same weights? The log-probs of one fixed text tell. Knows no HTTP."""

import statistics
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from groupwise.batch import pack
from groupwise.groups import Completion, Group
from groupwise.model.engine import LogprobEngine

_TEXT = "Anna has 12 apples and 7 pears. The weather was warm, so she sold 5 of them; how many are left? She counts: "
_MOST_TOKENS = 48
_SHIFT = 0.5  # nats per token by which the probe must differ from the base


def fixed_text(engine: LogprobEngine) -> list[int]:
    """The ids of the text that is compared."""
    ids: list[int] = engine.policy.tokenizer(_TEXT, add_special_tokens=False)["input_ids"]  # pyright: ignore
    return ids[:_MOST_TOKENS]


@torch.no_grad()
def text_logprobs(engine: LogprobEngine, ids: Sequence[int]) -> list[float]:
    """log p of every token but the first under the active network at temperature 1, nats."""
    answer = Completion(token_ids=tuple(ids[1:]), finished=False, score=0.0)
    batch = pack([Group(key="fixed text", prompt_ids=(ids[0],), completions=(answer,))]).to(engine.policy.device)
    return engine.score(batch).logp_T.cpu().tolist()


def mean_gap(mine: Sequence[float], others: Sequence[float]) -> float:
    """Mean absolute difference per token, nats.

    >>> mean_gap([-1.0, -2.0], [-1.5, -2.0])
    0.25
    """
    return statistics.fmean(abs(a - b) for a, b in zip(mine, others, strict=True))


def probe_weights(engine: LogprobEngine, ids: Sequence[int]) -> Mapping[str, Tensor]:
    """Trained weights that change the fixed text by `_SHIFT` nats per token and more, in every adapted layer.

    A fresh adapter changes nothing, so a server that applied none of it, or left layers out, would not be noticed.
    """
    policy = engine.policy
    fresh = policy.snapshot()
    base = text_logprobs(engine, ids)
    generator = torch.Generator().manual_seed(0)
    noise = {
        name: torch.randn(value.shape, generator=generator).to(value)
        for name, value in fresh.items()
        if "lora_B" in name
    }
    size = 0.01
    while True:
        probe = {**fresh, **{name: size * value for name, value in noise.items()}}
        with policy.holding(probe):
            shift = mean_gap(base, text_logprobs(engine, ids))
        if shift >= _SHIFT or size > 10:
            return probe
        size *= 1.5
