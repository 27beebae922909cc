"""Attention over a packed row of groups: the only layer that must know the layout.

Key k is visible to query q when both are of one group, k is not later than q, and k is in the prompt or in q's own
completion. Registered as the attention implementation "groupwise" through Transformers' `AttentionInterface`; the
layout arrives as the extra forward keyword `row_layout`. Another `Layout` (group_cache.py) takes part in the same way.
Knows nothing about losses, log-probs or LoRA.

Groups of similar size are computed together: their prompts as one padded block, then their completions as another,
whose queries see [prompt keys, own keys]. Padding exists inside these calls only.

Legend: S tokens in the row, H query heads, D head width, B groups of a block, N completions of a block, P longest
prompt of a block, L longest fed completion of a block.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface

from groupwise.batch import Span

IMPLEMENTATION = "groupwise"

# One attention call costs about as much as this many query-key scores, so blocks this small are worth merging.
_CALL_COST = 60_000


@dataclass(frozen=True, slots=True)
class Rules:
    """How one layer attends: scale of the scores, window in tokens, soft cap of the scores, sink logits per head."""

    scaling: float
    window: int | None
    softcap: float | None
    sinks: Tensor | None


class Layout(Protocol):
    """What decides which keys a query of the row sees."""

    def attend(self, module: nn.Module, query_S: Tensor, key_S: Tensor, value_S: Tensor, rules: Rules) -> Tensor:
        """Attention output [S, H, D] of one layer, for query [S, H, D] and key, value [S, H or fewer, D]."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class _Block:
    """Some groups whose attention is computed by two calls."""

    prompt_rows: Tensor  # [prompt tokens] row indices, group after group
    prompt_slots: Tensor  # [prompt tokens] places in the padded [B * P]
    completion_rows: Tensor  # [fed completion tokens] row indices
    completion_slots: Tensor  # [fed completion tokens] places in the padded [N * L]
    group_N: Tensor  # block-local group of each completion
    prompt_length_N: Tensor
    shape: tuple[int, int, int, int]  # B, P, N, L
    masks: dict[tuple[int | None, torch.dtype], Tensor] = field(default_factory=dict)


class RowLayout:
    """Where the groups of one packed row lie, as index tensors that every layer reuses."""

    def __init__(self, spans: Sequence[Span], device: torch.device | str) -> None:
        self.device = torch.device(device)
        self.length = max(span.start + span.prompt + sum(span.completions) for span in spans)
        self.blocks = [_build_block(part, self.device) for part in _similar(spans)]
        self.windows: set[int | None] = set()  # sliding windows that layers asked for, for the check at load

    def attend(self, module: nn.Module, query_S: Tensor, key_S: Tensor, value_S: Tensor, rules: Rules) -> Tensor:
        """Attention of the whole packed row, [S, H, D]."""
        self.windows.add(rules.window)
        outputs: list[Tensor] = []
        rows: list[Tensor] = []
        for block in self.blocks:
            outputs.extend(_attend_block(block, query_S, key_S, value_S, rules))
            rows.extend((block.prompt_rows, block.completion_rows))
        order = torch.cat(rows)
        joined = torch.cat(outputs)
        return torch.zeros_like(joined).index_copy(0, order, joined)


def shared_prompt_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    row_layout: Layout | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention output of a packed row, [1, S, H, D], for query [1, H, S, D] and key, value [1, H or fewer, S, D].

    `sliding_window` (tokens), `softcap` (of the scores) and `s_aux` (attention sinks, one per head) are honoured as
    the families that pass them mean them. Dropout is always off. Raises NotImplementedError for a position bias.
    """
    if row_layout is None:
        raise RuntimeError("the row's layout did not reach attention; plain calls go through Policy.as_loaded()")
    if position_bias is not None:
        raise NotImplementedError("attention with a learned position bias cannot share prompts")
    rules = Rules(scaling if scaling is not None else query.shape[-1] ** -0.5, sliding_window, softcap, s_aux)
    query_S, key_S, value_S = (states[0].transpose(0, 1) for states in (query, key, value))  # [S, H, D]
    return row_layout.attend(module, query_S, key_S, value_S, rules).unsqueeze(0), None


def _attend_block(
    block: _Block, query_S: Tensor, key_S: Tensor, value_S: Tensor, rules: Rules
) -> tuple[Tensor, Tensor]:
    """Outputs of the block's prompt tokens and of its completion tokens, each [tokens, H, D] in row order."""
    B, P, N, L = block.shape
    prompt = [_padded(states, block.prompt_rows, block.prompt_slots, B, P) for states in (query_S, key_S, value_S)]
    prompt_mask = _window_mask(P, rules.window, query_S.device) if rules.window and rules.window < P else None
    out = _attend(prompt[0], prompt[1], prompt[2], prompt_mask, rules)
    prompt_out = out.transpose(1, 2).reshape(B * P, *out.shape[1::2]).index_select(0, block.prompt_slots)
    if L == 0:
        return prompt_out, prompt_out[:0]
    own = [_padded(states, block.completion_rows, block.completion_slots, N, L) for states in (query_S, key_S, value_S)]
    keys, values = (
        torch.cat([shared.expand(N, -1, -1, -1) if B == 1 else shared.index_select(0, block.group_N), mine], dim=2)
        for shared, mine in zip(prompt[1:], own[1:], strict=True)
    )
    out = _attend(own[0], keys, values, _completion_mask(block, rules.window, query_S.dtype), rules)
    completion_out = out.transpose(1, 2).reshape(N * L, *out.shape[1::2]).index_select(0, block.completion_slots)
    return prompt_out, completion_out


