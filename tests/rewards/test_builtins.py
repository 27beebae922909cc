"""What the built-in rewards give, against truths worked out by hand, and on real answers of GSM8K."""

import inspect
import json
import random
import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groupwise.errors import UserError
from groupwise.rewards import registry
from groupwise.rewards.answers import number_of
from groupwise.rewards.math_answer import last_boxed
from groupwise.rewards.protocol import Answer, BadOption, Reward, looks_at_one_completion, scores_steps
from groupwise.rewards.registry import BUILT_IN, make_reward, option_problems
from groupwise.rewards.repetition import repeated_share
from groupwise.rewards.wire import steps_of

ROOT = Path(__file__).parents[2]
GSM8K = ROOT.parent / "shared" / "data" / "gsm8k_train.jsonl"


def built_in(name: str, **options: object) -> Reward:
    assert option_problems(name, options, "rewards[0]") == []
    reward, problems = make_reward(name, options, "rewards[0]", {})
    assert problems == [] and reward is not None
    assert looks_at_one_completion(reward)
    return reward


def score(reward: Reward, text: str, *, finished: bool = True, tokens: int = 0, **row: object) -> float | None:
    answer = Answer(text=text, token_ids=tuple(range(tokens)), finished=finished, group=0)
    (found,) = reward([{"prompt": "A question.", **row}], [answer])
    return found


# --- answers behind a marker ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("#### 18", 1),
        ("####   18  ", 1),
        ("3 + 15\n#### 18\n", 1),
        ("#### 17\n#### 18", 1),  # the last marker counts
        ("#### 18\n#### 17", 0),
        ("#### 18\nQuestion: and now?", 1),  # a base model rambles on
        ("18", 0),
        ("####18", 0),
        ("#### 18.0", 0),
        ("#### 18 dollars", 0),
        ("#### ", 0),
        ("", 0),
    ],
)
@pytest.mark.parametrize("gold", ["18", " 18\n", "9 + 9 = 18\n#### 18", 18])
def test_exact_answer(text: str, right: int, gold: object) -> None:
    assert score(built_in("exact_answer"), text, answer=gold) == right


def test_an_answer_that_was_cut_is_none() -> None:
    # "#### 18" at the limit may have been going to be "#### 180": scoring it would reward luck.
    for name in ("exact_answer", "numeric_answer"):
        reward = built_in(name)
        assert score(reward, "#### 18", finished=False, answer="18") == 0
        assert score(reward, "#### 18\nAnd", finished=False, answer="18") == 1
        assert score(built_in(name, marker=""), "18", finished=False, answer="18") == 0


def test_last_line_only_wants_nothing_behind_the_answer() -> None:
    for name in ("exact_answer", "numeric_answer"):
        reward = built_in(name, last_line_only=True)
        assert score(reward, "So\n#### 18\n \n", answer="18") == 1
        assert score(reward, "So\n#### 18\nOr 19?", answer="18") == 0


def test_an_empty_marker_makes_the_whole_completion_the_answer() -> None:
    reward = built_in("exact_answer", marker="", column="solution")
    assert score(reward, " two\nlines ", solution="two\nlines") == 1
    assert score(reward, "#### two\nlines", solution="two\nlines") == 0


@pytest.mark.parametrize(
    ("text", "gold", "right"),
    [
        ("18.0", "18", 1),
        ("18.", "18", 1),
        ("018", "18", 1),
        ("$18", "18", 1),
        ("-$18", "-18", 1),
        ("$-18", "-18", 1),
        ("\u221218", "-18", 1),
        ("+18", "18", 1),
        ("--18", "18", 0),
        ("1,800", "1800", 1),
        ("1,80", "180", 0),
        ("1800", "1,800", 1),
        ("50%", "50", 1),
        ("50%", "0.5", 0),
        (".5", "0.5", 1),
        ("1/2", "0.5", 1),
        ("2/4", "1/2", 1),
        ("1 1/2", "1.5", 1),
        ("-1 1/2", "-1.5", 1),
        ("1/0", "1", 0),
        ("1/2/3", "1", 0),
        ("1e3", "1000", 1),
        ("1.5e-3", "0.0015", 1),
        ("0.1", "0.10000000000000001", 0),  # floats would call these equal
        ("12345678901234567890123", "12345678901234567890124", 0),  # and these
        ("-0", "0", 1),
        ("18 dollars", "18", 0),
        ("x = 18", "18", 0),
        ("eighteen", "18", 0),
        ("\u0661\u0668", "18", 0),  # digits of another script
        ("nan", "18", 0),
        ("inf", "18", 0),
        ("0x12", "18", 0),
        ("1_8", "18", 0),
        (".", "0", 0),
        ("", "0", 0),
        ("18", "18.0", 1),
    ],
)
def test_numeric_answer(text: str, gold: str, right: int) -> None:
    assert score(built_in("numeric_answer"), f"So\n#### {text}", answer=gold) == right


