"""The metrics file must be readable by any JSON reader and must go back to exactly what a checkpoint saw."""

import json
import math
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from groupwise.errors import UserError
from groupwise.observe.metrics import MetricsFile, MetricSums, read_json_lines, read_metrics


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


def test_line_has_step_first_then_names_in_order(path: Path) -> None:
    with MetricsFile(path) as file:
        file.append(3, {"reward": 1.0, "kl": 0.25, "tokens/prompt": 7})
    assert path.read_text() == '{"step": 3, "kl": 0.25, "reward": 1.0, "tokens/prompt": 7}\n'


_NAMES = st.text(min_size=1).filter(lambda name: name != "step")


@settings(max_examples=40)
@given(st.dictionaries(_NAMES, st.floats(allow_nan=False, allow_infinity=False)))
def test_numbers_survive_unchanged(tmp_path_factory: pytest.TempPathFactory, values: dict[str, float]) -> None:
    path = tmp_path_factory.mktemp("metrics") / "metrics.jsonl"
    with MetricsFile(path) as file:
        file.append(1, values)
    assert read_metrics(path) == [{"step": 1, **values}]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, np.float32("nan")])
def test_not_finite_is_refused_by_name_and_leaves_no_trace(path: Path, bad: float) -> None:
    """json.dumps writes a bare NaN by default; every strict reader then rejects the whole file."""
    with MetricsFile(path) as file:
        file.append(1, {"loss": 0.5})
        with pytest.raises(ValueError, match=r"metric 'kl' at step 2"):
            file.append(2, {"kl": bad, "loss": 0.4})
        file.append(3, {"loss": 0.3})
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 3]


@pytest.mark.parametrize("bad", [True, "0.5", None, torch.tensor(0.5)])
def test_what_is_no_number_is_refused_by_name(path: Path, bad: object) -> None:
    with MetricsFile(path) as file, pytest.raises(TypeError, match=r"metric 'kl' at step 2"):
        file.append(2, {"kl": bad})  # pyright: ignore[reportArgumentType]


def test_a_metric_cannot_take_the_place_of_the_step(path: Path) -> None:
    with MetricsFile(path) as file, pytest.raises(ValueError, match="'step'"):
        file.append(1, {"step": 2.0})


def test_numpy_numbers_become_plain_numbers(path: Path) -> None:
    with MetricsFile(path) as file:
        file.append(1, {"a": float(np.float32(0.5)), "b": int(np.int64(4))})
        file.append(2, {"a": np.float32(0.5), "b": np.int64(4)})  # pyright: ignore[reportArgumentType]
    first, second = path.read_text().splitlines()
    assert first.replace('"step": 1', "") == second.replace('"step": 2', "")


def test_every_line_is_visible_before_sync(path: Path) -> None:
    with MetricsFile(path) as file:
        file.append(1, {"loss": 0.5})
        assert read_metrics(path) == [{"step": 1, "loss": 0.5}]


def test_resume_gives_the_same_bytes_as_a_run_that_was_never_stopped(tmp_path: Path) -> None:
    whole, resumed = tmp_path / "whole.jsonl", tmp_path / "resumed.jsonl"
    with MetricsFile(whole) as file:
        for step in range(1, 6):
            file.append(step, {"loss": 1 / step})
    with MetricsFile(resumed) as file:
        for step in (1, 2):
            file.append(step, {"loss": 1 / step})
        checkpoint = file.offset
        file.append(3, {"loss": 99.0})  # after the checkpoint, done again by the resumed run
    with resumed.open("ab") as raw:
        raw.write(b'{"step": 4, "lo')  # killed while writing
    with MetricsFile(resumed) as file:
        file.truncate(checkpoint)
        for step in (3, 4, 5):
            file.append(step, {"loss": 1 / step})
        assert file.offset == resumed.stat().st_size
    assert resumed.read_bytes() == whole.read_bytes()


