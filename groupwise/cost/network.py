"""What a process sends in a step, in bytes and in exchanges, by the way weights are held. Knows no seconds.

An exchange is one operation that all processes take part in. Bytes are those of tensors that grow with the model or
the rollout; flags and sums of metrics count as exchanges alone. A test holds both to what PyTorch really issues.
"""

from collections.abc import Sequence
from typing import Literal

from groupwise.cost.shapes import GroupShape, ModelShape
from groupwise.sections import Sharding

Counted = Literal["none", "fsdp2"]
"""Ways of holding weights whose exchanges are this program's own; ZeRO's are DeepSpeed's, by its settings."""
_FLOAT32 = 4
_OF_STEP = 3  # exchanges of numbers: is all finite, names of the metrics, their sums
_BUCKET = 64 * 2**20  # bytes of gradients that are summed in one exchange: train/runtime.py
_OF_ROLLOUT = 5  # counts; places, as sizes and contents; parcels, as sizes and contents
_COMPLETION_BYTES = 8 + 1 + 8  # length, finished, score
_GROUP_BYTES = 8 + 8 + 16  # lengths of prompt and group, place in the step


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


def step_exchanges(
    shape: ModelShape,
    *,
    processes: int,
    sharding: Counted,
    learning: int,
    reading: int = 0,
    rollouts: int = 0,
) -> int:
    """Exchanges of the same step; `learning` and `reading` are the micro-batches of the process that has most.

    Weights that are whole need three and one for each 64 MiB of gradients, whatever the number of micro-batches, and
    one more for a reading. FSDP2 gathers layer by layer, reduces all weights layer by layer and sums their norm once;
    every pass is announced (lockstep.py), and before numbers are exchanged processes settle that none has a pass left.

    >>> one = ModelShape(layers=2, width=2, vocabulary=3, heads=1, kv_heads=1, head_width=2, linear=48, adapter=10)
    >>> step_exchanges(one, processes=2, sharding="none", learning=3)
    4
    >>> step_exchanges(one, processes=2, sharding="fsdp2", learning=3)    # 6 + 1 + 3 x (1 + 2 + 2)
    22
    >>> step_exchanges(one, processes=2, sharding="fsdp2", learning=3, reading=3)    # and 2 + 3 x (1 + 2)
    33
    """
    if processes == 1:
        return 0
    met = _OF_STEP + (1 if reading else 0)
    everywhere = shape.trained if sharding == "none" or shape.adapter else shape.trained - shape.linear
    summed = -(-_FLOAT32 * everywhere // _BUCKET)
    if sharding == "none":
        return met + summed
    announced = learning + reading
    gathered = shape.layers * (2 * learning + reading + rollouts)
    reduced = 0 if shape.adapter else shape.layers * learning + 1
    return 2 * met + summed + announced + gathered + reduced


def rollout_bytes(groups: Sequence[GroupShape], *, processes: int, fields: int = 2) -> float:
    """What a process sends of groups that it sampled: each goes to who learns from it, one in p stays.

    Per completion token an id and `fields` float32 numbers (log-probs as sampled, advantages, with servers log-probs as
    drawn); texts of keys and the header of a parcel, tens of bytes per group, are left out.

    >>> rollout_bytes([GroupShape(10, (20, 20))], processes=2)    # (32 + 40 + 2 x 19 + 40 x 12) / 2
    295.0
    """
    return (processes - 1) / processes * parcel_bytes(groups, fields=fields)


def parcel_bytes(groups: Sequence[GroupShape], *, fields: int = 2) -> int:
    """Groups as they are packed for the way, in `group_file.as_tensors`'s layout, with their places.

    >>> parcel_bytes([GroupShape(10, (20, 20))], fields=3)
    752
    """
    completions = sum(len(group.completions) for group in groups)
    return (
        len(groups) * _GROUP_BYTES
        + _FLOAT32 * sum(group.prompt for group in groups)
        + completions * (_COMPLETION_BYTES + fields)  # who has a field is one more byte
        + _FLOAT32 * (1 + fields) * sum(group.predicted for group in groups)
    )


def rollout_exchanges(*, processes: int, sharding: Counted) -> int:
    """Exchanges by which the groups of a step come to who learns from them.

    >>> rollout_exchanges(processes=2, sharding="none"), rollout_exchanges(processes=2, sharding="fsdp2")
    (5, 8)
    """
    if processes == 1:
        return 0
    return _OF_ROLLOUT if sharding == "none" else _OF_ROLLOUT + 3


def adapter_bytes(shape: ModelShape) -> int:
    """Size of a version that is written for servers: the adapter in float32."""
    return _FLOAT32 * shape.adapter
