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
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

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


def save_checkpoint(
    folder: Path,
    position: Position,
    *,
    parameters: Mapping[str, nn.Parameter],
    optimizer: Optimizer,
    more: Iterable[Callable[[Path], None]] = (),
    writes: bool = True,
) -> Path:
    """Write `folder/step-000100` and return it; a checkpoint of that step that is already there is replaced.

    Each of `more` is called with the folder and may write files of its own into it. Where weights are spread over
    processes all of them must call, and one `writes`.
    """
    target = folder / step_name(position.step)
    weights = {name: _on_disk(p) for name, p in parameters.items()}
    moments = _optimizer_tensors(optimizer, names_by_index(optimizer, parameters))
    if not writes:
        return target
    aside = folder / f".writing-{target.name}"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    save_file(weights, aside / "weights.safetensors")
    save_file(moments, aside / "optimizer.safetensors")
    save_file(_generator_states(), aside / "generators.safetensors")
    state = {**dataclasses.asdict(position), "python_random": _jsonable(random.getstate())}
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


def load_checkpoint(checkpoint: Path, *, parameters: Mapping[str, nn.Parameter], optimizer: Optimizer) -> Position:
    """Put weights, optimizer state and random generators back as they were; returns where the run stood.

    Raises UserError when the files are whole but are not those of this run.
    """
    try:
        load_weights(checkpoint, parameters)
        _restore_optimizer(optimizer, parameters, load_file(checkpoint / "optimizer.safetensors"))
        state = json.loads((checkpoint / "state.json").read_text())
        _restore_generators(load_file(checkpoint / "generators.safetensors"), state["python_random"])
        return Position(**{field.name: state[field.name] for field in dataclasses.fields(Position)})
    except (KeyError, TypeError, ValueError, RuntimeError, OSError, SafetensorError) as error:
        raise UserError(
            f"{checkpoint}: is no checkpoint of this run: {type(error).__name__}: {error}; delete it, and the one "
            "before it is used"
        ) from error


def load_weights(checkpoint: Path, parameters: Mapping[str, nn.Parameter]) -> None:
    """Put the weights of a checkpoint into the parameters; raises ValueError when it holds others."""
    weights = load_file(checkpoint / "weights.safetensors")
    if set(weights) != set(parameters):
        raise ValueError("it holds other parameters than this model trains")
    for name, p in parameters.items():
        assign(p, weights[name])


def is_complete(checkpoint: Path) -> bool:
    """Whether the folder is there and its manifest verifies."""
    return checkpoint.is_dir() and _fault(checkpoint) is None


def newest_complete(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint whose manifest verifies, and a line about each newer one that was passed over."""
    passed_over: list[str] = []
    for checkpoint in _newest_first(folder):
        fault = _fault(checkpoint)
        if fault is None:
            return checkpoint, passed_over
        passed_over.append(f"{checkpoint}: passed over, {fault}")
    return None, passed_over


def delete_old(folder: Path, keep: int, *, best: int | None = None) -> None:
    """Keep the newest `keep` checkpoints that verify and that of step `best`; delete the others, and leftovers."""
    complete = [checkpoint for checkpoint in _newest_first(folder) if _fault(checkpoint) is None]
    kept = {*complete[:keep], *(checkpoint for checkpoint in complete if checkpoint.name == step_name(best))}
    for checkpoint in set(_newest_first(folder)) - kept:
        shutil.rmtree(checkpoint)
    for leftover in folder.glob(".writing-*"):
        shutil.rmtree(leftover)


def step_name(step: int | None) -> str:
    """Name of a step's checkpoint.

    >>> step_name(100)
    'step-000100'
    """
    return "" if step is None else f"step-{step:06d}"


def _newest_first(folder: Path) -> list[Path]:
    """The folders that are named like checkpoints; what a link points to was not written by a run."""
    found = [path for path in folder.glob("step-*") if _NAME.fullmatch(path.name) and not path.is_symlink()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")), reverse=True)


def _fault(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint on disk, or None."""
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


def _optimizer_tensors(optimizer: Optimizer, names: Sequence[str]) -> dict[str, Tensor]:
    """Optimizer state as `parameter/quantity` tensors."""
    state: dict[int, dict[str, Any]] = optimizer.state_dict()["state"]
    return {
        f"{names[index]}/{quantity}": _on_disk(torch.as_tensor(value))
        for index, quantities in state.items()
        for quantity, value in quantities.items()
    }


def _on_disk(value: Tensor) -> Tensor:
    """All of a tensor, as files hold it."""
    return whole_tensor(value).detach().cpu().contiguous()


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
    """Global generators: nothing of ours draws from them, but a reward or a model may."""
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


def _restore_generators(states: Mapping[str, Tensor], python_random: Any) -> None:
    torch.set_rng_state(states["torch_cpu"])
    position, has_gauss = states["numpy_position"].tolist()
    keys = states["numpy_keys"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, position, has_gauss, states["numpy_cached"].item()))
    version, numbers, gauss = python_random
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
