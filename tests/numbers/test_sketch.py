"""The quantile sketch: near by 1.1 percent, exact to merge, and OpenTelemetry's buckets."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.metrics.view import ExponentialBucketHistogramAggregation, View

from otel_mlops.numbers.sketch import BOUNDS, CELLS, SCALE, exponential_histogram, index_of, quantile

ERROR = 0.011
seconds = st.floats(min_value=0.0, max_value=1e5)
within = st.floats(min_value=BOUNDS[0], max_value=BOUNDS[-1])


def sketch_of(values) -> list[float]:
    """The counts of values."""
    counts = [0.0] * CELLS
    for value in values:
        counts[index_of(value)] += 1.0
    return counts


def test_the_bounds_are_the_powers_to_the_last_digit():
    """Each bound is 2 ** (i / 32) correctly rounded, whatever the platform's pow."""
    with localcontext() as context:
        context.prec = 60
        exact = [float(Decimal(2) ** (Decimal(i) / 32)) for i in range(-640, 321)]
    assert list(BOUNDS) == exact
    assert BOUNDS[0] < 1e-6
    assert BOUNDS[-1] > 1000.0


def test_a_bound_belongs_to_the_bucket_it_ends():
    """Each bound and the number below it are in its cell, the number above it in the next."""
    for cell, bound in enumerate(BOUNDS):
        around = [math.nextafter(bound, 0.0), bound, math.nextafter(bound, math.inf)]
        assert [index_of(value) for value in around] == [cell, cell, cell + 1]


def test_what_is_out_of_range_has_a_cell():
    """Any float has a cell: below the first bound the first, above the last bound the last."""
    assert [index_of(value) for value in (0.0, -1.0, -math.inf, 5e-324)] == [0] * 4
    assert [index_of(value) for value in (1025.0, math.inf)] == [CELLS - 1] * 2
    assert 0 <= index_of(math.nan) < CELLS


@given(st.lists(seconds, min_size=1, max_size=200), st.floats(min_value=0.0, max_value=1.0))
def test_a_quantile_is_near_the_value_of_its_rank(values: list[float], q: float):
    """A quantile is within 1.1 percent of the value at its rank, which counts as the nearest bound outside of them."""
    ranked = sorted(min(max(value, BOUNDS[0]), BOUNDS[-1]) for value in values)
    exact = ranked[max(math.ceil(q * len(values)), 1) - 1]
    assert quantile(q, sketch_of(values)) == pytest.approx(exact, rel=ERROR)


@given(st.integers(1, len(BOUNDS) - 1))
def test_both_ends_of_a_bucket_are_equally_far(cell: int):
    """What stands for a bucket is wrong by the same ratio at either end, the least that is possible."""
    low, high = BOUNDS[cell - 1], BOUNDS[cell]
    counts = [0.0] * CELLS
    counts[cell] = 1.0
    middle = quantile(0.5, counts)
    assert (middle - low) / low == pytest.approx((high - middle) / high, rel=1e-9)
    assert (middle - low) / low < 0.01084


@given(st.lists(within, min_size=1, max_size=100))
def test_the_rank_is_numpys_inverted_cdf(values: list[float]):
    """The usual quantiles are those of numpy's method "inverted_cdf" on the values themselves."""
    counts = sketch_of(values)
    for q in (0.0, 0.25, 0.5, 0.75, 1.0):
        exact = np.quantile(values, q, method="inverted_cdf")
        assert quantile(q, counts) == pytest.approx(exact, rel=ERROR)


@given(st.lists(seconds, max_size=60), st.lists(seconds, max_size=60))
def test_merging_is_exact(one: list[float], other: list[float]):
    """Cells added up are the sketch of all values together, and cells taken off that of the rest."""
    merged = [a + b for a, b in zip(sketch_of(one), sketch_of(other), strict=True)]
    assert merged == sketch_of(one + other)
    assert [a - b for a, b in zip(merged, sketch_of(one), strict=True)] == sketch_of(other)


