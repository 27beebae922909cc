"""Ways for a program to end early, and what its user then reads. Knows nothing about what went wrong.

Exit codes: 0 done, 2 something the user can mend (UserError, a full disk), 3 the run stopped itself (RunStopped), 130
and 143 Ctrl-C and SIGTERM. Anything else is a fault of this project and shows its traceback (exit code 1).
"""

import errno
import sys
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager

_OF_THE_DISK = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO))


class UserError(Exception):
    """Input that cannot be used: the message names the file, row or key, what is wrong, and the remedy.

    The entry points print it without a traceback and exit with code 2.
    """


class RunStopped(Exception):
    """A run that went wrong and stopped itself before harm was done; the message says what is saved and what to try."""


class Interrupted(Exception):
    """A run that was asked to stop by a signal, and has; `exit_code` is 128 + the signal's number."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


@contextmanager
def exit_with_user_errors() -> Generator[None, None, None]:
    """End the program as an entry point should: a plain message and the exit code of its kind; bugs propagate.

    >>> with exit_with_user_errors():
    ...     raise UserError("rows.jsonl:3: empty prompt")
    Traceback (most recent call last):
    SystemExit: 2
    """
    try:
        yield
    except UserError as error:
        _leave(f"error: {error}", 2)
    except RunStopped as error:
        _leave(f"stopped: {error}", 3)
    except Interrupted as error:
        _leave(str(error), error.exit_code)
    except KeyboardInterrupt:
        _leave("interrupted", 130)
    except OSError as error:
        if error.errno not in _OF_THE_DISK:
            raise
        remedy = "mend that; the same command then continues from the newest checkpoint"
        _leave(f"error: {error.filename or 'a file'} cannot be written or read: {error.strerror}; {remedy}", 2)


def _leave(message: str, exit_code: int) -> None:
    indented = printable(message).replace("\n", "\n       ")
    print(indented, file=sys.stderr)
    raise SystemExit(exit_code) from None


def printable(text: str) -> str:
    """A text without control characters but line breaks: what comes from data must not move the cursor.

    >>> printable("a\x1b[2Jb\\nc")
    'a [2Jb\\nc'
    """
    return "".join(character if character.isprintable() or character == "\n" else " " for character in text)


def first_line(error: Exception) -> str:
    """What an exception of a library says, without what it adds below; its kind where it says nothing.

    >>> first_line(ValueError("no such file\\nTried: a, b"))
    'no such file'
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def listed(problems: Sequence[str], *, most: int = 20) -> str:
    """Join the problems of one file, the first `most` in full and the rest as a count.

    >>> print(listed(["a.jsonl:1: empty", "a.jsonl:2: empty", "a.jsonl:3: empty"], most=2))
    a.jsonl:1: empty
    a.jsonl:2: empty
    ... and 1 more
    """
    shown = list(problems[:most])
    if len(problems) > most:
        shown.append(f"... and {len(problems) - most} more")
    return "\n".join(shown)


def edit_distance(a: str, b: str) -> int:
    """Insertions, deletions, substitutions and swaps of neighbours that turn `a` into `b`.

    The "optimal string alignment" form of the Damerau-Levenshtein distance: no part of the text is edited twice.

    >>> edit_distance("beta", "bta"), edit_distance("beta", "btea"), edit_distance("beta", "beta")
    (1, 1, 0)
    """
    before_last: list[int] = []
    last = list(range(len(b) + 1))
    for i, letter in enumerate(a, start=1):
        row = [i]
        for j, other in enumerate(b, start=1):
            best = min(last[j] + 1, row[j - 1] + 1, last[j - 1] + (letter != other))
            if i > 1 and j > 1 and letter == b[j - 2] and a[i - 2] == other:
                best = min(best, before_last[j - 2] + 1)
            row.append(best)
        before_last, last = last, row
    return last[-1]


def nearest(word: str, choices: Iterable[str]) -> str | None:
    """The choice that `word` is most likely a misspelling of, or None when none is close; letter case is ignored.

    Close means at most one edit, or one for every three letters of the longer of the two. The first of equals wins.

    >>> nearest("sigmiod", ["hinge", "sigmoid"])
    'sigmoid'
    >>> nearest("kto", ["hinge", "sigmoid"]) is None
    True
    """
    best: tuple[float, str] | None = None
    for choice in choices:
        distance = edit_distance(word.casefold(), choice.casefold())
        allowed = max(1, max(len(word), len(choice)) // 3)
        if distance <= allowed and (best is None or distance < best[0]):
            best = distance, choice
    return None if best is None else best[1]
