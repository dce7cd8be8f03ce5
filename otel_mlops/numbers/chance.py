"""Chance: how far a number of a sample may be from the truth, and when a difference is more than chance."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from math import atan, erfc, exp, fsum, lgamma, log, pi, sqrt
from typing import NamedTuple


class Interval(NamedTuple):
    """Where the true value is to be expected."""

    lower: float
    upper: float


class PairedDifference(NamedTuple):
    """How much more often the second of two is right, where that is to be expected, and its p-value."""

    difference: float
    lower: float
    upper: float
    p_value: float


def wilson(k: float, n: float, level: float = 0.95) -> Interval | None:
    """Return Wilson's interval of a share, from k successes in n trials.

    Units:   shares, 0 to 1.
    Errors:  ValueError if the level is not between 0 and 1.
    Absent when: n is 0.
    Source:  Wilson 1927; Newcombe 1998, Statistics in Medicine 17, 857, method 3; pinned by tests/golden/wilson.json.

    >>> [round(end, 4) for end in wilson(81, 263)]
    [0.2553, 0.3662]
    """
    z = normal_quantile(_upper(level))
    if not n > 0.0:
        return None
    p = k / n
    center = p + z * z / (2.0 * n)
    half = z * sqrt(max(0.0, p * (1.0 - p)) / n + z * z / (4.0 * n * n))
    scale = 1.0 + z * z / n
    return Interval(max(0.0, (center - half) / scale), min(1.0, (center + half) / scale))


def mean_interval(n: float, total: float, squares: float, level: float = 0.95) -> Interval | None:
    """Return Student's interval of a mean, from the sums of n values and of their squares.

    It is exact for normal values, and near for all others once n is large; with n it becomes the normal interval. Of
    values that differ little and are far from 0, squares leave few digits: take both sums about a number near them.

    Units:   those of the values.
    Errors:  ValueError if the level is not between 0 and 1.
    Absent when: n is below 2.
    Source:  Student 1908: mean ± t s / sqrt(n), with n - 1 degrees of freedom.

    >>> [round(end, 4) for end in mean_interval(3, 6.0, 14.0)]  # of 1, 2 and 3
    [-0.4841, 4.4841]
    """
    upper = _upper(level)
    if not n >= 2.0:
        return None
    mean = total / n
    variance = max(0.0, squares - total * mean) / (n - 1.0)
    half = student_quantile(upper, int(n) - 1) * sqrt(variance / n)
    return Interval(mean - half, mean + half)


def paired_difference(b: float, c: float, n: float, level: float = 0.95) -> PairedDifference | None:
    """Return how much more often the second of two is right, on the same n cases.

    b cases are those that only the first got right, c those that only the second did. The p-value holds for one look:
    who looks again and again as cases come will sooner or later find a difference where there is none.

    Units:   shares, -1 to 1.
    Errors:  ValueError if the level is not between 0 and 1.
    Absent when: n is 0.
    Source:  the interval: Bonett and Price 2012, Journal of Educational and Behavioral Statistics 37, 479. The p-value:
             McNemar's test with the mid-p of Fagerland, Lydersen, Laake 2013, BMC Medical Research Methodology 13:91.
             Pinned by tests/golden/paired_difference.json.

    >>> [round(number, 4) for number in paired_difference(1, 7, 21)]
    [0.2857, 0.0134, 0.5084, 0.0391]
    """
    z = normal_quantile(_upper(level))
    if not n > 0.0:
        return None
    p12, p21 = (b + 1.0) / (n + 2.0), (c + 1.0) / (n + 2.0)
    center = p21 - p12
    half = z * sqrt((p12 + p21 - center * center) / (n + 2.0))
    return PairedDifference((c - b) / n, max(-1.0, center - half), min(1.0, center + half), _mid_p(b, c))


def _mid_p(b: float, c: float) -> float:
    """2 P(X < k) + P(X = k) for k the smaller of both, X the heads of a fair coin thrown b + c times."""
    n, k = b + c, min(b, c)
    likelihood = exp(lgamma(n + 1.0) - lgamma(k + 1.0) - lgamma(n - k + 1.0) - n * log(2.0))
    p = likelihood
    while k > 0.0 and likelihood > 1e-17 * p:
        likelihood *= k / (n - k + 1.0)
        k -= 1.0
        p += 2.0 * likelihood
    return min(1.0, p)


@lru_cache(maxsize=256)
def normal_quantile(p: float) -> float:
    """Return what a standard normal number is below with probability p.

    Errors:  ValueError if p is not between 0 and 1.
    Source:  statistics.NormalDist: Wichura 1988, algorithm AS 241.

    >>> round(normal_quantile(0.975), 6)
    1.959964
    """
    from statistics import NormalDist  # 5 ms: with the first question, not with the import of the package

    return NormalDist().inv_cdf(_probability(p))


def chi_squared_tail(x: float, df: int) -> float:
    """Return the probability that the squares of df standard normal numbers add up to more than x.

    Errors:  ValueError if df is below 0.
    Source:  Abramowitz and Stegun 1964, 26.4.4 and 26.4.5: for whole df the sum of df / 2 terms, without remainder.

    >>> round(chi_squared_tail(3.841, 1), 4), round(chi_squared_tail(2.0, 2), 4)
    (0.05, 0.3679)
    """
    if df < 0:
        raise ValueError(f"degrees of freedom are 0 or more, not {df}")
    if not x > 0.0:
        return 1.0
    y, log_y, odd = x / 2.0, log(x) - log(2.0), df % 2
    powers = [k + odd / 2.0 for k in range(df // 2)]
    # y ** k * exp(-y) / k!, through logarithms: each factor alone may be too large or too small for a float.
    terms = [exp(k * log_y - y - lgamma(k + 1.0)) for k in powers]
    return min(1.0, fsum(terms) + (erfc(sqrt(y)) if odd else 0.0))


@lru_cache(maxsize=256)
def chi_squared_quantile(alpha: float, df: int) -> float:
    """Return what the squares of df standard normal numbers add up to more than with probability alpha.

    Errors:  ValueError if alpha is not between 0 and 1, or df is below 0.
    Source:  the root of chi_squared_tail; pinned by tests/golden/chi_squared.json.

    >>> round(chi_squared_quantile(0.01, 9), 3)
    21.666
    """
    return _root(lambda x: chi_squared_tail(x, df), _probability(alpha))


@lru_cache(maxsize=1024)
def student_quantile(p: float, df: int) -> float:
    """Return what a number of Student's distribution with df degrees of freedom is below with probability p.

    Errors:  ValueError if p is not between 0 and 1, or df is below 1.
    Source:  Abramowitz and Stegun 1964: up to 200 degrees of freedom the root of 26.7.3 and 26.7.4, which have no
             remainder; above the expansion 26.7.5, which is off by less than 1e-9 for p up to 0.99999. Pinned by
             tests/golden/student.json.

    >>> round(student_quantile(0.975, 10), 3), round(student_quantile(0.975, 1000), 3)
    (2.228, 1.962)
    """
    if df < 1:
        raise ValueError(f"degrees of freedom are 1 or more, not {df}")
    if _probability(p) < 0.5:
        return -student_quantile(1.0 - p, df)
    if df <= 200:
        return _root(lambda t: 1.0 - _student_center(t, df), 2.0 * (1.0 - p))
    x = normal_quantile(p)
    g1 = (x**3 + x) / 4.0
    g2 = (5.0 * x**5 + 16.0 * x**3 + 3.0 * x) / 96.0
    g3 = (3.0 * x**7 + 19.0 * x**5 + 17.0 * x**3 - 15.0 * x) / 384.0
    g4 = (79.0 * x**9 + 776.0 * x**7 + 1482.0 * x**5 - 1920.0 * x**3 - 945.0 * x) / 92160.0
    return x + g1 / df + g2 / df**2 + g3 / df**3 + g4 / df**4


def _student_center(t: float, df: int) -> float:
    """The probability of a number of Student's distribution to be within -t and t."""
    cos2 = df / (df + t * t)
    sin = t / sqrt(df + t * t)
    odd = df % 2
    term = total = 0.0 if df == 1 else sqrt(cos2) if odd else 1.0
    for k in range(2 + odd, df - 1, 2):
        term *= cos2 * (k - 1.0) / k
        total += term
    return 2.0 / pi * (atan(t / sqrt(df)) + sin * total) if odd else sin * total


def _root(tail: Callable[[float], float], alpha: float) -> float:
    """The number from 0 up at which a falling function reaches alpha, to the last digit."""
    low, high = 0.0, 1.0
    while tail(high) > alpha:
        low, high = high, 2.0 * high
    while low < (middle := (low + high) / 2.0) < high:
        if tail(middle) > alpha:
            low = middle
        else:
            high = middle
    return low


def _upper(level: float) -> float:
    """The probability to be below the upper end of a two-sided interval."""
    return (1.0 + _probability(level)) / 2.0


def _probability(p: float) -> float:
    if not 0.0 < p < 1.0:
        raise ValueError(f"a probability is between 0 and 1, not {p}")
    return p
