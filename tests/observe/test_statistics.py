"""Intervals against published values and by simulation."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from groupwise.observe.statistics import Figure, mean_interval, paired_difference, proportion_interval

# Newcombe 1998, Statistics in Medicine 17, table I, method 3 (Wilson without continuity correction).
_NEWCOMBE = [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)]


@pytest.mark.parametrize(("k", "n", "low", "high"), _NEWCOMBE)
def test_wilson_equals_the_published_table(k: int, n: int, low: float, high: float) -> None:
    figure = proportion_interval(k, n)
    assert (figure.value, figure.n) == (k / n, n)
    assert figure.low == pytest.approx(low, abs=5e-5)
    assert figure.high == pytest.approx(high, abs=5e-5)


@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_a_proper_interval_and_symmetric(case: tuple[int, int]) -> None:
    k, n = case
    figure, mirrored = proportion_interval(k, n), proportion_interval(n - k, n)
    assert 0 <= figure.low <= figure.value <= figure.high <= 1
    assert figure.low < figure.high
    assert mirrored.low == pytest.approx(1 - figure.high, abs=1e-12)


@pytest.mark.parametrize(("k", "n"), [(0, 0), (-1, 5), (6, 5)])
def test_wilson_refuses_what_is_no_share(k: int, n: int) -> None:
    with pytest.raises(ValueError, match="not a share"):
        proportion_interval(k, n)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_wilson_covers_as_promised(p: float) -> None:
    """Exact: the coverage is a sum over all outcomes of a binomial, no simulation."""
    n = 50
    covered = [proportion_interval(k, n).low <= p <= proportion_interval(k, n).high for k in range(n + 1)]
    coverage = sum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1) if covered[k])
    assert 0.92 <= coverage <= 0.98


@pytest.mark.parametrize("name", ["normal", "exponential", "coin"])
def test_bootstrap_covers_as_promised(name: str) -> None:
    """500 experiments of n = 50 with a fixed seed: the observed share has a standard error of 1 %.

    A percentile bootstrap covers a skewed mean a little less, hence the lower bound for the exponential.
    """
    generator = np.random.default_rng(7)
    draws = {
        "normal": generator.normal(0.3, 2.0, (500, 50)),
        "exponential": generator.exponential(1.0, (500, 50)),
        "coin": (generator.random((500, 50)) < 0.4).astype(float),
    }[name]
    truth = {"normal": 0.3, "exponential": 1.0, "coin": 0.4}[name]
    figures = [mean_interval(row.tolist()) for row in draws]
    coverage = np.mean([figure.low <= truth <= figure.high for figure in figures])
    assert (0.90 if name == "exponential" else 0.92) <= coverage <= 0.98


def test_bootstrap_width_is_that_of_the_normal_approximation_when_n_is_large() -> None:
    values = np.random.default_rng(3).normal(5.0, 2.0, 4000)
    figure = mean_interval(values.tolist())
    half = 1.96 * values.std() / math.sqrt(4000)
    assert figure.value == pytest.approx(values.mean())
    assert (figure.high - figure.low) / 2 == pytest.approx(half, rel=0.06)


def test_the_same_values_in_any_order_give_the_same_interval() -> None:
    values = [0.1, 0.9, 0.4, 0.4, 0.2]
    assert mean_interval(values) == mean_interval(values[::-1]) == mean_interval(values)


def test_resampling_in_parts_to_save_memory_does_not_change_the_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(5).normal(0.0, 1.0, 50).tolist()
    whole = mean_interval(values)
    monkeypatch.setattr("groupwise.observe.statistics._DRAWS_AT_ONCE", 50 * 7)  # 4000 is not a multiple of 7
    assert mean_interval(values) == whole


@pytest.mark.parametrize("values", [[0.1], [0.1] * 7])
def test_values_without_spread_give_themselves(values: list[float]) -> None:
    """0.1 summed seven times and divided by seven is not 0.1; the value must not fall outside its own interval."""
    assert mean_interval(values) == Figure(0.1, 0.1, 0.1, len(values))


def test_no_values_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one"):
        mean_interval([])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_values_that_are_not_finite_are_named(bad: float) -> None:
    with pytest.raises(ValueError, match="value 1 of 3"):
        mean_interval([1.0, bad, 2.0])


def test_pairing_removes_what_makes_items_differ() -> None:
    """Items differ by 10, a change adds 0.5 with noise 0.1: separate intervals overlap, the paired one does not."""
    generator = np.random.default_rng(0)
    before = generator.normal(0.0, 10.0, 100)
    after = before + 0.5 + generator.normal(0.0, 0.1, 100)
    difference = paired_difference(before.tolist(), after.tolist())
    assert 0.4 < difference.low < difference.value < difference.high < 0.6
    assert mean_interval(before.tolist()).high > mean_interval(after.tolist()).low


def test_paired_difference_has_the_sign_of_the_change() -> None:
    assert paired_difference([1.0, 2.0], [0.0, 0.5]).value == -1.25


@pytest.mark.parametrize(("before", "after"), [([1.0], [1.0, 2.0]), ([], [])])
def test_paired_difference_wants_the_same_items(before: list[float], after: list[float]) -> None:
    with pytest.raises(ValueError):
        paired_difference(before, after)


def test_a_figure_refuses_a_value_outside_its_interval_and_nan() -> None:
    for arguments in [(0.9, 0.1, 0.5, 3), (math.nan, 0.0, 1.0, 3), (0.5, 0.0, math.inf, 3), (0.5, 0.0, 1.0, 0)]:
        with pytest.raises(ValueError):
            Figure(*arguments)
