"""Prompts to completions, drawn from the active network of a policy, with the log-probs they were drawn with.

Prompts of one length decode together, so nothing is padded and every family sees the positions it was trained on; a
prompt is prefilled once for all its completions; finished completions leave the batch. Each prompt has random numbers
of its own, so its completions do not depend on which others are decoded beside it. The model's own generation settings
(top-k and the like) are never applied. Knows nothing about rewards, groups' scores or training.

Legend: V vocabulary, A completions still being written.
"""

import inspect
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from groupwise.groups import Completion
from groupwise.model.policy import Policy


@dataclass(slots=True)
class _Draft:
    """A completion being written."""

    uniforms: Tensor  # [max_new_tokens], one number per token to come
    token_ids: list[int]
    logp: list[float]
    finished: bool = False


@torch.no_grad()
def sample_completions(
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    *,
    n: int,
    temperature: float,
    max_new_tokens: int,
    end_ids: Iterable[int],
    seed: int,
    rows_at_once: int = 256,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> list[list[Completion]]:
    """Draw `n` completions of every prompt; `completions[i][j]` is the j-th answer to prompt i, score 0.

    A completion ends with the first of `end_ids`, or is cut after `max_new_tokens`.
    At temperature 0 the likeliest token is taken (the log-probs are then those at temperature 1). `sampled_logp` is
    under the distribution drawn from. `rows_at_once` bounds the completions decoded together; memory only.
    """
    ends = sorted(set(end_ids))
    drafts = [
        [_Draft(uniforms, [], []) for uniforms in _uniforms(seed, index, n, max_new_tokens)]
        for index in range(len(prompts))
    ]
    for batch in _same_length(prompts, max(1, rows_at_once // n)):
        with policy.as_loaded():
            _decode(
                policy,
                [prompts[i] for i in batch],
                [drafts[i] for i in batch],
                temperature,
                max_new_tokens,
                ends,
                autocast,
            )
    return [[_completion(draft) for draft in own] for own in drafts]


def _decode(
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    drafts: Sequence[Sequence[_Draft]],
    temperature: float,
    max_new_tokens: int,
    ends: Sequence[int],
    autocast: Callable[[], AbstractContextManager[Any]],
) -> None:
    """Write the drafts of prompts of one length."""
    n = len(drafts[0])
    active = [draft for own in drafts for draft in own]
    prompt_ids = torch.tensor([list(ids) for ids in prompts], device=policy.device)
    network = _NextToken(policy, autocast)
    stepper = (_CachedSteps if _has_cache(policy.active) else _PlainSteps)(network, prompt_ids, n)
    end_ids = torch.tensor(ends, device=policy.device)
    logits_AV = stepper.first_logits()
    for step in range(max_new_tokens):
        uniform_A = torch.stack([draft.uniforms[step] for draft in active]).to(policy.device)
        token_A, logp_A = _draw(logits_AV, uniform_A, temperature)
        ended_A = torch.isin(token_A, end_ids)
        for draft, token, logp, ended in zip(active, token_A.tolist(), logp_A.tolist(), ended_A.tolist(), strict=True):
            draft.token_ids.append(token)
            draft.logp.append(logp)
            draft.finished = ended
        kept = (~ended_A).nonzero().squeeze(1)
        if len(kept) == 0 or step + 1 == max_new_tokens:
            return
        active = [active[i] for i in kept.tolist()]
        logits_AV = stepper.next_logits(token_A, kept)


def _draw(logits_AV: Tensor, uniform_A: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """One token per row by searching the cumulative distribution for the row's uniform number, and its log-prob."""
    wide = logits_AV.to(torch.promote_types(logits_AV.dtype, torch.float32))
    logp_AV = (wide / temperature if temperature > 0 else wide).log_softmax(dim=-1)
    if temperature > 0:
        cumulative_AV = logp_AV.exp().cumsum(dim=-1)
        total_A = cumulative_AV[:, -1]
        # A number just below 1 may round to the total, beyond which there are only impossible tokens.
        below_A = torch.nextafter(total_A, torch.zeros_like(total_A))
        threshold_A = torch.minimum(uniform_A.to(cumulative_AV.dtype) * total_A, below_A)
        token_A1 = torch.searchsorted(cumulative_AV, threshold_A[:, None], right=True)
    else:
        token_A1 = logp_AV.argmax(dim=-1, keepdim=True)
    return token_A1.squeeze(1), logp_AV.gather(1, token_A1).squeeze(1)


class _NextToken:
    """Logits after the last token of each row, through the head that the engine reads, in the same precision."""

    def __init__(self, policy: Policy, autocast: Callable[[], AbstractContextManager[Any]]) -> None:
        self._model = policy.active
        self._head = policy.output_head()
        self._autocast = autocast

    def __call__(self, input_ids: Tensor, **options: Any) -> tuple[Tensor, Any]:
        """Logits [A, V], and the key-value cache if one was asked for."""
        with self._autocast():
            out = (self._model if self._head is None else self._model.base_model)(input_ids=input_ids, **options)
        cache = getattr(out, "past_key_values", None)
        if self._head is None:
            return out.logits[:, -1], cache
        return self._head.logits(out.last_hidden_state[:, -1]), cache


class _CachedSteps:
    """Next-token logits with a key-value cache that is prefilled once per prompt."""

    def __init__(self, network: _NextToken, prompt_ids: Tensor, n: int) -> None:
        self._network = network
        self._length = prompt_ids.shape[1]
        logits, self._cache = network(prompt_ids, use_cache=True)
        self._cache.batch_repeat_interleave(n)
        self._first = logits.repeat_interleave(n, dim=0)

    def first_logits(self) -> Tensor:
        return self._first

    def next_logits(self, token_A: Tensor, kept: Tensor) -> Tensor:
        """Logits after each kept row wrote its token; the other rows leave the cache."""
        if len(kept) < len(token_A):
            self._cache.batch_select_indices(kept)
        position = torch.full((len(kept), 1), self._length, device=token_A.device)
        self._length += 1
        logits, self._cache = self._network(
            token_A[kept, None], position_ids=position, past_key_values=self._cache, use_cache=True
        )
        return logits


class _PlainSteps:
    """The same without a cache: the whole text runs again for every token. For families that carry other state."""

    def __init__(self, network: _NextToken, prompt_ids: Tensor, n: int) -> None:
        self._network = network
        self._ids = prompt_ids.repeat_interleave(n, dim=0)

    def first_logits(self) -> Tensor:
        return self._network(self._ids, use_cache=False)[0]

    def next_logits(self, token_A: Tensor, kept: Tensor) -> Tensor:
        self._ids = torch.cat([self._ids[kept], token_A[kept, None]], dim=1)
        return self.first_logits()


def _has_cache(model: PreTrainedModel) -> bool:
    """Whether every layer keeps keys and values and nothing else."""
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None) or ["full_attention"]
    takes_cache = "past_key_values" in inspect.signature(model.forward).parameters
    plain = set(kinds) <= {"full_attention", "sliding_attention"}
    return takes_cache and plain and not model._is_stateful  # pyright: ignore[reportPrivateUsage]


def _uniforms(seed: int, prompt: int, n: int, length: int) -> Tensor:
    """[n, length] numbers in [0, 1) that depend on the seed and the prompt's place in the list alone."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + prompt) % 2**63)
    return torch.rand(n, length, generator=generator, dtype=torch.float64)


def _same_length(prompts: Sequence[Sequence[int]], most: int) -> list[list[int]]:
    """Indices of the prompts, cut into batches of one length and at most `most` prompts."""
    by_length: dict[int, list[int]] = {}
    for index, ids in enumerate(prompts):
        by_length.setdefault(len(ids), []).append(index)
    return [
        indices[start : start + most]
        for _, indices in sorted(by_length.items())
        for start in range(0, len(indices), most)
    ]


def _completion(draft: _Draft) -> Completion:
    return Completion(
        token_ids=tuple(draft.token_ids),
        finished=draft.finished,
        score=0.0,
        sampled_logp=torch.tensor(draft.logp),
    )
