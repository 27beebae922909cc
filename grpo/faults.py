"""What rewards did wrong, kept in faults.jsonl and shown at first. Knows nothing about what becomes of a completion."""

from collections.abc import Callable, Sequence
from pathlib import Path

from groupwise.observe.metrics import JsonLinesFile
from groupwise.rewards.scorer import Fault

_SHOWN = 5


class FaultLog:
    """Every fault as a line of a file; the first five also as lines for a person.

    The file only grows: what a stopped run wrote after its last checkpoint stays, and comes again.
    """

    def __init__(self, path: Path, say: Callable[[str], None], *, writes: bool = True) -> None:
        self._path = path
        self.say = say
        self._writes = writes
        self._seen = 0

    def note(self, faults: Sequence[Fault], *, phase: str) -> None:
        """Keep these faults, met in training ("train") or in evaluation ("eval")."""
        if not faults:
            return
        for fault in faults[: max(0, _SHOWN - self._seen)]:
            self.say(
                f"warning: reward {fault.reward} {fault.kind}: {fault.message}; prompt {fault.prompt[-200:]!r}, "
                f"completion {fault.completion[:200]!r}"
            )
        self._seen += len(faults)
        if self._seen - len(faults) < _SHOWN <= self._seen:
            self.say(f"further faults of rewards are only counted (rewards/faults), and kept in {self._path}")
        if self._writes:
            with JsonLinesFile(self._path) as file:
                file.truncate(file.offset)  # a process that was killed may have left half a line
                for fault in faults:
                    file.append_object(
                        {
                            "phase": phase,
                            "reward": fault.reward,
                            "kind": fault.kind,
                            "message": fault.message,
                            "prompt": fault.prompt,
                            "completion": fault.completion,
                        }
                    )
