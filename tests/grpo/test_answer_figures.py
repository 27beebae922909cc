"""pass@k and majority votes against counting."""

import itertools
import random

import pytest

from grpo.eval import majority_is_right, pass_at_k


@pytest.mark.parametrize(("n", "right", "k"), [(5, 2, 1), (5, 2, 3), (6, 1, 6), (6, 0, 2), (4, 4, 2), (7, 3, 5)])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_answer(n: int, right: int, k: int) -> None:
    outcomes = [1] * right + [0] * (n - right)
    subsets = list(itertools.combinations(outcomes, k))
    assert pass_at_k(n, right, k) == pytest.approx(sum(any(subset) for subset in subsets) / len(subsets), abs=1e-12)


def test_pass_at_more_than_was_drawn_is_refused() -> None:
    with pytest.raises(ValueError, match="pass@9"):
        pass_at_k(8, 2, 9)


def test_ties_are_settled_by_chance_and_their_mean_is_what_counts() -> None:
    """Against a vote that picks one of the commonest answers at random, many times."""
    answers = ["3", "4", "4", "5", "3", None, "6", "6"]
    rights = [answer == "4" for answer in answers]
    rng = random.Random(0)
    drawn = [rng.choice(["3", "4", "6"]) == "4" for _ in range(20_000)]
    assert majority_is_right(answers, rights) == pytest.approx(sum(drawn) / len(drawn), abs=0.015)
    assert majority_is_right(answers, rights) == pytest.approx(1 / 3)


def test_unreadable_answers_have_no_vote() -> None:
    assert majority_is_right([None, None, "7"], [False, False, True]) == 1.0
    assert majority_is_right([None, None], [False, False]) == 0.0
