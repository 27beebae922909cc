"""Rows to groups of scored completions, and an account of every row. Knows nothing about files, tokenizers or losses.

Four formats, told apart by their columns:

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
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import chain
from typing import Literal, NamedTuple, TypeAlias, cast

from groupwise.data.rows import Row, read_rows
from groupwise.data.text import EncodedGroup, Message, Refused, Text, TextEncoder, TextGroup
from groupwise.errors import UserError, listed
from groupwise.groups import Completion, Group, count_pairs, is_informative, ordered_pairs

Columns: TypeAlias = Mapping[str, str | Sequence[str]]
BadRows: TypeAlias = Literal["refuse", "drop"]
Format: TypeAlias = Literal["pairs", "ranked", "transcripts", "labelled"]

FORMATS: dict[Format, tuple[str, ...]] = {
    "pairs": ("prompt", "chosen", "rejected"),
    "ranked": ("prompt", "responses", "scores"),
    "transcripts": ("chosen", "rejected"),
    "labelled": ("prompt", "completion", "label"),
}
NAMES = ("prompt", "chosen", "rejected", "responses", "scores", "completion", "label")
ASSISTANT = "\n\nAssistant:"
HUMAN = "\n\nHuman:"


class DropReason:
    """Why a row gave no group; the names stand in the report."""

    BAD_ROW = "bad row"
    PROMPT_TOO_LONG = "prompt too long"
    COMPLETION_TOO_LONG = "completion too long"
    IDENTICAL = "completions identical"
    NO_SIGNAL = "no signal: all scores equal"


class Quantiles(NamedTuple):
    """Token lengths: the smallest, the middle, the one that 95 of 100 do not exceed, the largest."""

    least: int
    median: int
    p95: int
    most: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetReport:
    """What became of every row. `rows_read` is `groups_used` plus the sum of `dropped`."""

    formats: dict[str, Format]
    """The format of each source."""
    ignored_columns: tuple[str, ...]
    rows_read: int
    groups_used: int
    pairs_used: int
    """Ordered pairs (better, worse) in all groups."""
    desirable: int
    """Labelled completions that are desirable; 0 where the data holds pairs or rankings."""
    undesirable: int
    dropped: dict[str, int]
    """Rows that gave no group, by reason (DropReason)."""
    bad_row_examples: tuple[str, ...]
    completions_too_long: int
    """Completions dropped by their length, also out of groups that are used without them."""
    completions_identical: int
    """Completions dropped because another of the group has the same ids and a different score."""
    completions_cut: int
    """Used completions that were cut to the maximum length and are unfinished."""
    further_turns: int
    """Rows whose transcripts part before the last turn, so that a completion holds more than one turn."""
    repeated_prompts: int
    """Used groups in which every completion begins with the text of the prompt."""
    duplicate_groups: int
    """Used groups whose prompt, completions and scores an earlier group has too."""
    contradictory_pairs: int
    """Pairs of completions of one prompt that stand in the data in both orders."""
    prompt_tokens: Quantiles
    completion_tokens: Quantiles
    longer_wins: float
    """Probability that the better completion of a pair is the longer one, ties counted half; 0.5 says nothing."""

    def lines(self) -> list[str]:
        """The report for a terminal; a line that begins with "warning:" deserves a look."""
        lines = [f"{source}: {_described(kind)}" for source, kind in self.formats.items()]
        if self.ignored_columns:
            lines.append(f"columns not used: {', '.join(self.ignored_columns)}")
        lines.append(f"{self.rows_read} rows read, {self.groups_used} groups used, {self._signal}")
        for reason, count in self.dropped.items():
            lines.append(f"{count} rows dropped, {reason}")
            if reason == DropReason.BAD_ROW:
                lines += [f"  {problem}" for problem in self.bad_row_examples]
        lines += [
            f"tokens per prompt: {_length_line(self.prompt_tokens)}",
            f"tokens per completion: {_length_line(self.completion_tokens)}",
            f"the better completion is the longer one in {self.longer_wins:.1%} of pairs (50 %: length tells nothing)",
        ]
        notes = {
            "completions too long and dropped": self.completions_too_long,
            "completions dropped, the same ids as another of the group with another score": self.completions_identical,
            "completions cut to the maximum length, unfinished": self.completions_cut,
            "rows whose transcripts part before the last turn, so that completions hold several": self.further_turns,
            "groups stand in the data more than once": self.duplicate_groups,
        }
        lines += [f"{count} {what}" for what, count in notes.items() if count]
        if self.repeated_prompts:
            lines.append(
                f"warning: in {self.repeated_prompts} groups every completion begins with the prompt, which then "
                "stands there twice"
            )
        if self.contradictory_pairs:
            twice = "completions have both labels" if self.labelled else "pairs stand in the data in both orders"
            lines.append(f"warning: {self.contradictory_pairs} {twice}")
        if abs(self.longer_wins - 0.5) > 0.15:
            winner = "longer" if self.longer_wins > 0.5 else "shorter"
            lines.append(f"warning: the {winner} completion mostly wins, the model may learn length instead of quality")
        return lines

    @property
    def labelled(self) -> bool:
        """Whether the groups are single completions, labelled desirable or not."""
        return "labelled" in self.formats.values()

    @property
    def _signal(self) -> str:
        if self.labelled:
            return f"{self.desirable} desirable and {self.undesirable} undesirable completions"
        return f"{self.pairs_used} pairs of better and worse"

    def as_dict(self) -> dict[str, object]:
        """The report for summary.json: plain numbers, texts, lists and objects."""
        return {
            "formats": dict(self.formats),
            "ignored_columns": list(self.ignored_columns),
            "rows_read": self.rows_read,
            "groups_used": self.groups_used,
            "pairs_used": self.pairs_used,
            "desirable": self.desirable,
            "undesirable": self.undesirable,
            "dropped": dict(self.dropped),
            "bad_row_examples": list(self.bad_row_examples),
            "completions_too_long": self.completions_too_long,
            "completions_identical": self.completions_identical,
            "completions_cut": self.completions_cut,
            "further_turns": self.further_turns,
            "repeated_prompts": self.repeated_prompts,
            "duplicate_groups": self.duplicate_groups,
            "contradictory_pairs": self.contradictory_pairs,
            "prompt_tokens": self.prompt_tokens._asdict(),
            "completion_tokens": self.completion_tokens._asdict(),
            "longer_wins": self.longer_wins,
        }


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

    `columns` maps the names of a format to those of the data, see the head of this file. `split` and `limit` hold
    for each source (see read_rows). The chosen completion of a pair scores 1, the rejected one 0; so do desirable and
    undesirable completions. Sources must be all labelled, or all of the other formats. With
    bad_rows="refuse" every row that is incomplete, of a wrong type or empty is listed in a UserError; with "drop" they
    are counted and the first are shown in the report.
    Raises UserError for bad rows, for a source that cannot be read, and when no group is left.
    """
    if not sources:
        raise UserError("no data: name at least one file or hub data set")
    mapping = _checked_columns(columns or {})
    tally = _Tally()
    parsed: list[_ScoredTexts | Refused] = []
    for source in sources:
        rows = read_rows(source, split=split, limit=limit)
        tally.formats[source] = _format_of(source, rows, mapping)
        tally.note_unused_columns(rows, tally.formats[source], mapping)
        parsed += [_parsed_or_refused(row, tally.formats[source], mapping) for row in rows]
    tally.rows_read = len(parsed)
    if len({kind == "labelled" for kind in tally.formats.values()}) > 1:
        each = "; ".join(f"{source}: {kind}" for source, kind in tally.formats.items())
        raise UserError(f"labelled completions and pairs cannot be learned from together ({each}); name one kind")

    scored = [texts for texts in parsed if isinstance(texts, _ScoredTexts)]
    encoded = encoder.encode([texts.texts for texts in scored])
    problems = [texts.problem for texts in (*parsed, *encoded) if isinstance(texts, Refused)]
    _refuse_or_count(problems, bad_rows, tally)
    groups = [
        group
        for texts, ids in zip(scored, encoded, strict=True)
        if isinstance(ids, EncodedGroup) and (group := _group(texts, ids, tally)) is not None
    ]
    if not groups:
        raise UserError(_nothing_left(tally, encoder))
    return groups, _report(groups, tally)


