"""Numbers of a run: summed on the device while a step runs, then appended to `metrics.jsonl`, one object per line.

Knows nothing about which method produced a number, what a good value is, or how processes talk to each other.

Names and units ("nat" is the natural unit of log-probability; `<name>` is the name of a reward):

===============================  ==================================================================================
`loss`                           nat for DPO; for GRPO the surrogate's own unit, about 0 on policy: not a headline
`grad_norm`                      L2 norm of the whole gradient before clipping, unit of loss per unit of weight
`learning_rate`                  step size of the optimizer, per step
`rewards/chosen`                 beta x log-ratio to the reference, summed over a completion, dimensionless
`rewards/rejected`               the same of the rejected completion
`rewards/accuracies`             share of pairs whose chosen completion has the higher implicit reward; ties are half
`rewards/margins`                `rewards/chosen` - `rewards/rejected`, dimensionless
`logps/chosen`                   log-prob of a chosen completion under the policy, nat, summed over its tokens
`logps/rejected`                 the same of the rejected completion
`reward`                         mean over completions of the total score, in the rewards' own unit
`reward_std`                     mean over groups of the standard deviation inside a group, same unit
`rewards/<name>/mean`            mean of one reward over completions, in its own unit
`frac_reward_zero_std`           share of groups whose scores are all equal, 0 to 1
`kl`                             estimate of KL(policy || reference), nat per completion token
`entropy`                        entropy of the policy's next-token distribution, nat per completion token
`completions/mean_length`        tokens per completion, the end-of-sequence token included
`completions/clipped_ratio`      share of completions that were cut before they ended, 0 to 1
`clip_ratio/low`, `/high`        share of tokens whose ratio was clipped below, above, 0 to 1
`time/<phase>_s`                 wall time of one phase of a step, seconds
`tokens_per_second`              prompt and completion tokens learned from per second of wall time, all processes
`tokens/prompt`                  prompt tokens of the step, each prompt counted once
`tokens/completion`              completion tokens of the step
`sampler/gap`, `_largest`        size of log p of sampling servers - log p of the engine, nat per token: mean, largest
`sampler/kl`                     mean of the same without its sign: estimate of KL(servers || engine), nat per token
`sampler_weight`                 mean weight of truncated importance sampling, dimensionless
`servers/up`                     sampling servers that answered at the end of the rollout
`servers/faults`                 times that one did anything else than answer rightly
`servers/asked_again`            groups that were asked of another server after a fault
`memory/peak_gb`                 most memory allocated on the device since the step began, 10^9 bytes
`groups/used`                    groups the step learned from
`groups/no_signal`               groups skipped because no advantage of theirs can differ from 0
`groups/not_finite`              groups for which a skipped step was not finite
`alarm/<name>`                   figure that raised an alarm, in the unit its line on the terminal names
`eval/<any of these>`            the same on held-out data; `.../low` and `.../high` are its 95 % interval
===============================  ==================================================================================
"""

import json
import math
import os
import zlib
from collections.abc import Callable, Iterable, Mapping
from numbers import Integral, Real
from pathlib import Path
from types import TracebackType
from typing import NoReturn, Self, cast

import torch
from torch import Tensor

from groupwise.errors import UserError, listed


