"""Weights spread over processes by FSDP2: each holds a part of every layer and gathers a layer's whole when it runs.

Only the repeated layers are spread, for they are nearly all of a model; embeddings, the output head and adapters stay
whole everywhere, so that log-probs are computed, and adapters trained and saved, as ever. Gradients of spread weights
are summed, not averaged. Knows nothing about losses or data.
"""

import contextlib
import warnings
from collections.abc import Generator, Iterable
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Partial, distribute_tensor
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from groupwise.errors import UserError
from groupwise.model import zero

Pass = tuple[bool, bool]
"""Of a forward pass: whether it runs the frozen copy, and whether a backward pass follows."""


def shard(network: PreTrainedModel, mesh: DeviceMesh, *, whole: Iterable[nn.Parameter]) -> None:
    """Spread the repeated layers over the mesh, each onto its device; `whole` are parameters of them that stay whole.

    Raises UserError for a network whose layers cannot be told.
    """
    layers = [module for module in network.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise UserError("run.sharding: the layers of this model cannot be told apart; set it to none")
    inside = {id(p) for layer in layers for p in layer.parameters()}
    if any(id(p) in inside for name, p in network.named_parameters() if not _in_layer(name, network, layers)):
        raise UserError("run.sharding: layers of this model share weights with what is outside of them; set it to none")
    # Outputs are only read, never written into.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor", category=UserWarning)
    ignored = set(whole)
    for layer in layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True, ignored_params=ignored)
    outside = {p for p in network.parameters() if id(p) not in inside}
    fully_shard(_root(network), mesh=mesh, ignored_params=ignored | outside)
    # What a backward pass gathers ahead is told, for FSDP2 would infer it from all forward passes since the last
    # backward pass, sampling included, and of those each process runs as many as it needs. The first layer has none
    # before it; that it is to gather itself means nothing.
    for layer, before in zip(layers, [layers[0], *layers], strict=False):
        cast(FSDPModule, layer).set_modules_to_backward_prefetch([cast(FSDPModule, before)])
    for module in _shards(network):
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)


@contextlib.contextmanager
def gathered(network: PreTrainedModel) -> Generator[None, None, None]:
    """Inside, every process holds all weights, and forward passes need nobody else. Every process enters and leaves."""
    modules = list(_shards(network))
    for module in modules:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module in modules:
            module.reshard()
            module.set_reshard_after_forward(cast(nn.Module, module) is not _root(network), recurse=False)


def whole_tensor(value: Tensor) -> Tensor:
    """All of a tensor, of which this process may hold a part. Every process asks for the same ones in one order."""
    if isinstance(value, DTensor):
        return value.full_tensor()
    found = zero.whole(value)
    return value if found is None else found


def like(value: Tensor, target: Tensor) -> Tensor:
    """A whole tensor as this process holds `target`: as it is, or the part of it that is this process's."""
    if not isinstance(target, DTensor):
        return value
    there = value.to(target.device)
    return distribute_tensor(there, target.device_mesh, target.placements, src_data_rank=None)


def assign(p: nn.Parameter, value: Tensor) -> None:
    """Give a parameter the value of a whole tensor. Every process assigns the same ones in one order."""
    if not zero.assign(p, value):
        with torch.no_grad():
            p.copy_(like(value, p))


def by_layout(tensors: Iterable[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Those that each process holds whole, and those of which it holds a part: no operation takes both at once."""
    every = list(tensors)
    return [t for t in every if not isinstance(t, DTensor)], [t for t in every if isinstance(t, DTensor)]


def total_norm(gradients: Iterable[Tensor]) -> Tensor:
    """The norm over all gradients, of which some may be spread over processes and the others are the same on each."""
    whole, spread = by_layout(gradients)
    norms = [torch.linalg.vector_norm(gradient) for gradient in whole]
    if spread:
        norms.append(_norm_of_parts([cast(DTensor, gradient) for gradient in spread]))
    return torch.linalg.vector_norm(torch.stack(norms))


def _norm_of_parts(gradients: list[DTensor]) -> Tensor:
    """Of tensors that are spread over one mesh, in one exchange for all of them."""
    norms = torch.stack([torch.linalg.vector_norm(gradient.to_local()) for gradient in gradients])
    squares = norms.double().square().sum()  # a square of float32 ends at 1e38, a norm of 1e19
    return DTensor.from_local(squares, gradients[0].device_mesh, [Partial()]).full_tensor().sqrt().to(norms.dtype)


def _shards(network: nn.Module) -> Generator[FSDPModule, None, None]:
    for module in network.modules():
        if isinstance(module, FSDPModule):
            yield module


def _root(network: PreTrainedModel) -> nn.Module:
    """What a forward pass calls: the network under its output head."""
    return network.base_model


def _in_layer(name: str, network: nn.Module, layers: list[GradientCheckpointingLayer]) -> bool:
    """Whether a parameter of this name lies in one of the layers."""
    parts = name.split(".")
    owners = {".".join(parts[:depth]) for depth in range(1, len(parts))}
    found = {id(layer) for layer in layers}
    return any(id(network.get_submodule(owner)) in found for owner in owners)
