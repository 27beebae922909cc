"""Base weights in four bits: NF4 with double quantization (QLoRA, arXiv 2305.14314), as bitsandbytes stores them.

The weights of linear layers lie in memory as four-bit codes, with a scale for every 64 of them, and are spread out one
layer at a time whenever it runs, forwards or backwards. bitsandbytes' own layers choose between kernels that round
differently by whether a gradient is due, and on some CPUs repack weights into a form that has none: log-probs that are
compared would come from different functions. So the storage is theirs, and the product is ours: always the same one.
Knows nothing about adapters.

Legend: S tokens, I width in, O width out.
"""

import copy
import functools
import importlib
import importlib.util
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from groupwise.errors import UserError

_REMEDY = "pip install 'groupwise[qlora]' on a machine it supports, or set model.quantization to none"


def loading_options(dtype: torch.dtype) -> dict[str, Any]:
    """What `from_pretrained` is told, so that linear layers but the output head are stored in NF4.

    Raises UserError where bitsandbytes is not installed or does not support this machine.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(f"model.quantization nf4: bitsandbytes is not installed; {_REMEDY}")
    from transformers.integrations.bitsandbytes import validate_bnb_backend_availability

    try:
        validate_bnb_backend_availability(raise_exception=True)
    except (ImportError, RuntimeError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"model.quantization nf4: bitsandbytes cannot run here: {reason}; {_REMEDY}") from error
    stored = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    return {"quantization_config": stored, "device_map": {"": "cpu"}}


def is_nf4(module: nn.Module) -> bool:
    """Whether a layer's weight is stored in four bits."""
    return getattr(getattr(module, "weight", None), "quant_state", None) is not None


def run_exactly(network: PreTrainedModel) -> None:
    """Let every four-bit layer compute the same product, whether a gradient is due or not."""
    for module in network.modules():
        if is_nf4(module):
            module.forward = functools.partial(_forward, module)


def plain_weight(layer: nn.Module) -> Tensor:
    """The numbers that a layer's four-bit codes stand for, [O, I]."""
    library: Any = importlib.import_module("bitsandbytes.functional")
    weight: Any = layer.weight
    # As one row: bitsandbytes 0.50 takes wrong scales on CPUs where a row is no whole number of blocks.
    state = copy.copy(weight.quant_state)
    state.shape = (1, weight_count(weight))
    return library.dequantize_4bit(weight.data, state).view(weight.quant_state.shape)


def stored_transposed(layer: nn.Module) -> bool:
    """Whether the plain form of a four-bit layer holds its weight as [I, O], as GPT-2's do."""
    return getattr(layer, "source_cls", nn.Linear).__name__ == "Conv1D"


def weight_count(parameter: Tensor) -> int:
    """Weights that a parameter stands for; two four-bit ones share a byte."""
    state: Any = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else torch.Size(state.shape).numel()


def _forward(layer: nn.Module, x: Tensor) -> Tensor:
    kind = x.device.type
    if torch.is_autocast_enabled(kind):
        x = x.to(torch.get_autocast_dtype(kind))
    product = cast(Tensor, _Product.apply(x, layer))
    bias = cast(Tensor | None, layer.bias)
    return product if bias is None else product + bias.to(product.dtype)


class _Product(torch.autograd.Function):
    """x W^T with W spread out for the time of the product alone; its backward pass spreads it out again."""

    @staticmethod
    def forward(ctx: Any, x_SI: Tensor, layer: nn.Module) -> Tensor:
        ctx.layer = layer
        return x_SI @ plain_weight(layer).to(x_SI.dtype).T

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient_SO,) = gradients
        return gradient_SO @ plain_weight(ctx.layer).to(gradient_SO.dtype), None
