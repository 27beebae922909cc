"""Which step's weights become the adapter."""

import pytest

from groupwise.observe.heldout import Evaluated
from groupwise.train.choice import choose


def evaluated(step: int, values: list[float | None]) -> Evaluated:
    return Evaluated(step, {"right": {f"x:{i}": value for i, value in enumerate(values)}})


HALF: list[float | None] = [0.0, 1.0] * 20


@pytest.mark.parametrize(
    ("best", "allowed", "step", "words"),
    [
        ([1.0] * 40, True, 5, "was best at step 5, by +0.5"),
        ([1.0] * 40, False, 10, "run.adapter_from is last"),
        ([1.0, *HALF[1:]], True, 10, "no significant difference, so the adapter is the last step's"),
        ([None] * 40, True, 10, "was not measured"),
    ],
)
def test_the_best_step_is_taken_where_it_is_better_beyond_chance(
    best: list[float | None], allowed: bool, step: int, words: str
) -> None:
    choice = choose([evaluated(5, best), evaluated(10, HALF)], "right", best=5, last=10, allowed=allowed)
    assert choice.step == step and words in choice.line("right")


def test_the_last_step_may_be_the_best() -> None:
    choice = choose([evaluated(10, HALF)], "right", best=10, last=10)
    assert (choice.step, choice.gain) == (10, None) and "best at the last step" in choice.line("right")
