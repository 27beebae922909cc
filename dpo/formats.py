"""The four formats of preference data, told apart by their columns:

- pairs: `prompt`, `chosen`, `rejected`
- ranked: `prompt`, `responses` (a list of two or more), `scores` (as many numbers)
- transcripts: `chosen`, `rejected`, whole conversations that begin alike; the prompt is what they share
- labelled: `prompt`, `completion`, `label` (true: desirable); each row is a group of one completion

Data with other names needs a mapping from these names to its own, where a dot goes into an object and a list of
names collects several columns into one list:

    columns:
      prompt: question
      responses: [small_model.solution, large_model.solution]
      scores: [small_model.is_correct, large_model.is_correct]

Knows which columns there are, not what stands in them.
"""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from itertools import chain
from typing import Literal, TypeAlias

from groupwise.data.rows import Row
from groupwise.errors import UserError, listed

Columns: TypeAlias = Mapping[str, str | Sequence[str]]
Format: TypeAlias = Literal["pairs", "ranked", "transcripts", "labelled"]

FORMATS: dict[Format, tuple[str, ...]] = {
    "pairs": ("prompt", "chosen", "rejected"),
    "ranked": ("prompt", "responses", "scores"),
    "transcripts": ("chosen", "rejected"),
    "labelled": ("prompt", "completion", "label"),
}
NAMES = ("prompt", "chosen", "rejected", "responses", "scores", "completion", "label")


class BadRow(ValueError):
    """What keeps one row from being of its format."""


def checked_columns(columns: Columns) -> dict[str, str | list[str]]:
    """The mapping, if it can be one. Raises UserError with everything that is wrong with it."""
    problems: list[str] = []
    for name, path in columns.items():
        if name not in NAMES:
            near = get_close_matches(name, NAMES, n=1)
            problems.append(
                f"columns.{name}: unknown name; "
                + (f"did you mean columns.{near[0]}?" if near else f"the names are {', '.join(NAMES)}")
            )
        elif not isinstance(path, str) and name not in ("responses", "scores"):
            problems.append(f"columns.{name}: is one column; only responses and scores may be lists of columns")
    responses, scores = columns.get("responses"), columns.get("scores")
    lists = [len(path) for path in (responses, scores) if path is not None and not isinstance(path, str)]
    if len(set(lists)) > 1:
        problems.append(
            f"columns.responses names {lists[0]} columns, columns.scores {lists[1]}; each response needs its score"
        )
    if problems:
        raise UserError(listed(problems))
    return {name: path if isinstance(path, str) else list(path) for name, path in columns.items()}


def format_of(source: str, rows: Sequence[Row], columns: Mapping[str, str | list[str]]) -> Format:
    """The format whose columns the rows have; a column counts when any row has it, so that gaps are told of as gaps.

    Raises UserError where the columns are of no format, or of two.
    """
    present = set(chain.from_iterable(row.values for row in rows))
    has = {name for name in NAMES if name in columns or name in present}
    with_prompt: tuple[Format, ...] = ("pairs", "ranked")
    fitting: list[Format] = [kind for kind in with_prompt if has.issuperset(FORMATS[kind])]
    if len(fitting) == 2:  # then only the mapping can tell which one is meant
        fitting = [kind for kind in with_prompt if not columns.keys().isdisjoint(set(FORMATS[kind]) - {"prompt"})]
    if len(fitting) == 1:
        return fitting[0]
    if not fitting and has.issuperset(FORMATS["labelled"]):
        return "labelled"
    if not fitting and has.issuperset(FORMATS["transcripts"]) and "prompt" not in has:
        return "transcripts"
    if has.issuperset(FORMATS["pairs"]):
        raise UserError(
            f"{source}: has the columns of pairs (chosen, rejected) and of ranked responses (responses, scores); "
            "say which with columns, for example columns: {chosen: chosen, rejected: rejected}"
        )
    wanted = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in FORMATS.items())
    raise UserError(
        f"{source}: has the columns {', '.join(sorted(present))}, which are of no known format ({wanted}); "
        "map the names with columns, for example columns: {prompt: question}"
    )


def described(kind: Format) -> str:
    """A format and its columns, for people."""
    names = ", ".join(FORMATS[kind])
    return f"{kind} ({names})" + ("; the prompt is what both share" if kind == "transcripts" else "")
