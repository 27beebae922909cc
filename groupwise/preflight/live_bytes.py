"""Counts the bytes of living tensors, and their peak, without looking at any value. Knows nothing of training."""

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Inside, every storage that an operation returns counts once, from its birth until nothing holds it any more.

    `live` and `peak` are bytes. Storages that were there before do not count, and neither do buffers inside one
    operation. Works on real tensors and on those of a FakeTensorMode that is entered before it.

    >>> import torch
    >>> with LiveBytes() as memory:
    ...     a = torch.zeros(1000)     # 4,000 bytes
    ...     b = a.view(10, 100) + 1   # a view holds the same storage
    ...     del a
    >>> memory.live, memory.peak
    (4000, 8000)
    """

    def __init__(self, weigh: Callable[[int], int] | None = None) -> None:
        """`weigh` turns the bytes of one storage into what it counts; None: itself."""
        super().__init__()
        self.live = 0
        self.peak = 0
        self._weigh = weigh
        self._counted: dict[int, int] = {}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        for value in tree_leaves((args, kwargs)):
            if isinstance(value, Tensor):
                self._note(value, born_here=False)
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._note(value, born_here=True)
        return result

    def _note(self, tensor: Tensor, *, born_here: bool) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata  # pyright: ignore[reportPrivateUsage]
        if key in self._counted:
            return
        # What is first met as an argument was there before; a view of it must not count either.
        size = storage.nbytes() if born_here else 0
        self._counted[key] = size if self._weigh is None else self._weigh(size)
        self.live += self._counted[key]
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, key).atexit = False

    def _forget(self, key: int) -> None:
        self.live -= self._counted.pop(key)
