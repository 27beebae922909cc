"""Rewards for a final answer after a marker: 1 where it equals the gold answer, 0 where not. Know no algebra.

The answer is the rest of the line behind the completion's last marker; without a marker there is no answer. The gold
answer is what follows the last marker of the row's column, or the whole column where there is no marker (data in the
style of GSM8K keeps a worked solution there). An empty marker makes the whole completion the answer. A completion that
was cut at the limit has no answer where the cut may have gone through it: "#### 18" may have been going to be 180.
"""

import re
from collections.abc import Mapping
from fractions import Fraction

from groupwise.errors import UserError
from groupwise.rewards.protocol import Answer, Reward, column_of, each, prompt_text

LONGEST_EXACT = 1000  # digits, and size of an exponent, up to which numbers are compared by arithmetic
Number = Fraction | tuple[int, str, int]
"""A number: by value, or where it is too long for that, the sign, digits and exponent of its one shortest writing."""

_HEAD = re.compile("([+-]?) ?[$\u20ac\u00a3]? ?([+-]?)")  # -$5 and $-5
_DECIMAL = re.compile(r"((?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)?)(?:\.([0-9]*))?(?:[eE]([+-]?[0-9]{1,9}))?")


def exact_answer(column: str = "answer", marker: str = "#### ", last_line_only: bool = False) -> Reward:
    """1 where the text behind the completion's last marker equals the gold answer, letter by letter.

    Blank space around both is dropped. With `last_line_only` nothing but blank space may follow the answer's line.

    >>> answers = [Answer(text=text, token_ids=(), finished=True, group=0) for text in ("So\\n#### Paris", "Paris")]
    >>> exact_answer()([{"prompt": "?", "answer": "Paris"}] * 2, answers)
    [1.0, 0.0]
    """

    def score(row: Mapping[str, object], answer: Answer) -> float:
        gold = gold_answer(row, column, marker)
        if marker and "\n" in gold:
            raise UserError(f"the gold answer {gold[:100]!r} has several lines, no answer can; set marker to ''")
        return float(marked_answer(answer, marker, last_line_only=last_line_only) == gold)

    return each(score)


def numeric_answer(column: str = "answer", marker: str = "#### ", last_line_only: bool = False) -> Reward:
    """1 where the text behind the completion's last marker is the same number as the gold answer.

    Thousands commas, a currency or percent sign, a full stop at the end, 18.0 for 18, 1e3 for 1000 and fractions are
    understood; any other text around the number is not, and then the answer is wrong. A percent sign is dropped, not
    computed: 50% equals 50, not 0.5. Raises UserError for a gold answer that is no number.

    >>> answers = [Answer(text=text, token_ids=(), finished=True, group=0) for text in ("#### $1,800.00.", "#### 18")]
    >>> numeric_answer()([{"prompt": "?", "answer": "60 x 30 = 1800\\n#### 1800"}] * 2, answers)
    [1.0, 0.0]
    """

    def score(row: Mapping[str, object], answer: Answer) -> float:
        gold = gold_answer(row, column, marker)
        expected = number_of(gold)
        if expected is None:
            raise UserError(f"the gold answer {gold[:100]!r} is no number; use exact_answer, or mend column {column!r}")
        given = marked_answer(answer, marker, last_line_only=last_line_only)
        return float(given is not None and number_of(given) == expected)

    return each(score)


def marked_answer(answer: Answer, marker: str, *, last_line_only: bool = False) -> str | None:
    """The rest of the line behind the completion's last marker, or None where there is no complete answer.

    >>> marked_answer(Answer(text="#### 18\\nor so", token_ids=(), finished=True, group=0), "#### ")
    '18'
    >>> marked_answer(Answer(text="#### 18", token_ids=(), finished=False, group=0), "#### ") is None
    True
    """
    if not marker:
        return answer.text.strip() if answer.finished else None
    _, found, behind = answer.text.rpartition(marker)
    line, line_end, rest = behind.partition("\n")
    if not found or not (answer.finished or line_end) or (last_line_only and rest.strip()):
        return None
    return line.strip()


def gold_answer(row: Mapping[str, object], column: str, marker: str) -> str:
    """The right answer of a row, never empty; raises UserError where the column holds none.

    >>> gold_answer({"prompt": "?", "answer": "9 + 9 = 18\\n#### 18"}, "answer", "#### ")
    '18'
    """
    value = column_of(row, column)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        kind = type(value).__name__
        raise UserError(f"column {column!r} must hold text or a number, not {kind} (prompt {prompt_text(row)[:100]!r})")
    text = str(value)
    gold = (text.rpartition(marker)[2] if marker else text).strip()
    if not gold:
        raise UserError(f"column {column!r} holds no answer (prompt {prompt_text(row)[:100]!r}); drop the row")
    return gold


def number_of(text: str) -> Number | None:
    """The number that a text is, or None; takes time in proportion to the text, however many digits it has.

    >>> [number_of(text) for text in ("$1,800.00", "3/4", "-1 1/2", "1e3", "1,80", "eighteen")]
    [Fraction(1800, 1), Fraction(3, 4), Fraction(-3, 2), Fraction(1000, 1), None, None]
    """
    text = text.strip().removesuffix(".").replace("\u2212", "-").rstrip("% ")
    head = _HEAD.match(text)
    assert head is not None, "all its parts are optional"
    if head[1] and head[2]:
        return None
    sign = -1 if "-" in head[0] else 1
    text = text[head.end() :]
    if "/" not in text:
        return _decimal(text.strip(), sign)
    over, _, under = text.strip().partition("/")
    whole, _, over = over.rstrip().rpartition(" ")
    parts = [_decimal(part.strip(), 1) for part in (whole or "0", over, under)]
    if any(not isinstance(part, Fraction) for part in parts) or parts[2] == 0:
        return None
    whole_value, over_value, under_value = (Fraction(part) for part in parts if isinstance(part, Fraction))
    return sign * (whole_value + over_value / under_value)


def _decimal(text: str, sign: int) -> Number | None:
    match = _DECIMAL.fullmatch(text)
    if match is None:
        return None
    whole, decimals, exponent = match[1].replace(",", ""), match[2] or "", int(match[3] or 0)
    if not whole + decimals:
        return None
    digits = (whole + decimals).lstrip("0")
    exponent += len(digits) - len(digits.rstrip("0")) - len(decimals)
    digits = digits.rstrip("0")
    if not digits:
        return Fraction(0)
    if len(digits) > LONGEST_EXACT or abs(exponent) > LONGEST_EXACT:
        return sign, digits, exponent
    return sign * int(digits) * Fraction(10) ** exponent
