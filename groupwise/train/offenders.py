"""Groups that something not finite came from, written into the run folder for a person to look at.

Knows nothing about losses, nor what becomes of the run.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from groupwise.groups import Group, Unanswered
from groupwise.observe.transcripts import TranscriptsFile


def keep_offenders(
    folder: Path, name: str, step: int, groups: Sequence[Group | Unanswered], decode: Callable[[Sequence[int]], str]
) -> Path:
    """Write the groups as text to `folder/name.jsonl`, in the place of what an earlier try left, and return that."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.jsonl"
    file.unlink(missing_ok=True)
    with TranscriptsFile(file, decode) as transcripts:
        for group in groups:
            transcripts.append(step, group, phase="not finite")
    return file
