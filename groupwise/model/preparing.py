"""A network made fit to be trained and measured: no chance in a forward pass, little time, and little memory if asked.

It stays the same function. Knows nothing of adapters, nor where networks come from.
"""

from collections.abc import Sequence

from torch import nn
from transformers import PreTrainedModel
from transformers.activations import GELUTanh, NewGELUActivation
from transformers.modeling_layers import GradientCheckpointingLayer


def as_one_function(model: PreTrainedModel) -> None:
    """No chance in a forward pass, and the fast forms of what it computes."""
    _switch_dropout_off(model)
    _fuse_gelu(model)


def recompute_layers(model: PreTrainedModel) -> list[nn.Module]:
    """Recompute layers in the backward pass; only the layers themselves are in training mode, nothing inside them."""
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    layers: list[nn.Module] = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    set_training(layers, True)
    return layers


def set_training(layers: Sequence[nn.Module], training: bool) -> None:
    """Whether layers of `recompute_layers` do so; in training mode they do."""
    for layer in layers:
        layer.training = training


def _switch_dropout_off(model: PreTrainedModel) -> None:
    """Zero every dropout probability, those that families keep as plain numbers or read from the configuration too."""
    for module in (*model.modules(), model.config):
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def _fuse_gelu(model: nn.Module) -> None:
    """Run `gelu_new` as the fused tanh GELU: the same function, one pass over memory instead of seven."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(module, name, GELUTanh())