# --- columns


def _checked_columns(columns: Columns) -> dict[str, str | list[str]]:
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


def _format_of(source: str, rows: Sequence[Row], columns: Mapping[str, str | list[str]]) -> Format:
    """The format whose columns the rows have; a column counts when any row has it, so that gaps are told of as gaps."""
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


class _Bad(ValueError):
    """What is wrong with one row."""


def _value(row: Row, path: str) -> object:
    try:
        return row.at(path)
    except LookupError:
        raise _Bad(f"{path} is missing; add it") from None


def _values(row: Row, name: str, columns: Mapping[str, str | list[str]]) -> list[tuple[str, object]]:
    """The list at `responses` or `scores`, each element with its name for an error."""
    path = columns.get(name, name)
    if not isinstance(path, str):
        return [(part, _value(row, part)) for part in path]
    value = _value(row, path)
    if not isinstance(value, list):
        raise _Bad(f"{path} must be a list, got {_shown(value)}")
    return [(f"{path}.{index}", item) for index, item in enumerate(cast(list[object], value))]


# --- one row


@dataclass(frozen=True, slots=True)
class _ScoredTexts:
    texts: TextGroup
    scores: tuple[float, ...]
    has_further_turns: bool = False

    @property
    def repeats_prompt(self) -> bool:
        prompt = self.texts.prompt
        return isinstance(prompt, str) and all(
            isinstance(text, str) and text.startswith(prompt) for text in self.texts.completions
        )