@given(st.integers(-(10**30), 10**30), st.integers(0, 12))
def test_a_number_is_read_however_it_is_written(value: int, decimals: int) -> None:
    number = Fraction(value, 10**decimals)
    digits = f"{abs(value):0{decimals + 1}d}"
    whole, part = digits[: len(digits) - decimals], digits[len(digits) - decimals :]
    sign = "-" if value < 0 else ""
    grouped = f"{int(whole):,}"
    plain, dressed = f"{sign}{whole}.{part}", f"{sign}${grouped}.{part}00%"
    for text in (plain, dressed, f"{value}e-{decimals}", f"{value}/{10**decimals}"):
        assert number_of(text) == number, text


def test_long_numbers_compare_by_their_digits() -> None:
    long = "7" * 5000
    assert number_of(f"{long}.000") == number_of(f"00{long}") == number_of(f"{long}0e-1")
    assert number_of(long) != number_of(long[:-1] + "8")
    assert number_of(f"-{long}") != number_of(long)
    assert number_of("0." + "0" * 5000) == 0
    assert number_of("18." + "0" * 100_000) == 18


@pytest.mark.parametrize(
    ("name", "gold", "words"),
    [
        ("numeric_answer", "eighteen", "is no number"),
        ("numeric_answer", None, "must hold text or a number, not NoneType"),
        ("exact_answer", True, "must hold text or a number, not bool"),
        ("exact_answer", "So 18\n#### ", "holds no answer"),
        ("exact_answer", "two\nlines", "several lines"),
    ],
)
def test_a_gold_answer_that_can_never_be_met_is_refused(name: str, gold: object, words: str) -> None:
    # It would score 0 for ever, and look like a model that does not learn. No answer in the completion hides it.
    for text in ("#### 18", "no answer"):
        with pytest.raises(UserError, match=words):
            score(built_in(name), text, answer=gold)


@pytest.mark.skipif(not GSM8K.exists(), reason="../shared/data/gsm8k_train.jsonl is not there")
def test_every_gsm8k_solution_is_right_and_no_other_is() -> None:
    with GSM8K.open() as file:
        rows = [json.loads(line) for line in file]
    answers = [Answer(text=row["answer"], token_ids=(), finished=True, group=i) for i, row in enumerate(rows)]
    assert len(rows) > 1000
    for name in ("exact_answer", "numeric_answer"):
        reward = built_in(name)
        assert set(reward(rows, answers)) == {1.0}
        others = answers[1:] + answers[:1]
        gold = [row["answer"].rpartition("#### ")[2].replace(",", "") for row in rows]
        same = [float(a == b) for a, b in zip(gold, gold[1:] + gold[:1], strict=True)]
        assert list(reward(rows, others)) == same


# --- mathematics ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def math_answer() -> Reward:
    pytest.importorskip("math_verify", reason="math_answer needs pip install 'groupwise[math]'")
    return built_in("math_answer")


@pytest.mark.parametrize(
    ("text", "gold", "right"),
    [
        (r"So \boxed{\frac{1}{2}}.", "0.5", 1),
        (r"#### \frac{1}{2}", "0.5", 1),
        (r"#### $\frac{1}{2}$", "0.5", 1),
        (r"\boxed{\frac12}", r"The half: \boxed{1/2}", 1),
        (r"\boxed{(x+1)^2}", "x^2+2x+1", 1),
        (r"\boxed{x^2+1}", "x^2+2x+1", 0),
        (r"\boxed{\sqrt{8}}", r"2\sqrt{2}", 1),
        (r"\boxed{\{1,2\}}", r"\{2,1\}", 1),
        (r"\boxed{1} then \boxed{2}", "2", 1),
        (r"\boxed{1} then \boxed{2}", "1", 0),
        ("\\boxed{1}\n#### 2", "2", 1),  # the later of the two
        ("#### 2\n\\boxed{1}", "2", 0),
        (r"\boxed{2", "2", 0),
        ("2", "2", 0),  # neither box nor marker
        (r"\boxed{}", "2", 0),
    ],
)
def test_math_answer(math_answer: Reward, text: str, gold: str, right: int) -> None:
    assert score(math_answer, text, answer=gold) == right


def test_a_closed_box_counts_though_the_rest_was_cut(math_answer: Reward) -> None:
    assert score(math_answer, r"\boxed{18} is", finished=False, answer="18") == 1
    assert score(math_answer, "#### 18", finished=False, answer="18") == 0


