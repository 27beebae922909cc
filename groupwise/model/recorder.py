"""A deed on the GPU that is done once, recorded, and then done again by one launch. Knows nothing about decoding.

A CUDA graph repeats the kernels that were recorded, at the addresses they had: whatever Python computed meanwhile is
baked in, and nothing can be read back while it is recorded.
"""

import contextlib
import functools
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Protocol

import torch

from groupwise.errors import UserError


class Recorder(Protocol):
    """Does a step once, and gives what does it again. The step must leave nothing behind in Python that it reads."""

    def __call__(self, step: Callable[[], None]) -> Callable[[], None]: ...


def unrecorded(step: Callable[[], None]) -> Callable[[], None]:
    """Does a step, and gives it as it is: Python starts it anew each time."""
    step()
    return step


@functools.cache  # libraries keep working memory for every stream that they have seen
def recorder_for(device: torch.device) -> Recorder:
    """What records on this device. Raises UserError where nothing can."""
    if device.type != "cuda":
        raise UserError(f"sampling.captured: steps become CUDA graphs, and this run is on {device}; set it to false")
    return CudaRecorder(device)


class CudaRecorder:
    """Records into CUDA graphs, each with a memory pool of its own.

    The first step is a real one on the stream that records: there libraries make what they need at their first call,
    which they could not while a graph is recorded. See "CUDA Graphs" in PyTorch's notes on CUDA semantics.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)

    def __call__(self, step: Callable[[], None]) -> Callable[[], None]:
        """Raises UserError where the step reads values back, or does something else that a graph cannot hold."""
        caller = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(caller)
        # The stream is left here even if `torch.cuda.graph` fails: its own exit does not do that then.
        with _no_cached_casts(), torch.cuda.stream(self._stream):
            step()
            graph = torch.cuda.CUDAGraph()
            try:
                # Other threads may go on using the GPU, such as the one that watches NCCL.
                with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                    step()
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                cause = error.__context__ or error  # what ends a recording that failed complains again
                if isinstance(cause, torch.OutOfMemoryError):
                    raise cause from error
                reason = str(cause).strip().splitlines()[0]
                raise UserError(
                    f"sampling.captured: a decoding step of this model cannot be captured ({reason}); set it to false"
                ) from error
        caller.wait_stream(self._stream)
        return _Replay(graph, step)


@dataclass(frozen=True, slots=True, eq=False)
class _Replay:
    """A graph, and the step whose tensors it reads and writes: they must not be freed before it."""

    graph: torch.cuda.CUDAGraph
    step: Callable[[], None]

    def __call__(self) -> None:
        self.graph.replay()


@contextlib.contextmanager
def _no_cached_casts() -> Generator[None, None, None]:
    """Inside, autocast keeps no cast weight: one made while recording lies in the graph's memory and has no values."""
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)
