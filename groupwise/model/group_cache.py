"""What the completions of some prompts have seen, and the layout by which their next tokens attend to it.

A prompt's keys and values exist once, whatever the number of its completions; each completion has keys and values of
its own tokens only. How those are kept is said twice: as tensors that grow and lose rows (decoding.py), and at fixed
addresses for CUDA graphs (captured.py). The attention is the same. Knows nothing about networks or drawing tokens.

Legend: A completions still being written, B prompts with one of these, N most of these at one prompt, P longest prompt,
t own tokens that are looked at, H query heads, G key-value heads, R query heads of one of these, D head width, S tokens
in a packed row.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from groupwise.batch import Span
from groupwise.model.attention import RowLayout, Rules


class LayerCache:
    """Keys and values of one layer: of the prompts [B, G, P, D], of the completions' own tokens [rows, G, room, D]."""

    def __init__(self, prompt_key: Tensor, prompt_value: Tensor) -> None:
        self.prompt_key = prompt_key
        self.prompt_value = prompt_value
        self.own_key: Tensor | None = None
        self.own_value: Tensor | None = None


class Prefill(RowLayout):
    """The packed row of all prompts, whose keys and values go into the cache on the way."""

    def __init__(self, spans: Sequence[Span], cache: "GroupCache") -> None:
        super().__init__(spans, cache.device)
        self._cache = cache

    def attend(self, module: nn.Module, query_S: Tensor, key_S: Tensor, value_S: Tensor, rules: Rules) -> Tensor:
        self._cache.store_prompts(module, key_S, value_S)
        return super().attend(module, query_S, key_S, value_S, rules)


