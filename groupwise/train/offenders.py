"""Groups that something not finite came from, written into the run folder for a person to look at.

Knows nothing about losses, nor what becomes of the run.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from groupwise.groups import Group, NotFinite, Unanswered
from groupwise.observe.transcripts import TranscriptsFile
from groupwise.train.exchange import Exchange


def keep_offenders(
    fault: NotFinite,
    folder: Path,
    name: str,
    step: int,
    decode: Callable[[Sequence[int]], str],
    exchange: Exchange,
    *,
    before: Sequence[Group] = (),
) -> str:
    """What was not finite, in words, and where its groups now lie as text: in `folder/name.jsonl`.

    Where all groups are bad alike these are those of the step `before`. Every process calls, the main one writes, and
    nobody goes on before that is done: a process that leaves takes the others with it.
    """
    groups = fault.groups or before
    file = exchange.from_main(lambda: _written(folder, name, step, groups, decode))
    return f"{fault}; {'these' if fault.groups else 'the groups of the step before'} are in {file}"


def _written(
    folder: Path, name: str, step: int, groups: Sequence[Group | Unanswered], decode: Callable[[Sequence[int]], str]
) -> Path:
    """The file, in the place of what an earlier try left."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.jsonl"
    file.unlink(missing_ok=True)
    with TranscriptsFile(file, decode) as transcripts:
        for group in groups:
            transcripts.append(step, group, phase="not finite")
    return file
