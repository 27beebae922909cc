"""Logits of the next token of many completions at once, by three methods from fast to plain.

`SharedSteps` runs the prompts as one packed row and keeps their keys and values once (group_cache.py). It needs the
attention that shares prompts; captured.py does the same in steps of fixed shape. `CachedSteps` uses the model's own
attention and cache, for prompts of one length. `PlainSteps` runs the whole text again for every token, for families
that carry other state. Knows nothing about drawing tokens.

Legend: A completions still being written, B prompts with one of these, t own tokens that are looked at, G key-value
heads, D head width, V vocabulary.
"""

import inspect
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from groupwise.batch import Span
from groupwise.model.engine import LogprobEngine
from groupwise.model.group_cache import GroupCache, LayerCache, Prefill

_REPACK_BELOW = 0.8  # share of live entries under which keys and values are copied together


class Steps(Protocol):
    """Next-token logits of a set of completions that all grow by one token at a time."""

    def first_logits(self) -> Tensor:
        """Logits [A, V] of every completion's first token, prompt after prompt."""
        ...

    def next_logits(self, token_A: Tensor, kept: Tensor) -> Tensor:
        """Logits after each kept completion wrote its token; `kept` indexes `token_A`, the others leave for good."""
        ...


def steps_for(engine: LogprobEngine, prompts: Sequence[Sequence[int]], n: int) -> Steps:
    """The fastest method that is right for the engine's model; prompts of several lengths need a sharing engine."""
    network = Network(engine)
    if engine.method == "shared":
        return SharedSteps(network, prompts, n)
    prompt_ids = torch.tensor([list(ids) for ids in prompts], device=engine.policy.device)
    return (CachedSteps if _has_cache(engine.policy.active) else PlainSteps)(network, prompt_ids, n)


class Network:
    """Outputs of the active network through the head that the engine reads, in the same precision."""

    def __init__(self, engine: LogprobEngine) -> None:
        self._model = engine.policy.active
        self._head = engine.policy.output_head()
        self._autocast = engine.autocast
        self.device = engine.policy.device

    def run(self, input_ids: Tensor, **options: Any) -> tuple[Tensor, Any]:
        """States [rows, length, width] (or logits where the head is not ours), and the cache if one was asked for."""
        with self._autocast():
            out = (self._model if self._head is None else self._model.base_model)(input_ids=input_ids, **options)
        cache = getattr(out, "past_key_values", None)
        return (out.logits if self._head is None else out.last_hidden_state), cache

    def logits(self, states: Tensor) -> Tensor:
        """Logits [A, V] of states [A, width]."""
        return states if self._head is None else self._head.logits(states)

    def read(self, prompts: Sequence[Sequence[int]], cache: GroupCache) -> Tensor:
        """Fill the cache from the prompts, run as one packed row; logits [B, V] of what follows each."""
        lengths = [len(prompt) for prompt in prompts]
        starts = [sum(lengths[:i]) for i in range(len(prompts))]
        spans = [Span(start, length, (0,)) for start, length in zip(starts, lengths, strict=True)]
        ids = torch.tensor([token for prompt in prompts for token in prompt], device=self.device)
        position = torch.tensor([position for length in lengths for position in range(length)], device=self.device)
        layout = Prefill(spans, cache)
        states, _ = self.run(ids[None], position_ids=position[None], use_cache=False, row_layout=layout)
        last = torch.tensor([start + length - 1 for start, length in zip(starts, lengths, strict=True)])
        return self.logits(states[0, last.to(self.device)])

    def feed(self, token_A: Tensor, position_A: Tensor, cache: GroupCache) -> Tensor:
        """Logits [A, V] of what follows one more token of each completion."""
        states, _ = self.run(token_A[None], position_ids=position_A[None], use_cache=False, row_layout=cache)
        return self.logits(states[0])


# --- shared prompts


class SharedSteps:
    """Every prompt's keys and values exist once, whatever the number of its completions."""

    def __init__(self, network: Network, prompts: Sequence[Sequence[int]], n: int) -> None:
        self._network = network
        self._cache = _GrowingCache([len(prompt) for prompt in prompts], n, network.device)
        self._first = network.read(prompts, self._cache).repeat_interleave(n, dim=0)

    def first_logits(self) -> Tensor:
        return self._first

    def next_logits(self, token_A: Tensor, kept: Tensor) -> Tensor:
        if len(kept) < len(token_A):
            self._cache.keep(kept.tolist())
            token_A = token_A[kept]
        logits_AV = self._network.feed(token_A, self._cache.position_A, self._cache)
        self._cache.advance()
        return logits_AV


