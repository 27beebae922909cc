"""What a reward is: a function from rows of data and completions to scores. Knows no particular reward, and no process.

A reward must be a function of what it is given: it is called in worker processes that are killed and started anew, any
one of which may get any group, so what it remembers between calls is not part of the result.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar, cast

from groupwise.errors import UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One completion as a reward sees it.

    `text` is decoded without special tokens; `token_ids` hold the end token where there is one; `finished` is False
    when the completion was cut at the limit. Completions of one prompt share the number `group` and stand side by side.
    """

    text: str
    token_ids: tuple[int, ...]
    finished: bool
    group: int


class Reward(Protocol):
    """Scores the completions of one prompt: one finite number each, or None for "no opinion".

    rows[i] is the row of data that completions[i] answers: every column of the file, and always "prompt". A reward that
    looks at one completion at a time says so with `per_completion`.
    """

    def __call__(
        self, rows: Sequence[Mapping[str, object]], completions: Sequence[Answer]
    ) -> Sequence[float | None]: ...


Steps = tuple[tuple[int, float], ...]
"""Rewards of the steps of one completion, in order: where a step ends, and its reward.

A step ends behind so many characters of the completion's text; the last may end where the text does.
"""


class ProcessReward(Protocol):
    """Scores every step of the completions of one prompt: (end, value) pairs for each, or None for "no opinion".

    Ends are numbers of characters of `text`, rising from step to step; values are finite. No steps at all are no
    opinion. A function says that it is one with `process_reward`.
    """

    def __call__(
        self, rows: Sequence[Mapping[str, object]], completions: Sequence[Answer]
    ) -> Sequence[Sequence[tuple[int, float]] | None]: ...


class BadOption(Exception):
    """An option of a reward that cannot be used; `option` is its name, the message what is wrong and the remedy."""

    def __init__(self, option: str, message: str) -> None:
        super().__init__(message)
        self.option = option


FunctionT = TypeVar("FunctionT", bound=Callable[..., object])


def per_completion(reward: FunctionT) -> FunctionT:
    """Mark a reward whose score of one completion does not depend on the others of its group.

    When a call on a group raises, hangs or dies, such a reward is asked again completion by completion, so that one
    poisonous completion does not cost its siblings their scores.

    >>> @per_completion
    ... def brevity(rows, completions):
    ...     return [1 / (1 + len(answer.text)) for answer in completions]
    >>> looks_at_one_completion(brevity)
    True
    """
    reward.per_completion = True  # pyright: ignore[reportFunctionMemberAccess]
    return reward


def looks_at_one_completion(reward: object) -> bool:
    """Whether a reward was marked with `per_completion`; the marker must be True itself."""
    return getattr(reward, "per_completion", False) is True


def process_reward(reward: FunctionT) -> FunctionT:
    """Mark a reward that scores steps, not whole completions.

    >>> @process_reward
    ... @per_completion
    ... def lines(rows, completions):
    ...     return [[(len(answer.text), 1.0)] for answer in completions]
    >>> scores_steps(lines), looks_at_one_completion(lines)
    (True, True)
    """
    reward.scores_steps = True  # pyright: ignore[reportFunctionMemberAccess]
    return reward


def scores_steps(reward: object) -> bool:
    """Whether a reward was marked with `process_reward`; the marker must be True itself."""
    return getattr(reward, "scores_steps", False) is True


def each(score: Callable[[Mapping[str, object], Answer], float | None]) -> Reward:
    """The reward that scores every completion by itself with `score(row, answer)`.

    >>> length = each(lambda row, answer: float(len(answer.text)))
    >>> length([{"prompt": "2+2="}], [Answer(text="four", token_ids=(1,), finished=True, group=0)])
    [4.0]
    """

    @per_completion
    def reward(rows: Sequence[Mapping[str, object]], completions: Sequence[Answer]) -> list[float | None]:
        return [score(row, answer) for row, answer in zip(rows, completions, strict=True)]

    return reward


def column_of(row: Mapping[str, object], column: str) -> object:
    """The value of a row's column; raises UserError naming the columns there are.

    >>> column_of({"prompt": "2+2=", "solution": "4"}, "answer")
    Traceback (most recent call last):
    groupwise.errors.UserError: the row has no column 'answer' (prompt '2+2='); it has: prompt, solution
    """
    if column not in row:
        raise UserError(
            f"the row has no column {column!r} (prompt {prompt_text(row)[:100]!r}); it has: {', '.join(row)}"
        )
    return row[column]


def prompt_text(row: Mapping[str, object]) -> str:
    """The prompt of a row as text to show; of chat messages, the contents by role.

    >>> prompt_text({"prompt": [{"role": "user", "content": "2+2="}]})
    'user: 2+2='
    """
    prompt = row.get("prompt")
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, Sequence):
        messages = [cast(Mapping[str, object], m) for m in cast(Sequence[object], prompt) if isinstance(m, Mapping)]
        return "\n".join(f"{message.get('role')}: {message.get('content')}" for message in messages)
    return "" if prompt is None else str(prompt)