def test_a_missing_package_is_told_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)  # pyright: ignore[reportUnknownLambdaType]
    _, problems = make_reward("math_answer", {}, "rewards[3]", {})
    assert problems == ["rewards[3]: math_answer needs the package math-verify; run: pip install 'groupwise[math]'"]


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"\boxed{a{b}c}", "a{b}c"),
        (r"\boxed{a} \boxed{b", "a"),
        (r"\boxed{a \boxed{b}}", "b"),
        (r"\boxed{\left\{ 1 \right.}", r"\left\{ 1 \right."),
        ("boxed{a}", None),
        ("\\boxed{" * 20_000, None),  # must not take quadratic time
    ],
)
def test_last_boxed(text: str, content: str | None) -> None:
    assert last_boxed(text)[1] == content


# --- form -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("<think>a</think><answer>b</answer>", 1),
        ("\n<think>a\nb</think>\n\n<answer>b</answer>\n", 1),
        ("<think>a</think>so<answer>b</answer>", 0),
        ("<think>a</think><answer>b</answer>.", 0),
        ("<think> </think><answer>b</answer>", 0),
        ("<think>a</think><answer></answer>", 0),
        ("<answer>b</answer><think>a</think>", 0),
        ("<think>a</think><answer>b</answer><answer>c</answer>", 0),
        ("<think><think>a</think><answer>b</answer>", 0),
        ("<think>a<answer>b</answer></think>", 0),
        ("a</think><answer>b</answer>", 0),
        ("", 0),
    ],
)
def test_think_answer_format(text: str, right: int) -> None:
    assert score(built_in("think_answer_format"), text) == right


def test_a_prompt_may_open_the_thinking() -> None:
    reward = built_in("think_answer_format", think_opened_by_prompt=True)
    assert score(reward, "a</think><answer>b</answer>") == 1
    assert score(reward, "<think>a</think><answer>b</answer>") == 0


def test_regex_format() -> None:
    assert score(built_in("regex_format", pattern=r"\d+"), "42") == 1
    assert score(built_in("regex_format", pattern=r"\d+"), "42 ") == 0
    assert score(built_in("regex_format", pattern=r"\d+", whole=False), "it is 42.") == 1
    assert score(built_in("regex_format", pattern="a.b"), "a\nb") == 0
    assert score(built_in("regex_format", pattern="(?s)a.b"), "a\nb") == 1


# --- length and repetition --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [(0, 0), (16384, 0), (16385, -1 / 4096), (18432, -0.5), (20479, -4095 / 4096), (20480, -1), (20481, -1)],
)
def test_soft_overlong_is_equation_13(tokens: int, expected: float) -> None:
    # with the paper's L_max and L_cache
    assert score(built_in("soft_overlong", max_tokens=20480, cache_tokens=4096), "", tokens=tokens) == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [({"scale": 1.0}, 5), ({}, 0.05), ({"unit": "characters", "scale": 1}, 9), ({"unit": "words", "scale": 4}, 0.5)],
)
def test_length(options: dict[str, Any], expected: float) -> None:
    assert score(built_in("length", **options), "two words", tokens=5) == expected


def test_length_stops_at_its_cap() -> None:
    assert score(built_in("length", scale=10, cap=2.5), "", tokens=20) == 2.0
    assert score(built_in("length", scale=10, cap=2.5), "", tokens=30) == 2.5


@pytest.mark.parametrize(
    ("text", "n", "expected"),
    [
        ("the cat sat on the mat", 1, -1 / 6),
        ("the cat sat on the mat", 3, 0),
        ("The the THE the", 2, -2 / 3),
        ("a b c a b c a b c", 3, -4 / 7),  # abc bca cab abc bca cab abc
        ("a b", 3, 0),
        ("", 1, 0),
    ],
)
def test_repetition(text: str, n: int, expected: float) -> None:
    assert score(built_in("repetition", n=n), text) == pytest.approx(expected)


def test_repetition_of_tokens() -> None:
    answer = Answer(text="", token_ids=(4, 4, 4, 4, 0), finished=True, group=0)
    assert built_in("repetition", n=2, unit="tokens")([{"prompt": ""}], [answer]) == [-0.5]  # 44 44 44 40


def test_repeated_share_counts_every_n_gram_once() -> None:
    rng = random.Random(4)
    for _ in range(200):
        items, n = rng.choices("abc", k=rng.randint(1, 15)), rng.randint(1, 4)
        grams = ["".join(items[i : i + n]) for i in range(len(items) - n + 1)]
        repeated = sum(gram in grams[:i] for i, gram in enumerate(grams))
        assert repeated_share(items, n) == pytest.approx(repeated / len(grams) if grams else 0)


