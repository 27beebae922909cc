"""An adapter summed into its base: the weights of one plain network that computes what both do together.

Nothing is written into a network here. Knows no files; what becomes of the weights is in groupwise/deploy/merge.py.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any, cast

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from groupwise.errors import UserError
from groupwise.model.nf4 import is_nf4, plain_weight, stored_transposed


@torch.no_grad()
def merged_weights(network: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Name and value of every weight in which one plain network, in the base's dtype, differs from its file.

    Base and update are added in float32 or wider and rounded once; four-bit weights are those that training saw.
    Raises UserError for an adapted layer that shares its weight with another: the other one would change too.
    """
    holders = Counter(id(p) for _, p in network.named_parameters(remove_duplicate=False))
    for name, layer in network.named_modules():
        if isinstance(layer, LoraLayer):
            base = layer.get_base_layer()
            if holders[id(base.weight)] > 1:
                raise UserError(
                    f"{name}: has an adapter and shares its weight with another layer, so it cannot be merged; "
                    "serve the adapter beside its base instead"
                )
            yield f"{name}.weight", _plain(base, cast(Tensor, cast(Any, layer).get_delta_weight("default")))
        elif is_nf4(layer) and not name.endswith(".base_layer"):
            yield f"{name}.weight", _plain(layer)


def _plain(layer: nn.Module, update: Tensor | None = None) -> Tensor:
    """A layer's weight with an update, as the layer has it in a plain network; added wide, rounded once."""
    weight = plain_weight(layer) if is_nf4(layer) else layer.get_parameter("weight").detach()
    if update is not None:
        wide = torch.promote_types(weight.dtype, torch.float32)
        weight = (weight.to(wide) + update.to(wide)).to(weight.dtype)
    return weight.T if is_nf4(layer) and stored_transposed(layer) else weight
