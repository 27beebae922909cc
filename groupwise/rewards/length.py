"""Rewards for the length of a completion."""

from collections.abc import Mapping
from typing import Literal

from groupwise.rewards.protocol import Answer, BadOption, Reward, each


def length(
    unit: Literal["tokens", "characters", "words"] = "tokens", scale: float = 100.0, cap: float | None = None
) -> Reward:
    """The completion's length divided by `scale`, at most `cap`; give it a negative weight to ask for brevity.

    Tokens include the end token.

    >>> answers = [Answer(text="two words", token_ids=(5, 9, 0), finished=True, group=0)]
    >>> length(unit="words", scale=4)([{"prompt": "?"}], answers)
    [0.5]
    """
    if scale <= 0:
        raise BadOption("scale", f"must be greater than 0, got {scale:g}")
    if cap is not None and cap <= 0:
        raise BadOption("cap", f"must be greater than 0, got {cap:g}")

    def score(row: Mapping[str, object], answer: Answer) -> float:
        sizes = {"tokens": answer.token_ids, "characters": answer.text, "words": answer.text.split()}
        value = len(sizes[unit]) / scale
        return value if cap is None else min(value, cap)

    return each(score)


def soft_overlong(max_tokens: int, cache_tokens: int) -> Reward:
    """0 for up to max_tokens - cache_tokens tokens, then falling in a straight line to -1 at max_tokens and above.

    Tokens include the end token. Eq. 13 of DAPO (arXiv 2503.14476), there 20480 and 4096.

    >>> answers = [Answer(text="", token_ids=(7,) * n, finished=True, group=0) for n in (80, 90, 100, 101)]
    >>> soft_overlong(max_tokens=100, cache_tokens=20)([{"prompt": "?"}] * 4, answers)
    [0.0, -0.5, -1.0, -1.0]
    """
    if max_tokens < 1:
        raise BadOption("max_tokens", f"must be at least 1, got {max_tokens}")
    if not 1 <= cache_tokens <= max_tokens:
        raise BadOption("cache_tokens", f"must be at least 1 and at most max_tokens, got {cache_tokens}")

    def score(row: Mapping[str, object], answer: Answer) -> float:
        over = len(answer.token_ids) - (max_tokens - cache_tokens)
        return -min(over / cache_tokens, 1.0) if over > 0 else 0.0

    return each(score)
