"""Rewards of steps: across the pipe, what is refused, and the built-in one."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from groupwise.data.text import TextEncoder
from groupwise.errors import UserError
from groupwise.groups import Completion
from groupwise.rewards.protocol import Answer
from groupwise.rewards.scorer import Scorer
from groupwise.rewards.worked_steps import value_of, worked_steps
from groupwise.sections import RewardSection, ScoringSection
from grpo.answering import score_answers
from grpo.dataset_utils import Prompt

REWARDS = """
from groupwise.rewards.protocol import per_completion, process_reward

RETURNS = {
    "good": [(2, 1), (4, 0.5)], "none": None, "empty": [], "nan": [(1, float("nan"))], "far": [(9, 1.0)],
    "back": [(2, 1.0), (2, 1.0)], "zero": [(0, 1.0)], "number": 0.5, "text": "ab", "triple": [(1, 2, 3)],
    "fraction": [(1.5, 1.0)], "flag": [(True, 1.0)], "valueless": [(1, None)], "huge": [(1, 1e300)],
}

@process_reward
@per_completion
def steps(rows, completions):
    return [RETURNS.get(answer.text, [(len(answer.text), 1.0)]) for answer in completions]

@process_reward
def lines(rows, completions):
    "One step a line, worth its number."
    found = []
    for answer in completions:
        ends = [i + 1 for i, letter in enumerate(answer.text) if letter == ";"]
        found.append([(end, float(number)) for number, end in enumerate(ends)])
    return found

def whole(rows, completions):
    return [float(len(answer.text)) for answer in completions]
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("rewards") / "mine.py"
    file.write_text(REWARDS)
    return file


@pytest.fixture(scope="module")
def scorer(file: Path) -> Iterator[Scorer]:
    rewards = [RewardSection(name=f"{file}:steps", weight=2.0), RewardSection(name=f"{file}:whole", weight=0.5)]
    with Scorer(rewards, ScoringSection()) as scorer:
        yield scorer


def answers(*texts: str) -> list[Answer]:
    return [Answer(text=text, token_ids=(1,), finished=True, group=0) for text in texts]


def test_steps_cross_the_pipe_and_their_mean_is_the_score(scorer: Scorer) -> None:
    assert scorer.process_names == ("steps",)
    found = scorer.score([{"prompt": "?"}] * 3, answers("good", "none", "empty"))
    assert found.steps == {"steps": (((2, 1.0), (4, 0.5)), None, None)}
    assert found.by_reward == {"steps": (0.75, None, None), "whole": (4.0, 4.0, 5.0)}
    assert found.outcomes == (2.0, 2.0, 2.5) and found.totals == (3.5, 2.0, 2.5)
    assert not found.faults


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        ("nan", "not finite", "nan"),
        ("huge", "not finite", "float32"),
        ("far", "not a step", "ends at 9"),
        ("back", "not a step", "rise from 3"),
        ("zero", "not a step", "rise from 1"),
        ("number", "not a step", "pairs"),
        ("text", "not a step", "pairs"),
        ("triple", "not a step", "(end, value)"),
        ("fraction", "not a step", "whole number"),
        ("flag", "not a step", "whole number"),
        ("valueless", "not a number", "without a value"),
    ],
)
def test_a_bad_return_is_a_fault_of_its_completion_alone(scorer: Scorer, text: str, kind: str, words: str) -> None:
    found = scorer.score([{"prompt": "?"}] * 2, answers("good", text))
    (fault,) = found.faults
    assert (fault.kind, fault.index) == (kind, 1) and words in fault.message
    assert found.totals == (3.5, None) and found.steps["steps"][1] is None


def test_steps_become_tokens_and_the_last_one_takes_the_end_token(
    file: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Ends are characters; a step belongs to the token that holds its last one, here ";" each of its own."""
    encoder = TextEncoder(tokenizer, max_prompt_tokens=9, max_completion_tokens=99)
    texts = ("The film;liked;", "the film; it", "é;ü;")
    completions = [
        Completion(token_ids=(*tokenizer(text)["input_ids"], tokenizer.eos_token_id), finished=True, score=0.0)  # type: ignore[misc]
        for text in texts
    ]
    prompt = Prompt(key="x", prompt_ids=(1,), row={"prompt": "?"})
    with Scorer([RewardSection(name=f"{file}:lines", weight=3.0)], ScoringSection()) as scorer:
        (scored,), faults = score_answers(scorer, encoder, [prompt], [completions])
    assert not faults
    for completion, steps in zip(completions, scored.steps, strict=True):
        pieces = [str(tokenizer.decode([i])) for i in completion.token_ids]
        marks = [i for i, piece in enumerate(pieces) if piece.endswith(";")]
        if pieces[-2].endswith(";"):
            marks[-1] = len(pieces) - 1
        assert list(steps) == [(mark, 3.0 * number) for number, mark in enumerate(marks)]


def check(text: str, *, finished: bool = True, **options: float) -> list[float]:
    reward = worked_steps(**options)  # type: ignore[arg-type]
    found = reward([{"prompt": "?", "answer": "18"}], [Answer(text=text, token_ids=(1,), finished=finished, group=0)])
    assert found[0] is not None
    assert [end for end, _ in found[0]][-1] <= len(text)
    return [value for _, value in found[0]]


def test_worked_steps_checks_every_equation_and_the_answer() -> None:
    assert check("12 + 6 = 18\n#### 18") == [1, 1]
    assert check("12 + 6 = 19\nso\n19 - 1 = 18\n#### 19", wrong=-1.0, equation=0.5) == [-1, 0.5, -1]
    assert check("#### 18.0", answer=2.0) == [2]
    assert check("nothing here") == [0] and check("") == [0]
    assert check("12 + 6 = 18\n18 + 1 = 1", finished=False) == [1, 0]  # may have been going to be 19
    assert check("#### 18", finished=False) == [0]
    assert check("18 = 18\n#### 18") == [0, 1]  # says nothing


@pytest.mark.parametrize("text", ["9**9**9", "(" * 500, "__import__('os')", "1" * 5000, "1 +", "1e999 + 1", "0x10 + 1"])
def test_hostile_arithmetic_is_no_number(text: str) -> None:
    assert value_of(text) is None


def test_a_gold_answer_that_is_no_number_stops_the_run() -> None:
    with pytest.raises(UserError, match="no number"):
        worked_steps()([{"prompt": "?", "answer": "blue"}], answers("#### blue"))