class _GrowingCache(GroupCache):
    """Own keys and values grow by doubling; a completion's row in them is `row_A`.

    Rows of completions that left stay, empty, until there are many.
    """

    def __init__(self, prompt_lengths: Sequence[int], n: int, device: torch.device) -> None:
        super().__init__(prompt_lengths, n, device)
        self._written = 0
        self._row_A = torch.arange(self.rows, device=device)
        self._held = self.rows  # rows of the own keys

    @property
    def written(self) -> int:
        return self._written

    def advance(self) -> None:
        super().advance()
        self._written += 1

    def keep(self, kept: Sequence[int]) -> None:
        super().keep(kept)
        self._row_A = self._row_A[torch.tensor(kept, device=self.device)]
        if len(kept) < _REPACK_BELOW * self._held:
            for layer in self.layers.values():
                if layer.own_key is not None and layer.own_value is not None:
                    layer.own_key, layer.own_value = layer.own_key[self._row_A], layer.own_value[self._row_A]
            self._held = len(kept)
            self._row_A = torch.arange(self._held, device=self.device)
        self.drop_prompts(_REPACK_BELOW)

    def _append(self, layer: LayerCache, key_A: Tensor, value_A: Tensor) -> None:
        if layer.own_key is None or layer.own_value is None or layer.own_key.shape[2] <= self._written:
            layer.own_key = self._grown(layer.own_key, key_A)
            layer.own_value = self._grown(layer.own_value, value_A)
        for own, new_A in ((layer.own_key, key_A), (layer.own_value, value_A)):
            if len(self._row_A) == self._held:
                own[:, :, self._written] = new_A
            else:
                own[self._row_A, :, self._written] = new_A

    def _grown(self, own: Tensor | None, new_A: Tensor) -> Tensor:
        """Twice the room, the tokens so far copied over."""
        room = max(32, 2 * self._written)
        grown = new_A.new_empty(self._held, new_A.shape[1], room, new_A.shape[2])
        if own is not None:
            grown[:, :, : self._written] = own[:, :, : self._written]
        return grown

    def _own(self, layer: LayerCache, window: int | None) -> tuple[Tensor, Tensor, Tensor | None]:
        assert layer.own_key is not None and layer.own_value is not None
        first = 0 if window is None else max(0, self._written + 1 - window)
        seen = slice(first, self._written + 1)
        return layer.own_key[:, :, seen], layer.own_value[:, :, seen], None

    def _to_rows(self, values_A: Tensor) -> Tensor:
        if len(self._row_A) == self._held:
            return values_A
        return values_A.new_zeros(self._held, *values_A.shape[1:]).index_copy(0, self._row_A, values_A)

    def _from_rows(self, values: Tensor) -> Tensor:
        return values if len(self._row_A) == self._held else values[self._row_A]


# --- the model's own attention


class CachedSteps:
    """With the model's own key-value cache, prefilled once per prompt and copied for its completions."""

    def __init__(self, network: Network, prompt_ids: Tensor, n: int) -> None:
        self._network = network
        self._length = prompt_ids.shape[1]
        states, self._cache = network.run(prompt_ids, use_cache=True)
        self._cache.batch_repeat_interleave(n)
        self._first = network.logits(states[:, -1]).repeat_interleave(n, dim=0)

    def first_logits(self) -> Tensor:
        return self._first

    def next_logits(self, token_A: Tensor, kept: Tensor) -> Tensor:
        if len(kept) < len(token_A):
            self._cache.batch_select_indices(kept)
        position = torch.full((len(kept), 1), self._length, device=token_A.device)
        self._length += 1
        states, self._cache = self._network.run(
            token_A[kept, None], position_ids=position, past_key_values=self._cache, use_cache=True
        )
        return self._network.logits(states[:, -1])


class PlainSteps:
    """Without any state: the whole text runs again for every token."""

    def __init__(self, network: Network, prompt_ids: Tensor, n: int) -> None:
        self._network = network
        self._ids = prompt_ids.repeat_interleave(n, dim=0)

    def first_logits(self) -> Tensor:
        states, _ = self._network.run(self._ids, use_cache=False)
        return self._network.logits(states[:, -1])

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
