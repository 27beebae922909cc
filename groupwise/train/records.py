"""The files that grow while a run goes on: metrics, transcripts, held-out values. The main process alone writes them.

Knows nothing about what is trained.
"""

import contextlib
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass

from groupwise.groups import Group
from groupwise.observe.metrics import JsonLinesFile, MetricsFile
from groupwise.observe.transcripts import TranscriptsFile
from groupwise.train.run_folder import RunFolder


@dataclass(frozen=True, slots=True)
class Records:
    """The files of one run, open."""

    metrics: MetricsFile
    transcripts: TranscriptsFile
    heldout: JsonLinesFile

    @property
    def _named(self) -> dict[str, JsonLinesFile]:
        """By their names in a checkpoint."""
        return {"metrics": self.metrics, "transcripts": self.transcripts, "heldout": self.heldout}

    def cut_back(self, offsets: Mapping[str, int]) -> None:
        """Make every file as long as it was; one that is not named becomes empty. Raises UserError."""
        for name, file in self._named.items():
            file.truncate(offsets.get(name, 0))

    def sync(self) -> dict[str, int]:
        """Lengths in bytes of the files by their names, once all of that is on the disk."""
        return {name: file.sync() for name, file in self._named.items()}

    def write_transcripts(self, step: int, learned: Sequence[Group], passed_over: Sequence[tuple[Group, str]]) -> None:
        """Some groups of a step as text: those that were learned from, and those that taught nothing."""
        for group in learned:
            self.transcripts.append(step, group, phase="train", extra=_advantages(group))
        for group, reason in passed_over:
            self.transcripts.append(step, group, phase="train", reason=reason)


@contextlib.contextmanager
def open_records(folder: RunFolder, decode: Callable[[Sequence[int]], str]) -> Generator[Records, None, None]:
    """The files of a run while the block runs."""
    with (
        MetricsFile(folder.metrics) as metrics,
        TranscriptsFile(folder.transcripts, decode) as transcripts,
        JsonLinesFile(folder.heldout) as heldout,
    ):
        yield Records(metrics, transcripts, heldout)


def _advantages(group: Group) -> dict[str, list[float]]:
    """Mean advantage of each completion for the transcript, where there are any."""
    means = [completion.advantage.mean().item() for completion in group.completions if completion.advantage is not None]
    return {"advantage": means} if means else {}
