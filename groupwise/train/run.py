"""Opening a run: is it new, continued or finished, where does it run, and what is said about it. Knows no method."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from filelock import BaseFileLock, FileLock, Timeout
from rich.console import Console

from groupwise.config import Section, settings
from groupwise.errors import RunStopped, UserError, printable
from groupwise.model.loading import load_network
from groupwise.model.policy import Policy
from groupwise.sections import ModelSection, RunSection
from groupwise.train.agreement import ONE_DISK, check_same, file_hash
from groupwise.train.checkpoint import assign_weights, newest_first
from groupwise.train.run_folder import RunFolder
from groupwise.train.runtime import Runtime


@dataclass(frozen=True, slots=True)
class Run:
    """An open run: its folder, its processes, and the terminal of the main one.

    From `hold`, or from `begin` where the folder is new, to the end of the `with` block nobody else can train in the
    folder. The lock is the operating system's: it goes with the process, however that ends.
    """

    folder: RunFolder
    runtime: Runtime
    console: Console
    locks: list[BaseFileLock] = field(default_factory=list[BaseFileLock])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for lock in self.locks:
            lock.release()
        if error is not None and self.runtime.lost_contact(error):
            newest = next(iter(newest_first(self.folder.checkpoints)), None)
            raise RunStopped(
                f"another process of this run has ended, or cannot be reached ({str(error).splitlines()[0]}); the "
                f"newest checkpoint is {newest or 'none'}; look for what the other process said, then start the same "
                "command again"
            ) from error
        self.runtime.close()

    def hold(self) -> None:
        """Take the folder where it is there already, before anything outside of it is touched; a new one is not made.

        Raises UserError, on every process, when another run is being trained in the folder.
        """
        self._take(lambda: not self.folder.path.is_dir() or self._lock())

    def begin(self, config: Section, identity: Mapping[str, str], notes: Sequence[str]) -> None:
        """Everything is loaded and checked: make the folder, and tell what was found.

        `identity` holds hashes of what was loaded. Raises UserError, on every process, when another run is being
        trained in the folder, when processes have loaded different things, or do not see the same folder.
        """
        check_same(identity, self.runtime, remedy="give every node the same model and data")
        self._take(self._lock)
        self.runtime.together(lambda: self.folder.create(config) if self.runtime.is_main else None)
        file = self.folder.config
        check_same({str(file): file_hash(file)}, self.runtime, remedy=ONE_DISK)
        for note in notes:
            self.say(note)

    def _take(self, take: Callable[[], bool]) -> None:
        """Have the main process take the folder."""
        if not self.runtime.from_main(take):
            raise UserError(
                f"{self.folder.path}: another process is training in this folder; wait for it, stop it, or choose "
                "another --run.name"
            )

    def _lock(self) -> bool:
        """Whether the folder is ours now; where the file system has no locks, that is said and nothing is noticed."""
        if self.locks:
            return True
        self.folder.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder.lock, timeout=0)
        try:
            lock.acquire()
        except Timeout:
            return False
        except NotImplementedError:
            self.say(f"warning: {self.folder.path} lies where there are no locks; start no second process on this run")
        self.locks.append(lock)
        return True

    def say(self, line: str) -> None:
        """A line of the main process on the terminal."""
        say(self.console, line)


def open_run(config: Section, section: RunSection, folder: RunFolder, console: Console) -> Run | None:
    """The run that a configuration asks for, or None when it is finished; writes nothing.

    Raises UserError when the folder belongs to something else, when several processes do not find each other, or when
    they were configured differently.
    """
    runtime = Runtime(
        mixed_precision=section.mixed_precision,
        trackers=section.trackers,
        folder=folder.path,
        seed=section.seed,
        sharding=section.sharding,
        zero_settings=None if section.zero_settings is None else Path(section.zero_settings),
    )
    asked = {one.key: one.value for one in settings(config)}
    check_same(asked, runtime, remedy="start all of them by the same command")
    own = console if runtime.is_main else Console(quiet=True)
    if runtime.processes > 1:
        say(own, f"{runtime.processes} processes, the first on {runtime.device}; run.sharding {section.sharding}")
    state, notes = runtime.from_main(lambda: folder.state(config, resume=section.resume))
    for note in notes:
        say(own, note)
    if state == "finished":
        say(own, f"{folder.path} is finished; a new run needs another --run.name")
        runtime.close()
        return None
    return Run(folder, runtime, own)


def judging_runtime(section: RunSection) -> Runtime:
    """Where a finished run is judged again: weights are spread as they were, by PyTorch, for nothing is trained."""
    spread = section.sharding in ("fsdp2", "zero3")
    return Runtime(mixed_precision=section.mixed_precision, sharding="fsdp2" if spread else "none")


def restore_trained(policy: Policy, folder: RunFolder, model: ModelSection) -> dict[str, Any]:
    """Put what a finished run trained back into its base model, and return the run's summary.

    Raises UserError when the base model is another one.
    """
    summary: dict[str, Any] = json.loads(folder.summary.read_text())
    if policy.base_fingerprint() != summary["hashes"]["base_model"]:
        raise UserError(f"model.path: {model.path} is not the model that {folder.path} was trained from")
    is_adapter = (folder.adapter / "adapter_config.json").is_file()
    if policy.sharded and not is_adapter:  # each process takes its part of whole weights
        trained = load_network(ModelSection(path=str(folder.adapter), dtype=model.dtype))
        assign_weights(trained.state_dict(), policy.trainable())
    else:
        policy.restore(folder.adapter)
    return summary


def say(console: Console, line: str) -> None:
    """A line as it is: no markup, no colours, no control characters, and no breaks that a search would stumble over."""
    console.print(printable(line), markup=False, highlight=False, soft_wrap=True)
