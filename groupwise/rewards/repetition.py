"""A reward against completions that say the same thing over and over."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Literal

from groupwise.rewards.protocol import Answer, BadOption, Reward, each


def repetition(n: int = 3, unit: Literal["words", "tokens"] = "words") -> Reward:
    """Minus the share of n-grams that stood in the completion before: 0 for no repetition, near -1 for nothing else.

    That is distinct-n (Li et al. 2016, arXiv 1510.03055) less 1. Words are lower-cased and cut at blank space. A
    completion without an n-gram scores 0.

    >>> answers = [Answer(text=text, token_ids=(), finished=True, group=0) for text in ("a b c d", "a b a b")]
    >>> repetition(n=1)([{"prompt": "?"}] * 2, answers)
    [0.0, -0.5]
    """
    if n < 1:
        raise BadOption("n", f"must be at least 1, got {n}")

    def score(row: Mapping[str, object], answer: Answer) -> float:
        return 0.0 - repeated_share(answer.text.lower().split() if unit == "words" else answer.token_ids, n)

    return each(score)


def repeated_share(items: Sequence[Hashable], n: int) -> float:
    """The share of n-grams that are not the first of their kind, 0 where there is no n-gram.

    >>> repeated_share("aaaa", 2)   # aa, aa, aa
    0.6666666666666666
    """
    total = len(items) - n + 1
    if total < 1:
        return 0.0
    distinct = len({tuple(items[start : start + n]) for start in range(total)})
    return (total - distinct) / total
