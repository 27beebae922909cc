"""What both methods learn from: one prompt, N completions of it, N scores.

DPO reads the order of the scores, GRPO their value. Knows nothing about text, models or losses.
Legend: T tokens of one completion.
"""

import hashlib
import math
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy.typing as npt
import torch
from torch import Tensor

from groupwise.errors import RunStopped

MOST_NAMED = 5
PER_TOKEN = ("sampled_logp", "drawn_logp", "reference_logp", "advantage")


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Completion:
    """One answer to a prompt, as ids, with what is known of it.

    `finished` says that it ended by itself: with an end-of-sequence token, which then is the last id, or a stop text; a
    completion that was cut is not finished. `score` is a preference rank or a reward, higher is better. Log-probs are
    per token, in nats, [T]: `sampled_logp` under the policy that wrote it, at the sampling temperature, as the engine
    that learns computes it; `drawn_logp` what the sampler really drew with, where that is another distribution (top-k
    and the like, or another program); none where it is the same;
    `reference_logp` under the frozen reference. `advantage` is what a policy gradient weighs each token by, [T].

    >>> Completion(token_ids=(5, 7, 0), finished=True, score=1.0)  # doctest: +ELLIPSIS
    Completion(token_ids=(5, 7, 0), finished=True, score=1.0, sampled_logp=None, ...)
    >>> Completion(token_ids=(), finished=False, score=1.0)
    Traceback (most recent call last):
    ValueError: a completion needs at least one token
    """

    token_ids: tuple[int, ...]
    finished: bool
    score: float
    sampled_logp: Tensor | None = None
    drawn_logp: Tensor | None = None
    reference_logp: Tensor | None = None
    advantage: Tensor | None = None

    def __post_init__(self) -> None:
        if not self.token_ids:
            raise ValueError("a completion needs at least one token")
        for name in PER_TOKEN:
            value_T: Tensor | None = getattr(self, name)
            if value_T is not None and tuple(value_T.shape) != (len(self.token_ids),):
                raise ValueError(
                    f"{name} has shape {tuple(value_T.shape)}, the completion {len(self.token_ids)} tokens"
                )

    def __reduce__(self) -> tuple[Callable[..., "Completion"], tuple[object, ...]]:
        """For the way between processes, as arrays of bytes: the usual form takes ten times as long to read."""
        known = [(name, value_T) for name in PER_TOKEN if (value_T := getattr(self, name)) is not None]
        packed = {name: value_T.detach().cpu().contiguous().numpy() for name, value_T in known}
        return _received, (array("i", self.token_ids).tobytes(), self.finished, self.score, packed)


def _received(ids: bytes, finished: bool, score: float, packed: Mapping[str, npt.NDArray[Any]]) -> Completion:
    values = {name: torch.from_numpy(value) for name, value in packed.items()}
    token_ids = array("i")
    token_ids.frombytes(ids)
    return Completion(token_ids=tuple(token_ids), finished=finished, score=score, **values)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Group:
    """One prompt and its completions. `key` names the source for people: "data/raw/x.jsonl:17".

    >>> yes = Completion(token_ids=(1, 0), finished=True, score=1.0)
    >>> no = Completion(token_ids=(2, 0), finished=True, score=0.0)
    >>> group = Group(key="x.jsonl:1", prompt_ids=(8, 9), completions=(no, yes))
    >>> ordered_pairs(group), is_informative(group), forward_tokens(group)
    ([(1, 0)], True, 4)
    """

    key: str
    prompt_ids: tuple[int, ...]
    completions: tuple[Completion, ...]

    def __post_init__(self) -> None:
        if not self.prompt_ids:
            raise ValueError(
                f"{self.key}: a prompt needs at least one token, which predicts the first completion token"
            )
        if not self.completions:
            raise ValueError(f"{self.key}: a group needs at least one completion")

    def replace_completions(self, completions: Sequence[Completion]) -> Self:
        """The same prompt with other completions."""
        return type(self)(key=self.key, prompt_ids=self.prompt_ids, completions=tuple(completions))


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Unanswered:
    """A prompt that no completion could be drawn for."""

    key: str
    prompt_ids: tuple[int, ...]
    completions: tuple[Completion, ...] = ()


