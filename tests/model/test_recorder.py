"""The order of what happens around a recorded step. The graph itself needs a GPU; here one is played."""

import contextlib
from collections.abc import Callable, Generator
from typing import Any
from unittest import mock

import pytest
import torch

from groupwise.errors import UserError
from groupwise.model.recorder import CudaRecorder, unrecorded


class PlayedGpu:
    """Stands for `torch.cuda`: notes what is asked of it, and on which stream Python is."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.said: list[str] = []
        self.stream = "caller"
        self.recording = False
        self._failure = failure

    def step(self) -> None:
        cached = torch.is_autocast_cache_enabled()
        self.said.append(f"{'record' if self.recording else 'run'} on {self.stream}, cached casts {cached}")
        if self.recording and self._failure is not None:
            raise self._failure

    def _waits(self, who: str) -> Any:
        stream = mock.Mock(device=torch.device("cuda", 0))
        stream.wait_stream.side_effect = lambda other: self.said.append(f"{who} waits")
        return stream

    @contextlib.contextmanager
    def _on_side(self, stream: object) -> Generator[None, None, None]:
        before, self.stream = self.stream, "side"
        try:
            yield
        finally:
            self.stream = before

    @contextlib.contextmanager
    def _record(self, graph: object, **options: object) -> Generator[None, None, None]:
        self.said.append("other threads go on" if options["capture_error_mode"] == "thread_local" else "all wait")
        self.recording = True
        try:
            yield
        except Exception:
            # Ending a recording that failed is an error again, raised while the first one is.
            raise RuntimeError("operation failed due to a previous error during capture")  # noqa: B904
        finally:
            self.recording = False

    def _graph(self) -> Any:
        graph = mock.Mock()
        graph.replay.side_effect = lambda: self.said.append(f"replay on {self.stream}")
        return graph

    @contextlib.contextmanager
    def played(self) -> Generator[CudaRecorder, None, None]:
        caller = self._waits("caller")
        with (
            mock.patch("torch.cuda.Stream", lambda device: self._waits("side")),
            mock.patch("torch.cuda.current_stream", lambda device: caller),
            mock.patch("torch.cuda.stream", self._on_side),
            mock.patch("torch.cuda.graph", self._record),
            mock.patch("torch.cuda.CUDAGraph", self._graph),
        ):
            yield CudaRecorder(torch.device("cuda", 0))


def test_a_real_step_comes_first_on_the_stream_that_records_and_then_only_replays() -> None:
    """A step that is the first of its kind while it is recorded makes what it needs there, and the recording fails."""
    gpu = PlayedGpu()
    with gpu.played() as recorder:
        again = recorder(gpu.step)
        again()
        again()
    assert gpu.said == [
        "side waits",
        "run on side, cached casts False",
        "other threads go on",
        "record on side, cached casts False",
        "caller waits",
        "replay on caller",
        "replay on caller",
    ]
    assert torch.is_autocast_cache_enabled()


def test_a_graph_keeps_its_step_and_so_the_tensors_of_that() -> None:
    gpu = PlayedGpu()
    with gpu.played() as recorder:
        assert getattr(recorder(gpu.step), "step", None) == gpu.step


def test_a_step_that_cannot_be_recorded_is_refused_with_the_remedy_and_the_stream_is_left() -> None:
    gpu = PlayedGpu(RuntimeError("CUDA error: operation not permitted when stream is capturing\nlong advice"))
    with gpu.played() as recorder, pytest.raises(UserError, match=r"captured \(CUDA error: .* capturing\); set it to"):
        recorder(gpu.step)
    assert gpu.stream == "caller"
    assert torch.is_autocast_cache_enabled()


def test_too_little_memory_is_not_taken_for_a_step_that_cannot_be_recorded() -> None:
    gpu = PlayedGpu(torch.OutOfMemoryError("no memory"))
    with gpu.played() as recorder, pytest.raises(torch.OutOfMemoryError):
        recorder(gpu.step)


def test_unrecorded_steps_run_once_at_first_and_once_each_time() -> None:
    done: list[int] = []
    step: Callable[[], None] = lambda: done.append(1)  # noqa: E731
    again = unrecorded(step)
    assert len(done) == 1
    again()
    assert len(done) == 2
