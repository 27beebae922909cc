"""Versions of what a result depends on, for summaries. Knows no results."""

import platform
from importlib.metadata import version

PACKAGES = ("groupwise", "torch", "transformers", "peft", "accelerate", "datasets", "safetensors", "numpy")


def versions() -> dict[str, str]:
    """Python's version and those of the packages that compute."""
    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}
