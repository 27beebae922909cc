"""Rows to prompts, and an account of every row. Knows nothing about answers, rewards or training.

A row needs a `prompt`, a text or a list of chat messages; every other column is kept for the rewards. Data with other
names needs a mapping from our names to its own, where a dot goes into an object: `columns: {prompt: question}`.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

from groupwise.data.rows import Row, read_rows
from groupwise.data.text import EncodedCompletion, EncodedGroup, Message, Refused, Text, TextEncoder, TextGroup
from groupwise.errors import UserError, listed
from grpo.config import PromptDataSection


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A question: its ids, and the row it came from, whose columns rewards may read."""

    key: str
    prompt_ids: tuple[int, ...]
    row: Mapping[str, object]
    answer: EncodedCompletion | None = None
    """The row's own answer, where it is what is learned from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptReport:
    """What became of every row."""

    rows_read: int
    prompts_used: int
    dropped_too_long: int
    repeated: int
    """Used prompts that stand in the data before."""
    columns: tuple[str, ...]
    median_tokens: int
    most_tokens: int
    dropped_answers: int = 0
    """Rows whose own answer is too long to be learned from."""

    def lines(self) -> list[str]:
        """The report for a terminal; a line that begins with "warning:" deserves a look."""
        lines = [
            f"{self.rows_read} rows read, {self.prompts_used} prompts used, of {self.median_tokens} tokens in the "
            f"median, {self.most_tokens} at most; columns for rewards: {', '.join(self.columns)}"
        ]
        if self.dropped_too_long:
            lines.append(f"{self.dropped_too_long} rows dropped, prompt too long (data.max_prompt_tokens)")
        if self.dropped_answers:
            lines.append(f"{self.dropped_answers} rows dropped, answer too long (sampling.max_new_tokens)")
        if self.repeated:
            lines.append(f"{self.repeated} prompts stand in the data more than once")
        return lines

    def as_dict(self) -> dict[str, object]:
        """The report for summary.json."""
        return {
            "rows_read": self.rows_read,
            "prompts_used": self.prompts_used,
            "dropped": {
                "prompt too long": self.dropped_too_long,
                **({"answer too long": self.dropped_answers} if self.dropped_answers else {}),
            },
            "repeated": self.repeated,
            "columns": list(self.columns),
            "prompt_tokens": {"median": self.median_tokens, "most": self.most_tokens},
        }


def load_prompts(
    sources: Sequence[str],
    encoder: TextEncoder,
    data: PromptDataSection,
    *,
    split: str | None,
    answer_column: str | None = None,
) -> tuple[list[Prompt], PromptReport]:
    """Prompts from files or hub data sets, in the order of the rows, and the account of all rows.

    With an `answer_column` every prompt carries the row's own answer, and a row whose answer is too long is dropped.
    A text prompt is put into `data.template`, and with `data.chat` becomes a user's message. Raises UserError that
    lists every row without a usable prompt, for a source that cannot be read, and when no prompt is left.
    """
    rows = [row for source in sources for row in read_rows(source, split=split, limit=data.limit)]
    problems: list[str] = []
    texts: list[Text] = []
    values: list[dict[str, object]] = []
    for row in rows:
        try:
            columns = _columns(row, data.columns)
            texts.append(_asked(columns["prompt"], data))
            values.append(columns)
        except _Bad as bad:
            problems.append(f"{row.key}: {bad}")
    if problems:
        raise UserError(listed(problems))
    encoded = encoder.encode_prompts([row.key for row in rows], texts)
    prompts = [
        Prompt(key=row.key, prompt_ids=ids, row=columns)
        for row, ids, columns in zip(rows, encoded, values, strict=True)
        if ids is not None
    ]
    fitting = len(prompts)
    if answer_column is not None:
        asked = {row.key: text for row, text in zip(rows, texts, strict=True)}
        prompts = _with_answers(prompts, [asked[prompt.key] for prompt in prompts], encoder, answer_column)
    if fitting and not prompts:
        raise UserError("rollout.answer_column: every answer is too long; raise sampling.max_new_tokens")
    if not prompts:
        raise UserError(
            f"{', '.join(sources)}: every prompt has more than {encoder.max_prompt_tokens} tokens; "
            "raise data.max_prompt_tokens"
        )
    lengths = sorted(len(prompt.prompt_ids) for prompt in prompts)
    return prompts, PromptReport(
        rows_read=len(rows),
        prompts_used=len(prompts),
        dropped_too_long=len(rows) - fitting,
        dropped_answers=fitting - len(prompts),
        repeated=len(prompts) - len({prompt.prompt_ids for prompt in prompts}),
        columns=tuple(sorted({name for prompt in prompts for name in prompt.row})),
        median_tokens=lengths[len(lengths) // 2],
        most_tokens=lengths[-1],
    )


def hold_out(prompts: Sequence[Prompt], most: int, *, seed: int) -> tuple[list[Prompt], list[Prompt]]:
    """Split off held-out prompts so that none is on both sides: at most `most`, and at most a tenth.

    Raises UserError when there is only one prompt.

    >>> prompts = [Prompt(key=str(i), prompt_ids=(i % 15,), row={}) for i in range(30)]
    >>> train, heldout = hold_out(prompts, 5, seed=0)
    >>> len(heldout), {p.prompt_ids for p in train} & {p.prompt_ids for p in heldout}
    (1, set())
    """
    distinct = sorted({prompt.prompt_ids for prompt in prompts})
    if len(distinct) < 2:
        raise UserError("data.heldout: the training data has a single prompt, so none can be held out; name a file")
    random.Random(seed).shuffle(distinct)
    kept_out = set(distinct[: max(1, min(most, len(distinct) // 10))])
    unseen = {prompt.prompt_ids: prompt for prompt in reversed(prompts) if prompt.prompt_ids in kept_out}
    return [prompt for prompt in prompts if prompt.prompt_ids not in kept_out], list(unseen.values())[::-1]


def _with_answers(prompts: Sequence[Prompt], asked: Sequence[Text], encoder: TextEncoder, column: str) -> list[Prompt]:
    """The prompts with their rows' own answers, without those whose answer is too long."""
    groups: list[TextGroup] = []
    problems: list[str] = []
    for prompt, text in zip(prompts, asked, strict=True):
        answer = prompt.row.get(column)
        if isinstance(answer, str) and answer.strip():
            groups.append(TextGroup(key=prompt.key, prompt=text, completions=(answer,)))
        else:
            problems.append(f"{prompt.key}: column {column!r} (rollout.answer_column) holds no text")
    encoded = encoder.encode(groups) if not problems else []
    if problems := [*problems, *(one.problem for one in encoded if isinstance(one, Refused))]:
        raise UserError(listed(problems))
    return [
        replace(prompt, answer=one.completions[0])
        for prompt, one in zip(prompts, encoded, strict=True)
        if isinstance(one, EncodedGroup) and one.completions[0] is not None
    ]


