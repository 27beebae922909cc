"""A reference that left the base: what is trained, as it was some way back, held beside the policy's.

While it has not moved, the reference is the base (`base.py`). Knows names and tensors, no network: whoever runs the
reference puts them in their places.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

_FILE = "reference.safetensors"


@torch.no_grad()
def moved(reference: Mapping[str, Tensor], policy: Mapping[str, Tensor], mix: float) -> dict[str, Tensor]:
    """mix * policy + (1 - mix) * reference, weight by weight.

    >>> moved({"w": torch.tensor([0.0])}, {"w": torch.tensor([1.0])}, 0.25)
    {'w': tensor([0.2500])}
    """
    return {name: torch.lerp(reference[name], p.detach(), mix) for name, p in policy.items()}


def without_effect(adapter: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of an adapter whose update is zero: B is, and A is that of the one given."""
    return {name: torch.zeros_like(p) if ".lora_B." in name else p for name, p in adapter.items()}


def save_reference(weights: Mapping[str, Tensor], folder: Path) -> None:
    """Write a moved reference beside what is trained."""
    save_file({name: value.cpu().contiguous() for name, value in weights.items()}, folder / _FILE)


def saved_reference(folder: Path, device: torch.device) -> dict[str, Tensor] | None:
    """What `save_reference` wrote, None where it wrote nothing."""
    file = folder / _FILE
    if not file.is_file():
        return None
    # Cloned: tensors inside a file's buffer are aligned otherwise, and matrix products then round otherwise.
    return {name: value.clone() for name, value in load_file(file, device=str(device)).items()}
