"""Checkpoints: everything that a continued run needs, complete on disk or absent. safetensors and JSON, never pickle.

A checkpoint is written into a folder aside, every file is synced, the SHA-256 of each goes into a manifest, and one
rename makes it real. Resuming takes the newest one whose manifest verifies. A checkpoint may come from a stranger: only
plain files inside its folder are read. Knows nothing about what is trained.
"""

import dataclasses
import hashlib
import json
import os
import random
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from groupwise.errors import UserError
from groupwise.model.sharding import assign, like, whole_tensor
from groupwise.train.optimizer import Optimizer, names_by_index

MANIFEST = "manifest.json"
_OWN_FILES = ("weights.safetensors", "optimizer.safetensors", "generators.safetensors", "state.json")
_NAME = re.compile(r"step-\d+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """Where a run stands at a step boundary; the data order is a function of the step, so the step says it all.

    `identity` names what the run is made of that its configuration only points to: hashes of base model and data.
    `offsets` are the lengths in bytes of the run's append-only files, by name; `tokens` and `seconds` what the run
    has cost so far; `skipped` the steps passed over because they were not finite; `best_step` the step that was best on
    held-out data, with its value.
    """

    step: int
    identity: Mapping[str, str]
    offsets: Mapping[str, int]
    tokens: int
    seconds: float
    skipped: int = 0
    best_step: int | None = None
    best_value: float | None = None


@dataclass(frozen=True, slots=True)
class Generators:
    """States of the global generators: nothing of ours draws from them, but a reward or a model may."""

    tensors: Mapping[str, Tensor]
    python: Any

    @classmethod
    def now(cls) -> Self:
        """As they are; a copy."""
        return cls(_generator_states(), random.getstate())


@dataclass(frozen=True, slots=True)
class Trained:
    """What training made, whole and on the CPU: weights by name, and optimizer state by `name/quantity`."""

    weights: Mapping[str, Tensor]
    moments: Mapping[str, Tensor]


def whole_state(parameters: Mapping[str, nn.Parameter], optimizer: Optimizer, *, kept: bool) -> Trained:
    """Weights and optimizer state as files hold them.

    Where they are spread over processes all of them call. One that has not `kept` them gets none, and holds one tensor
    at a time on the way.
    """
    moments = _optimizer_tensors(optimizer, names_by_index(optimizer, parameters))
    return Trained(_taken(parameters.items(), kept=kept), _taken(moments, kept=kept))


def write_checkpoint(
    folder: Path,
    position: Position,
    trained: Trained,
    generators: Generators,
    more: Iterable[Callable[[Path], None]] = (),
) -> Path:
    """Write `folder/step-000100` and return it; a checkpoint of that step that is already there is replaced.

    Each of `more` is called with the folder and may write files of its own into it.
    """
    target = folder / step_name(position.step)
    aside = folder / f".writing-{target.name}"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    save_file(dict(trained.weights), aside / "weights.safetensors")
    save_file(dict(trained.moments), aside / "optimizer.safetensors")
    save_file(dict(generators.tensors), aside / "generators.safetensors")
    state = {**dataclasses.asdict(position), "python_random": _jsonable(generators.python)}
    (aside / "state.json").write_text(json.dumps(state, indent=2) + "\n")
    for write in more:
        write(aside)
    manifest = {file.name: _sha256(file) for file in sorted(aside.iterdir())}
    (aside / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    for file in aside.iterdir():
        sync(file)
    sync(aside)
    shutil.rmtree(target, ignore_errors=True)
    aside.rename(target)
    sync(folder)
    return target


@dataclass(frozen=True, slots=True)
class Contents:
    """What the files of a checkpoint hold of training and of the global generators."""

    checkpoint: Path
    position: Position
    trained: Trained
    generators: Generators

    def put_back(self, parameters: Mapping[str, nn.Parameter], optimizer: Optimizer) -> Position:
        """Make weights, optimizer state and random generators what they were; returns where the run stood.

        Where weights are spread over processes all of them call. Raises UserError as `read_checkpoint` does.
        """
        try:
            assign_weights(self.trained.weights, parameters)
            _restore_optimizer(optimizer, parameters, self.trained.moments)
            _restore_generators(self.generators)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise _foreign(self.checkpoint, error) from error
        return self.position


def read_checkpoint(checkpoint: Path, parameters: Mapping[str, nn.Parameter]) -> Contents:
    """What the files hold. Raises UserError when they are whole but are not those of a run that trains `parameters`."""
    try:
        weights = read_weights(checkpoint, parameters)
        moments = load_file(checkpoint / "optimizer.safetensors")
        state = json.loads((checkpoint / "state.json").read_text())
        return Contents(
            checkpoint,
            Position(**{field.name: state[field.name] for field in dataclasses.fields(Position)}),
            Trained(weights, moments),
            Generators(load_file(checkpoint / "generators.safetensors"), state["python_random"]),
        )
    except (KeyError, TypeError, ValueError, OSError, SafetensorError) as error:
        raise _foreign(checkpoint, error) from error


def _foreign(checkpoint: Path, error: Exception) -> UserError:
    return UserError(
        f"{checkpoint}: is no checkpoint of this run: {type(error).__name__}: {error}; delete it, and the one before "
        "it is used"
    )


def read_weights(checkpoint: Path, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """The weights of a checkpoint, whole; raises ValueError when it holds others than `parameters`."""
    weights = load_file(checkpoint / "weights.safetensors")
    if set(weights) != set(parameters):
        raise ValueError("it holds other parameters than this model trains")
    return weights


def assign_weights(weights: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter]) -> None:
    """Put whole weights into the parameters; where these are spread over processes all of them call."""
    for name, p in parameters.items():
        assign(p, weights[name])


def fault(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint on disk, or None; reads all of it."""
    try:
        manifest: dict[str, str] = dict(json.loads((checkpoint / MANIFEST).read_text()))
    except (OSError, ValueError, TypeError):
        return f"its {MANIFEST} is missing or damaged"
    for name in manifest:
        file = checkpoint / name
        if Path(name).name != name or file.is_symlink():
            return f"{name!r} is not a plain file of its own"
        if not file.is_file():
            return f"{name} is missing"
    absent = [name for name in _OWN_FILES if name not in manifest]
    if absent:
        return f"its {MANIFEST} does not list {', '.join(absent)}"
    for name, digest in manifest.items():
        if _sha256(checkpoint / name) != digest:
            return f"{name} does not have the bytes that were written"
    return None


Fault = Callable[[Path], str | None]
"""Like `fault`, which reads all of a checkpoint; whoever has done so before may know without."""


def newest_complete(folder: Path, fault: Fault = fault) -> tuple[Path | None, list[str]]:
    """The newest checkpoint whose manifest verifies, and a line about each newer one that was passed over."""
    passed_over: list[str] = []
    for checkpoint in newest_first(folder):
        found = fault(checkpoint)
        if found is None:
            return checkpoint, passed_over
        passed_over.append(f"{checkpoint}: passed over, {found}")
    return None, passed_over


def newest_first(folder: Path) -> list[Path]:
    """The folders that are named like checkpoints, unread; what a link points to was not written by a run."""
    found = [path for path in folder.glob("step-*") if _NAME.fullmatch(path.name) and not path.is_symlink()]
    return sorted(found, key=step_of, reverse=True)


def delete_old(folder: Path, keep: int, *, best: int | None = None, fault: Fault = fault) -> list[str]:
    """Keep the newest `keep` checkpoints that verify and that of step `best`; delete the others, and leftovers.

    Returns what the disk did not let go, a line for each; it is tried again next time.
    """
    newest, stays = 0, set[Path]()
    for checkpoint in newest_first(folder):
        is_best = checkpoint.name == step_name(best)
        if (newest < keep or is_best) and fault(checkpoint) is None:
            newest += 1
            stays.add(checkpoint)
    problems: list[str] = []
    for path in (*(one for one in newest_first(folder) if one not in stays), *folder.glob(".writing-*")):
        try:
            shutil.rmtree(path)
        except OSError as error:
            problems.append(f"{path} could not be deleted: {error}")
    return problems


def step_name(step: int | None) -> str:
    """Name of a step's checkpoint.

    >>> step_name(100)
    'step-000100'
    """
    return "" if step is None else f"step-{step:06d}"


def step_of(checkpoint: Path) -> int:
    """The step that a checkpoint's name says."""
    return int(checkpoint.name.removeprefix("step-"))


def _optimizer_tensors(optimizer: Optimizer, names: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
    """Optimizer state by `parameter/quantity`, each as this process holds it."""
    state: dict[int, dict[str, Any]] = optimizer.state_dict()["state"]
    for index, quantities in state.items():
        for quantity, value in quantities.items():
            yield f"{names[index]}/{quantity}", torch.as_tensor(value)


def _taken(tensors: Iterable[tuple[str, Tensor]], *, kept: bool) -> dict[str, Tensor]:
    """All of each tensor on the CPU; none where they are not kept, for whoever only does its part for the others."""
    found: dict[str, Tensor] = {}
    for name, value in tensors:
        if kept:
            found[name] = whole_tensor(value).detach().cpu().contiguous()
        else:
            whole_tensor(value)
    return found


def _restore_optimizer(
    optimizer: Optimizer, parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]
) -> None:
    index_of = {name: index for index, name in enumerate(names_by_index(optimizer, parameters))}
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        name, quantity = key.rsplit("/", 1)
        p = parameters[name]
        state.setdefault(index_of[name], {})[quantity] = like(value, p) if value.shape == p.shape else value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _generator_states() -> dict[str, Tensor]:
    """Those of PyTorch and NumPy."""
    _, keys, position, has_gauss, cached = cast(
        tuple[str, NDArray[np.uint32], int, int, float], np.random.get_state(legacy=True)
    )
    states = {
        "torch_cpu": torch.get_rng_state(),
        "numpy_keys": torch.from_numpy(keys.astype(np.int64)),
        "numpy_position": torch.tensor([position, has_gauss]),
        "numpy_cached": torch.tensor([cached], dtype=torch.float64),
    }
    if torch.cuda.is_available():
        states |= {f"torch_cuda_{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    return states


def _restore_generators(generators: Generators) -> None:
    states = generators.tensors
    torch.set_rng_state(states["torch_cpu"])
    position, has_gauss = states["numpy_position"].tolist()
    keys = states["numpy_keys"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, position, has_gauss, states["numpy_cached"].item()))
    version, numbers, gauss = generators.python
    random.setstate((version, tuple(numbers), gauss))
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            if f"torch_cuda_{i}" in states:
                torch.cuda.set_rng_state(states[f"torch_cuda_{i}"], i)


def _jsonable(value: Any) -> Any:
    return [_jsonable(item) for item in value] if isinstance(value, tuple) else value


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Return once a file's bytes, or a folder's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
