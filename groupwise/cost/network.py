"""Bytes that a process sends in a step, by the way weights are held. Knows no seconds."""

from groupwise.cost.shapes import ModelShape
from groupwise.sections import Sharding

_FLOAT32 = 4


def step_bytes(
    shape: ModelShape,
    *,
    processes: int,
    sharding: Sharding,
    learning: int,
    reading: int = 0,
    rollouts: int = 0,
) -> float:
    """What one process sends in a step of `learning` micro-batches, besides `reading` passes without gradients.

    A ring sends (p - 1) / p of what it gathers or scatters, twice that of what it sums. Sharded layers are gathered in
    every forward and every backward pass, and once for each of `rollouts` samplings by this program. ZeRO's stage 2
    scatters gradients in every backward pass and gathers weights once per step; stage 3 is counted as FSDP2.

    >>> one = ModelShape(layers=1, width=2, vocabulary=3, heads=1, kv_heads=1, head_width=2, linear=48, adapter=10)
    >>> step_bytes(one, processes=2, sharding="none", learning=3)
    40.0
    >>> step_bytes(one, processes=2, sharding="fsdp2", learning=3)
    616.0
    >>> step_bytes(one, processes=1, sharding="none", learning=3)
    0.0
    """
    share = (processes - 1) / processes
    whole = _FLOAT32 * shape.trained
    if sharding == "none":
        return 2 * share * whole
    if sharding == "zero2":
        return share * whole * (learning + 1)
    layers = shape.itemsize * shape.linear
    gathered = share * layers * (2 * learning + reading + rollouts)
    if shape.adapter:
        return gathered + 2 * share * whole
    outside = _FLOAT32 * (shape.trained - shape.linear)
    return gathered + share * _FLOAT32 * shape.linear * learning + 2 * share * outside


def adapter_bytes(shape: ModelShape) -> int:
    """Size of a version that is written for servers: the adapter in float32."""
    return _FLOAT32 * shape.adapter