class _Bad(ValueError):
    """What is wrong with one row."""


def _columns(row: Row, mapping: Mapping[str, str]) -> dict[str, object]:
    """The row's columns, those of the mapping under our names too."""
    found = dict(row.values)
    for name, path in mapping.items():
        try:
            found[name] = row.at(path)
        except LookupError:
            raise _Bad(f"has no column {path!r} (data.columns.{name}); it has {', '.join(row.values)}") from None
    if "prompt" not in found:
        raise _Bad(f"has no column 'prompt', only {', '.join(row.values)}; map one: data.columns {{prompt: question}}")
    return found


def _asked(prompt: object, data: PromptDataSection) -> Text:
    """What the model is asked: a text, or chat messages."""
    system: list[Message] = [] if data.system is None else [{"role": "system", "content": data.system}]
    if isinstance(prompt, str):
        if not prompt.strip():
            raise _Bad("the prompt is empty; fill it or remove the row")
        text = data.template.replace("{prompt}", prompt)
        return [*system, {"role": "user", "content": text}] if data.chat else text
    if isinstance(prompt, list) and prompt and all(isinstance(one, dict) for one in cast(list[object], prompt)):
        return [*system, *cast(list[Message], prompt)]
    raise _Bad(f"the prompt must be a text or a list of chat messages, not {type(prompt).__name__}")
