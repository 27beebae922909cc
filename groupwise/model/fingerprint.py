"""The base weights of a network as one hash, the same whether they lie in memory plain or under an adapter.

Knows nothing of files.
"""

import hashlib
import json

import torch
from torch import Tensor
from transformers import PreTrainedModel

_NOT_OF_THE_FUNCTION = frozenset({"_name_or_path", "transformers_version"})


def fingerprint(network: PreTrainedModel) -> str:
    """SHA-256 over configuration, and names, dtypes and bytes of the weights; an adapter does not count."""
    described = {k: v for k, v in network.config.to_dict().items() if k not in _NOT_OF_THE_FUNCTION}
    digest = hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode())
    for name, tensor in sorted(network.state_dict().items()):
        if ".lora_" in name:
            continue
        digest.update(f"{name.replace('.base_layer', '')} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(_bytes_of(tensor))
    return digest.hexdigest()


def _bytes_of(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
