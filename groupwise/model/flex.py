"""Attention over a packed row of groups by one FlexAttention call, for GPUs: the second way besides attention.py.

The rule is that of attention.py: key k is visible to query q when both are of one group, k is not later than q, and k
is in the prompt or in q's own completion; a window counts positions. Here it is a function of two row indices, and a
block mask made from the groups' places says which tiles of the score matrix hold anything at all, so the others are
never computed. Nothing is padded, and one kernel does the whole row. Knows nothing about losses, log-probs or LoRA.

Legend: S tokens in the row, Q tiles of the row, U units (a prompt, or a completion), H query heads, D head width.
"""

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention

from groupwise.batch import Span
from groupwise.model.attention import Rules

TILE = 128
MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


class FlexLayout:
    """Where the groups of one packed row lie, as tensors of the row's tokens, and a block mask per window."""

    def __init__(self, spans: Sequence[Span], device: torch.device | str) -> None:
        self.device = torch.device(device)
        self.windows: set[int | None] = set()  # sliding windows that layers asked for, for the check at load
        units = [unit for span in spans for unit in _units(span)]
        lengths = torch.tensor([length for _, length, _ in units])
        self.length = int(lengths.sum())
        index_S = torch.repeat_interleave(torch.arange(len(units)), lengths)
        first_U = lengths.cumsum(0) - lengths
        position_U = torch.tensor([position for position, _, _ in units])
        prompt_U = torch.tensor([is_prompt for _, _, is_prompt in units])
        self._group_U = prompt_U.long().cumsum(0)
        self._prompt_U = prompt_U
        self._unit_S = index_S
        position_S = torch.arange(self.length) - first_U[index_S] + position_U[index_S]
        on_device: Callable[[Tensor], Tensor] = lambda values: values.to(torch.int32).to(self.device)  # noqa: E731
        self._group_on = on_device(self._group_U[index_S])
        self._unit_on = on_device(torch.where(prompt_U, -1, torch.arange(len(units)))[index_S])
        self._position_on = on_device(position_S)
        self._masks: dict[int | None, BlockMask] = {}

    def attend(self, module: nn.Module, query_S: Tensor, key_S: Tensor, value_S: Tensor, rules: Rules) -> Tensor:
        """Attention of the whole packed row, [S, H, D]."""
        self.windows.add(rules.window)
        query, key, value = (states.transpose(0, 1).unsqueeze(0) for states in (query_S, key_S, value_S))
        options: dict[str, Any] = {
            "block_mask": self.mask(rules.window),
            "scale": rules.scaling,
            "enable_gqa": query.shape[1] != key.shape[1],
        }
        if rules.softcap is not None:
            options["score_mod"] = _capped(rules.softcap)
        if rules.sinks is None:
            out = _kernel(self.device.type)(query, key, value, **options)
        else:
            out, aux = _kernel(self.device.type)(query, key, value, **options, return_aux=AuxRequest(lse=True))
            # A sink adds exp(sink) to the softmax's denominator exp(lse) and nothing to its numerator.
            kept = torch.sigmoid(aux.lse - rules.sinks.to(aux.lse.dtype).view(1, -1, 1))
            out = out * kept.unsqueeze(-1).to(out.dtype)
        return out[0].transpose(0, 1)

    def visible(self, window: int | None) -> MaskMod:
        """The rule, as FlexAttention asks for it: (batch, head, query index, key index) to bool."""
        group, unit, position = self._group_on, self._unit_on, self._position_on

        def rule(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
            shared_or_own = (unit[k] == -1) | (unit[k] == unit[q])
            seen = (group[q] == group[k]) & (k <= q) & shared_or_own
            return seen if window is None else seen & (position[q] - position[k] < window)

        return rule

    def mask(self, window: int | None) -> BlockMask:
        """Which tiles are computed, and which of them need the rule token by token; made once per window."""
        if window not in self._masks:
            some_QQ, all_QQ = self.tiles()
            if window is not None:  # the rule decides in every tile that may hold something
                some_QQ, all_QQ = some_QQ | all_QQ, torch.zeros_like(all_QQ)
            (some, some_at), (full, full_at) = (_listed(tiles.to(self.device)) for tiles in (some_QQ, all_QQ))
            self._masks[window] = BlockMask.from_kv_blocks(
                some, some_at, full, full_at, BLOCK_SIZE=TILE, mask_mod=self.visible(window),
                seq_lengths=(self.length, self.length),
            )  # fmt: skip
        return self._masks[window]

    def tiles(self) -> tuple[Tensor, Tensor]:
        """Tiles [Q, Q] of query and key that hold some visible pair and some hidden one, and those all visible.

        From units alone, not from S x S pairs: a tile may be visible where both hold tokens of one unit, or the key a
        prompt of a group that the query is of. All of it is where the key lies within one unit that every query
        sees, and wholly before it.
        """
        count = -(-self.length // TILE)
        held_QU = torch.zeros(count, len(self._group_U))
        held_QU[torch.arange(self.length) // TILE, self._unit_S] = 1
        group_GU = torch.nn.functional.one_hot(self._group_U - 1).T.to(held_QU.dtype)
        groups_QG = (held_QU @ group_GU.T).clamp(max=1)
        prompts_QG = ((held_QU * self._prompt_U) @ group_GU.T).clamp(max=1)
        tile = torch.arange(count)
        past_QQ, before_QQ = tile[:, None] >= tile[None, :], tile[:, None] > tile[None, :]
        own_QQ, prompt_QQ = held_QU @ held_QU.T > 0, groups_QG @ prompts_QG.T > 0
        seen_QQ = (own_QQ | prompt_QQ) & past_QQ
        one_unit_Q = held_QU.sum(1) == 1
        one_group_Q = groups_QG.sum(1) == 1
        same_unit_QQ = own_QQ & one_unit_Q[:, None] & one_unit_Q[None, :]
        same_prompt_QQ = prompt_QQ & one_group_Q[:, None] & (one_unit_Q & (prompts_QG.sum(1) == 1))[None, :]
        whole_Q = torch.ones(count, dtype=torch.bool)
        whole_Q[-1] = self.length % TILE == 0  # a tile that reaches beyond the row is never taken for whole
        all_QQ = (same_unit_QQ | same_prompt_QQ) & before_QQ & whole_Q[:, None]
        return seen_QQ & ~all_QQ, all_QQ


def _units(span: Span) -> list[tuple[int, int, bool]]:
    """First position, fed tokens and whether it is the prompt, of a group's prompt and completions."""
    return [(0, span.prompt, True), *((span.prompt, length, False) for length in span.completions)]


def _listed(tiles_QQ: Tensor) -> tuple[Tensor, Tensor]:
    """How many key tiles each query tile has, [1, 1, Q], and which, these first, [1, 1, Q, Q]."""
    order = tiles_QQ.to(torch.int8).argsort(dim=-1, descending=True, stable=True)
    return tiles_QQ.sum(-1, dtype=torch.int32)[None, None], order.to(torch.int32)[None, None]


def _capped(softcap: float) -> Callable[..., Tensor]:
    def score(score: Tensor, batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return torch.tanh(score / softcap) * softcap

    return score


@functools.cache
def _kernel(device: str) -> Callable[..., Any]:
    """The fused kernel on a GPU; on a CPU the plain computation, for tests: it has no backward pass there."""
    if device == "cpu":
        warnings.filterwarnings("ignore", message="flex_attention called without torch.compile", category=UserWarning)
        return flex_attention
    return torch.compile(flex_attention, dynamic=True)
