"""`samples.jsonl`: what base and tuned model write to the same held-out prompts with the same random numbers.

Knows nothing about how completions are judged: `score` is the method's number, `right` a yes or no where there is one.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from groupwise.errors import UserError
from groupwise.observe.metrics import read_json_lines
from groupwise.observe.statistics import Figure, paired_difference


@dataclass(frozen=True, slots=True)
class Sample:
    """A completion. None: not judged, or not known."""

    text: str
    tokens: int
    finished: bool
    score: float | None = None
    right: bool | None = None
    logratio: float | None = None


@dataclass(frozen=True, slots=True)
class Answers:
    """What one network answers to one prompt."""

    sampled: Sequence[Sample]
    greedy: Sample | None = None


@dataclass(frozen=True, slots=True)
class PromptSamples:
    """One held-out prompt and its answers."""

    key: str
    prompt: str
    before: Answers
    after: Answers


def read_samples(path: Path) -> list[PromptSamples]:
    """All prompts of a `samples.jsonl`; none where the file is not there.

    Raises UserError as `read_json_lines` does, and naming a row that no run wrote.
    """
    if not path.is_file():
        return []

    def answers(part: Any) -> Answers:
        greedy = part.get("greedy")
        return Answers([Sample(**one) for one in part["sampled"]], None if greedy is None else Sample(**greedy))

    found: list[PromptSamples] = []
    rows: list[dict[str, Any]] = read_json_lines(path)
    for number, row in enumerate(rows, start=1):
        try:
            one = PromptSamples(row["key"], row["prompt"], answers(row["before"]), answers(row["after"]))
        except (AttributeError, KeyError, TypeError) as error:
            raise UserError(f"{path}:{number}: is not what a run writes; run eval.py again on the run") from error
        found.append(one)
    return found


def mean_of(answers: Answers, value: Callable[[Sample], float | None]) -> float | None:
    """Mean of a value over a prompt's samples, None where one of them has none."""
    values = [value(sample) for sample in answers.sampled]
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if values and len(known) == len(values) else None


def paired_change(samples: Sequence[PromptSamples], value: Callable[[Sample], float | None]) -> Figure | None:
    """After minus before, prompt by prompt, of the mean of a value over the samples; None where no prompt has both."""
    pairs = [(mean_of(one.before, value), mean_of(one.after, value)) for one in samples]
    known = [(before, after) for before, after in pairs if before is not None and after is not None]
    if not known:
        return None
    return paired_difference([before for before, _ in known], [after for _, after in known])


@dataclass(frozen=True, slots=True)
class LengthBias:
    """Of `pairs` answers to one prompt with different scores, the share in which the longer one has the higher score.

    One half: length says nothing. Equal lengths count half.
    """

    share: float
    pairs: int


def length_bias(samples: Sequence[PromptSamples]) -> LengthBias | None:
    """Over all pairs of answers that one network gave to one prompt; None without a pair of different scores.

    >>> answers = Answers([Sample("ab", 2, True, score=1.0), Sample("a", 1, True, score=0.0)])
    >>> length_bias([PromptSamples("x:1", "?", answers, answers)])
    LengthBias(share=1.0, pairs=2)
    """
    wins = [
        (better.tokens > worse.tokens) + (better.tokens == worse.tokens) / 2
        for one in samples
        for answers in (one.before, one.after)
        for better, worse in _ordered(answers.sampled)
    ]
    return LengthBias(sum(wins) / len(wins), len(wins)) if wins else None


def _ordered(sampled: Sequence[Sample]) -> Iterator[tuple[Sample, Sample]]:
    for better in sampled:
        for worse in sampled:
            if better.score is not None and worse.score is not None and better.score > worse.score:
                yield better, worse
