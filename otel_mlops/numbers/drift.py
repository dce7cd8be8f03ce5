"""Drift: how far what is seen is from what was expected, over the same bins, and from where on that means something."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from math import exp, fsum, log, log2, sqrt

from .chance import chi_squared_quantile, chi_squared_tail, student_quantile

FLOOR = 0.1
"""The stability index below which a change is too small to tell anybody of, however certain it is."""


def stability_index(expected: Sequence[float], actual: Sequence[float]) -> float | None:
    """Return the population stability index of two histograms over the same bins.

    Each count is raised by one half, or by what both sides together let expect there if that is less, so that an empty
    bin is no infinity. With this the thresholds of chance below hold; with empty bins alone raised they are passed up
    to 3.6 times as often as they say, and with one half everywhere up to 3 times, where a bin is rare.

    Shapes:  expected, actual: (bins,), counts >= 0.
    Units:   dimensionless; 0 for equal histograms, and by custom a small change from 0.1 on, a large one from 0.25.
    Errors:  ValueError if the shapes differ.
    Absent when: one of the two holds nothing.
    Source:  Yurdakul and Naranjo 2020, Journal of Risk Model Validation: the sum of (p - q)(ln p - ln q), which is
             Jeffreys' divergence.

    >>> stability_index([40, 30, 30], [40, 30, 30]), round(stability_index([40e4, 30e4, 30e4], [35e4, 25e4, 40e4]), 4)
    (0.0, 0.0446)
    """
    totals = _totals(expected, actual)
    if totals is None:
        return None
    m_part, n_part = totals[0] / sum(totals), totals[1] / sum(totals)
    ms, ns = [], []
    for m, n in zip(expected, actual, strict=True):
        if m or n:
            ms.append(m + min(0.5, m_part * (m + n)))
            ns.append(n + min(0.5, n_part * (m + n)))
    m_all, n_all = sum(ms), sum(ns)
    shares = [(m / m_all, n / n_all) for m, n in zip(ms, ns, strict=True)]
    return sum([(q - p) * log(q / p) for p, q in shares])


def compared_bins(expected: Sequence[float], actual: Sequence[float]) -> int:
    """Return how many bins the stability index compares: those that are not empty on both sides.

    Shapes:  expected, actual: (bins,), counts >= 0.
    Errors:  ValueError if the shapes differ.

    >>> compared_bins([5, 5, 0, 0], [9, 0, 1, 0])
    3
    """
    return sum([1 for m, n in zip(expected, actual, strict=True) if m or n])


def jensen_shannon(expected: Sequence[float], actual: Sequence[float]) -> float | None:
    """Return the Jensen-Shannon distance of two histograms over the same bins, in base 2.

    Where the two are near, it is sqrt(PSI / (8 ln 2)): an index of 0.1 is a distance of 0.134.

    Shapes:  expected, actual: (bins,), counts >= 0.
    Units:   dimensionless: 0 for equal shares, 1 where no bin is shared.
    Errors:  ValueError if the shapes differ.
    Absent when: one of the two holds nothing.
    Source:  Endres and Schindelin 2003, IEEE Transactions on Information Theory 49, 1858: the root of the divergence of
             Lin 1991.

    >>> jensen_shannon([1, 1], [2, 2]), jensen_shannon([1, 0], [0, 1]), round(jensen_shannon([1, 1], [3, 1]), 4)
    (0.0, 1.0, 0.2209)
    """
    shares = _shares(expected, actual)
    if shares is None:
        return None
    parts = [p * log2(2.0 * p / (p + q)) for p, q in shares if p]
    parts += [q * log2(2.0 * q / (p + q)) for p, q in shares if q]
    return sqrt(min(1.0, max(0.0, sum(parts) / 2.0)))


def kolmogorov_smirnov(expected: Sequence[float], actual: Sequence[float], apart: int = 0) -> float | None:
    """Return the largest difference between the shares of two histograms: below a bound, above one, or in a bin apart.

    The last `apart` bins have no place in the order, as "missing" or the values of a category: each is compared by
    itself, and what is in them is neither below a bound nor above. So a share that goes missing counts with its size,
    and does not shift the others. With all bins apart this is the largest difference of one bin, as Breck et al. 2019
    ("Data validation for machine learning") use it for categories.

    Shapes:  expected, actual: (bins,), counts >= 0.
    Units:   shares: 0 for equal shares, 1 where no bin is shared. At most the statistic of the values in the bins.
    Errors:  ValueError if the shapes differ, or `apart` is not within 0 and the number of bins.
    Absent when: one of the two holds nothing.
    Source:  Smirnov 1939, over the bins' bounds.

    >>> round(kolmogorov_smirnov([25, 25, 25, 25], [10, 20, 30, 40]), 4)
    0.2
    >>> round(kolmogorov_smirnov([50, 50, 0], [40, 40, 20], apart=1), 4)
    0.2
    """
    if not 0 <= apart <= len(expected):
        raise ValueError(f"of {len(expected)} bins, {apart} cannot be apart")
    shares = _shares(expected, actual)
    if shares is None:
        return None
    differences = [q - p for p, q in shares]
    in_order = len(differences) - apart
    below = list(accumulate(differences[:in_order], initial=0.0))
    above = [below[-1] - share for share in below]
    return min(1.0, max(map(abs, below + above + differences[in_order:])))


def psi_p_value(psi: float, n: float, m: float, bins: int) -> float | None:
    """Return how likely a stability index of at least this is by chance, of n values where m were expected.

    Holds from 5 values a bin on, and is too high below: of equal distributions no more are found to differ than alpha.

    Errors:  ValueError if bins is below 1.
    Absent when: n or m is 0.
    Source:  Yurdakul and Naranjo 2020: PSI is as (1/n + 1/m) chi squared with B - 1 degrees of freedom.

    >>> round(psi_p_value(0.0217, n=1_000, m=1_000_000, bins=10), 3)
    0.01
    """
    if not (n > 0.0 and m > 0.0):
        return None
    return chi_squared_tail(psi / (1.0 / n + 1.0 / m), bins - 1)


def psi_threshold(n: float, m: float, bins: int, alpha: float) -> float | None:
    """Return the stability index that chance exceeds with probability alpha, of n values where m were expected.

    For one look at one feature. With F features, alpha / F keeps the probability that any exceeds it below alpha.

    Errors:  ValueError if alpha is not between 0 and 1, or bins is below 1.
    Absent when: n or m is 0.
    Source:  as psi_p_value: (1/n + 1/m) times the chi-squared quantile.

    >>> round(psi_threshold(n=1_000, m=1_000_000, bins=10, alpha=0.01), 4)
    0.0217
    """
    quantile = chi_squared_quantile(alpha, bins - 1)
    if not (n > 0.0 and m > 0.0):
        return None
    return (1.0 / n + 1.0 / m) * quantile


def block_scores(blocks: Sequence[Sequence[float]]) -> list[float]:
    """Return the stability index of each block of the reference, such as a day, against all others together.

    Blocks without values, and the one that has all of them, are left out.

    Shapes:  blocks: (blocks, bins), counts >= 0.
    Errors:  ValueError if the shapes differ.

    >>> [round(score, 3) for score in block_scores([[50, 50], [60, 40], [40, 60]])]
    [0.0, 0.089, 0.089]
    """
    everything = [fsum(counts) for counts in zip(*blocks, strict=True)]
    scores = [
        stability_index([total - count for total, count in zip(everything, block, strict=True)], block)
        for block in blocks
    ]
    return [score for score in scores if score is not None]


def block_quantile(scores: Sequence[float], level: float = 0.99) -> float | None:
    """Return what the score of one more block stays below with probability `level`, if it is as the given ones were.

    Traffic is not a row of independent draws: a Sunday differs from a Monday without any drift. The scores of the
    reference's own blocks (`block_scores`) say by how much. They are taken as log-normal. A few blocks say little about
    a rare score, and the answer is the higher for it; scores of 0 have no logarithm and are left out.

    Units:   those of the scores.
    Errors:  ValueError if the level is not between 0 and 1.
    Absent when: fewer than 2 scores are above 0.
    Source:  the one-sided prediction interval of a normal distribution, mean + t s sqrt(1 + 1/k) with k - 1 degrees of
             freedom, of the logarithms.

    >>> round(block_quantile([0.02, 0.03, 0.02, 0.05, 0.04, 0.03, 0.02]), 3)
    0.097
    """
    logs = [log(score) for score in scores if score > 0.0]
    k = len(logs)
    if k < 2:
        return None
    mean = fsum(logs) / k
    s = sqrt(fsum([(each - mean) ** 2 for each in logs]) / (k - 1))
    return exp(min(700.0, mean + student_quantile(level, k - 1) * s * sqrt(1.0 + 1.0 / k)))


def drift_threshold(
    n: float, m: float, bins: int, alpha: float, *, block: float | None = None, floor: float = FLOOR
) -> float | None:
    """Return the stability index above which a feature has drifted: by an effect, beyond its habit, beyond chance.

    That is the largest of the floor, `block_quantile` where there is one, and `psi_threshold`. Chance alone would call
    sooner or later with many looks at a window that rolls on; the floor keeps that from happening, and large windows
    from calling for what does not matter.

    Errors:  ValueError if alpha is not between 0 and 1, or bins is below 1.
    Absent when: n or m is 0.

    >>> drift_threshold(n=10_000, m=1_000_000, bins=10, alpha=0.01), round(drift_threshold(100, 1e6, 10, 0.01), 3)
    (0.1, 0.217)
    """
    chance = psi_threshold(n, m, bins, alpha)
    return None if chance is None else max(floor, chance, block or 0.0)


def discoveries(p_values: Sequence[float], q: float) -> list[bool]:
    """Return which of many p-values are no chance: of those that are called so, a share of at most q is wrong.

    Their sum is the number of features that have drifted. Holds where the tests are independent, or rise together.

    Errors:  ValueError if q is not between 0 and 1.
    Source:  Benjamini and Hochberg 1995, Journal of the Royal Statistical Society B 57, 289; pinned by
             tests/golden/discoveries.json.

    >>> discoveries([0.005, 0.9, 0.02, 0.04], q=0.05)
    [True, False, True, False]
    """
    if not 0.0 < q < 1.0:
        raise ValueError(f"q is a share between 0 and 1, not {q}")
    m = len(p_values)
    passing = [p for i, p in enumerate(sorted(p_values), start=1) if p <= i * q / m]
    return [p <= max(passing, default=-1.0) for p in p_values]


def _shares(expected: Sequence[float], actual: Sequence[float]) -> list[tuple[float, float]] | None:
    totals = _totals(expected, actual)
    if totals is None:
        return None
    m_all, n_all = totals
    return [(m / m_all, n / n_all) for m, n in zip(expected, actual, strict=True)]


def _totals(expected: Sequence[float], actual: Sequence[float]) -> tuple[float, float] | None:
    """What the two hold; None where one of them holds nothing."""
    if len(expected) != len(actual):
        raise ValueError(f"{len(expected)} bins cannot be compared with {len(actual)}")
    m_all, n_all = sum(expected), sum(actual)
    return (m_all, n_all) if m_all and n_all else None