def _parsed_or_refused(row: Row, kind: Format, columns: Mapping[str, str | list[str]]) -> _ScoredTexts | Refused:
    try:
        if kind == "labelled":
            return _labelled(row, columns)
        return _ranked(row, columns) if kind == "ranked" else _pair(row, kind, columns)
    except _Bad as bad:
        return Refused(f"{row.key}: {bad}")


def _ranked(row: Row, columns: Mapping[str, str | list[str]]) -> _ScoredTexts:
    prompt = _text(row, "prompt", columns)
    responses, scores = _values(row, "responses", columns), _values(row, "scores", columns)
    if len(responses) != len(scores):
        raise _Bad(f"has {len(responses)} responses and {len(scores)} scores; each response needs its score")
    if len(responses) < 2:
        raise _Bad(f"has {len(responses)} response(s); an order needs at least two")
    texts = tuple(_filled(name, value) for name, value in responses)
    return _ScoredTexts(
        TextGroup(key=row.key, prompt=prompt, completions=texts), tuple(_number(name, value) for name, value in scores)
    )


def _labelled(row: Row, columns: Mapping[str, str | list[str]]) -> _ScoredTexts:
    prompt, completion = _text(row, "prompt", columns), _filled("completion", _text(row, "completion", columns))
    path = columns.get("label", "label")
    assert isinstance(path, str), "checked with the mapping"
    value = _value(row, path)
    try:
        score = _number(path, value)
    except _Bad:
        score = math.nan
    if score not in (0.0, 1.0):
        raise _Bad(f"{path} must be true or false, got {_shown(value)}")
    return _ScoredTexts(TextGroup(key=row.key, prompt=prompt, completions=(completion,)), (score,))


def _pair(row: Row, kind: Format, columns: Mapping[str, str | list[str]]) -> _ScoredTexts:
    chosen, rejected = _text(row, "chosen", columns), _text(row, "rejected", columns)
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise _Bad("chosen and rejected must both be texts or both chat messages")
    further = False
    if kind == "transcripts":
        if isinstance(chosen, str) and isinstance(rejected, str):
            prompt, chosen, rejected = split_transcripts(chosen, rejected)
            further = any(marker in text for marker in (ASSISTANT, HUMAN) for text in (chosen, rejected))
        else:
            prompt, chosen, rejected = split_messages(_messages(chosen), _messages(rejected))
    else:
        prompt = _text(row, "prompt", columns)
        if isinstance(prompt, str) and not isinstance(chosen, str) and len(chosen) > 1:
            prompt, chosen, rejected = _conversations_with_prompt(prompt, chosen, _messages(rejected))
    completions = (_filled("chosen", chosen), _filled("rejected", rejected))
    return _ScoredTexts(TextGroup(key=row.key, prompt=prompt, completions=completions), (1.0, 0.0), further)