@given(st.lists(seconds, min_size=1, max_size=50), st.lists(st.floats(0.0, 1.0), min_size=2, max_size=5))
def test_quantiles_rise(values: list[float], qs: list[float]):
    """A higher quantile is never the lower number."""
    counts = sketch_of(values)
    found = [quantile(q, counts) for q in sorted(qs)]
    assert found == sorted(found)


def test_without_values_there_is_no_quantile():
    """Of no counts there is None."""
    assert quantile(0.5, [0.0] * CELLS) is None


@pytest.mark.parametrize("q", [-0.1, 1.1, math.nan])
def test_a_quantile_is_a_share(q: float):
    """A q outside of 0 to 1 is an error."""
    with pytest.raises(ValueError, match="q must be"):
        quantile(q, [1.0] * CELLS)


@pytest.mark.parametrize("answer", [exponential_histogram, lambda counts: quantile(0.5, counts)])
def test_other_counts_are_no_sketch(answer):
    """A row of another length is an error."""
    with pytest.raises(ValueError, match="a sketch has 962 counts"):
        answer([1.0] * (CELLS + 1))


@given(st.lists(within.filter(lambda value: value > BOUNDS[0] * 1.0001), min_size=1, max_size=60))
def test_it_is_the_sdks_exponential_histogram(values: list[float]):
    """Offset and buckets are those of OpenTelemetry's SDK at the same scale, but for what it rounds at a bound."""
    # The SDK goes through a logarithm, so it may be off by one within an ulp of a bound that is no power of two.
    values = [value for value in values if all(abs(value / bound - 1.0) > 1e-12 for bound in nearest(value))]
    reader = InMemoryMetricReader()
    view = View(instrument_name="d", aggregation=ExponentialBucketHistogramAggregation(max_size=CELLS, max_scale=SCALE))
    provider = MeterProvider([reader], views=[view], shutdown_on_exit=False)
    histogram = provider.get_meter("test").create_histogram("d")
    for value in values:
        histogram.record(value)
    data = reader.get_metrics_data()
    provider.shutdown()
    ours = exponential_histogram(sketch_of(values))
    if not values:
        assert not any(ours.bucket_counts)
        return
    theirs = data.resource_metrics[0].scope_metrics[0].metrics[0].data.data_points[0]
    buckets = {theirs.positive.offset + i: n for i, n in enumerate(theirs.positive.bucket_counts) if n}
    assert theirs.scale == ours.scale
    assert {ours.offset + i: n for i, n in enumerate(ours.bucket_counts) if n} == buckets
    assert ours.zero_count == theirs.zero_count == 0


def nearest(value: float) -> list[float]:
    """The bounds on both sides of a value."""
    cell = index_of(value)
    return list(BOUNDS[max(cell - 1, 0) : cell + 1])


def test_an_exponential_histogram_holds_every_count():
    """What is out of range is in the zero bucket or in the one after the last bound, and nothing is lost."""
    histogram = exponential_histogram(sketch_of([0.0, 1e-9, 1e-3, 1.0, 1024.0, 5000.0]))
    assert histogram.zero_count == 2
    assert histogram.zero_count + sum(histogram.bucket_counts) == 6
    assert histogram.offset + len(histogram.bucket_counts) - 1 == 320
    assert histogram.bucket_counts[-2:] == [1, 1]


@given(st.integers(1, CELLS - 1), st.integers(1, CELLS - 1))
def test_each_cell_is_one_bucket(one: int, other: int):
    """The buckets reach from the first filled cell to the last, and bucket i ends at 2 ** ((i + 1) / 32)."""
    counts = [0.0] * CELLS
    counts[one] += 2.0
    counts[other] += 3.0
    histogram = exponential_histogram(counts)
    found = {histogram.offset + i: n for i, n in enumerate(histogram.bucket_counts)}
    ends = [index_of(2.0 ** ((i + 1) / 32)) for i in (min(found), max(found))]
    assert ends == sorted([one, other])
    assert sum(found.values()) == 5
    assert histogram.zero_threshold == BOUNDS[0]


def test_an_empty_sketch_is_an_empty_histogram():
    """Without values there are no buckets."""
    histogram = exponential_histogram([0.0] * CELLS)
    assert (histogram.zero_count, histogram.bucket_counts) == (0, [])
