"""A process reward for worked solutions: is every equation true, and the answer right? Knows no algebra.

A step is a line. A line with an equals sign is right when the arithmetic on its left gives the number on its right; the
line with the marker is right when what follows it is the gold answer. Other lines are no steps.
"""

import ast
import re
from collections.abc import Mapping, Sequence
from fractions import Fraction

from groupwise.errors import UserError
from groupwise.rewards.answers import gold_answer, number_of
from groupwise.rewards.protocol import Answer, ProcessReward, per_completion, process_reward

_LONGEST_LINE = 200  # characters; a longer one is no step that a person would check
_MOST_DIGITS = 15  # of a number in it
_ARITHMETIC = re.compile(r"[0-9+\-*/(). ]+")


def worked_steps(
    column: str = "answer",
    marker: str = "#### ",
    equation: float = 1.0,
    answer: float = 1.0,
    wrong: float = 0.0,
) -> ProcessReward:
    """(end, value) of every line that states something: `equation` for a true one, `answer` for the right answer.

    A line that is false, or cannot be read, has the value `wrong`. Step rewards as in section 4.1.3 of Shao et al. 2024
    (arXiv 2402.03300), by rule in place of a model.

    >>> text = "2 * 6 = 12\\n12 + 5 = 18\\n#### 18"
    >>> worked_steps()([{"prompt": "?", "answer": "18"}], [Answer(text=text, token_ids=(), finished=True, group=0)])
    [[(11, 1.0), (23, 0.0), (30, 1.0)]]
    """

    @process_reward
    @per_completion
    def reward(rows: Sequence[Mapping[str, object]], completions: Sequence[Answer]) -> list[list[tuple[int, float]]]:
        return [steps_of_answer(row, one) for row, one in zip(rows, completions, strict=True)]

    def steps_of_answer(row: Mapping[str, object], one: Answer) -> list[tuple[int, float]]:
        gold = number_of(gold_answer(row, column, marker))
        if gold is None:
            raise UserError(
                f"the gold answer in column {column!r} is no number; use another reward, or mend the column"
            )
        steps: list[tuple[int, float]] = []
        end = 0
        for line in one.text.splitlines(keepends=True):
            end += len(line)
            is_whole = one.finished or end < len(one.text) or line.endswith("\n")
            text = line.strip()
            if marker and text.startswith(marker.strip()):
                given = number_of(text.removeprefix(marker.strip()).strip())
                steps.append((end, answer if is_whole and given is not None and given == gold else wrong))
            elif "=" in text:
                steps.append((end, equation if is_whole and is_true(text) else wrong))
        # An answer of no lines at all has still answered: wrongly.
        return steps or [(len(one.text), wrong)]

    return reward


def is_true(line: str) -> bool:
    """Whether a line such as "12 + 5 = 17" is a true equation of numbers; a number that equals itself says nothing.

    >>> [is_true(line) for line in ("12 + 5 = 17", "3 * (4 - 1) = 9", "7 / 2 = 3.5", "5 = 5", "12 + 5 = 18", "x = 2")]
    [True, True, True, False, False, False]
    """
    left, _, right = line.partition("=")
    if re.fullmatch(r"[\d.]+", left.strip()):
        return False
    value, stated = value_of(left), number_of(right.strip())
    return value is not None and stated is not None and value == stated


def value_of(expression: str) -> Fraction | None:
    """The value of sums, differences, products and quotients of plain numbers; None for anything else.

    >>> value_of("2 + 3 * 4"), value_of("1 / 0"), value_of("2 ** 9"), value_of("f(2)")
    (Fraction(14, 1), None, None, None)
    """
    text = expression.strip()
    if len(text) > _LONGEST_LINE or not _ARITHMETIC.fullmatch(text):
        return None
    try:
        return _value(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError):
        return None


def _value(node: ast.expr) -> Fraction:
    """Raises ValueError for what is no arithmetic."""
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        text = repr(node.value)
        if len(text) > _MOST_DIGITS:
            raise ValueError(text)
        return Fraction(text)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand)
    if isinstance(node, ast.BinOp):
        left, right = _value(node.left), _value(node.right)
        if isinstance(node.op, ast.Add):
            return left + right
        if isinstance(node.op, ast.Sub):
            return left - right
        if isinstance(node.op, ast.Mult):
            return left * right
        if isinstance(node.op, ast.Div):
            return left / right
    raise ValueError(ast.dump(node))