def split_transcripts(chosen: str, rejected: str) -> tuple[str, str, str]:
    """(prompt, chosen, rejected) of two transcripts "\\n\\nHuman: ...\\n\\nAssistant: ..." that begin alike.

    The prompt ends right behind the last "\\n\\nAssistant:" that both share, so it never ends inside a word, however
    the answers begin. The three parts hold every character of the transcripts. Raises ValueError if none is shared.

    >>> split_transcripts("\\n\\nHuman: Sky?\\n\\nAssistant: Blue.", "\\n\\nHuman: Sky?\\n\\nAssistant: Black.")
    ('\\n\\nHuman: Sky?\\n\\nAssistant:', ' Blue.', ' Black.')
    """
    start = chosen.rfind(ASSISTANT)
    while start >= 0:
        end = start + len(ASSISTANT)
        if rejected.startswith(chosen[:end]):
            return chosen[:end], chosen[end:], rejected[end:]
        start = chosen.rfind(ASSISTANT, 0, start)
    raise _Bad(
        f"chosen and rejected share no {ASSISTANT!r}, so no prompt can be told; write both as transcripts with "
        "Human and Assistant turns, or add a column prompt"
    )


def split_messages(
    chosen: Sequence[Message], rejected: Sequence[Message]
) -> tuple[list[Message], list[Message], list[Message]]:
    """(prompt, chosen, rejected) of two conversations that differ in their last message, an assistant's."""
    shared = min(len(chosen), len(rejected)) - 1
    same = next((i for i in range(shared) if chosen[i] != rejected[i]), shared)
    if len(chosen) != len(rejected) or same < shared:
        raise _Bad(
            f"chosen and rejected part at message {same + 1}, before the last one; cut both to a shared beginning and "
            "one answer each"
        )
    if not same:
        raise _Bad("chosen and rejected are one message each, so no prompt is left; add the messages before it")
    return list(chosen[:same]), list(chosen[same:]), list(rejected[same:])


def _conversations_with_prompt(
    prompt: str, chosen: Sequence[Message], rejected: Sequence[Message]
) -> tuple[Text, Text, Text]:
    """Some data sets repeat the prompt: as a text, and again as the beginning of both conversations."""
    messages, chosen, rejected = split_messages(chosen, rejected)
    asked = messages[-1].get("content")
    if not isinstance(asked, str) or asked.strip() != prompt.strip():
        raise _Bad("prompt is not the message that chosen and rejected answer; leave it out or make them agree")
    return messages, chosen, rejected


def _text(row: Row, name: str, columns: Mapping[str, str | list[str]]) -> Text:
    path = columns.get(name, name)
    assert isinstance(path, str), "checked with the mapping"
    value = _value(row, path)
    if isinstance(value, list):
        return _messages(cast(list[object], value), path)
    if not isinstance(value, str):
        raise _Bad(f"{path} must be a text or a list of chat messages, got {_shown(value)}")
    if not value:
        raise _Bad(f"{path} is empty; fill it or remove the row")
    return value


def _messages(value: object, path: str = "chosen and rejected") -> list[Message]:
    items = cast(list[object], value) if isinstance(value, list) else []
    if not items or not all(isinstance(item, dict) for item in items):
        raise _Bad(f'{path} must be a list of chat messages {{"role": ..., "content": ...}}, got {_shown(value)}')
    messages = cast(list[Message], items)
    for number, message in enumerate(messages, start=1):
        if not isinstance(message.get("role"), str) or not isinstance(message.get("content"), str):
            raise _Bad(f'message {number} of {path} must be {{"role": text, "content": text}}, got {_shown(message)}')
    return messages