# --- sentiment --------------------------------------------------------------------------------------------------------


def test_review_sentiment_reads_the_completion_and_on_request_the_prompt() -> None:
    assert score(built_in("review_sentiment"), " It is not dull.", prompt="A dreary day.") == 0.5
    with_prompt = built_in("review_sentiment", with_prompt=True)
    assert score(with_prompt, " It is not dull.", prompt="The plot is weak.") == 0
    chat = [{"role": "user", "content": "The plot is weak."}]
    assert score(with_prompt, " It is not dull.", prompt=chat) == 0


# --- all of them ------------------------------------------------------------------------------------------------------


def factory(name: str) -> Callable[..., Reward]:
    return getattr(__import__(f"groupwise.rewards.{BUILT_IN[name]}", fromlist=[name]), name)


@pytest.mark.parametrize("name", BUILT_IN)
def test_the_document_lists_every_reward_with_its_options(name: str) -> None:
    document = (ROOT / "docs" / "rewards.md").read_text()
    (line,) = [line for line in document.splitlines() if line.startswith(f"| `{name}` |")]
    options = line.split(" | ")[1]
    assert re.findall(r"`(\w+)`", options) == list(inspect.signature(factory(name)).parameters)


@pytest.mark.parametrize(
    ("name", "options", "option"),
    [
        ("length", {"scale": 0.0}, "scale"),
        ("length", {"cap": -1.0}, "cap"),
        ("soft_overlong", {"max_tokens": 0, "cache_tokens": 1}, "max_tokens"),
        ("soft_overlong", {"max_tokens": 8, "cache_tokens": 0}, "cache_tokens"),
        ("repetition", {"n": 0}, "n"),
    ],
)
def test_impossible_options_are_refused(name: str, options: dict[str, Any], option: str) -> None:
    with pytest.raises(BadOption) as error:
        factory(name)(**options)
    assert error.value.option == option


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("length", {"scale": "1"}, "scale: should be a valid number"),
        ("length", {"unit": "letters"}, "unit: should be 'tokens', 'characters' or 'words'"),
        ("repetition", {"n": 3.0}, "n: should be a valid integer"),
        ("repetition", {"n": True}, "n: should be a valid integer"),
        ("exact_answer", {"column": None}, "column: should be a valid string"),
    ],
)
def test_options_of_the_wrong_type_are_refused(name: str, options: dict[str, object], words: str) -> None:
    (problem,) = option_problems(name, options, "rewards[2]")
    assert problem.startswith(f"rewards[2].options.{words}")


def test_a_file_is_run_once_for_all_its_rewards(tmp_path: Path) -> None:
    # A reward file that loads a model would otherwise hold it as often as it is named.
    file = tmp_path / "mine.py"
    file.write_text("MADE = []\ndef one(rows, completions): return MADE\ndef two(rows, completions): return MADE\n")
    files: dict[Path, ModuleType] = {}
    one, two = (registry.make_reward(f"{file}:{name}", {}, "rewards[0]", files)[0] for name in ("one", "two"))
    assert one is not None and two is not None
    assert one([], []) is two([], [])


# --- the example of the document --------------------------------------------------------------------------------------


def test_the_examples_of_the_document_work(tmp_path: Path) -> None:
    code, of_steps = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "rewards.md").read_text(), re.DOTALL)
    file = tmp_path / "my_rewards.py"
    file.write_text(code)
    files: dict[Path, ModuleType] = {}
    brevity, _ = make_reward(f"{file}:brevity", {"words": 2}, "rewards[0]", files)
    shortest, _ = make_reward(f"{file}:shortest_of_the_group", {}, "rewards[1]", files)
    assert brevity is not None and shortest is not None
    texts: Sequence[str] = ["one two three four", "one two", "one"]
    answers = [Answer(text=text, token_ids=(), finished=True, group=0) for text in texts]
    rows = [{"prompt": "Count."}] * 3
    assert brevity(rows, answers) == [0.5, 1.0, 1.0]
    assert shortest(rows, answers) == [0.0, 0.0, 1.0]
    assert (looks_at_one_completion(brevity), looks_at_one_completion(shortest)) == (True, False)
    process = tmp_path / "process.py"
    process.write_text(of_steps)
    lines, _ = make_reward(f"{process}:lines", {}, "rewards[2]", files)
    assert lines is not None and scores_steps(lines)
    two_lines = Answer(text="short\n" + "x" * 50, token_ids=(), finished=True, group=0)
    assert steps_of(lines(rows[:1], [two_lines]), [two_lines.text]) == [((6, 1.0), (56, 0.0))]