def test_offset_of_a_reopened_file_ends_at_its_last_whole_line(path: Path) -> None:
    path.write_bytes(b'{"step": 1}\n{"step": 2, "x')
    with MetricsFile(path) as file:
        assert file.offset == len(b'{"step": 1}\n')


def test_offset_is_found_behind_a_half_line_longer_than_one_read(path: Path) -> None:
    path.write_bytes(b'{"step": 1}\n' + b"x" * 200_000)
    with MetricsFile(path) as file:
        assert file.offset == len(b'{"step": 1}\n')


def test_half_a_line_is_never_continued(path: Path) -> None:
    """Appending after half a line would fuse two steps into one unreadable line."""
    path.write_bytes(b'{"step": 1}\n{"ste')
    with MetricsFile(path) as file:
        with pytest.raises(ValueError, match="half a line"):
            file.append(2, {"loss": 0.5})
        file.truncate(file.offset)
        file.append(2, {"loss": 0.5})
    assert [record["step"] for record in read_metrics(path)] == [1, 2]


@pytest.mark.parametrize(
    ("offset", "why"),
    [(-1, "cannot go back"), (5, "no line ends there"), (13, "no line ends there"), (100, "has 16 bytes")],
)
def test_truncate_refuses_a_place_no_checkpoint_can_have_seen(path: Path, offset: int, why: str) -> None:
    content = b'{"step": 1}\n{"st'
    path.write_bytes(content)
    with MetricsFile(path) as file, pytest.raises(UserError, match=why):
        file.truncate(offset)
    assert path.read_bytes() == content


def test_truncate_to_nothing(path: Path) -> None:
    with MetricsFile(path) as file:
        file.append(1, {})
        file.truncate(0)
        file.append(1, {"loss": 2.0})
    assert read_metrics(path) == [{"step": 1, "loss": 2.0}]


def test_reader_leaves_out_half_a_line_and_lists_every_bad_one(path: Path) -> None:
    path.write_bytes(b'{"step": 1}\n{"step": 2')
    assert read_json_lines(path) == [{"step": 1}]
    path.write_bytes(b'{"step": 1}\n[1]\n{"loss": NaN}\nnonsense\n')
    with pytest.raises(UserError) as caught:
        read_json_lines(path)
    assert [f"metrics.jsonl:{number}:" in str(caught.value) for number in (1, 2, 3, 4)] == [False, True, True, True]


def test_reader_names_a_missing_file(path: Path) -> None:
    with pytest.raises(UserError, match=r"metrics\.jsonl: no such file"):
        read_metrics(path)


@pytest.mark.parametrize("line", ['{"loss": 1}', '{"step": 1.5}', '{"step": 1, "loss": "low"}', '{"step": true}'])
def test_metrics_reader_wants_steps_and_numbers(path: Path, line: str) -> None:
    path.write_text(line + "\n")
    with pytest.raises(UserError, match="object 1"):
        read_metrics(path)


# --- MetricSums ---


def test_means_are_sums_over_counts() -> None:
    sums = MetricSums("cpu")
    sums.add("kl", torch.tensor([0.5]), torch.tensor(2))
    sums.add("kl", 1.5, 2)
    sums.add("a", torch.tensor(3.0, requires_grad=True), 1)
    assert sums.means() == {"a": 3.0, "kl": 0.5}
    assert list(sums.means()) == ["a", "kl"]


def test_a_mean_is_over_terms_not_over_calls() -> None:
    """The mean of two means is wrong when one micro-batch is longer: 1 of 1 and 0 of 3 is a quarter, not a half."""
    sums = MetricSums("cpu")
    sums.add("accuracy", 1.0, 1)
    sums.add("accuracy", 0.0, 3)
    assert sums.means() == {"accuracy": 0.25}


def test_a_million_small_terms_are_not_lost() -> None:
    """In float32, 2**24 + 1 is 2**24: counts of tokens would stop growing."""
    sums = MetricSums("cpu")
    sums.add("x", torch.tensor(2.0**24), 1)
    sums.add("x", torch.tensor(1.0), 0)
    assert sums.means() == {"x": 2.0**24 + 1}