def _filled(name: str, value: object) -> Text:
    """A completion that says something; a blank one would teach the model to fall silent."""
    if isinstance(value, str):
        if not value.strip():
            raise _Bad(f"the completion {name} is {'blank' if value else 'empty'}; fill it or remove the row")
        return value
    if not isinstance(value, list):
        raise _Bad(f"{name} must be a text or a list of chat messages, got {_shown(value)}")
    messages = _messages(cast(list[object], value), name)
    if not any(str(message["content"]).strip() for message in messages):
        raise _Bad(f"the completion {name} is empty; fill it or remove the row")
    return messages


def _number(name: str, value: object) -> float:
    """A finite score; true and false are 1 and 0. A text that is one of these counts too, since CSV has only texts."""
    number: float | None = None
    if isinstance(value, bool | int | float):
        try:
            number = float(value)
        except OverflowError:  # an integer of hundreds of digits
            number = math.inf
    elif isinstance(value, str):
        number = _number_in(value.strip().lower())
    if number is None:
        raise _Bad(f"{name} must be a number or true or false, got {_shown(value)}")
    if not math.isfinite(number):
        raise _Bad(f"{name} must be a finite number, got {_shown(value)}")
    return number


def _number_in(text: str) -> float | None:
    if text in ("true", "false"):
        return float(text == "true")
    try:
        return float(text)
    except ValueError:
        return None


def _shown(value: object) -> str:
    text = "nothing (null)" if value is None else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


# --- the account


@dataclass(slots=True)
class _Tally:
    """Counts that grow while rows become groups."""

    formats: dict[str, Format] = field(default_factory=dict[str, Format])
    unused: dict[str, None] = field(default_factory=dict[str, None])
    rows_read: int = 0
    dropped: Counter[str] = field(default_factory=Counter[str])
    bad_row_examples: tuple[str, ...] = ()
    too_long: int = 0
    identical: int = 0
    further_turns: int = 0
    repeated_prompts: int = 0

    def note_unused_columns(self, rows: Sequence[Row], kind: Format, columns: Mapping[str, str | list[str]]) -> None:
        paths = chain.from_iterable(
            [path] if isinstance(path, str) else path for path in (columns.get(name, name) for name in FORMATS[kind])
        )
        used = set(chain.from_iterable((path, path.partition(".")[0]) for path in paths))
        self.unused.update(dict.fromkeys(name for row in rows for name in row.values if name not in used))


def _refuse_or_count(problems: Sequence[str], bad_rows: BadRows, tally: _Tally) -> None:
    if not problems:
        return
    if bad_rows == "refuse":
        rows = "1 row is" if len(problems) == 1 else f"{len(problems)} rows are"
        raise UserError(
            f"{rows} unusable; mend or remove what is listed, or set bad_rows to drop, which counts and shows them\n"
            + listed(problems)
        )
    tally.dropped[DropReason.BAD_ROW] = len(problems)
    tally.bad_row_examples = tuple(listed(problems, most=3).splitlines())


def _group(scored: _ScoredTexts, encoded: EncodedGroup, tally: _Tally) -> Group | None:
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


def _nothing_left(tally: _Tally, encoder: TextEncoder) -> str:
    counts = ", ".join(f"{count} dropped, {reason}" for reason, count in tally.dropped.items())
    remedies: list[str] = []
    if tally.dropped[DropReason.PROMPT_TOO_LONG]:
        remedies.append(f"raise max_prompt_tokens (now {encoder.max_prompt_tokens})")
    if tally.dropped[DropReason.COMPLETION_TOO_LONG]:
        remedies.append(f"raise max_completion_tokens (now {encoder.max_completion_tokens}) or cut completions")
    if tally.dropped[DropReason.IDENTICAL] or tally.dropped[DropReason.NO_SIGNAL]:
        remedies.append("give completions that differ, with scores that differ")
    if tally.dropped[DropReason.BAD_ROW]:
        remedies.append("mend the rows: " + "; ".join(tally.bad_row_examples))
    return f"{', '.join(tally.formats)}: of {tally.rows_read} rows none is left ({counts}); {'; '.join(remedies)}"


