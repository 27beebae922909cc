"""Logits of the next token of many completions at once, by three methods from fast to plain.

`SharedSteps` runs the prompts as one packed row, keeps their keys and values once, and lets all completions of a
prompt attend to that one copy; each completion keeps keys and values of its own tokens only. It needs the attention
that shares prompts. `CachedSteps` uses the model's own attention and cache, for prompts of one length. `PlainSteps`
runs the whole text again for every token, for families that carry other state. Knows nothing about drawing tokens.

Legend: A completions still being written, B prompts with one of these, N most of these at one prompt, P longest prompt,
t tokens written so far, H query heads, G key-value heads, D head width, V vocabulary, S tokens in a packed row.
"""

import inspect
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from groupwise.batch import Span
from groupwise.model.attention import RowLayout, Rules
from groupwise.model.engine import LogprobEngine

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
    network = _Network(engine)
    if engine.method == "shared":
        return SharedSteps(network, prompts, n)
    prompt_ids = torch.tensor([list(ids) for ids in prompts], device=engine.policy.device)
    return (CachedSteps if _has_cache(engine.policy.active) else PlainSteps)(network, prompt_ids, n)


class _Network:
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


# --- shared prompts


class SharedSteps:
    """Every prompt's keys and values exist once, whatever the number of its completions."""

    def __init__(self, network: _Network, prompts: Sequence[Sequence[int]], n: int) -> None:
        self._network = network
        device = network.device
        lengths = [len(prompt) for prompt in prompts]
        starts = [sum(lengths[:i]) for i in range(len(prompts))]
        spans = [Span(start, length, (0,) * n) for start, length in zip(starts, lengths, strict=True)]
        ids = torch.tensor([token for prompt in prompts for token in prompt], device=device)
        position = torch.cat([torch.arange(length, device=device) for length in lengths])
        self._cache = _GroupCache(lengths, n, device)
        layout = _Prefill(spans, self._cache)
        states, _ = network.run(ids[None], position_ids=position[None], use_cache=False, row_layout=layout)
        last = torch.tensor([start + length - 1 for start, length in zip(starts, lengths, strict=True)], device=device)
        self._first = network.logits(states[0, last]).repeat_interleave(n, dim=0)

    def first_logits(self) -> Tensor:
        return self._first

    def next_logits(self, token_A: Tensor, kept: Tensor) -> Tensor:
        if len(kept) < len(token_A):
            self._cache.keep(kept)
            token_A = token_A[kept]
        states, _ = self._network.run(
            token_A[None], position_ids=self._cache.position_A[None], use_cache=False, row_layout=self._cache
        )
        self._cache.advance()
        return self._network.logits(states[0])


class _Prefill(RowLayout):
    """The packed row of all prompts, whose keys and values go into the cache on the way."""

    def __init__(self, spans: Sequence[Span], cache: "_GroupCache") -> None:
        super().__init__(spans, cache.device)
        self._cache = cache

    def attend(self, module: nn.Module, query_S: Tensor, key_S: Tensor, value_S: Tensor, rules: Rules) -> Tensor:
        self._cache.store_prompts(module, key_S, value_S)
        return super().attend(module, query_S, key_S, value_S, rules)


class _LayerCache:
    """Keys and values of one layer: of the prompts [B, G, P, D], of the completions' own tokens [rows, G, room, D]."""

    def __init__(self, prompt_key: Tensor, prompt_value: Tensor) -> None:
        self.prompt_key = prompt_key
        self.prompt_value = prompt_value
        self.own_key: Tensor | None = None
        self.own_value: Tensor | None = None


