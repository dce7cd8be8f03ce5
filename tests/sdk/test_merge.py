"""How readings become one: exactly, in any order, and by the metric's rule."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise
from random import Random
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from otel_mlops.metrics import CATALOGUE
from otel_mlops.sdk.merge import KEEP_THE_DEAD, combine_by, exact_terms, rule_of

HARD = [
    0.0, -0.0, 5e-324, -5e-324, 2.3e-308, 0.1, 1 / 3, -0.7, 1.0, 2.0**53, -(2.0**53), 1e16, 1e300, -1e300,
]  # fmt: skip
FLOATS = st.sampled_from(HARD) | st.floats(-1e300, 1e300)
"""No sum of a few hundred of them is past the largest number."""


def exactly(values: list[float]) -> Fraction:
    """The sum by another way."""
    return sum(map(Fraction, values), Fraction(0))


@settings(max_examples=150, deadline=None)
@given(st.lists(FLOATS, max_size=40))
@example([5e-324, 1e300, -1e300, 5e-324])
@example([1e16, 1.0, -1e16])
@example([-0.0])
@example([])
def test_exact_terms_add_up_to_the_very_sum(values: list[float]):
    """The terms are the sum without any rounding, the largest first and none of them 0."""
    terms = exact_terms(values)
    assert exactly(terms) == exactly(values)
    assert all(abs(left) > abs(right) for left, right in pairwise(terms))
    assert 0.0 not in terms or terms == [0.0]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(FLOATS, max_size=12), max_size=8))
def test_terms_of_terms_are_exact(lots: list[list[float]]):
    """Adding up in any number of steps gives what adding up at once gives."""
    kept: list[float] = [0.0]
    for lot in lots:
        kept = exact_terms([*kept, *lot])
    assert exactly(kept) == exactly([value for lot in lots for value in lot])


@pytest.mark.stress
def test_there_are_few_terms():
    """However many numbers of whatever size are added, the terms are no more than a float's digits allow."""
    random = Random(5)
    terms = [0.0]
    for _ in range(5_000):
        terms = exact_terms([*terms, random.uniform(-1, 1) * 2.0 ** random.randint(-1000, 1000)])
    assert len(terms) <= 2100 // 53 + 1


@pytest.mark.parametrize("values", [[1e308, 1e308], [math.inf, 1.0], [-1e308, -1e308, 1.0]])
def test_what_is_past_the_largest_number_is_infinite(values: list[float]):
    """A sum that no float holds is infinite, and not an error that takes the whole metric off the page."""
    infinite = math.copysign(math.inf, values[0])
    assert exact_terms(values) == [infinite]
    assert combine_by("counter", "sum")([[value] for value in values]) == [infinite]
    assert combine_by("histogram", "sum")([[1.0, value] for value in values]) == [len(values), infinite]


@settings(max_examples=80, deadline=None)
@given(st.lists(FLOATS, min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_sums_are_the_correctly_rounded_ones_in_any_order(values: list[float], random: Any):
    """A sum of workers is the float next to the true sum, whoever comes first."""
    shuffled = random.sample(values, len(values))
    for kind, rule in (("counter", "sum"), ("updown", "living"), ("gauge", "living"), ("updown", "sum")):
        assert combine_by(kind, rule)([[value] for value in shuffled]) == [float(exactly(values))]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(*[st.integers(0, 2**40)] * 3, FLOATS).map(lambda each: [*map(float, each)]), min_size=1, max_size=9
    ),
    st.randoms(use_true_random=False),
)
def test_histograms_add_up_bucket_by_bucket_in_any_order(readings: list[list[float]], random: Any):
    """Counts are added exactly and the sums are rounded once."""
    *counts, total = combine_by("histogram", "sum")(random.sample(readings, len(readings)))
    assert counts == [sum(int(each[index]) for each in readings) for index in range(3)]
    assert total == float(exactly([each[-1] for each in readings]))