def _report(groups: Sequence[Group], tally: _Tally) -> DatasetReport:
    completions = [completion for group in groups for completion in group.completions]
    labelled = "labelled" in tally.formats.values()
    desirable = sum(completion.score > 0 for completion in completions) if labelled else 0
    return DatasetReport(
        formats=tally.formats,
        ignored_columns=tuple(tally.unused),
        rows_read=tally.rows_read,
        groups_used=len(groups),
        pairs_used=sum(map(count_pairs, groups)),
        desirable=desirable,
        undesirable=len(completions) - desirable if labelled else 0,
        dropped=dict(tally.dropped),
        bad_row_examples=tally.bad_row_examples,
        completions_too_long=tally.too_long,
        completions_identical=tally.identical,
        completions_cut=sum(not completion.finished for completion in completions),
        further_turns=tally.further_turns,
        repeated_prompts=tally.repeated_prompts,
        duplicate_groups=_duplicates(groups),
        contradictory_pairs=_doubly_labelled(groups) if labelled else _contradictions(groups),
        prompt_tokens=_quantiles([len(group.prompt_ids) for group in groups]),
        completion_tokens=_quantiles([len(completion.token_ids) for completion in completions]),
        longer_wins=_longer_wins_labelled(completions) if labelled else _longer_wins(groups),
    )


def _longer_wins(groups: Iterable[Group]) -> float:
    lengths = [
        (len(group.completions[better].token_ids), len(group.completions[worse].token_ids))
        for group in groups
        for better, worse in ordered_pairs(group)
    ]
    return sum(1.0 if better > worse else 0.5 if better == worse else 0.0 for better, worse in lengths) / len(lengths)


def _longer_wins_labelled(completions: Iterable[Completion]) -> float:
    """Over all pairs of a desirable and an undesirable completion, whatever their prompts; 0.5 where there is none."""
    counts = Counter((completion.score > 0, len(completion.token_ids)) for completion in completions)
    pairs, wins, shorter = 0, 0.0, 0
    undesirable = sum(count for (desirable, _), count in counts.items() if not desirable)
    for length in sorted({length for _, length in counts}):
        wins += counts[True, length] * (shorter + counts[False, length] / 2)
        pairs += counts[True, length] * undesirable
        shorter += counts[False, length]
    return wins / pairs if pairs else 0.5


def _doubly_labelled(groups: Iterable[Group]) -> int:
    """Completions of one prompt that are labelled desirable somewhere in the data, and undesirable elsewhere."""
    labels: dict[tuple[tuple[int, ...], tuple[int, ...]], set[float]] = {}
    for group in groups:
        for completion in group.completions:
            labels.setdefault((group.prompt_ids, completion.token_ids), set()).add(completion.score)
    return sum(len(found) > 1 for found in labels.values())


def _duplicates(groups: Iterable[Group]) -> int:
    seen = Counter(
        (group.prompt_ids, frozenset(Counter((c.token_ids, c.score) for c in group.completions).items()))
        for group in groups
    )
    return sum(count - 1 for count in seen.values())


def _contradictions(groups: Iterable[Group]) -> int:
    """Pairs of completions of one prompt that are ordered both ways somewhere in the data."""
    orders: set[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = set()
    for group in groups:
        ids = [completion.token_ids for completion in group.completions]
        orders.update((group.prompt_ids, ids[better], ids[worse]) for better, worse in ordered_pairs(group))
    return sum((prompt, worse, better) in orders for prompt, better, worse in orders) // 2


def _quantiles(lengths: Sequence[int]) -> Quantiles:
    """Each is a length that occurs: the smallest one that at least this share does not exceed."""
    ordered = sorted(lengths)
    least, median, p95, most = (ordered[max(0, math.ceil(share * len(ordered)) - 1)] for share in (0, 0.5, 0.95, 1))
    return Quantiles(least, median, p95, most)


def _length_line(lengths: Quantiles) -> str:
    return f"{lengths.least} to {lengths.most}, half up to {lengths.median}, 95 % up to {lengths.p95}"


def _described(kind: Format) -> str:
    names = ", ".join(FORMATS[kind])
    return f"{kind} ({names})" + ("; the prompt is what both share" if kind == "transcripts" else "")
