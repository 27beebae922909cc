"""Groups as text, one JSON object per line of `transcripts.jsonl`, so that a run can be read and not only plotted.

Knows nothing about how scores came about or what an advantage is: extra numbers arrive by name.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from groupwise.groups import Group, Unanswered
from groupwise.observe.metrics import JsonLinesFile, read_json_lines


class TranscriptsFile(JsonLinesFile):
    """Append-only `transcripts.jsonl`.

    A line is `{"step", "key", "phase", "prompt", "completions": [{"text", "score", "finished", "tokens", ...}]}`, with
    a `"reason"` where nothing was learned from the group; `tokens` counts the end-of-sequence token as well. `decode`
    turns token ids into text.

    >>> import tempfile
    >>> from groupwise.groups import Completion
    >>> group = Group(key="p.json:1", prompt_ids=(65, 66),
    ...               completions=(Completion(token_ids=(67,), finished=False, score=1.0),))
    >>> path = Path(tempfile.mkdtemp()) / "transcripts.jsonl"
    >>> with TranscriptsFile(path, lambda ids: "".join(map(chr, ids))) as file:
    ...     file.append(7, group, phase="train", extra={"advantage": [0.5]})
    >>> read_transcripts(path)[0]["completions"]
    [{'text': 'C', 'score': 1.0, 'finished': False, 'tokens': 1, 'advantage': 0.5}]
    """

    def __init__(self, path: Path | str, decode: Callable[[Sequence[int]], str]) -> None:
        super().__init__(path)
        self._decode = decode

    def append(
        self,
        step: int,
        group: Group | Unanswered,
        *,
        phase: str,
        extra: Mapping[str, Sequence[float]] | None = None,
        reason: str | None = None,
    ) -> None:
        """Append one group; `extra` holds one number per completion under each name ("advantage", "margin").

        `reason` says why nothing was learned from it, where that is so.

        Raises ValueError naming the group when a score or extra number is NaN or infinite, when a name of `extra` is
        one of the line's own, or when it does not hold one number per completion.
        """
        columns = dict(extra or {})
        for name, numbers in columns.items():
            if name in ("text", "score", "finished", "tokens"):
                raise ValueError(f"{group.key}: extra numbers cannot be named {name!r}")
            if len(numbers) != len(group.completions):
                raise ValueError(
                    f"{group.key}: {len(numbers)} numbers named {name!r} for {len(group.completions)} completions"
                )
        completions = [
            {
                "text": self._decode(completion.token_ids),
                "score": _finite(completion.score, "score", group.key),
                "finished": completion.finished,
                "tokens": len(completion.token_ids),
                **{name: _finite(numbers[i], name, group.key) for name, numbers in columns.items()},
            }
            for i, completion in enumerate(group.completions)
        ]
        prompt = self._decode(group.prompt_ids)
        because = {} if reason is None else {"reason": reason}
        self.append_object(
            {"step": step, "key": group.key, "phase": phase, **because, "prompt": prompt, "completions": completions}
        )


def _finite(value: float, name: str, key: str) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{key}: {name} is {number}, which JSON cannot hold")
    return number


def read_transcripts(path: Path | str) -> list[dict[str, object]]:
    """Every group of a `transcripts.jsonl`, in the order written; errors as in `read_json_lines`."""
    return read_json_lines(path)