OLD, NEW = [3.0, 10.0], [7.0, 20.0]
"""Two gauges, and when they were set."""


@pytest.mark.parametrize(
    ("kind", "rule", "combined"),
    [
        ("counter", "sum", 10.0),
        ("counter", "worker", 10.0),  # of one worker, whose observable lies in two ledgers' series
        ("updown", "living", 10.0),
        ("updown", "sum", 10.0),
        ("gauge", "latest", 7.0),
        ("gauge", "worker", 7.0),
        ("gauge", "living", 10.0),
        ("gauge", "min", 3.0),
        ("info", "latest", 7.0),
        ("stateset", "latest", 7.0),
        ("stateset", "worst", 7.0),
    ],
)
def test_two_readings_become_one_by_the_rule(kind: str, rule: str, combined: float):
    """Each rule makes of two readings what it says, whichever comes first."""
    combine = combine_by(kind, rule)
    assert combine([OLD, NEW])[0] == combine([NEW, OLD])[0] == combined


def test_the_latest_may_be_the_smaller():
    """A gauge's latest value and a state's go by the time and not by the size; the least goes by the size."""
    earlier, later = [9.0, 10.0], [2.0, 20.0]
    assert combine_by("gauge", "latest")([earlier, later]) == later
    assert combine_by("stateset", "latest")([[1.0, 1.0], [0.0, 2.0]]) == [0.0, 2.0]
    assert combine_by("stateset", "worst")([[1.0, 1.0], [0.0, 2.0]]) == [1.0]
    assert combine_by("gauge", "min")([earlier, later]) == later


@pytest.mark.parametrize("kind", ["counter", "updown", "gauge", "stateset", "histogram"])
def test_a_fact_of_the_host_is_the_first_ones_word(kind: str):
    """What is shown once is neither added up nor chosen by its time or size: whoever leads comes first."""
    for first, second in (([1.0, 2.0, 3.0], [9.0, 9.0, 9.0]), ([9.0, 9.0, 9.0], [1.0, 2.0, 3.0])):
        assert combine_by(kind, "once")([first, second]) == first


@pytest.mark.parametrize(
    ("name", "kind", "observed", "rule"),
    [
        ("jobs", "counter", False, "sum"),
        ("latency", "histogram", False, "sum"),
        ("queue", "updown", False, "living"),
        ("level", "gauge", False, "worker"),
        ("jobs", "counter", True, "worker"),
        ("queue", "updown", True, "worker"),
        ("level", "gauge", True, "worker"),
        ("process.cpu.time", "counter", True, "sum"),
        ("process.memory.usage", "updown", True, "worker"),
        ("process.cpu.time", "counter", False, "sum"),
        ("processes", "counter", True, "worker"),
        ("system.network.io", "counter", True, "once"),
        ("system.errors", "counter", False, "sum"),
        ("hw.latency", "histogram", False, "sum"),
        ("container.jobs", "updown", False, "living"),
        ("system.level", "gauge", False, "once"),
        ("hw.temperature", "gauge", True, "once"),
        ("container.cpu.time", "counter", True, "once"),
        ("systematic", "counter", False, "sum"),
    ],
)
def test_metrics_of_others_combine_by_kind_and_name(name: str, kind: str, observed: bool, rule: str):
    """What is in no catalogue is summed or shown by worker, but for what the semantic conventions say."""
    assert rule_of(name, kind, observed=observed) == rule


def test_no_rule_of_the_catalogue_is_unknown():
    """Every row's rule combines two readings of its kind, and the rules that keep the dead are among them."""
    for row in CATALOGUE:
        size = len(row.buckets) + 2 if row.kind == "histogram" else 2
        assert len(combine_by(row.kind, row.across)([[1.0] * size, [2.0] * size])) in (1, size)
    assert {row.across for row in CATALOGUE} >= KEEP_THE_DEAD
