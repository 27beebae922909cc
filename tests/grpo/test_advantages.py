"""Advantages against their closed forms."""

import math
import random

import pytest

from grpo.advantages import group_advantages


@pytest.mark.parametrize("size", [2, 3, 8, 64])
def test_a_lone_success_gets_the_root_of_the_others(size: int) -> None:
    scores = [1.0] + [0.0] * (size - 1)
    (population,) = group_advantages([scores], scale="group_std", ddof=0)
    (sample,) = group_advantages([scores], scale="group_std", ddof=1)
    assert population[0] == pytest.approx(math.sqrt(size - 1), rel=1e-12)
    assert sample[0] == pytest.approx(math.sqrt(size - 1) * math.sqrt((size - 1) / size), rel=1e-12)


def test_advantages_of_a_group_sum_to_zero_and_have_unit_deviation() -> None:
    rng = random.Random(0)
    for size in (2, 5, 16):
        (values,) = group_advantages([[rng.uniform(-3, 5) for _ in range(size)]], scale="group_std")
        assert math.fsum(values) == pytest.approx(0, abs=1e-12)
        assert math.fsum(value * value for value in values) / size == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("scale", ["group_std", "batch_std", "none"])
def test_equal_scores_give_exact_zeros(scale: str) -> None:
    """0.1 + 0.1 + 0.1 is not 0.3: a rounded mean and a tiny deviation once made noise of size 1 out of nothing."""
    for value in (0.1, 1 / 3, 1e300, -7.7):
        groups = group_advantages([[value] * 3, [value] * 7], scale=scale)  # type: ignore[arg-type]
        assert groups == [[0.0] * 3, [0.0] * 7]


def test_leave_one_out_is_the_unscaled_advantage_times_g_over_g_minus_1() -> None:
    scores = [0.3, -1.0, 2.0, 0.25, 0.3]
    (unscaled,) = group_advantages([scores], scale="none")
    for i, score in enumerate(scores):
        others = scores[:i] + scores[i + 1 :]
        assert score - sum(others) / 4 == pytest.approx(unscaled[i] * 5 / 4, rel=1e-12)


def test_batch_deviation_is_over_all_centred_scores() -> None:
    found = group_advantages([[0.0, 1.0], [0.0, 3.0]], scale="batch_std")
    deviation = math.sqrt((0.25 + 0.25 + 2.25 + 2.25) / 4)
    assert found == [[-0.5 / deviation, 0.5 / deviation], [-1.5 / deviation, 1.5 / deviation]]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        group_advantages([[0.0, bad]], scale="none")
