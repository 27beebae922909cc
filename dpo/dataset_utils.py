"""Rows to groups of scored completions, and an account of every row. Knows nothing about files, tokenizers or losses.

Which columns the rows have is in `formats.py`, what one row says in `scored_texts.py` and `transcripts.py`, what is
told of all rows in `tally.py` and `dataset_report.py`.
"""

from collections.abc import Sequence
from typing import Literal, TypeAlias

from dpo.dataset_report import DatasetReport, DropReason
from dpo.formats import Columns, checked_columns, format_of
from dpo.scored_texts import ScoredTexts, parsed_or_refused
from dpo.tally import Tally
from groupwise.data.rows import read_rows
from groupwise.data.text import EncodedGroup, Refused, TextEncoder
from groupwise.errors import UserError, listed
from groupwise.groups import Completion, Group, is_informative

BadRows: TypeAlias = Literal["refuse", "drop"]


def load_preference_groups(
    sources: Sequence[str],
    encoder: TextEncoder,
    *,
    columns: Columns | None = None,
    split: str | None = None,
    limit: int | None = None,
    bad_rows: BadRows = "refuse",
) -> tuple[list[Group], DatasetReport]:
    """Groups of scored completions from files or hub data sets, in the order of the rows, and the account of all rows.

    `columns` maps the names of a format to those of the data, see `formats.py`. `split` and `limit` hold for each
    source (see read_rows). The chosen completion of a pair scores 1, the rejected one 0; so do desirable and
    undesirable completions. Sources must be all labelled, or all of the other formats. With bad_rows="refuse" every
    row that is incomplete, of a wrong type or empty is listed in a UserError; with "drop" they are counted and the
    first are shown in the report.
    Raises UserError for bad rows, for a source that cannot be read, and when no group is left.
    """
    if not sources:
        raise UserError("no data: name at least one file or hub data set")
    mapping = checked_columns(columns or {})
    tally = Tally()
    parsed: list[ScoredTexts | Refused] = []
    for source in sources:
        rows = read_rows(source, split=split, limit=limit)
        tally.formats[source] = format_of(source, rows, mapping)
        tally.note_unused_columns(rows, tally.formats[source], mapping)
        parsed += [parsed_or_refused(row, tally.formats[source], mapping) for row in rows]
    tally.rows_read = len(parsed)
    if len({kind == "labelled" for kind in tally.formats.values()}) > 1:
        each = "; ".join(f"{source}: {kind}" for source, kind in tally.formats.items())
        raise UserError(f"labelled completions and pairs cannot be learned from together ({each}); name one kind")

    scored = [texts for texts in parsed if isinstance(texts, ScoredTexts)]
    encoded = encoder.encode([texts.texts for texts in scored])
    problems = [texts.problem for texts in (*parsed, *encoded) if isinstance(texts, Refused)]
    if problems and bad_rows == "refuse":
        raise UserError(_unusable(problems))
    if problems:
        tally.note_bad_rows(problems)
    groups = [
        group
        for texts, ids in zip(scored, encoded, strict=True)
        if isinstance(ids, EncodedGroup) and (group := _group(texts, ids, tally)) is not None
    ]
    if not groups:
        raise UserError(tally.nothing_left(encoder))
    return groups, tally.report(groups)


def _unusable(problems: Sequence[str]) -> str:
    rows = "1 row is" if len(problems) == 1 else f"{len(problems)} rows are"
    return (
        f"{rows} unusable; mend or remove what is listed, or set bad_rows to drop, which counts and shows them\n"
        + listed(problems)
    )


def _group(scored: ScoredTexts, encoded: EncodedGroup, tally: Tally) -> Group | None:
    """The group of one row, or None, counted, if length or equality leaves nothing to learn from."""
    if encoded.prompt_ids is None:
        tally.dropped[DropReason.PROMPT_TOO_LONG] += 1
        return None
    fitting = [
        Completion(token_ids=ids.token_ids, finished=ids.finished, score=score)
        for ids, score in zip(encoded.completions, scored.scores, strict=True)
        if ids is not None
    ]
    tally.too_long += len(scored.scores) - len(fitting)
    labelled = len(scored.scores) == 1
    if len(fitting) < (1 if labelled else 2):
        tally.dropped[DropReason.COMPLETION_TOO_LONG] += 1
        return None
    distinct = _without_contradictions(fitting)
    tally.identical += len(fitting) - len(distinct)
    if len(distinct) < 2 and len(distinct) < len(fitting):
        tally.dropped[DropReason.IDENTICAL] += 1
        return None
    group = Group(key=encoded.key, prompt_ids=encoded.prompt_ids, completions=tuple(distinct))
    if not labelled and not is_informative(group):
        tally.dropped[DropReason.NO_SIGNAL] += 1
        return None
    tally.further_turns += scored.has_further_turns
    tally.repeated_prompts += scored.repeats_prompt
    return group


def _without_contradictions(completions: Sequence[Completion]) -> list[Completion]:
    """Without the completions that are the same ids with different scores: all of them go, since none is more right."""
    scores_of: dict[tuple[int, ...], set[float]] = {}
    for completion in completions:
        scores_of.setdefault(completion.token_ids, set()).add(completion.score)
    return [completion for completion in completions if len(scores_of[completion.token_ids]) == 1]
