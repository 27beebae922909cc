"""What a step does, counted: products, attention, bytes that pass, calls. Times are `Machine`'s business.

A `Work` is a vector of counts, so works add up, and seconds are its product with a machine's constants. The counts are
those of this program: a prompt goes through once per group, the head's derivative is kept from the forward pass, and
without LoRA the head is computed once more behind it.
"""

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from typing import Self

from groupwise.cost.shapes import GroupShape, ModelShape, micro_batches

_KEPT_CALLS = 10  # small operations of a layer besides its products: norms, activation, positions, residuals
_ADAPTER_CALLS = 4  # of a matrix with an adapter: two products, a scale, a sum
_STATE_PASSES = 7  # reading and writing weight, gradient and two moments


@dataclass(frozen=True, slots=True)
class Work:
    """Counts of one piece of work.

    products   floating point operations of matrix products, 2 per weight and token
    attention  the same of scores and weighted values
    states     bytes of hidden states that the operations between products pass
    table      bytes over the vocabulary: logits, softmax, dice
    memory     bytes that are read whatever the number of tokens: weights of a decoding step, the optimizer's state
    cache      bytes of keys and values that decoding reads
    calls      operations that are started, each of which costs time of its own
    steps      tokens that decoding writes one after the other
    requests   groups that are asked of a server
    """

    products: float = 0.0
    attention: float = 0.0
    states: float = 0.0
    table: float = 0.0
    memory: float = 0.0
    cache: float = 0.0
    calls: float = 0.0
    steps: float = 0.0
    requests: float = 0.0

    def __add__(self, other: Self) -> Self:
        return type(self)(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __mul__(self, times: float) -> Self:
        return type(self)(*(times * a for a in astuple(self)))


KINDS = tuple(field.name for field in fields(Work))


def total(works: Iterable[Work]) -> Work:
    """The sum; nothing at all where there are none."""
    return sum(works, start=Work())


# --- passes over packed rows


def forward(shape: ModelShape, row: Sequence[GroupShape]) -> Work:
    """One pass of a packed row through layers and head, without gradients.

    >>> tiny = ModelShape(layers=1, width=2, vocabulary=3, heads=1, kv_heads=1, head_width=2, linear=48)
    >>> forward(tiny, [GroupShape(3, (2, 2))]).products == 2 * 5 * 48 + 2 * 4 * 6
    True
    """
    tokens = sum(group.row_tokens for group in row)
    predicted = sum(group.predicted for group in row)
    return Work(
        products=2.0 * tokens * (shape.linear + shape.adapter) + 2.0 * predicted * shape.head,
        attention=4.0 * shape.layers * shape.heads * shape.head_width * sum(map(_scores, row)),
        states=_state_bytes(shape, tokens),
        table=4.0 * 3 * predicted * shape.vocabulary,
        calls=_calls(shape),
    )


def learn(shape: ModelShape, row: Sequence[GroupShape], *, recompute: bool = False) -> Work:
    """Forward and backward pass of one micro-batch.

    The backward pass sends gradients through every product, and into weights where they are trained; `recompute` runs
    the layers once more. The head's derivative comes with the forward pass: one product more, and three where the head
    is trained.
    """
    tokens = sum(group.row_tokens for group in row)
    predicted = sum(group.predicted for group in row)
    full = shape.adapter == 0
    through = 2.0 * tokens * shape.linear
    layers = (2 + full + recompute) * through + (3 + recompute) * 2.0 * tokens * shape.adapter
    head = 2.0 * predicted * shape.head * (2 + 2 * full)
    attention = 4.0 * shape.layers * shape.heads * shape.head_width * sum(map(_scores, row))
    return Work(
        products=layers + head,
        attention=(3 + recompute) * attention,
        states=(3 + recompute) * _state_bytes(shape, tokens),
        table=4.0 * (6 + 3 * full) * predicted * shape.vocabulary,
        calls=(3 + recompute) * _calls(shape),
    )


def update(shape: ModelShape, *, spread: int = 1) -> Work:
    """The optimizer's step on the trained weights, norms of gradients included.

    Of layers that are trained and spread over processes each moves its part; adapters, embeddings and head are whole.
    """
    spread_over = 0 if shape.adapter else shape.linear
    own = shape.trained - spread_over + spread_over / spread
    return Work(memory=4.0 * _STATE_PASSES * own, calls=2.0 * max(shape.adapted, shape.layers))


def learning_step(
    shape: ModelShape, groups: Sequence[GroupShape], *, tokens_per_forward: int, recompute: bool = False
) -> Work:
    """All micro-batches of a step and the update."""
    parts = micro_batches(groups, tokens_per_forward)
    return total(learn(shape, part, recompute=recompute) for part in parts) + update(shape)


def reading(shape: ModelShape, groups: Sequence[GroupShape], *, tokens_per_forward: int) -> Work:
    """Log-probs of groups without gradients: a reference pass, or evaluation."""
    return total(forward(shape, part) for part in micro_batches(groups, tokens_per_forward))


def _scores(group: GroupShape) -> float:
    """Pairs of query and key of one head, as they are computed: prompt and completions as two full blocks."""
    span = group.span
    longest = max(span.completions)
    return span.prompt**2 + len(span.completions) * longest * (span.prompt + longest)


def _state_bytes(shape: ModelShape, tokens: int) -> float:
    """A layer passes about eight states of the model's width and three of its inner one; both follow its weights."""
    return 4.0 * tokens * (8 * shape.layers * shape.width + 3 * shape.linear / (3 * shape.width))


def _calls(shape: ModelShape) -> float:
    return float(_KEPT_CALLS * shape.layers + _ADAPTER_CALLS * shape.adapted)


# --- sampling


def sampling(shape: ModelShape, groups: Sequence[GroupShape], *, rows_at_once: int) -> Work:
    """Prompts once, then token by token the completions that are still being written, adapters folded into weights.

    >>> tiny = ModelShape(layers=1, width=2, vocabulary=3, heads=1, kv_heads=1, head_width=2, linear=48)
    >>> sampling(tiny, [GroupShape(3, (2, 5))], rows_at_once=8).steps
    5.0
    """
    found = Work()
    start = 0
    while start < len(groups):
        count = max(1, rows_at_once // len(groups[start].completions))
        found += _decode(shape, groups[start : start + count])
        start += count
    return found


def _decode(shape: ModelShape, batch: Sequence[GroupShape]) -> Work:
    prompts = sum(group.prompt for group in batch)
    written = sum(group.predicted for group in batch)
    steps = max(max(group.completions) for group in batch)
    seen = sum(length * (group.prompt + length / 2) for group in batch for length in group.completions)
    plain = _KEPT_CALLS * shape.layers
    return Work(
        products=2.0 * (prompts + written) * shape.linear + 2.0 * written * shape.head,
        attention=4.0 * shape.layers * shape.heads * shape.head_width * (sum(g.prompt**2 for g in batch) + seen),
        states=_state_bytes(shape, prompts + written),
        table=4.0 * 4 * written * shape.vocabulary,
        memory=float(shape.itemsize * (shape.linear + shape.head)) * (steps + 1),
        cache=shape.kv_bytes_per_token * seen,
        calls=plain * (steps + 1.0),
        steps=float(steps),
    )


# --- sampling on servers

PREFIX_BLOCK = 16
"""Tokens of a prompt that a vLLM server shares at a time: its default on a GPU, 128 on a CPU."""


def served(shape: ModelShape, groups: Sequence[GroupShape], *, rows_at_once: int, block: int = PREFIX_BLOCK) -> Work:
    """What one vLLM server does for its groups: a continuous batch, adapters beside the weights.

    A completion begins as soon as one of `rows_at_once` (--max-num-seqs) ends. Of a prompt the whole blocks but for its
    last token are computed once per group, the rest once per completion.

    >>> tiny = ModelShape(layers=1, width=2, vocabulary=3, heads=1, kv_heads=1, head_width=2, linear=48)
    >>> work = served(tiny, [GroupShape(40, (6, 2, 2))], rows_at_once=2)
    >>> work.steps, work.requests, work.products == 2 * (40 + 2 * 8 + 10) * 48 + 2 * 10 * 6
    (6.0, 1.0, True)
    """
    prompts, scores = 0, 0.0
    for group in groups:
        again = group.prompt - (group.prompt - 1) // block * block
        prompts += group.prompt + (len(group.completions) - 1) * again
        scores += group.prompt**2 + (len(group.completions) - 1) * again * group.prompt
    written = sum(group.predicted for group in groups)
    steps = _continuous([length for group in groups for length in group.completions], rows_at_once)
    seen = sum(length * (group.prompt + length / 2) for group in groups for length in group.completions)
    return Work(
        products=2.0 * (prompts + written) * (shape.linear + shape.adapter) + 2.0 * written * shape.head,
        attention=4.0 * shape.layers * shape.heads * shape.head_width * (scores + seen),
        states=_state_bytes(shape, prompts + written),
        table=4.0 * 4 * written * shape.vocabulary,
        memory=float(shape.itemsize * (shape.linear + shape.head)) * steps,
        cache=shape.kv_bytes_per_token * seen,
        calls=_calls(shape) * steps,
        steps=float(steps),
        requests=float(len(groups)),
    )


def _continuous(lengths: Sequence[int], rows: int) -> int:
    """Tokens one after the other until all completions are there, each in the row that is free first.

    >>> _continuous([6, 2, 2], 2), _continuous([6, 2, 2], 9)
    (6, 6)
    """
    free = [0] * min(rows, len(lengths))
    for length in lengths:
        heapq.heapreplace(free, free[0] + length)
    return max(free)
