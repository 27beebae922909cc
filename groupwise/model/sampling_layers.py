"""A network laid out for sampling, which is many small forward passes without gradients.

In full precision every adapted layer is replaced by a plain one with a new, folded weight, the sum of base and update;
in half precision that sum would round small updates away, so the side paths stay and weights are only cast once
instead of at every token. Base weights are never written. Knows nothing about prompts, tokens or who asks.
"""

import contextlib
import copy
from collections.abc import Generator, Mapping
from typing import Any, cast

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from groupwise.model.adapter import is_linear


@contextlib.contextmanager
def fast_layers(
    network: PreTrainedModel, precision: torch.dtype | None, *, with_update: bool
) -> Generator[None, None, None]:
    """Inside, layers of the network are replaced by faster ones that compute the same.

    `precision` is that of autocast, None without. `with_update` is whether the adapter is switched on.
    """
    head = network.get_output_embeddings()
    swapped: list[tuple[nn.Module, str, nn.Module]] = []
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            other = _fast_twin(child, precision, with_update=with_update)
            if other is not None and child is not head:
                swapped.append((parent, name, child))
                setattr(parent, name, other)
    try:
        yield
    finally:
        for parent, name, child in swapped:
            setattr(parent, name, child)


def _fast_twin(layer: nn.Module, precision: torch.dtype | None, *, with_update: bool) -> nn.Module | None:
    """What stands in for a layer while sampling, or None where it stays."""
    if precision is None:
        if isinstance(layer, LoraLayer) and _is_full_precision_linear(layer.get_base_layer()):
            return _folded_layer(layer, with_update=with_update)
        return None
    if not _is_full_precision_linear(layer):
        return None
    return _with_weights(layer, {name: p.detach().to(precision) for name, p in layer.named_parameters()})


def _is_full_precision_linear(layer: nn.Module) -> bool:
    return is_linear(layer) and layer.get_parameter("weight").dtype in (torch.float32, torch.float64)


@torch.no_grad()
def _folded_layer(layer: LoraLayer, *, with_update: bool) -> nn.Module:
    """The layer without side path: its base, or a copy of the base with another weight."""
    base = layer.get_base_layer()
    if not with_update:
        return base
    return _with_weights(base, {"weight": base.weight + cast(Any, layer).get_delta_weight("default")})


def _with_weights(layer: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """A copy of a layer with other tensors as some of its parameters; the layer itself stays as it is."""
    twin = copy.copy(layer)
    frozen = {name: nn.Parameter(value, requires_grad=False) for name, value in weights.items()}
    twin._parameters = {**layer._parameters, **frozen}  # pyright: ignore[reportPrivateUsage]
    return twin