class _GroupCache:
    """What the completions of some prompts have seen, and the layout by which their next tokens attend to it.

    A completion's row in the own keys is `row_A`; its place in the grid of [B, N] queries is `slot_A`. Both tables are
    rebuilt when completions leave; the keys and values themselves are only copied together when many have left.
    """

    def __init__(self, prompt_lengths: Sequence[int], n: int, device: torch.device) -> None:
        self.device = device
        self._layers: dict[nn.Module, _LayerCache] = {}
        self._prompt_length_B = torch.tensor(prompt_lengths, device=device)
        self._longest = max(prompt_lengths)
        self._prompt_slots = torch.cat(
            [torch.arange(length, device=device) + i * self._longest for i, length in enumerate(prompt_lengths)]
        )
        self._prompt_A = torch.arange(len(prompt_lengths), device=device).repeat_interleave(n)
        self._row_A = torch.arange(len(self._prompt_A), device=device)
        self._rows = len(self._prompt_A)
        self._written = 0
        self._hidden: dict[int | None, Tensor | None] = {}  # by window, of this token
        self._set_grid()

    @property
    def position_A(self) -> Tensor:
        """Position of the token that each completion is about to feed."""
        return self._prompt_length_B[self._prompt_A] + self._written

    def store_prompts(self, module: nn.Module, key_S: Tensor, value_S: Tensor) -> None:
        """Keep the prompts' keys and values [S, G, D] of a layer, padded to the longest prompt."""
        prompts = len(self._prompt_length_B)

        def padded(states_S: Tensor) -> Tensor:
            if len(states_S) < prompts * self._longest:
                empty = states_S.new_zeros(prompts * self._longest, *states_S.shape[1:])
                states_S = empty.index_copy(0, self._prompt_slots, states_S)
            return states_S.view(prompts, self._longest, *states_S.shape[1:]).transpose(1, 2).contiguous()

        self._layers[module] = _LayerCache(padded(key_S), padded(value_S))

    def attend(self, module: nn.Module, query_S: Tensor, key_S: Tensor, value_S: Tensor, rules: Rules) -> Tensor:
        """Attention of one new token per completion to its prompt and to its own tokens, itself included: [A, H, D]."""
        layer = self._layers[module]
        self._append(layer, key_S, value_S)
        A, H, D = query_S.shape  # the row holds one token of each completion
        G = layer.prompt_key.shape[1]
        query = (query_S * rules.scaling).view(A, G, H // G, D)
        first = 0 if rules.window is None else max(0, self._written + 1 - rules.window)
        own_key, own_value = self._own(layer, first)
        own_scores = self._from_rows(self._to_rows(query) @ own_key.transpose(2, 3))
        scores = torch.cat([self._prompt_scores(layer, query), own_scores], dim=-1)
        if rules.softcap is not None:
            scores = torch.tanh(scores / rules.softcap) * rules.softcap
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        hidden = self._hidden_prompt_keys(rules.window)
        if hidden is not None:
            scores[..., : self._longest].masked_fill_(hidden, float("-inf"))
        if rules.sinks is not None:
            sinks = rules.sinks.to(scores.dtype).view(1, G, H // G, 1).expand(A, -1, -1, 1)
            scores = torch.cat([scores, sinks], dim=-1)
        weights = scores.softmax(dim=-1).to(value_S.dtype)
        P, t = self._longest, own_key.shape[2]
        from_own = self._from_rows(self._to_rows(weights[..., P : P + t]) @ own_value)
        return (self._prompt_mix(layer, weights[..., :P]) + from_own).reshape(A, H, -1)

    def advance(self) -> None:
        """All layers have taken one token of every completion."""
        self._written += 1
        self._hidden.clear()

    def keep(self, kept: Tensor) -> None:
        """Only the completions at these places stay."""
        self._prompt_A, self._row_A = self._prompt_A[kept], self._row_A[kept]
        if len(kept) < _REPACK_BELOW * self._rows:
            for layer in self._layers.values():
                if layer.own_key is not None and layer.own_value is not None:
                    layer.own_key, layer.own_value = layer.own_key[self._row_A], layer.own_value[self._row_A]
            self._rows = len(kept)
            self._row_A = torch.arange(self._rows, device=self.device)
        live_B, prompt_A = self._prompt_A.unique(return_inverse=True)
        if len(live_B) < _REPACK_BELOW * len(self._prompt_length_B):
            for layer in self._layers.values():
                layer.prompt_key, layer.prompt_value = layer.prompt_key[live_B], layer.prompt_value[live_B]
            self._prompt_length_B = self._prompt_length_B[live_B]
            self._prompt_A = prompt_A
        self._hidden.clear()
        self._set_grid()

    # --- prompts: one product for all completions of a prompt

    def _set_grid(self) -> None:
        """Give every completion a slot in the grid [B, N] of queries; slots of finished ones stay empty."""
        count_B = torch.bincount(self._prompt_A, minlength=len(self._prompt_length_B))
        self._grid = len(count_B), int(count_B.max())
        first_A = (count_B.cumsum(0) - count_B)[self._prompt_A]
        place_A = torch.arange(len(self._prompt_A), device=self.device) - first_A
        self._slot_A = self._prompt_A * self._grid[1] + place_A
        self._full = len(self._slot_A) == self._grid[0] * self._grid[1]

    def _to_grid(self, values_A: Tensor) -> Tensor:
        """[A, G, R, x] -> [B, G, N * R, x]."""
        B, N = self._grid
        if not self._full:
            values_A = values_A.new_zeros(B * N, *values_A.shape[1:]).index_copy(0, self._slot_A, values_A)
        G, R, x = values_A.shape[1:]
        return values_A.view(B, N, G, R, x).transpose(1, 2).reshape(B, G, N * R, x)

    def _from_grid(self, values_B: Tensor, R: int) -> Tensor:
        """[B, G, N * R, x] -> [A, G, R, x]."""
        B, N = self._grid
        G, x = values_B.shape[1], values_B.shape[3]
        flat = values_B.view(B, G, N, R, x).transpose(1, 2).reshape(B * N, G, R, x)
        return flat if self._full else flat[self._slot_A]

    def _prompt_scores(self, layer: _LayerCache, query: Tensor) -> Tensor:
        return self._from_grid(self._to_grid(query) @ layer.prompt_key.transpose(2, 3), query.shape[2])

    def _prompt_mix(self, layer: _LayerCache, weights: Tensor) -> Tensor:
        return self._from_grid(self._to_grid(weights) @ layer.prompt_value, weights.shape[2])

    def _hidden_prompt_keys(self, window: int | None) -> Tensor | None:
        """[A, 1, 1, P] bool: padding, and what a sliding window has left behind; None where every key is seen."""
        if window not in self._hidden:
            length_A1 = self._prompt_length_B[self._prompt_A, None]
            key_P = torch.arange(self._longest, device=self.device)
            hidden_AP = key_P >= length_A1
            if window is not None:
                hidden_AP |= length_A1 + self._written - key_P >= window
            self._hidden[window] = hidden_AP[:, None, None] if hidden_AP.any() else None
        return self._hidden[window]

    # --- own tokens

    def _append(self, layer: _LayerCache, key_A: Tensor, value_A: Tensor) -> None:
        """Write the new token's key and value [A, G, D] behind those of its completion."""
        if layer.own_key is None or layer.own_value is None or layer.own_key.shape[2] <= self._written:
            layer.own_key = self._grown(layer.own_key, key_A)
            layer.own_value = self._grown(layer.own_value, value_A)
        for own, new_A in ((layer.own_key, key_A), (layer.own_value, value_A)):
            if len(self._row_A) == self._rows:
                own[:, :, self._written] = new_A
            else:
                own[self._row_A, :, self._written] = new_A

    def _grown(self, own: Tensor | None, new_A: Tensor) -> Tensor:
        """Twice the room, the tokens so far copied over."""
        room = max(32, 2 * self._written)
        grown = new_A.new_empty(self._rows, new_A.shape[1], room, new_A.shape[2])
        if own is not None:
            grown[:, :, : self._written] = own[:, :, : self._written]
        return grown

    def _own(self, layer: _LayerCache, first: int) -> tuple[Tensor, Tensor]:
        """Keys and values of own tokens from `first` on, the new one included, [rows, G, t, D]."""
        assert layer.own_key is not None and layer.own_value is not None
        return layer.own_key[:, :, first : self._written + 1], layer.own_value[:, :, first : self._written + 1]

    def _to_rows(self, values_A: Tensor) -> Tensor:
        """[A, ...] -> [rows, ...]; rows of completions that left are zero."""
        if len(self._row_A) == self._rows:
            return values_A
        return values_A.new_zeros(self._rows, *values_A.shape[1:]).index_copy(0, self._row_A, values_A)

    def _from_rows(self, values: Tensor) -> Tensor:
        """[rows, ...] -> [A, ...]."""
        return values if len(self._row_A) == self._rows else values[self._row_A]


# --- the model's own attention


class CachedSteps:
    """With the model's own key-value cache, prefilled once per prompt and copied for its completions."""

    def __init__(self, network: _Network, prompt_ids: Tensor, n: int) -> None:
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

    def __init__(self, network: _Network, prompt_ids: Tensor, n: int) -> None:
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