class GroupCache(ABC):
    """Keys and values, and who sees which. A completion's place in the grid [B, N] of queries is `slot_A`."""

    def __init__(self, prompt_lengths: Sequence[int], n: int, device: torch.device) -> None:
        self.device = device
        self.prompt_lengths = list(prompt_lengths)
        self.layers: dict[nn.Module, LayerCache] = {}
        self._longest = max(prompt_lengths)
        slots = [i * self._longest + token for i, length in enumerate(prompt_lengths) for token in range(length)]
        self._slot_S = torch.tensor(slots, device=device)  # of each prompt token in the padded [B, P]
        self._hidden: dict[int | None, Tensor | None] = {}  # by window, of this token
        self._set_grid([index for index in range(len(prompt_lengths)) for _ in range(n)])

    @property
    @abstractmethod
    def written(self) -> int | Tensor:
        """Tokens that each completion has fed; a number, or a tensor [1] on the device."""

    @property
    def rows(self) -> int:
        """Completions that are still being written."""
        return len(self._prompt_of)

    @property
    def position_A(self) -> Tensor:
        """Position of the token that each completion is about to feed."""
        return self.prompt_length_A + self.written

    def store_prompts(self, module: nn.Module, key_S: Tensor, value_S: Tensor) -> None:
        """Keep the prompts' keys and values [S, G, D] of a layer, padded to the longest prompt."""
        prompts = len(self.prompt_lengths)

        def padded(states_S: Tensor) -> Tensor:
            if len(states_S) < prompts * self._longest:
                empty = states_S.new_zeros(prompts * self._longest, *states_S.shape[1:])
                states_S = empty.index_copy(0, self._slot_S, states_S)
            return states_S.view(prompts, self._longest, *states_S.shape[1:]).transpose(1, 2).contiguous()

        self.layers[module] = LayerCache(padded(key_S), padded(value_S))

    def attend(self, module: nn.Module, query_S: Tensor, key_S: Tensor, value_S: Tensor, rules: Rules) -> Tensor:
        """Attention of one new token per completion to its prompt and to its own tokens, itself included: [A, H, D]."""
        layer = self.layers[module]
        self._append(layer, key_S, value_S)
        A, H, D = query_S.shape  # the row holds one token of each completion
        G, P = layer.prompt_key.shape[1:3]
        query = (query_S * rules.scaling).view(A, G, H // G, D)
        own_key, own_value, hidden_own = self._own(layer, rules.window)
        own_scores = self._from_rows(self._to_rows(query) @ own_key.transpose(2, 3))
        prompt_scores = self._from_grid(self._to_grid(query) @ layer.prompt_key.transpose(2, 3), H // G)
        scores = torch.cat([prompt_scores, own_scores], dim=-1)
        if rules.softcap is not None:
            scores = torch.tanh(scores / rules.softcap) * rules.softcap
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        for part, hidden in ((scores[..., :P], self._hidden_prompt_keys(rules.window)), (scores[..., P:], hidden_own)):
            if hidden is not None:
                part.masked_fill_(hidden, float("-inf"))
        if rules.sinks is not None:
            sinks = rules.sinks.to(scores.dtype).view(1, G, H // G, 1).expand(A, -1, -1, 1)
            scores = torch.cat([scores, sinks], dim=-1)
        weights = scores.softmax(dim=-1).to(value_S.dtype)
        t = own_key.shape[2]
        from_own = self._from_rows(self._to_rows(weights[..., P : P + t]) @ own_value)
        from_prompt = self._from_grid(self._to_grid(weights[..., :P]) @ layer.prompt_value, H // G)
        return (from_prompt + from_own).reshape(A, H, -1)

    def advance(self) -> None:
        """All layers have taken one token of every completion."""
        self._hidden.clear()

    def keep(self, kept: Sequence[int]) -> None:
        """Only the completions at these places stay, the first ones first."""
        self._hidden.clear()
        self._set_grid([self._prompt_of[place] for place in kept])

    # --- prompts: one product for all completions of a prompt

    def drop_prompts(self, share: float) -> None:
        """Copy the keys and values of prompts with completions together, if less than this share of prompts has any."""
        live = sorted(set(self._prompt_of))
        if len(live) >= share * len(self.prompt_lengths):
            return
        live_B = torch.tensor(live, device=self.device)
        for layer in self.layers.values():
            layer.prompt_key, layer.prompt_value = layer.prompt_key[live_B], layer.prompt_value[live_B]
        place = {prompt: index for index, prompt in enumerate(live)}
        self.prompt_lengths = [self.prompt_lengths[prompt] for prompt in live]
        self._set_grid([place[prompt] for prompt in self._prompt_of])

    def _set_grid(self, prompt_of: list[int]) -> None:
        """Give every completion, of a prompt each, a slot in the grid [B, N] of queries; other slots stay empty."""
        self._prompt_of = prompt_of
        count = [0] * len(self.prompt_lengths)
        places: list[int] = []
        for prompt in prompt_of:
            places.append(count[prompt])
            count[prompt] += 1
        self._grid = B, N = len(count), max(count)
        self._full = len(prompt_of) == B * N
        slots = [prompt * N + place for prompt, place in zip(prompt_of, places, strict=True)]
        self._slot_A = torch.tensor(slots, device=self.device)
        self.prompt_length_A = torch.tensor([self.prompt_lengths[prompt] for prompt in prompt_of], device=self.device)

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

    def _hidden_prompt_keys(self, window: int | None) -> Tensor | None:
        """[A, 1, 1, P] bool: padding, and what a sliding window has left behind; None where every key is seen."""
        if window not in self._hidden:
            hidden = None
            if window is not None or min(self.prompt_lengths) < self._longest:
                length_A1 = self.prompt_length_A[:, None]
                key_P = torch.arange(self._longest, device=self.device)
                hidden_AP = key_P >= length_A1
                if window is not None:
                    hidden_AP |= length_A1 + self.written - key_P >= window
                hidden = hidden_AP[:, None, None]
            self._hidden[window] = hidden
        return self._hidden[window]

    # --- own tokens

    @abstractmethod
    def _append(self, layer: LayerCache, key_A: Tensor, value_A: Tensor) -> None:
        """Write the new token's key and value [A, G, D] behind those of its completion."""

    @abstractmethod
    def _own(self, layer: LayerCache, window: int | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Keys and values of own tokens [rows, G, t, D], the new one included; which of t are hidden, None for none."""

    def _to_rows(self, values_A: Tensor) -> Tensor:
        """[A, ...] -> [rows, ...] of the own keys."""
        return values_A

    def _from_rows(self, values: Tensor) -> Tensor:
        """[rows, ...] of the own keys -> [A, ...]."""
        return values
