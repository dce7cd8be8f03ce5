"""Drift: the distances are what their definitions say, and alarms without drift are as rare as promised."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from scipy import special

from otel_mlops.numbers.drift import (
    FLOOR,
    block_quantile,
    block_scores,
    compared_bins,
    discoveries,
    drift_threshold,
    jensen_shannon,
    kolmogorov_smirnov,
    psi_p_value,
    psi_threshold,
    stability_index,
)

GOLDEN = Path(__file__).parent.parent / "golden"
SEED = 20260401

bins = st.integers(0, 2000).map(float)
histograms = st.integers(1, 15).flatmap(
    lambda size: st.tuples(st.lists(bins, min_size=size, max_size=size), st.lists(bins, min_size=size, max_size=size))
)
DISTANCES = [stability_index, jensen_shannon, kolmogorov_smirnov]


def filled(histogram) -> tuple[list[float], list[float]]:
    """Both sides, where both hold something."""
    assume(any(histogram[0]) and any(histogram[1]))
    return histogram


# --- Distances ----------------------------------------------------------------------------------------------


@given(histograms)
@example(([3.0, 0.0, 5.0], [1e5, 7.0, 2e5]))
@example(([1e5, 7.0, 2e5], [3.0, 0.0, 5.0]))
def test_the_stability_index_is_jeffreys_divergence(histogram):
    """The index is scipy's relative entropy in both directions, of counts raised by a half or what is expected."""
    expected, actual = map(np.array, filled(histogram))
    pooled = (expected + actual) / (expected + actual).sum()
    p, q = (counts + np.minimum(0.5, pooled * counts.sum()) for counts in (expected, actual))
    p, q = p / p.sum(), q / q.sum()
    exact = (special.rel_entr(p, q) + special.rel_entr(q, p)).sum()
    assert stability_index(*histogram) == pytest.approx(exact, rel=1e-9, abs=1e-14)
    assert compared_bins(*histogram) == np.count_nonzero(pooled)


@given(histograms)
def test_the_jensen_shannon_distance_is_its_definition(histogram):
    """The distance is the root of the mean relative entropy to the mixture, in base 2, empty bins and all."""
    p, q = (np.array(counts) / sum(counts) for counts in filled(histogram))
    mixture = (p + q) / 2.0
    exact = (special.rel_entr(p, mixture) + special.rel_entr(q, mixture)).sum() / 2.0 / math.log(2.0)
    assert jensen_shannon(*histogram) ** 2 == pytest.approx(exact, rel=1e-9, abs=1e-14)


@given(histograms)
def test_the_kolmogorov_smirnov_statistic_is_its_definition(histogram):
    """The statistic is the largest difference of the cumulative shares."""
    p, q = (np.array(counts) / sum(counts) for counts in filled(histogram))
    assert kolmogorov_smirnov(*histogram) == pytest.approx(np.abs(np.cumsum(p - q)).max(), abs=1e-12)


@given(histograms, st.integers(0, 15))
def test_bins_apart_are_compared_by_themselves(histogram, apart: int):
    """With bins apart it is the largest difference of a share below a bound, above one, or in one of these bins."""
    p, q = (np.array(counts) / sum(counts) for counts in filled(histogram))
    apart = min(apart, len(p))
    d, ordered = q - p, len(p) - apart
    slow = [abs(d[:k].sum()) for k in range(ordered + 1)] + [abs(d[k:ordered].sum()) for k in range(ordered + 1)]
    slow += [abs(each) for each in d[ordered:]]
    assert kolmogorov_smirnov(*histogram, apart=apart) == pytest.approx(max(slow), abs=1e-12)