def test_what_counted_nothing_has_no_mean() -> None:
    sums = MetricSums("cpu")
    sums.add("mean_finished_length", torch.tensor(0.0), torch.tensor(0))
    assert sums.means() == {}
    assert MetricSums("cpu").means() == {}


def test_nan_reaches_the_file_and_is_refused_there(path: Path) -> None:
    sums = MetricSums("cpu")
    sums.add("loss", torch.tensor(math.nan), 1)
    with MetricsFile(path) as file, pytest.raises(ValueError, match="'loss'"):
        file.append(1, sums.means())


def test_tensors_of_many_numbers_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="'kl'"):
        MetricSums("cpu").add("kl", torch.zeros(2), 1)


def test_adding_reads_no_value_back_from_the_device() -> None:
    """Meta tensors have no values: any `.item()`, `float()` or copy to the host would raise."""
    sums = MetricSums("meta")
    sums.add("kl", torch.zeros((), device="meta"), torch.ones((), device="meta", dtype=torch.int64))
    sums.add("kl", 1.0, 1)
    assert sums.names == ["kl"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_adding_does_not_wait_for_a_cuda_device() -> None:
    sums = MetricSums("cuda")
    value, count = torch.tensor(3.0, device="cuda"), torch.tensor(2, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        sums.add("kl", value, count)
        sums.add("kl", 1.0, 2)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert sums.means() == {"kl": 1.0}


def test_add_keeps_what_it_was_handed_unchanged() -> None:
    value = torch.tensor(1.0, dtype=torch.float64)
    sums = MetricSums("cpu")
    sums.add("x", value, 1)
    sums.add("x", value, 1)
    assert value.item() == 1.0


class _AllReduce:
    """Sums over threads that stand for processes."""

    def __init__(self, processes: int) -> None:
        self._barrier = threading.Barrier(processes, timeout=10)
        self._parts: dict[int, Tensor] = {}

    def of(self, rank: int) -> Callable[[Tensor], Tensor]:
        def reduce(part: Tensor) -> Tensor:
            assert part.dtype == torch.float64 and part.dim() == 1
            self._parts[rank] = part
            self._barrier.wait()
            total = torch.stack([self._parts[i] for i in sorted(self._parts)]).sum(0)
            self._barrier.wait()
            return total

        return reduce


def _on_processes(parts: list[MetricSums]) -> list[dict[str, float] | Exception]:
    all_reduce = _AllReduce(len(parts))
    results: list[dict[str, float] | Exception] = [{} for _ in parts]

    def work(rank: int) -> None:
        try:
            results[rank] = parts[rank].reduce(all_reduce.of(rank)).means()
        except ValueError as error:
            results[rank] = error

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(len(parts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_processes_together_equal_one_process() -> None:
    together, parts = MetricSums("cpu"), [MetricSums("cpu") for _ in range(3)]
    for rank, part in enumerate(parts):
        # Each process meets the names in another order.
        for name, value in sorted({"b": 1.0 + rank, "a": 10.0 * rank}.items(), reverse=rank % 2 == 0):
            for sums in (part, together):
                sums.add(name, value, rank + 1)
    assert _on_processes(parts) == [together.means()] * 3


def test_reduce_leaves_the_local_sums_alone() -> None:
    """Reducing in place would count every process twice when the same sums are reduced again."""
    sums = MetricSums("cpu")
    sums.add("a", 4.0, 2)

    def double(part: Tensor) -> Tensor:
        return part.mul_(2)

    assert sums.reduce(double).means() == sums.reduce(double).means() == sums.means() == {"a": 2.0}


@pytest.mark.parametrize("names", [("a", "b"), ("a", "a\nb"), ("a", "")])
def test_processes_with_different_names_all_refuse(names: tuple[str, str]) -> None:
    parts = [MetricSums("cpu") for _ in names]
    for part, name in zip(parts, names, strict=True):
        if name:
            part.add(name, 1.0, 1)
    assert [type(result) for result in _on_processes(parts)] == [ValueError, ValueError]
