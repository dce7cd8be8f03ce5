"""Distributions and intervals: equal to scipy's and to published tables, and covering what they promise."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import special

from otel_mlops.numbers.chance import (
    chi_squared_quantile,
    chi_squared_tail,
    mean_interval,
    normal_quantile,
    paired_difference,
    student_quantile,
    wilson,
)

GOLDEN = Path(__file__).parent.parent / "golden"
CLOSE = 1e-9


def golden(name: str) -> dict:
    """A published table."""
    return json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))


counts = st.integers(0, 300)
levels = st.floats(0.5, 0.9999)


# --- Distributions ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("df", [1, 2, 3, 9, 10, 11, 29, 100, 501])
def test_chi_squared_is_scipys(df: int):
    """Quantile and tail are scipy's to 1e-9, far out and with many degrees of freedom too."""
    for alpha in (1e-15, 1e-9, 1e-4, 0.01, 0.05, 0.5, 0.9, 0.99):
        exact = float(special.chdtri(df, alpha))
        assert chi_squared_quantile(alpha, df) == pytest.approx(exact, rel=CLOSE)
        for x in (exact / 2.0, exact, exact * 2.0):
            assert chi_squared_tail(x, df) == pytest.approx(special.chdtrc(df, x), rel=CLOSE, abs=1e-290)


@pytest.mark.parametrize("df", [2000, 2001])
def test_chi_squared_does_not_leave_the_range_of_floats(df: int):
    """With so many degrees of freedom that e ** -x is 0, the tail is scipy's still."""
    for x in (1.0, 1500.0, 2000.0, 2500.0, 1e5):
        assert chi_squared_tail(x, df) == pytest.approx(special.chdtrc(df, x), rel=CLOSE, abs=1e-290)


def test_chi_squared_is_the_published_table():
    """The critical values are those of NIST's table, to its three decimals."""
    table = golden("chi_squared")
    for df, row in table["rows"].items():
        for alpha, value in zip(table["columns"], row, strict=True):
            assert chi_squared_quantile(alpha, int(df)) == pytest.approx(value, abs=6e-4)


def test_no_squares_add_up_to_nothing():
    """With no degree of freedom the sum is 0, and never above it."""
    assert chi_squared_tail(0.0, 0) == 1.0
    assert chi_squared_tail(5e-324, 0) == 0.0
    assert chi_squared_quantile(0.01, 0) == 0.0


@pytest.mark.parametrize("df", [1, 2, 3, 4, 9, 30, 199, 200, 201, 202, 500, 10**6])
def test_students_is_scipys(df: int):
    """Student's quantile is scipy's to 1e-9, on both sides of 0 and of where the method changes."""
    for p in (1e-5, 0.01, 0.4999, 0.5, 0.5001, 0.9, 0.975, 0.995, 0.9999, 0.99999):
        assert student_quantile(p, df) == pytest.approx(special.stdtrit(df, p), rel=CLOSE, abs=1e-11)


def test_students_is_the_published_table():
    """The critical values are those of NIST's table, to its three decimals."""
    table = golden("student")
    for df, row in table["rows"].items():
        for p, value in zip(table["columns"], row, strict=True):
            assert student_quantile(p, int(df)) == pytest.approx(value, abs=6e-4)


@given(st.floats(1e-12, 1.0 - 1e-12))
def test_the_normal_quantile_is_scipys(p: float):
    """The normal quantile is scipy's to 1e-9."""
    assert normal_quantile(p) == pytest.approx(special.ndtri(p), rel=CLOSE, abs=1e-12)


@pytest.mark.parametrize("p", [0.0, 1.0, -0.1, 1.1, math.nan])
@pytest.mark.parametrize(
    "answer",
    [
        normal_quantile,
        lambda p: chi_squared_quantile(p, 3),
        lambda p: student_quantile(p, 3),
        lambda p: wilson(1, 2, p),
        lambda p: mean_interval(3, 6.0, 14.0, p),
        lambda p: paired_difference(1, 2, 3, p),
    ],
)
def test_a_probability_is_between_0_and_1(answer, p: float):
    """Any other probability or level is an error, also where there are no samples yet."""
    with pytest.raises(ValueError, match="a probability is between"):
        answer(p)


def test_degrees_of_freedom_are_counted_from_0():
    """Fewer degrees of freedom than there can be are an error."""
    with pytest.raises(ValueError, match="degrees of freedom"):
        chi_squared_tail(1.0, -1)
    with pytest.raises(ValueError, match="degrees of freedom"):
        student_quantile(0.9, 0)


# --- Intervals ----------------------------------------------------------------------------------------------


