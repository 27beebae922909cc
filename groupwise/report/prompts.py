"""Prompt by prompt: what each one's way through the run was, and which answers changed. Knows nothing about pages."""

import difflib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from groupwise.observe.samples import Answers, PromptSamples, Sample, mean_of
from groupwise.report.method import Method
from groupwise.report.record import RunRecord

Way = Literal["learned", "kept", "unstable", "forgotten", "never"]
WAYS: dict[Way, str] = {
    "learned": "not passed at first, passed at the end",
    "kept": "passed at first and at the end",
    "unstable": "passed and not passed in turn, at least three times",
    "forgotten": "passed once, not at the end",
    "never": "never passed",
}
_FLIPS = 3
_MOST_WORDS = 400  # comparing takes the square of it
MOST_WAYS = 600  # prompts and evaluations whose values a page holds
MOST_STEPS = 80
MOST_COMPARED = 360  # prompts whose answers it holds
MOST_TEXT = 4_000_000  # characters of them


@dataclass(frozen=True, slots=True)
class PromptWay:
    """Values of one held-out prompt: None where it was not judged."""

    key: str
    way: Way
    values: Sequence[float | None]


@dataclass(frozen=True, slots=True)
class Ways:
    """`counts` are of all prompts; `prompts` are the first MOST_WAYS of them and `steps` are spread over all."""

    steps: Sequence[str]
    prompts: Sequence[PromptWay]
    counts: dict[Way, int]
    total: int


def way(passed: Sequence[bool]) -> Way:
    """What became of a prompt, from first to last.

    >>> [way(p) for p in ([False, True], [True, True], [True, False, True, False], [True, False], [False])]
    ['learned', 'kept', 'unstable', 'forgotten', 'never']
    """
    if sum(a != b for a, b in zip(passed, passed[1:], strict=False)) >= _FLIPS:
        return "unstable"
    if passed[-1]:
        return "kept" if passed[0] else "learned"
    return "forgotten" if any(passed) else "never"


def ways(record: RunRecord) -> Ways | None:
    """Every held-out prompt over the evaluations, with the answers before and after as first and last where judged."""
    method = record.method
    columns = [(str(one.step), one.values.get(method.held_out, {})) for one in record.evaluations]
    ends = {one.key: (_rate(one.before), _rate(one.after)) for one in record.samples}
    if any(before is not None for before, _ in ends.values()):
        before = {key: pair[0] for key, pair in ends.items()}
        after = {key: pair[1] for key, pair in ends.items()}
        columns = [("before", before), *columns, ("after", after)]
    if not columns:
        return None
    found: list[PromptWay] = []
    for key in columns[-1][1]:
        values = [own.get(key) for _, own in columns]
        passed = [method.passes(value) for value in values if value is not None]
        if passed:
            found.append(PromptWay(key, way(passed), values))
    kept = _spread(len(columns), MOST_STEPS)
    shown = [PromptWay(one.key, one.way, [one.values[i] for i in kept]) for one in found[:MOST_WAYS]]
    return Ways([columns[i][0] for i in kept], shown, dict(Counter(one.way for one in found)), len(found))


def _rate(answers: Answers) -> float | None:
    """Share of a prompt's samples that are right."""
    return mean_of(answers, lambda sample: None if sample.right is None else float(sample.right))


def _spread(count: int, most: int) -> list[int]:
    """At most that many of range(count), evenly, first and last among them."""
    if count <= most:
        return list(range(count))
    return sorted({round(i * (count - 1) / (most - 1)) for i in range(most)})


@dataclass(frozen=True, slots=True)
class Words:
    """A piece of text, and whether the other text lacks it."""

    text: str
    changed: bool


@dataclass(frozen=True, slots=True)
class Compared:
    """A prompt's answers before and after; `gain` is what its score rose by, `change` how much of the words changed."""

    key: str
    prompt: str
    before: Sequence[Words]
    after: Sequence[Words]
    score_before: float | None
    score_after: float | None
    gain: float
    change: float
    more: PromptSamples


def compared(record: RunRecord) -> tuple[list[Compared], str]:
    """The answers that a page shows, largest change first, and a line about which of all they are."""
    samples = record.samples
    chosen = _chosen(samples, record.method)
    shown = sorted((_compare(samples[i]) for i in chosen), key=lambda one: -one.change)
    if len(shown) == len(samples):
        return shown, f"all {len(samples)} prompts"
    return shown, (
        f"{len(shown)} of {len(samples)} prompts: those whose score rose most, those whose score fell most, and others "
        "spread evenly; all are in samples.jsonl"
    )


def _chosen(samples: Sequence[PromptSamples], method: Method) -> list[int]:
    order = sorted(range(len(samples)), key=lambda i: _gain(samples[i]))
    third = MOST_COMPARED // 3
    wanted = range(len(samples))
    if len(samples) > MOST_COMPARED:
        wanted = dict.fromkeys([*order[:third], *order[::-1][:third], *_spread(len(samples), third)])
    kept: list[int] = []
    room = MOST_TEXT
    for i in wanted:
        room -= _characters(samples[i])
        if room < 0 and kept:
            break
        kept.append(i)
    return kept


def _characters(one: PromptSamples) -> int:
    answers = [*one.before.sampled, *one.after.sampled]
    return len(one.prompt) + sum(len(sample.text) for sample in answers)


def answer_score(answers: Answers) -> float | None:
    """The share of samples that is right where that is known, otherwise their mean score; None without a judgement."""
    rate = _rate(answers)
    return mean_of(answers, lambda sample: sample.score) if rate is None else rate


def _gain(one: PromptSamples) -> float:
    before, after = answer_score(one.before), answer_score(one.after)
    return 0.0 if before is None or after is None else after - before


def _compare(one: PromptSamples) -> Compared:
    before, after = _shown(one.before), _shown(one.after)
    old, new, change = word_differences(before.text, after.text)
    scores = answer_score(one.before), answer_score(one.after)
    return Compared(one.key, one.prompt, old, new, *scores, _gain(one), change, one)


def _shown(answers: Answers) -> Sample:
    return answers.greedy or answers.sampled[0]


def word_differences(before: str, after: str) -> tuple[list[Words], list[Words], float]:
    """Both texts in pieces, those that the other lacks marked, and the share of words that differ.

    A word takes the blanks behind it along. Of long texts the beginning is compared, the rest is a piece of its own.

    >>> old, new, _ = word_differences("a good film", "a bad film")
    >>> [piece.text for piece in old if piece.changed], [piece.text for piece in new if piece.changed]
    (['good '], ['bad '])
    """
    old, new = (re.findall(r"^\s+|\S+\s*", text)[:_MOST_WORDS] for text in (before, after))
    matcher = difflib.SequenceMatcher(None, old, new)  # passes over what is everywhere in long texts
    left: list[Words] = []
    right: list[Words] = []
    for tag, a, b, c, d in matcher.get_opcodes():
        if a != b:
            left.append(Words("".join(old[a:b]), tag != "equal"))
        if c != d:
            right.append(Words("".join(new[c:d]), tag != "equal"))
    for pieces, text in ((left, before), (right, after)):
        if rest := text[sum(len(piece.text) for piece in pieces) :]:
            pieces.append(Words(rest, False))
    return left, right, 1 - matcher.ratio()
