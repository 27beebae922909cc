"""How a process on Linux gives back memory that tensors have freed. Knows no tensors.

glibc gives pieces below a threshold, which rises to 32 MiB by itself, from a heap that holes grow into: training with
layers that are computed again, whose tensors come and go in all sizes, then takes up to twice the memory of its
tensors. A fixed threshold gives every larger piece pages of its own, at the cost of their page faults.
"""

import ctypes
import sys
from typing import Any

_M_MMAP_THRESHOLD = -3
_OWN_PAGES = 2**20


def return_what_is_freed() -> bool:
    """From now on freed tensors of 1 MiB and more go back to the system at once; False where that cannot be set."""
    mallopt = _function("mallopt")
    return mallopt is not None and bool(mallopt(_M_MMAP_THRESHOLD, _OWN_PAGES))


def trim() -> None:
    """Give back what was freed and still lies in the heap, where the system knows how."""
    malloc_trim = _function("malloc_trim")
    if malloc_trim is not None:
        malloc_trim(0)


def _function(name: str) -> Any:
    """A function of the C library, None where it has no such one."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
