"""A reward for answers that are mathematics: 1 where they are equivalent to the gold answer, by math-verify and SymPy.

Knows nothing about time: some expressions take for ever (9^{9^{9^9}}), and the process that runs this is killed then.
"""

import importlib.util
import logging
from collections.abc import Mapping

from groupwise.errors import UserError
from groupwise.rewards.answers import gold_answer, marked_answer
from groupwise.rewards.protocol import Answer, Reward, each, prompt_text

LONGEST = 1000  # characters of an answer that are read as mathematics


def math_answer(column: str = "answer", marker: str = "#### ") -> Reward:
    r"""1 where the answer in the completion's last \boxed{} or behind its last marker is equivalent to the gold answer.

    Of box and marker the later one counts. The gold answer is found in its column in the same way, or is the whole
    column. Answers of more than 1,000 characters are right only when they equal the gold answer as text. Raises
    UserError when math-verify is not installed.
    """
    if importlib.util.find_spec("math_verify") is None:
        raise UserError("math_answer needs the package math-verify; run: pip install 'groupwise[math]'")
    # It warns that its own time limit, which works on a main thread only, is off.
    logging.getLogger("math_verify").setLevel(logging.ERROR)

    equivalent("1/2", "0.5")  # imports and warms up SymPy now: loading has a time limit of its own

    def score(row: Mapping[str, object], answer: Answer) -> float:
        gold = gold_answer(row, column, marker)
        _, boxed_gold = last_boxed(gold)
        if boxed_gold is None and len(gold) > LONGEST:
            raise UserError(
                f"column {column!r} holds {len(gold)} characters without \\boxed{{}} or the marker {marker!r}, which "
                f"no answer can equal (prompt {prompt_text(row)[:100]!r}); mend or drop the row"
            )
        given = _given_answer(answer, marker)
        return float(given is not None and equivalent(given, boxed_gold or gold))

    return each(score)


def equivalent(given: str, gold: str) -> bool:
    """Whether two answers are the same text or equivalent mathematics; may take for ever."""
    from math_verify import parse, verify  # takes a second: only the process that needs it pays

    if given == gold:
        return True
    if not given or max(len(given), len(gold)) > LONGEST:
        return False
    expected, found = (parse(rf"\boxed{{{text}}}", parsing_timeout=None) for text in (gold, given))  # pyright: ignore
    return bool(verify(expected, found, timeout_seconds=None, raise_on_error=True))


def _given_answer(answer: Answer, marker: str) -> str | None:
    start, boxed = last_boxed(answer.text)
    if boxed is not None and (not marker or start > answer.text.rfind(marker)):
        return boxed
    marked = marked_answer(answer, marker)
    if marked is None:
        return None
    return marked.removeprefix("$").removesuffix("$").strip() if marked.count("$") == 2 else marked


def last_boxed(text: str) -> tuple[int, str | None]:
    r"""Where the last complete \boxed{...} of a text begins, and what is in it; (-1, None) where there is none.

    >>> last_boxed(r"first \boxed{1}, then \boxed{\frac{1}{2}}.")
    (22, '\\frac{1}{2}')
    """
    end = len(text)
    while (start := text.rfind(r"\boxed{", 0, end)) >= 0:
        depth = 0
        for place in range(start + len(r"\boxed"), end):
            if text[place - 1] != "\\":  # \{ is a brace to print
                depth += {"{": 1, "}": -1}.get(text[place], 0)
            if depth == 0:
                return start, text[start + len(r"\boxed{") : place].strip()
        end = start
    return -1, None
