"""Saving checkpoints while a run goes on: the newest few and the best stay, a save that fails costs a line.

Knows nothing about what is in a checkpoint (checkpoint.py), nor about what makes one the best.
"""

import functools
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from safetensors import SafetensorError
from torch import nn

from groupwise.errors import UserError
from groupwise.train.checkpoint import Position, delete_old, save_checkpoint
from groupwise.train.optimizer import Optimizer

_SLACK = 4 * 2**20  # bytes for all that is not weights and optimizer state


def state_bytes(parameters: Iterable[nn.Parameter]) -> int:
    """Trained weights and two moments of each, which is more than rmsprop has."""
    return 3 * sum(p.numel() * p.element_size() for p in parameters)


def checkpoint_bytes(parameters: Mapping[str, nn.Parameter]) -> int:
    """What one checkpoint takes."""
    return state_bytes(parameters.values()) + _SLACK


def check_space(folder: Path, parameters: Mapping[str, nn.Parameter], *, keep: int) -> tuple[int, int]:
    """Bytes that a run's checkpoints will take, and bytes that are free; `folder` need not exist yet.

    Raises UserError when the disk cannot hold the checkpoints of the whole run, the final weights included.
    """
    there = len(list(folder.glob("step-*")))
    # The newest, the best, the one being written, and room for the final weights and the records.
    wanted = checkpoint_bytes(parameters) * max(2, keep + 3 - there)
    free = shutil.disk_usage(next(place for place in (folder, *folder.absolute().parents) if place.is_dir())).free
    if free < wanted:
        raise UserError(
            f"{folder}: {size_text(free)} are free and this run's checkpoints take {size_text(wanted)}; free some "
            "space, choose another --run.folder, or lower run.keep_checkpoints"
        )
    return wanted, free


class CheckpointKeeper:
    """Saves and rotates the checkpoints of one run. `say` shows a line to a person."""

    def __init__(
        self,
        folder: Path,
        *,
        parameters: Mapping[str, nn.Parameter],
        optimizer: Optimizer,
        keep: int,
        say: Callable[[str], None],
    ) -> None:
        self._folder = folder
        self._parameters = parameters
        self._optimizer = optimizer
        self._keep = keep
        self._say = say

    @property
    def bytes_each(self) -> int:
        """What one checkpoint takes."""
        return checkpoint_bytes(self._parameters)

    def check_space(self) -> None:
        """Raise UserError when the disk cannot hold the checkpoints of the whole run, the final weights included."""
        check_space(self._folder, self._parameters, keep=self._keep)

    def tidy(self, best: int | None) -> None:
        """Delete what is too old, and what interrupted saves left; `best` is the step that stays whatever its age."""
        delete_old(self._folder, self._keep, best=best)

    def save(self, position: Position, more: Iterable[Callable[[Path], None]] = (), *, writes: bool = True) -> bool:
        """Write a checkpoint and delete what is too old; says so and returns False when the disk does not take it.

        `more` write files of their own into its folder. Every process calls, and one `writes`.
        """
        save = functools.partial(
            save_checkpoint, self._folder, position, parameters=self._parameters, optimizer=self._optimizer
        )
        if not writes:
            save(writes=False)
            return True
        free = shutil.disk_usage(self._folder).free
        if free < self.bytes_each:
            save(writes=False)  # others may be waiting for this process's part
            return self._failed(position, f"{size_text(free)} are free, {size_text(self.bytes_each)} are needed")
        try:
            save(more=more)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(self._folder / f".writing-step-{position.step:06d}", ignore_errors=True)
            return self._failed(position, str(error))
        self.tidy(position.best_step)
        return True

    def _failed(self, position: Position, why: str) -> bool:
        self._say(
            f"warning: {self._folder}: the checkpoint of step {position.step} could not be saved: {why}; the run goes "
            "on, and the checkpoints before it stay"
        )
        return False


def size_text(count: int) -> str:
    """Bytes for people.

    >>> size_text(3_200_000), size_text(7_000_000_000)
    ('3.2 MB', '7.0 GB')
    """
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