class NotFinite(RunStopped):
    """Something became NaN or infinite with `groups`, none where all are the same; nothing was learned from them."""

    def __init__(self, what: str, groups: Sequence[Group | Unanswered] = ()) -> None:
        super().__init__(f"{what} not finite{f' with {named(groups)}' if groups else ''}")
        self.what = what
        self.groups = tuple(groups)


def named(groups: Sequence[Group | Unanswered]) -> str:
    """Keys of the first groups, and how many more there are.

    >>> one = Completion(token_ids=(1,), finished=True, score=1.0)
    >>> named([Group(key=f"x:{i}", prompt_ids=(8,), completions=(one,)) for i in range(7)])
    'x:0, x:1, x:2, x:3, x:4 and 2 more'
    """
    shown = ", ".join(group.key for group in groups[:MOST_NAMED])
    return shown if len(groups) <= MOST_NAMED else f"{shown} and {len(groups) - MOST_NAMED} more"


def ordered_pairs(group: Group) -> list[tuple[int, int]]:
    """Every (better, worse) pair of completion indices with strictly different scores; ties give no pair."""
    scores = [completion.score for completion in group.completions]
    return [(i, j) for i, better in enumerate(scores) for j, worse in enumerate(scores) if better > worse]


def count_pairs(group: Group) -> int:
    """How many pairs `ordered_pairs` gives, without listing them: all pairs of completions but the ties.

    >>> tied = [Completion(token_ids=(1,), finished=True, score=s) for s in (0.0, 0.0, 1.0, 2.0)]
    >>> group = Group(key="x:1", prompt_ids=(8,), completions=tuple(tied))
    >>> count_pairs(group), len(ordered_pairs(group))
    (5, 5)
    """
    ties = Counter(completion.score for completion in group.completions)
    return math.comb(len(group.completions), 2) - sum(math.comb(count, 2) for count in ties.values())


def is_informative(group: Group) -> bool:
    """Whether the scores differ at all: a group of equal scores teaches neither method anything."""
    return len({completion.score for completion in group.completions}) > 1


def fingerprint(groups: Iterable[Group], *, scores: bool) -> str:
    """SHA-256 over the token ids of the groups in order, and over their scores where these matter."""
    digest = hashlib.sha256()
    for group in groups:
        digest.update(f"{group.prompt_ids}\n".encode())
        for completion in group.completions:
            digest.update(f" {completion.token_ids} {completion.score if scores else ''}\n".encode())
    return digest.hexdigest()


def completion_tokens(group: Group) -> int:
    """Tokens whose log-prob a loss reads: all completion tokens of the group."""
    return sum(len(completion.token_ids) for completion in group.completions)


def forward_tokens(group: Group) -> int:
    """Tokens that go through the network: the prompt once, and every completion but its last token."""
    return len(group.prompt_ids) + completion_tokens(group) - len(group.completions)


class Prompted(Protocol):
    """Whatever has a prompt: a group, or a prompt that nobody has answered yet."""

    @property
    def key(self) -> str: ...
    @property
    def prompt_ids(self) -> tuple[int, ...]: ...


def overlapping_prompts(train: Iterable[Prompted], heldout: Iterable[Prompted]) -> list[str]:
    """Keys of the held-out rows whose prompt is trained on: their figures say nothing about new prompts.

    >>> yes = Completion(token_ids=(1, 0), finished=True, score=1.0)
    >>> no = Completion(token_ids=(2, 0), finished=True, score=0.0)
    >>> groups = [Group(key=f"x:{i}", prompt_ids=(i,), completions=(yes, no)) for i in range(4)]
    >>> overlapping_prompts(groups[:3], groups[2:])
    ['x:2']
    """
    trained = {group.prompt_ids for group in train}
    return [group.key for group in heldout if group.prompt_ids in trained]
