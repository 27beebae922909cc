"""Checkpoints while a run goes on: the newest few and the best stay, a save or a deletion that fails costs a line.

Knows nothing about what is in a checkpoint (checkpoint.py), nor about what makes one the best.
"""

import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from safetensors import SafetensorError
from torch import nn

from groupwise.errors import UserError
from groupwise.train.agreement import ONE_DISK, check_same, file_hash
from groupwise.train.checkpoint import (
    MANIFEST,
    Generators,
    Position,
    Trained,
    delete_old,
    fault,
    newest_complete,
    step_name,
    step_of,
    whole_state,
    write_checkpoint,
)
from groupwise.train.exchange import Exchange
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
    """Finds, saves and rotates the checkpoints of one run. `say` shows a line to a person.

    All processes call the same methods: the main one looks, decides and writes, and tells the others. `newest` is the
    newest whole checkpoint that it knows of, the same on every process. What it has written or read through once it
    does not read again.
    """

    def __init__(
        self,
        folder: Path,
        *,
        parameters: Mapping[str, nn.Parameter],
        optimizer: Optimizer,
        keep: int,
        say: Callable[[str], None],
        exchange: Exchange,
    ) -> None:
        self.newest: Path | None = None
        self._folder = folder
        self._parameters = parameters
        self._optimizer = optimizer
        self._keep = keep
        self._say = say
        self._exchange = exchange
        self._whole: set[str] = set()  # names, on the main process

    @property
    def newest_step(self) -> int | None:
        """The step of the newest whole checkpoint."""
        return None if self.newest is None else step_of(self.newest)

    @property
    def bytes_each(self) -> int:
        """What one checkpoint takes."""
        return checkpoint_bytes(self._parameters)

    def check_space(self) -> None:
        """Raise UserError when the disk cannot hold the checkpoints of the whole run, the final weights included."""
        self._exchange.together(self._check_space)

    def _check_space(self) -> None:
        if self._exchange.is_main:
            check_space(self._folder, self._parameters, keep=self._keep)

    # --- going on from one

    def find_newest(self) -> Path | None:
        """The newest whole checkpoint; says which newer ones were passed over.

        Raises UserError where a process does not see the same one.
        """
        self.newest, passed_over = self._exchange.from_main(lambda: newest_complete(self._folder, self._fault))
        for line in passed_over:
            self._say(line)
        if self.newest is not None:
            self.check_seen(self.newest)
        return self.newest

    def check_seen(self, checkpoint: Path) -> None:
        """Raise UserError where a process does not see the same checkpoint that the main one does."""
        check_same({str(checkpoint): file_hash(checkpoint / MANIFEST)}, self._exchange, remedy=ONE_DISK)

    def _fault(self, checkpoint: Path) -> str | None:
        """As `fault`, without reading again what is known to be whole."""
        if checkpoint.name in self._whole:
            return None
        found = fault(checkpoint)
        if found is None:
            self._whole.add(checkpoint.name)
        return found

    # --- saving one

    def save(
        self,
        position: Position,
        more: Iterable[Callable[[Path], None]] = (),
        *,
        generators: Generators | None = None,
    ) -> bool:
        """Write a checkpoint and delete what is too old; says so and returns False when the disk does not take it.

        `more` write files of their own into its folder; `generators` are the states now, if not given.
        """
        problem = self._exchange.from_main(self._lack_of_room)
        if problem is None:
            trained = whole_state(self._parameters, self._optimizer, kept=self._exchange.is_main)
            states = generators or Generators.now()
            problem = self._exchange.from_main(lambda: self._problem_of_writing(position, trained, states, more))
        if problem is not None:
            self._say(
                f"warning: {self._folder}: the checkpoint of step {position.step} could not be saved: {problem}; the "
                "run goes on, and the checkpoints before it stay"
            )
            return False
        self.newest = self._folder / step_name(position.step)
        self.tidy(position.best_step)
        return True

    def _lack_of_room(self) -> str | None:
        try:
            free = shutil.disk_usage(self._folder).free
        except OSError as error:
            return str(error)
        wanted = self.bytes_each
        return None if free >= wanted else f"{size_text(free)} are free, {size_text(wanted)} are needed"

    def _problem_of_writing(
        self, position: Position, trained: Trained, generators: Generators, more: Iterable[Callable[[Path], None]]
    ) -> str | None:
        """Write it; what the disk says against that."""
        self._whole.discard(step_name(position.step))
        try:
            written = write_checkpoint(self._folder, position, trained, generators, more)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(self._folder / f".writing-{step_name(position.step)}", ignore_errors=True)
            return str(error)
        self._whole.add(written.name)
        return None

    def tidy(self, best: int | None) -> None:
        """Delete what is too old, and what interrupted saves left; `best` is the step that stays whatever its age.

        Says what cannot be deleted; it is tried again after the next save.
        """
        if not self._exchange.is_main:
            return
        for problem in delete_old(self._folder, self._keep, best=best, fault=self._fault):
            self._say(f"warning: {problem}; it is tried again after the next save")


def size_text(count: int) -> str:
    """Bytes for people.

    >>> size_text(3_200_000), size_text(7_000_000_000)
    ('3.2 MB', '7.0 GB')
    """
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
