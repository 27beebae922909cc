"""Bytes that a training step takes at its peak besides the loaded weights, in closed form, for planning.

`--check` runs the very step on tensors without values instead (preflight/memory.py) and is closer. The constants are
fitted to that by `python -m benchmarks.scaling_memory`.
"""

from collections.abc import Sequence

from groupwise.cost.network import Counted
from groupwise.cost.shapes import GroupShape, ModelShape

# States of the model's width per token: kept of each layer, and once. Recomputed layers keep what goes into each, and
# all that one layer has while it is computed again.
_KEPT, _KEPT_ONCE = 21.2, 23.6
_RECOMPUTED, _RECOMPUTED_ONCE = 1.0, 30.4
_STATES = 3  # a gradient and two moments for each trained weight


def activations(shape: ModelShape, row: Sequence[GroupShape], *, recompute: bool, itemsize: int = 4) -> float:
    """Bytes that one micro-batch keeps until its backward pass is over.

    >>> tiny = ModelShape(layers=2, width=4, vocabulary=3, heads=1, kv_heads=1, head_width=4, linear=2 * 12 * 16)
    >>> row = [GroupShape(10, (11, 11))]
    >>> activations(tiny, row, recompute=True) < activations(tiny, row, recompute=False)
    True
    """
    each, once = (_RECOMPUTED, _RECOMPUTED_ONCE) if recompute else (_KEPT, _KEPT_ONCE)
    tokens = sum(group.row_tokens for group in row)
    return itemsize * tokens * shape.width * (each * shape.layers + once)


def training(shape: ModelShape, row: Sequence[GroupShape], *, recompute: bool, itemsize: int = 4) -> float:
    """Activations, gradients and the optimizer's state in float32."""
    return activations(shape, row, recompute=recompute, itemsize=itemsize) + 4.0 * _STATES * shape.trained


def held(shape: ModelShape, *, processes: int = 1, sharding: Counted = "none") -> float:
    """Bytes of weights, gradients and the optimizer's state that each process holds between passes.

    FSDP2 spreads the layers, and what is learned of them; embeddings, output head and adapters are whole on each. While
    a layer runs it is there whole besides, and the next one too.

    >>> one = ModelShape(layers=2, width=2, vocabulary=3, heads=1, kv_heads=1, head_width=2, linear=48)
    >>> held(one), held(one, processes=2, sharding="fsdp2")
    (864.0, 480.0)
    """
    part = 1 if sharding == "none" else processes
    outside = shape.head * (1 if shape.tied else 2)
    weights = shape.itemsize * (shape.linear / part + outside)
    if shape.adapter:
        return weights + 4.0 * (1 + _STATES) * shape.adapter
    return weights + 4.0 * _STATES * (shape.linear / part + outside)


def kv_cache(shape: ModelShape, groups: Sequence[GroupShape]) -> float:
    """Keys and values of groups that decode together, each prompt once, all completions at their full length."""
    tokens = sum(group.prompt + sum(group.completions) for group in groups)
    return float(shape.kv_bytes_per_token * tokens)