class JsonLinesFile:
    """A file that grows by whole lines, one JSON object each, and can be set back to an earlier length.

    Every line reaches the operating system at once, so the file can be followed while the run goes on; `sync` makes it
    survive a power cut. A file that ends in half a line (the program was killed while writing) can be opened, but takes
    new lines only after `truncate`. Raises UserError from `truncate`, ValueError from everything that would write JSON
    other programs cannot read, OSError that names the file when the disk takes no more.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._file = self.path.open("ab")
        self._offset = _end_of_last_line(self.path)

    @property
    def offset(self) -> int:
        """Length in bytes of all whole lines: what a checkpoint stores and `truncate` takes back."""
        return self._offset

    def truncate(self, offset: int) -> None:
        """Forget everything after the first `offset` bytes, half a line included; the rest is as it was then.

        Raises UserError when the file is shorter than that or when a line does not end there: it is not the file the
        checkpoint was written with.
        """
        size = self.path.stat().st_size
        remedy = "restore the file that belongs to the checkpoint, or start a new run in another folder"
        if offset < 0 or offset > size:
            raise UserError(f"{self.path}: cannot go back to byte {offset}, the file has {size} bytes; {remedy}")
        if not _is_line_start(self.path, offset):
            raise UserError(f"{self.path}: cannot go back to byte {offset}, no line ends there; {remedy}")
        self._file.truncate(offset)
        self._file.seek(offset)
        self._offset = offset
        self.sync()

    def sync(self) -> int:
        """Return `offset` once everything appended so far is on the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._offset

    def close(self) -> None:
        """Flush and close; closing twice is harmless."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def append_object(self, record: Mapping[str, object]) -> None:
        """Append one object as a line, keys in the order given; nothing is written when it cannot be."""
        text = json.dumps(record, ensure_ascii=False, allow_nan=False, separators=(", ", ": "))
        # Lone surrogates have no UTF-8 form; backslashreplace writes them as \udXXX, which is how JSON spells them.
        line = text.encode("utf-8", errors="backslashreplace") + b"\n"
        if self.path.stat().st_size != self._offset:
            raise ValueError(
                f"{self.path}: ends in half a line, or someone else wrote to it; call truncate(offset) before appending"
            )
        try:
            self._file.write(line)
            self._file.flush()
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error
        self._offset = self._file.tell()


def _end_of_last_line(path: Path) -> int:
    """Bytes up to and including the last newline."""
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - 65536)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                return start + newline + 1
            end = start
    return 0


def _is_line_start(path: Path, offset: int) -> bool:
    if offset == 0:
        return True
    with path.open("rb") as file:
        file.seek(offset - 1)
        return file.read(1) == b"\n"


def read_json_lines(path: Path | str) -> list[dict[str, object]]:
    """Every whole line of a JSONL file as a dict; half a line at the end, of a run still being written, is left out.

    Raises UserError when the file is missing and, with all bad lines at once, when a line is not a JSON object or
    holds NaN or an infinity.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; is this the folder of a run?")
    records: list[dict[str, object]] = []
    problems: list[str] = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            record = json.loads(line, parse_constant=_refuse_constant)
        except ValueError as error:
            problems.append(f"{path}:{number}: not JSON: {error}")
            continue
        if isinstance(record, dict):
            records.append(cast(dict[str, object], record))
        else:
            problems.append(f"{path}:{number}: not a JSON object")
    if problems:
        raise UserError(listed(problems) + "\nremove these lines, or restore the file")
    return records


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


class MetricsFile(JsonLinesFile):
    """Append-only `metrics.jsonl`: one object per logged step, `step` first, then the names in alphabetical order.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "metrics.jsonl"
    >>> with MetricsFile(path) as file:
    ...     file.append(1, {"loss": 0.5, "grad_norm": 2.0})
    ...     file.append(2, {"loss": math.nan})
    Traceback (most recent call last):
    ValueError: metric 'loss' at step 2 is nan, which JSON cannot hold
    >>> read_metrics(path)
    [{'step': 1, 'grad_norm': 2.0, 'loss': 0.5}]
    """

    def append(self, step: int, values: Mapping[str, float]) -> None:
        """Append the numbers of one step.

        Raises ValueError naming the metric for NaN and infinities, TypeError for what is no number (a tensor, a bool).
        The line is written whole or not at all.
        """
        if "step" in values:
            raise ValueError("a metric cannot be named 'step'")
        record: dict[str, object] = {"step": step}
        for name in sorted(values):
            record[name] = _json_number(name, step, values[name])
        self.append_object(record)


def _json_number(name: str, step: int, value: object) -> float | int:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"metric {name!r} at step {step} is a {type(value).__name__}, not a number")
    if isinstance(value, Integral):
        return int(value)
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"metric {name!r} at step {step} is {number}, which JSON cannot hold")
    return number