def _padded(states_S: Tensor, rows: Tensor, slots: Tensor, batch: int, length: int) -> Tensor:
    """Pick `rows` of [S, H, D] and place them at `slots` of a padded [batch, H, length, D]."""
    picked = states_S.index_select(0, rows)
    if len(slots) < batch * length:
        picked = picked.new_zeros(batch * length, *picked.shape[1:]).index_copy(0, slots, picked)
    return picked.view(batch, length, *picked.shape[1:]).transpose(1, 2)


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, rules: Rules) -> Tensor:
    """Attention of padded blocks, [batch, H, length, D]; a missing mask means plain causal order."""
    repeats = query.shape[1] // key.shape[1]
    if repeats > 1:
        key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
    if rules.softcap is None and rules.sinks is None:
        return F.scaled_dot_product_attention(query, key, value, mask, is_causal=mask is None, scale=rules.scaling)
    scores = query @ key.transpose(2, 3) * rules.scaling
    if rules.softcap is not None:
        scores = torch.tanh(scores / rules.softcap) * rules.softcap
    if mask is None:
        mask = _window_mask(query.shape[2], None, query.device)
    scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if rules.sinks is not None:
        sinks = rules.sinks.to(scores.dtype).view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, sinks], dim=-1)
    weights = scores.softmax(dim=-1)[..., : key.shape[2]]
    return weights.to(value.dtype) @ value


def _window_mask(length: int, window: int | None, device: torch.device) -> Tensor:
    """[length, length] bool: not later than the query and, with a window, fewer than `window` tokens before it."""
    position = torch.arange(length, device=device)
    distance = position[:, None] - position[None, :]
    return (distance >= 0) if window is None else (distance >= 0) & (distance < window)


def _completion_mask(block: _Block, window: int | None, dtype: torch.dtype) -> Tensor:
    """[N, 1, L, P + L] to add to the scores: 0 where a fed completion token sees the key, else -inf."""
    if (window, dtype) not in block.masks:
        _, P, _, L = block.shape
        device = block.prompt_length_N.device
        token = torch.arange(L, device=device)
        prompt_key = torch.arange(P, device=device)
        prompt_length = block.prompt_length_N[:, None, None]  # [N, 1, 1]
        sees_prompt = (prompt_key < prompt_length).expand(-1, L, P)
        sees_own = _window_mask(L, window, device).expand(len(block.prompt_length_N), L, L)
        if window is not None:
            sees_prompt = sees_prompt & (prompt_length + token[:, None] - prompt_key < window)
        visible = torch.cat([sees_prompt, sees_own], dim=2).unsqueeze(1)
        bias = torch.zeros(visible.shape, dtype=dtype, device=device).masked_fill_(~visible, float("-inf"))
        block.masks[window, dtype] = bias
    return block.masks[window, dtype]


def _similar(spans: Sequence[Span]) -> list[list[Span]]:
    """Cut groups, sorted by size, into blocks where padding costs less than the calls it saves."""
    blocks: list[list[Span]] = []
    for span in sorted(spans, key=lambda s: (max(s.completions), s.prompt)):
        if blocks and _scores([*blocks[-1], span]) <= _scores(blocks[-1]) + _scores([span]) + 2 * _CALL_COST:
            blocks[-1].append(span)
        else:
            blocks.append([span])
    return blocks


def _scores(spans: Sequence[Span]) -> int:
    """Query-key scores computed for these groups as one block, padding included."""
    prompt = max(span.prompt for span in spans)
    longest = max(max(span.completions) for span in spans)
    completions = sum(len(span.completions) for span in spans)
    return len(spans) * prompt * prompt + completions * longest * (prompt + longest)


def _build_block(spans: Sequence[Span], device: torch.device) -> _Block:
    P = max(span.prompt for span in spans)
    L = max(max(span.completions) for span in spans)
    prompt_rows: list[int] = []
    prompt_slots: list[int] = []
    completion_rows: list[int] = []
    completion_slots: list[int] = []
    group_of: list[int] = []
    for index, span in enumerate(spans):
        prompt_rows.extend(range(span.start, span.start + span.prompt))
        prompt_slots.extend(range(index * P, index * P + span.prompt))
        row = span.start + span.prompt
        for length in span.completions:
            slot = len(group_of) * L
            completion_rows.extend(range(row, row + length))
            completion_slots.extend(range(slot, slot + length))
            group_of.append(index)
            row += length
    on_device: Callable[[list[int]], Tensor] = lambda values: torch.tensor(values, dtype=torch.long, device=device)  # noqa: E731
    return _Block(
        prompt_rows=on_device(prompt_rows),
        prompt_slots=on_device(prompt_slots),
        completion_rows=on_device(completion_rows),
        completion_slots=on_device(completion_slots),
        group_N=on_device(group_of),
        prompt_length_N=on_device([spans[index].prompt for index in group_of]),
        shape=(len(spans), P, len(group_of), L),
    )


AttentionInterface.register(IMPLEMENTATION, shared_prompt_attention)