def test_binning_never_finds_more_than_the_values_show():
    """The statistic of the bins is at most the one of the values in them."""
    rng = np.random.default_rng(SEED)
    one, other = rng.normal(size=400), rng.normal(0.3, 1.2, size=300)
    everything = np.sort(np.concatenate([one, other]))
    ranks = [np.searchsorted(np.sort(values), everything, side="right") / len(values) for values in (one, other)]
    of_values = np.abs(ranks[0] - ranks[1]).max()
    edges = np.concatenate([[-np.inf], np.quantile(one, np.linspace(0.1, 0.9, 9)), [np.inf]])
    of_bins = kolmogorov_smirnov(*(np.histogram(values, edges)[0].tolist() for values in (one, other)))
    assert 0.8 * of_values < of_bins <= of_values


def test_what_goes_missing_shifts_nothing():
    """A tenth of all values gone missing, evenly, is a difference of a tenth wherever the bins are."""
    expected, actual = [250.0] * 4 + [0.0], [225.0] * 4 + [100.0]
    assert kolmogorov_smirnov(expected, actual, apart=1) == pytest.approx(0.1)


@pytest.mark.parametrize("distance", DISTANCES)
@given(histogram=histograms)
def test_distances_are_distances(distance, histogram):
    """A distance is never below 0, the same from both sides, and 0 from a histogram to itself."""
    expected, actual = filled(histogram)
    assert distance(expected, actual) >= 0.0
    assert distance(expected, actual) == pytest.approx(distance(actual, expected), rel=1e-12, abs=1e-9)
    assert distance(expected, expected) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("distance", [jensen_shannon, kolmogorov_smirnov])
@given(histogram=histograms)
def test_bounded_distances_are_within_0_and_1(distance, histogram):
    """Where a distance is of shares it is at most 1, and 1 where no bin is shared."""
    expected, actual = filled(histogram)
    assert 0.0 <= distance(expected, actual) <= 1.0
    assert distance(expected + [0.0] * len(actual), [0.0] * len(expected) + actual) == pytest.approx(1.0)


@given(st.lists(st.integers(1, 5), min_size=2, max_size=12))
def test_near_histograms_are_equally_near_for_both(steps: list[int]):
    """Of large, near histograms the Jensen-Shannon distance is the root of the index over 8 ln 2."""
    expected = [1e6] * len(steps)
    actual = [1e6 + 1e4 * step for step in steps]
    assume(len(set(steps)) > 1)
    psi = stability_index(expected, actual)
    assert jensen_shannon(expected, actual) == pytest.approx(math.sqrt(psi / (8.0 * math.log(2.0))), rel=1e-3)


@given(histograms)
def test_bins_that_nobody_fills_change_nothing(histogram):
    """Bins that are empty on both sides leave every distance as it is."""
    expected, actual = filled(histogram)
    for distance in DISTANCES:
        assert distance([*expected, 0.0, 0.0], [*actual, 0.0, 0.0]) == pytest.approx(distance(expected, actual))
    assert compared_bins([*expected, 0.0], [*actual, 0.0]) == compared_bins(expected, actual)


@pytest.mark.parametrize("distance", DISTANCES)
def test_an_empty_histogram_is_no_distance_away(distance):
    """Where one side holds nothing there is None."""
    assert distance([1.0, 2.0], [0.0, 0.0]) is None
    assert distance([0.0, 0.0], [1.0, 2.0]) is None
    assert distance([], []) is None