def read_metrics(path: Path | str) -> list[dict[str, float]]:
    """Every logged step of a `metrics.jsonl`, in the order written; see `read_json_lines` for errors."""
    records = read_json_lines(path)
    problems = [
        f"{path}: object {number} has no whole number 'step', or a value that is not a number"
        for number, record in enumerate(records, start=1)
        if not isinstance(record.get("step"), int) or not all(_is_number(value) for value in record.values())
    ]
    if problems:
        raise UserError(listed(problems))
    return [cast(dict[str, float], record) for record in records]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


class MetricSums:
    """Sums and counts of named numbers, kept on the device; nothing waits for the device until `means`.

    Sums are float64, so the mean of a million float32 terms is exact to more digits than are printed (float32 on
    devices without float64).

    >>> sums = MetricSums("cpu")
    >>> sums.add("loss", torch.tensor(3.0), 2)
    >>> sums.add("loss", torch.tensor(1.0), 2)
    >>> sums.add("reward", 0.0, 0)
    >>> sums.means()
    {'loss': 1.0}
    """

    def __init__(self, device: torch.device | str) -> None:
        self._device = torch.device(device)
        self._dtype = torch.float32 if self._device.type == "mps" else torch.float64
        self._totals_2: dict[str, Tensor] = {}

    @property
    def names(self) -> list[str]:
        """All names seen so far, sorted."""
        return sorted(self._totals_2)

    def add(self, name: str, sum: Tensor | float, count: Tensor | float) -> None:
        """Add a sum of `count` terms; tensors have one element and lie on the device. Raises ValueError otherwise."""
        pair_2 = self._totals_2.get(name)
        if pair_2 is None:
            pair_2 = torch.zeros(2, dtype=self._dtype, device=self._device)
            self._totals_2[name] = pair_2
        for position, value in enumerate((sum, count)):
            if isinstance(value, Tensor):
                if value.numel() != 1:
                    raise ValueError(f"metric {name!r}: expected one number, got a tensor of {tuple(value.shape)}")
                value = value.detach().reshape(())
            pair_2[position] += value

    def reduce(self, fn: Callable[[Tensor], Tensor]) -> "MetricSums":
        """The sums over all processes, as a new object; this one stays as it is.

        `fn` takes a 1-D float64 tensor and returns its sum over the processes; every process calls `reduce`. It is
        called twice: first with three numbers that tell whether all processes hold the same names, then with the sums
        in the order of the sorted names. Without the first call a process that lacks a name would make the second hang
        or add one metric to another. Raises ValueError on every process when the names differ.
        """
        mark = float(zlib.crc32("\n".join(self.names).encode()) % 2**20)
        # Every mark equals mine exactly when the sums of marks and of squares are mine n times over (variance 0).
        processes, marks, squares = fn(self._float64([1.0, mark, mark * mark])).tolist()
        if marks != processes * mark or squares != processes * mark * mark:
            raise ValueError(f"processes disagree on which metrics they hold; this one has {', '.join(self.names)}")
        result = MetricSums(self._device)
        if self._totals_2:
            pairs = torch.cat([self._totals_2[name] for name in self.names])
            totals = fn(pairs if pairs.dtype == torch.float64 else pairs.cpu().double())
            for name, pair_2 in zip(self.names, totals.reshape(-1, 2), strict=True):
                result._totals_2[name] = pair_2.to(self._device, self._dtype, copy=True)
        return result

    def means(self) -> dict[str, float]:
        """Sum divided by count of every name, sorted by name; a name that counted nothing has no mean and is left out.

        Waits for the device once.
        """
        if not self._totals_2:
            return {}
        totals = torch.stack([self._totals_2[name] for name in self.names]).tolist()
        return {name: total / count for name, (total, count) in zip(self.names, totals, strict=True) if count != 0}

    def _float64(self, values: Iterable[float]) -> Tensor:
        device = "cpu" if self._dtype == torch.float32 else self._device
        return torch.tensor(list(values), dtype=torch.float64, device=device)
