"""Rewards for the form of a completion, whatever it says."""

import re
from collections.abc import Mapping

from groupwise.rewards.protocol import Answer, BadOption, Reward, each

_TAGS = ("<think>", "</think>", "<answer>", "</answer>")
_THINK_ANSWER = re.compile(r"\s*<think>(.*)</think>\s*<answer>(.*)</answer>\s*", re.DOTALL)


def regex_format(pattern: str, whole: bool = True) -> Reward:
    """1 where the whole completion matches a regular expression (with `whole` off: where any part does), else 0.

    The expression is Python's; begin it with (?s) to let a dot match line ends. Blank space around the completion
    counts.

    >>> answers = [Answer(text=text, token_ids=(), finished=True, group=0) for text in ("yes", "yes!")]
    >>> regex_format("yes|no")([{"prompt": "?"}] * 2, answers)
    [1.0, 0.0]
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise BadOption("pattern", f"is no regular expression: {error}") from None
    match = compiled.fullmatch if whole else compiled.search

    def score(row: Mapping[str, object], answer: Answer) -> float:
        return float(match(answer.text) is not None)

    return each(score)


def think_answer_format(think_opened_by_prompt: bool = False) -> Reward:
    """1 where the completion is <think>...</think><answer>...</answer>, each tag once and neither part blank, else 0.

    Only blank space may stand outside the two parts. Turn `think_opened_by_prompt` on when the prompt itself ends with
    <think>, as some chat templates do. The form of DeepSeek-R1 (arXiv 2501.12948, section 2.2.1).

    >>> good, bad = "<think>6 x 3</think>\\n<answer>18</answer>", "<answer>18</answer>"
    >>> answers = [Answer(text=text, token_ids=(), finished=True, group=0) for text in (good, bad)]
    >>> think_answer_format()([{"prompt": "?"}] * 2, answers)
    [1.0, 0.0]
    """

    def score(row: Mapping[str, object], answer: Answer) -> float:
        text = "<think>" * think_opened_by_prompt + answer.text
        if any(text.count(tag) != 1 for tag in _TAGS):
            return 0.0
        match = _THINK_ANSWER.fullmatch(text)
        return float(match is not None and all(part.strip() for part in match.groups()))

    return each(score)