@given(counts, counts, levels)
def test_wilsons_interval_ends_where_the_share_is_z_deviations_away(k: int, n: int, level: float):
    """At either end of the interval, k successes are z standard deviations from what is expected there."""
    assume(k + n > 0)
    n += k
    z = normal_quantile((1.0 + level) / 2.0)
    interval = wilson(k, n, level)
    assert 0.0 <= interval.lower <= k / n + 1e-15
    assert k / n - 1e-15 <= interval.upper <= 1.0
    for p in interval:
        assert (k / n - p) ** 2 == pytest.approx(z * z * p * (1.0 - p) / n, abs=1e-12)


@pytest.mark.parametrize("case", golden("wilson")["cases"], ids=lambda case: f"{case['k']}/{case['n']}")
def test_wilsons_interval_is_newcombes(case: dict):
    """The interval is the one that Newcombe printed, to its four decimals."""
    assert wilson(case["k"], case["n"]) == pytest.approx((case["lower"], case["upper"]), abs=6e-5)


def test_wilsons_interval_covers():
    """Over all shares, 95 in 100 of the intervals of 50 trials hold the share."""
    shares = np.linspace(0.005, 0.995, 199)
    choices = np.array([math.comb(50, k) for k in range(51)])[:, None]
    likelihood = choices * shares ** np.arange(51)[:, None] * (1.0 - shares) ** np.arange(50, -1, -1)[:, None]
    intervals = np.array([wilson(k, 50) for k in range(51)])
    holds = (intervals[:, :1] <= shares) & (shares <= intervals[:, 1:])
    assert (likelihood * holds).sum(0).mean() == pytest.approx(0.95, abs=0.01)


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=50), levels)
def test_the_interval_of_a_mean_is_that_of_the_values(values: list[float], level: float):
    """From the sums alone, the interval is the one of the values themselves, with scipy's quantile of Student's."""
    n, mean, error = len(values), np.mean(values), np.std(values, ddof=1) / math.sqrt(len(values))
    assume(error > 1e-3)
    half = special.stdtrit(n - 1, (1.0 + level) / 2.0) * error
    interval = mean_interval(n, math.fsum(values), math.fsum(value * value for value in values), level)
    assert interval == pytest.approx((mean - half, mean + half), rel=1e-7, abs=1e-7)


def test_equal_values_leave_no_doubt():
    """Where all values are the same, rounding does not make a root of a negative number."""
    assert mean_interval(10, 1.0, 10 * 0.1 * 0.1) == pytest.approx((0.1, 0.1))


@given(counts, counts)
def test_the_paired_test_is_the_binomial_mid_p(b: int, c: int):
    """The p-value is twice the binomial tail with half of the likelihood of what was seen."""
    k, n = min(b, c), b + c
    exact = Fraction(2 * sum(math.comb(n, heads) for heads in range(k)) + math.comb(n, k), 2**n)
    assert paired_difference(b, c, n + 5).p_value == pytest.approx(float(exact), rel=CLOSE)


@pytest.mark.parametrize("case", golden("paired_difference")["cases"], ids=lambda case: f"{case['b']}/{case['c']}")
def test_the_paired_difference_is_the_published_one(case: dict):
    """Difference, interval and p-value are those of the published examples, to their decimals."""
    found = paired_difference(case["b"], case["c"], case["n"])._asdict()
    for name in found.keys() & case.keys():
        assert found[name] == pytest.approx(case[name], abs=6e-5)


@given(counts, counts, counts)
def test_the_paired_difference_turns_with_its_sides(b: int, c: int, agreeing: int):
    """The other way round it is the negative difference, and equally likely."""
    assume(b + c + agreeing > 0)
    n = b + c + agreeing
    one, other = paired_difference(b, c, n), paired_difference(c, b, n)
    assert other == pytest.approx((-one.difference, -one.upper, -one.lower, one.p_value))
    assert -1.0 <= one.lower <= one.upper <= 1.0


def test_many_pairs_take_no_time():
    """With a million cases on which the two differ, the p-value is the normal one, and is there at once."""
    found = paired_difference(500_000.0, 501_500.0, 1e7)
    assert found.p_value == pytest.approx(2.0 * special.ndtr(-1500.0 / math.sqrt(1_001_500.0)), rel=1e-3)


def test_equal_models_are_seldom_told_apart():
    """Of pairs that differ by chance alone, at most 5 in 100 have a p-value of 0.05 or less."""
    rng = np.random.default_rng(20260401)
    draws = rng.multinomial(400, [0.06, 0.06, 0.88], size=2000)
    found = [paired_difference(b, c, 400) for b, c, _ in draws.tolist()]
    assert np.mean([each.p_value <= 0.05 for each in found]) <= 0.055
    assert np.mean([each.lower <= 0.0 <= each.upper for each in found]) == pytest.approx(0.95, abs=0.015)


@pytest.mark.parametrize("n", [0, 0.0])
def test_without_samples_there_is_no_interval(n: float):
    """Of nothing there is None, and of one value no interval of its mean."""
    assert wilson(0, n) is None
    assert paired_difference(0, 0, n) is None
    assert mean_interval(n, 0.0, 0.0) is None
    assert mean_interval(1, 2.0, 4.0) is None