@pytest.mark.parametrize("distance", [*DISTANCES, compared_bins])
def test_the_bins_are_the_same(distance):
    """Histograms of different lengths are an error, empty ones too."""
    with pytest.raises(ValueError, match=r"cannot be compared|zip"):
        distance([1.0, 2.0], [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match=r"cannot be compared|zip"):
        distance([1.0, 2.0], [0.0])


@pytest.mark.parametrize("apart", [-1, 3])
def test_only_bins_that_are_there_are_apart(apart: int):
    """More bins apart than there are bins, or fewer than none, are an error."""
    with pytest.raises(ValueError, match="cannot be apart"):
        kolmogorov_smirnov([1.0, 2.0], [1.0, 2.0], apart=apart)


# --- Chance -------------------------------------------------------------------------------------------------


@given(st.integers(1, 10**6), st.integers(1, 10**9), st.integers(2, 60), st.floats(1e-6, 0.5))
def test_the_threshold_is_scipys_chi_squared(n: int, m: int, count: int, alpha: float):
    """The threshold is (1/n + 1/m) times scipy's quantile, and its own p-value is alpha."""
    threshold = psi_threshold(n, m, count, alpha)
    assert threshold == pytest.approx((1.0 / n + 1.0 / m) * special.chdtri(count - 1, alpha), rel=1e-9)
    assert psi_p_value(threshold, n, m, count) == pytest.approx(alpha, rel=1e-9)


def test_one_bin_never_drifts():
    """A feature of one bin has nothing to drift: its index is 0, with certainty."""
    assert stability_index([50.0], [7.0]) == 0.0
    assert psi_threshold(7.0, 50.0, 1, 0.01) == 0.0
    assert psi_p_value(0.0, 7.0, 50.0, 1) == 1.0
    assert drift_threshold(7.0, 50.0, 1, 0.01) == FLOOR


@pytest.mark.parametrize(("n", "m"), [(0, 100), (100, 0), (0.0, 0.0)])
def test_without_values_there_is_no_threshold(n: float, m: float):
    """Before there are values there is neither threshold nor p-value."""
    assert psi_threshold(n, m, 10, 0.01) is None
    assert psi_p_value(0.1, n, m, 10) is None
    assert drift_threshold(n, m, 10, 0.01, block=0.5) is None


def test_the_threshold_is_the_largest_of_three():
    """Effect, habit and chance each raise the threshold where they are the largest."""
    assert drift_threshold(1e6, 1e6, 10, 0.01) == FLOOR == 0.1
    assert drift_threshold(1e6, 1e6, 10, 0.01, block=0.5) == 0.5
    assert drift_threshold(1e6, 1e6, 10, 0.01, block=0.02, floor=0.01) == 0.02
    assert drift_threshold(50, 1e6, 10, 0.01, block=0.2) == psi_threshold(50, 1e6, 10, 0.01)


def draws(count: int, n: int, shares, repetitions: int, rng) -> list[list[float]]:
    """Histograms of n values over bins with these shares, again and again."""
    shares = [1.0 / count] * count if shares is None else shares
    return rng.multinomial(n, shares, size=repetitions).astype(float).tolist()


def alarms(count: int, n: int, m: int, threshold: float, repetitions: int, shares=None) -> float:
    """How often two samples of one distribution are further apart than the threshold."""
    rng = np.random.default_rng(SEED)
    pairs = zip(draws(count, m, shares, repetitions, rng), draws(count, n, shares, repetitions, rng), strict=True)
    return float(np.mean([stability_index(expected, actual) > threshold for expected, actual in pairs]))


@pytest.mark.parametrize(("count", "n", "m"), [(10, 50, 10_000), (10, 1_000, 1_000), (20, 400, 1_000_000)])
def test_chance_calls_as_often_as_it_says(count: int, n: int, m: int):
    """Without drift, from 5 values a bin on, a threshold of 1 in 100 is passed about 1 time in 100."""
    rate = alarms(count, n, m, psi_threshold(n, m, count, 0.01), repetitions=2500)
    assert 0.004 <= rate <= 0.015


@pytest.mark.stress
@pytest.mark.parametrize("m", [1_000, 10_000, 1_000_000])
@pytest.mark.parametrize("count", [10, 20, 30])
def test_chance_calls_as_often_as_it_says_everywhere(count: int, m: int):
    """Whatever the bins and the reference, the nominal rate is reached within a fifth, and below 5 a bin undercut."""
    for values in (2, 5, 10, 20, 50, 100):
        n = values * count
        rate = alarms(count, n, m, psi_threshold(n, m, count, 0.01), repetitions=20_000)
        assert rate <= (0.0125 if values >= 5 else 0.002)
        assert values < 20 or rate >= 0.007


RARE = {
    "missing": [0.0997] * 10 + [0.002, 0.001],
    "unseen": [0.099999] * 10 + [0.000005] * 2,
    "one value": [0.99] + [0.01 / 9] * 9,
    "long tail": (np.arange(1, 21) ** -1.0 / np.sum(np.arange(1, 21) ** -1.0)).tolist(),
    "seldom true": [0.999, 0.001],
}


@pytest.mark.parametrize("shares", [RARE["unseen"]], ids=["unseen"])
def test_rare_bins_do_not_call(shares: list[float]):
    """Bins that are rare even in a large reference call no oftener than the rest."""
    assert rare_alarms(shares, 100, 1_000_000, 2500) <= 0.015


@pytest.mark.stress
@pytest.mark.parametrize("shares", RARE.values(), ids=RARE)
def test_rare_bins_never_call(shares: list[float]):
    """Whatever the sizes of reference and window, rare bins bring at most half as many alarms again as are promised."""
    for m in (1_000, 1_000_000):
        for n in (50, 200, 500, 5_000):
            assert rare_alarms(shares, n, m, 10_000) <= 0.0175


def rare_alarms(shares: list[float], n: int, m: int, repetitions: int) -> float:
    """As `alarms`, where a bin may be empty on both sides."""
    rng = np.random.default_rng(SEED)
    bounds = {size: psi_threshold(n, m, size, 0.01) for size in range(1, len(shares) + 1)}
    pairs = zip(draws(0, m, shares, repetitions, rng), draws(0, n, shares, repetitions, rng), strict=True)
    return float(np.mean([stability_index(*pair) > bounds[compared_bins(*pair)] for pair in pairs]))


def test_a_fixed_threshold_calls_for_nothing():
    """Without drift the usual 0.1 is passed by most windows of 50 values and by none of 500; the threshold by none."""
    for n, rate in ((50, 0.77), (100, 0.32), (500, 0.0)):
        assert alarms(10, n, 1_000_000, 0.1, 600) == pytest.approx(rate, abs=0.05)
        assert alarms(10, n, 1_000_000, drift_threshold(n, 1_000_000, 10, 0.01 / 20), 600) <= 0.005


def test_drift_is_found():
    """Half a standard deviation of shift is found in each window of 1,000 values among 50 features."""
    rng = np.random.default_rng(SEED)
    reference = rng.normal(size=100_000)
    edges = np.concatenate([[-np.inf], np.quantile(reference, np.linspace(0.1, 0.9, 9)), [np.inf]])
    expected = np.histogram(reference, edges)[0].tolist()
    threshold = drift_threshold(1_000, 100_000, 10, 0.01 / 50)
    for _ in range(50):
        assert stability_index(expected, np.histogram(rng.normal(0.5, 1.0, 1_000), edges)[0].tolist()) > threshold


@pytest.mark.stress
def test_the_floor_stays_silent_through_many_looks():
    """In 1,000 looks at a rolling window of 20 features chance alone calls nearly always, with the floor never."""
    rng = np.random.default_rng(SEED)
    expected, calls = [100_000.0] * 10, {"chance": 0, "floor": 0}
    runs = 20
    for _ in range(runs):
        highest = 0.0
        for _feature in range(20):
            steps = rng.multinomial(20, [0.1] * 10, size=1_050).astype(float)
            windows = np.cumsum(steps, axis=0)
            for window in (windows[50:] - windows[:-50]).tolist():
                highest = max(highest, stability_index(expected, window))
        calls["chance"] += highest > psi_threshold(1_000, 1e6, 10, 0.01 / 20)
        calls["floor"] += highest > drift_threshold(1_000, 1e6, 10, 0.01 / 20)
    assert calls["chance"] >= 0.9 * runs
    assert calls["floor"] == 0


# --- Habit --------------------------------------------------------------------------------------------------


@given(st.lists(st.lists(st.integers(0, 50).map(float), min_size=4, max_size=4), min_size=2, max_size=6))
def test_a_block_is_scored_against_the_others(blocks: list[list[float]]):
    """Each block's score is the index of its counts where all the others' are expected."""
    slow = []
    for left_out, block in enumerate(blocks):
        rest = np.sum([other for i, other in enumerate(blocks) if i != left_out], axis=0).tolist()
        score = stability_index(rest, block)
        slow += [] if score is None else [score]
    assert block_scores(blocks) == pytest.approx(slow)


@given(st.lists(st.floats(1e-6, 10.0), min_size=2, max_size=40), st.floats(0.6, 0.999))
def test_the_block_quantile_is_a_prediction_of_the_logarithms(scores: list[float], level: float):
    """The quantile is the normal prediction bound of one more logarithm, with scipy's quantile of Student's."""
    logs, k = np.log(scores), len(scores)
    bound = logs.mean() + special.stdtrit(k - 1, level) * logs.std(ddof=1) * math.sqrt(1.0 + 1.0 / k)
    assert math.log(block_quantile(scores, level)) == pytest.approx(min(700.0, bound), rel=1e-9, abs=1e-7)


@pytest.mark.parametrize("k", [5, 10, 90])
def test_a_habit_is_broken_as_often_as_it_says(k: int):
    """However few blocks there are, one more of their kind passes the quantile of 0.95 one time in 20."""
    rng = np.random.default_rng(SEED)
    scores = rng.lognormal(-3.0, 0.8, size=(1500, k + 1))
    passed = [one[-1] > block_quantile(one[:-1].tolist(), 0.95) for one in scores]
    assert np.mean(passed) == pytest.approx(0.05, abs=0.015)


def test_two_blocks_are_the_least():
    """Of fewer than two scores above 0 there is no quantile, and scores without logarithm are left out."""
    assert block_quantile([]) is None
    assert block_quantile([0.1]) is None
    assert block_quantile([0.1, 0.0, 0.0]) is None
    assert block_quantile([0.1, 0.0, 0.2]) == block_quantile([0.1, 0.2])
    assert block_quantile([1e-300, 1e-3], 0.99) < math.inf


# --- Many features ------------------------------------------------------------------------------------------


def test_the_discoveries_are_the_published_ones():
    """Of the p-values that Benjamini and Hochberg printed, the first four are discoveries."""
    case = json.loads((GOLDEN / "discoveries.json").read_text(encoding="utf-8"))
    flags = discoveries(case["p_values"], case["q"])
    assert flags == [True] * case["count"] + [False] * (len(flags) - case["count"])


@given(st.lists(st.floats(0.0, 1.0), max_size=40), st.floats(0.001, 0.5))
def test_discoveries_are_a_step_up_from_the_largest(p_values: list[float], q: float):
    """Up from the largest p-value, all are discoveries from the first that is small enough for its rank."""
    m = len(p_values)
    ranked = sorted(p_values)
    count = next((k for k in range(m, 0, -1) if ranked[k - 1] <= k * q / m), 0)
    flags = discoveries(p_values, q)
    assert flags == [p in ranked[:count] for p in p_values]
    assert sum(flags) >= count


def test_few_discoveries_are_false():
    """Among 50 features of which 10 drift, at most a twentieth of what is discovered is wrong."""
    rng = np.random.default_rng(SEED)
    wrong = []
    for _ in range(300):
        chi = np.concatenate([rng.chisquare(9, 40), rng.noncentral_chisquare(9, 40.0, 10)])
        flags = discoveries([psi_p_value(x * (1 / 1_000 + 1 / 10_000), 1_000, 10_000, 10) for x in chi], 0.05)
        wrong.append(sum(flags[:40]) / max(sum(flags), 1))
    assert 0.02 <= np.mean(wrong) <= 0.06


@pytest.mark.parametrize("q", [0.0, 1.0, math.nan])
def test_a_share_of_discoveries_is_a_share(q: float):
    """A q that is not between 0 and 1 is an error."""
    with pytest.raises(ValueError, match="q is a share"):
        discoveries([0.1], q)
