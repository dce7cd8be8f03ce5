"""Fitting a profile: its bins and counts against numpy, its pieces against the whole, scores against scikit-learn."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, brier_score_loss, log_loss, r2_score, roc_auc_score

from otel_mlops.numbers.drift import block_quantile, block_scores
from otel_mlops.numbers.probability import BINS, SCORE_BOUNDS, estimated_accuracy
from otel_mlops.profile import PREDICTION, Categorical, Numeric, Profile, plain, vectors
from otel_mlops.profile.blocks import Blocks
from otel_mlops.profile.fitting import Fit
from otel_mlops.profile.quantiles import edges_of

NAN, INF = math.nan, math.inf
WHEN = datetime(2024, 1, 1, tzinfo=UTC)


def numeric(values: Any, **options: Any) -> Numeric:
    """The profile's only feature, of numbers."""
    (feature,) = Profile.fit(values, **options).features
    assert isinstance(feature, Numeric)
    return feature


def categorical(values: Any, **options: Any) -> Categorical:
    """The profile's only feature, of categories."""
    (feature,) = Profile.fit({"kind": values}, **options).features
    assert isinstance(feature, Categorical)
    return feature


# --- Numbers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bins", [2, 7, 10])
def test_edges_are_quantiles(bins: int):
    """The edges of distinct values are numpy's quantiles, and the bins hold what is between them."""
    values = np.random.default_rng(1).normal(size=1_003)
    feature = numeric(values, bins=bins)
    quantiles = np.quantile(values, np.arange(1, bins) / bins, method="inverted_cdf")
    assert feature.edges == tuple(quantiles)
    expected = np.histogram(-values, [-INF, *-quantiles[::-1], INF])[0][::-1]  # its bins are closed on the other side
    assert feature.counts == (*expected, 0)
    assert (feature.minimum, feature.maximum) == (values.min(), values.max())
    assert (feature.mean, feature.std) == pytest.approx((values.mean(), values.std()))


@settings(max_examples=100, deadline=None)
@given(values=st.lists(st.integers(0, 9), min_size=1, max_size=60).map(sorted), bins=st.integers(2, 8))
def test_edges_are_those_of_a_plain_definition(values: list[int], bins: int):
    """Edges are two for each value that is heavier than a bin, and the quantiles of the others."""
    n = len(values)
    heavy = {each for each in values if values.count(each) * bins > n and (values.count(each) > 1 or n == 1)}
    rest = [each for each in values if each not in heavy]
    parts = bins - len(heavy)
    expected = {rest[math.ceil(k * len(rest) / parts) - 1] for k in range(1, parts)} if rest else set()
    expected |= heavy | {math.nextafter(each, -INF) for each in heavy}
    assert edges_of([float(each) for each in values], bins) == tuple(sorted(expected))


def test_what_is_frequent_has_a_bin_of_its_own():
    """A value heavier than one bin is alone in its bin, and the others are cut into the bins that are left."""
    feature = numeric([0.0] * 60 + [float(each) for each in range(1, 41)], bins=5)
    assert feature.edges == (-5e-324, 0.0, 10.0, 20.0, 30.0)
    assert feature.counts == (0, 60, 10, 10, 10, 10, 0)


@pytest.mark.parametrize("value", [0.0, -0.0, 5.0, -1.7976931348623157e308, 1.7976931348623157e308])
def test_a_constant_has_a_bin_of_its_own(value: float):
    """All of a constant column is in one bin that no other number is in, where there is a number below."""
    feature = numeric([value] * 20)
    below = math.nextafter(value, -INF)
    assert feature.edges == ((below, value) if below > -INF else (value,))
    assert feature.counts[-3:] == (20, 0, 0)
    assert sum(feature.counts) == 20
    assert (feature.minimum, feature.maximum) == (value, value)


@pytest.mark.parametrize("missing", [None, NAN, INF, -INF, 10**400, pd.NA, np.float32("nan")])
@pytest.mark.parametrize("arithmetic", [plain, vectors])
def test_what_has_no_value_is_missing(missing: Any, arithmetic: Any):
    """None, NaN, infinity and what no float can hold are counted as missing and in nothing else."""
    fitting = Fit(arithmetic)
    fitting.update([1.0, missing, 3.0, 1.0])
    (feature,) = fitting.finish().features
    assert feature.counts[-1] == 1
    assert (feature.minimum, feature.maximum, feature.mean) == (1.0, 3.0, pytest.approx(5 / 3))


def test_nothing_but_missing_values():
    """A column without any value has one bin, which is empty."""
    assert numeric([None, NAN]) == Numeric("x0", (), (0.0, 2.0))


def test_numbers_too_large_for_a_mean():
    """Where mean or deviation overflow they are absent; the bins are there."""
    feature = numeric([1.7e308, 1.6e308, 1.5e308, -1.7e308], bins=2)
    assert (feature.std, feature.edges, feature.counts) == (None, (1.5e308,), (2, 2, 0))


# --- Categories -------------------------------------------------------------------------------------------


def test_the_most_frequent_categories_have_bins():
    """Categories come by how frequent they are, then by name; the rest is other, None and NaN are missing."""
    feature = categorical(["b", "a", "c", "b", "a", None, "d", NAN], categories=2)
    assert feature == Categorical("kind", ("a", "b"), (2.0, 2.0, 2.0, 2.0))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([True, False, True], ("1", "0")),
        (np.array([True, False, True]), ("1", "0")),
        (np.array([2, 1, 2]), ("2", "1")),
        ([2.0, NAN, 2.0, 1.5], ("2", "1.5")),
        (np.array(["x", "y", "x"]), ("x", "y")),
    ],
)
def test_the_text_of_a_category(values: Any, expected: tuple[str, ...]):
    """A bool is true or false, a whole number its digits, also as a float."""
    named = ["kind"] if not isinstance(values[0], (bool, np.bool_, str)) else []
    assert categorical(values, categorical=named).values == expected


def test_a_text_that_cannot_be_a_label_is_other():
    """A text that is too long or cannot be encoded has no bin of its own."""
    assert categorical(["a" * 201, "\ud800", "a"]) == Categorical("kind", ("a",), (1.0, 2.0, 0.0))


def test_distinct_categories_are_bounded():
    """Of many distinct categories a bounded number is told apart, the first that come."""
    fitting = Fit(categories=1, distinct=100)
    for start in (0, 100, 200):
        fitting.update({"id": ["0", *[str(i) for i in range(start, start + 100)]]})
    assert set(fitting._columns["id"]._counts) == set(map(str, range(100)))
    assert fitting.finish().features == (Categorical("id", ("0",), (4.0, 299.0, 0.0)),)


# --- Pieces -----------------------------------------------------------------------------------------------

VALUES = st.one_of(st.none(), st.floats(width=32), st.sampled_from([0.0, -0.0, 1.0, 1.0, 2.0]), st.integers(-5, 5))
ROWS = st.lists(st.tuples(VALUES, VALUES, st.sampled_from(["a", "b", "c", None])), min_size=1, max_size=40)


@settings(max_examples=60, deadline=None)
@given(
    rows=ROWS, cuts=st.lists(st.integers(0, 40), max_size=4), kept=st.sampled_from([24, 60, 10_000]), of=st.booleans()
)
def test_pieces_are_the_whole(rows: list[Any], cuts: list[int], kept: int, of: bool):
    """However data is cut, with numpy or without, sampled or not: counts add up to the rows and the digest is one."""
    whole = Fit(vectors, kept=kept, bins=4)
    whole.update(rows)
    expected = whole.finish()
    pieces = Fit(plain if of else vectors, kept=kept, bins=4)
    bounds = sorted({0, len(rows), *[min(cut, len(rows)) for cut in cuts]})
    for start, stop in itertools.pairwise(bounds):
        pieces.update(rows[start:stop])
    found = pieces.finish()
    assert [sum(feature.counts) for feature in found.features] == [len(rows)] * 3
    assert found.digest == expected.digest
    for one, other in zip(found.features[:2], expected.features[:2], strict=True):
        if isinstance(one, Numeric) and isinstance(other, Numeric):
            assert (one.minimum, one.maximum) == (other.minimum, other.maximum)
            assert one.std == (other.std if other.std is None else pytest.approx(other.std, rel=1e-6, abs=1e-6))
            # Values that cancel one another out leave a mean that is all rounding: near, as seen from the largest.
            near = 1e-12 * max(abs(one.minimum or 0.0), abs(one.maximum or 0.0))
            assert one.mean == (other.mean if other.mean is None else pytest.approx(other.mean, rel=1e-6, abs=near))


def test_a_sample_is_bounded_and_near():
    """Of more values than are kept the bins are those of a sample: as many rows as allowed, near the quantiles."""
    values = np.random.default_rng(2).normal(size=50_000)
    fitting = Fit(kept=10_000)
    for piece in np.split(values, 10):
        fitting.update(piece)
        assert sum(map(len, fitting._columns["x0"]._parts)) <= 10_000
    (feature,) = fitting.finish().features
    assert sum(map(len, fitting._columns["x0"]._parts)) >= 5_000
    assert isinstance(feature, Numeric)
    assert sum(feature.counts) == 50_000
    assert feature.minimum == values.min()
    shares = np.searchsorted(np.sort(values), feature.edges) / 50_000
    assert shares == pytest.approx(np.arange(1, 10) / 10, abs=0.02)


def test_a_piece_belongs_to_its_profile():
    """A later piece may have other columns than the first only where they are of no concern."""
    fitting = Fit()
    fitting.update({"a": [1], "b": ["x"]})
    fitting.update({"b": ["y"], "a": [2], "c": [3]})
    assert [feature.name for feature in fitting.finish().features] == ["a", "b"]
    for piece, message in [
        ({"a": [1]}, "there is no column 'b'"),
        ({"a": ["x"], "b": ["x"]}, "'a' began with one of numbers and texts"),
    ]:
        with pytest.raises(ValueError, match=message):
            fitting.update(piece)
    with pytest.raises(ValueError, match="belong to each piece or to none"):
        fitting.update({"a": [1], "b": ["x"]}, predictions=[1])


# --- Ways to hold data ------------------------------------------------------------------------------------


class Frame:
    """What pandas and polars have in common."""

    columns = ("n", "k")

    def __getitem__(self, name: str) -> Any:
        return {"n": np.array([1.0, 2.0, NAN, 2.0]), "k": ["a", "b", None, "b"]}[name]


EVERY_WAY: list[Any] = [
    Frame(),
    {"n": [1, 2, None, 2], "k": ("a", "b", None, "b")},
    [{"n": 1, "k": "a"}, {"k": "b", "n": 2}, {}, {"n": 2.0, "k": "b"}],
    pd.DataFrame({"n": [1, 2, NAN, 2], "k": ["a", "b", None, "b"]}),
    pd.DataFrame({"n": pd.array([1, 2, None, 2], "Int64"), "k": pd.Categorical(["a", "b", None, "b"])}),
    pl.DataFrame({"n": [1, 2, None, 2], "k": ["a", "b", None, "b"]}),
    pl.DataFrame({"n": [1, 2, None, 2], "k": pl.Series(["a", "b", None, "b"], dtype=pl.Categorical)}),
]


@pytest.mark.parametrize("features", EVERY_WAY)
def test_frames_mappings_and_rows_are_the_same(features: Any):
    """Whichever way data is held, pandas' and polars' frames included, the profile is the same."""
    profile = Profile.fit(features)
    assert profile.digest == Profile.fit(EVERY_WAY[0]).digest
    assert [feature.name for feature in profile.features] == ["n", "k"]
    assert profile.features[1] == Categorical("k", ("b", "a"), (2.0, 1.0, 0.0, 1.0))
    assert Profile.fit(features, names=["k"]).features == profile.features[1:]


@pytest.mark.parametrize(
    "features",
    [[[1, 4.5], [2, 5.5]], ((1, 4.5), (2, 5.5)), np.array([[1, 4.5], [2, 5.5]]), list(np.array([[1, 4.5], [2, 5.5]]))],
)
def test_what_has_no_names_takes_some(features: Any):
    """Rows and arrays have the names x0, x1, or those that are given."""
    assert [feature.name for feature in Profile.fit(features).features] == ["x0", "x1"]
    assert [feature.name for feature in Profile.fit(features, names=["a", "b"]).features] == ["a", "b"]
    assert [feature.mean for feature in Profile.fit(features).features if isinstance(feature, Numeric)] == [1.5, 5.0]


def test_one_column_is_a_series_or_a_list():
    """A series gives its column its name; a list has one column."""
    assert numeric(pd.Series([1.0, 2.0], name="rooms")).name == "rooms"
    assert numeric(range(3)).mean == 1.0


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"features": []}, "no rows"),
    ({"features": {"a": [1], "b": [1, 2]}}, "'b' has 2 values, not 1"),
    ({"features": [[1, 2], [3]]}, "row 1 has not 2 values"),
    ({"features": [[1]], "names": ["a", "b"]}, "2 names do not go with 1 columns"),
    ({"features": [[1, 2]], "names": ["a", "a"]}, "two features are named 'a'"),
    ({"features": {PREDICTION: [1]}}, "cannot name a feature"),
    ({"features": {"": [1]}}, "cannot name a feature"),
    ({"features": {1: [1], "1": [2]}}, "two columns have the same name"),
    ({"features": [1, "a"]}, "holds numbers and texts"),
    ({"features": [[b"a"]]}, "holds bytes"),
    ({"features": {"a": [[1], [2]]}}, "holds list"),
    ({"features": np.zeros((2, 2, 2))}, "3 dimensions"),
    ({"features": np.array(["2024-01-01"], "M8[D]")}, "holds times"),
    ({"features": "text"}, "is no column"),
    ({"features": [1], "bins": 1}, "bins is 1, expected a whole number from 2 to 200"),
    ({"features": [1], "categories": 0}, "categories is 0"),
    ({"features": [1], "categorical": ["y"]}, "no such column"),
    ({"features": [1], "model_name": "a" * 201}, "no name or version of a model"),
    ({"features": [1], "model_version": 7}, "no name or version of a model"),
    ({"features": [1], "predictions": ["b" * 201], "truth": ["b"], "positive": "b" * 201}, "too long for a label"),
    ({"features": [1], "type": "ranking"}, "type is 'ranking'"),
    ({"features": [1], "block": "year", "timestamps": [1]}, "block is 'year'"),
    ({"features": [1], "block": 0, "timestamps": [1]}, "block is 0"),
    ({"features": [1], "timestamps": [1.7e12]}, "not in seconds"),
    ({"features": [1], "timestamps": np.array([1.7e12])}, "not in seconds"),
    ({"features": [1], "timestamps": [True]}, "is no timestamp"),
    ({"features": [1], "timestamps": ["Monday"]}, "Monday"),
    ({"features": [1], "timestamps": [1, 2]}, "2 timestamps do not go with 1 rows"),
    ({"features": range(5_000), "timestamps": np.arange(5_000) * 86_400.0}, "more than 4000 blocks"),
    ({"features": [1], "truth": [1]}, "truth needs predictions or scores"),
    ({"features": [1], "scores": [0.5]}, "scores need the truth"),
    ({"features": [1], "predictions": [[0.5, 0.5]]}, "one value a row"),
    ({"features": [1], "predictions": [1], "truth": [1], "scores": [1.5]}, "probabilities from 0 to 1"),
    ({"features": [1], "predictions": [1.0], "truth": ["a"]}, "give type='classification'"),
    ({"features": [1], "predictions": ["a"], "type": "regression"}, "of a regression are numbers"),
    ({"features": [1], "truth": [1], "scores": [0.5], "type": "regression"}, "this is a regression"),
    ({"features": [1], "predictions": [1.0], "truth": [1.0], "positive": 1}, "this is a regression"),
    ({"features": [1, 2, 3], "truth": [1, 2, 3], "scores": [0.5] * 3}, "several classes need predictions"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG)
def test_a_mistake_is_told(arguments: dict[str, Any], message: str):
    """What does not fit together is a ValueError that says what."""
    with pytest.raises(ValueError, match=message):
        Profile.fit(**arguments)


def test_an_unknown_option_is_told():
    """An option that does not exist is a TypeError."""
    with pytest.raises(TypeError, match="no option 'bin'"):
        Profile.fit([1], bin=3)  # type: ignore[call-arg]


# --- Predictions and scores -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("predictions", "options", "kind"),
    [
        ([1, 0, 1], {}, Numeric),
        ([1, 0, 1], {"type": "classification"}, Categorical),
        ([1, 0, 1], {"categorical": [PREDICTION]}, Categorical),
        (np.array([[1.5], [2.5], [0.5]]), {}, Numeric),
        (["a", "b", "a"], {}, Categorical),
        ([True, False, None], {}, Categorical),
    ],
)
def test_predictions_are_one_more_feature(predictions: Any, options: dict[str, Any], kind: type):
    """Numbers are numbers unless the model is said to be a classifier, labels are categories."""
    profile = Profile.fit([1, 2, 3], predictions, **options)
    assert type(profile.prediction) is kind
    assert profile.prediction is not None
    assert profile.prediction.name == PREDICTION
    assert [feature.name for feature in profile.features] == ["x0"]
    assert profile.every_feature == (*profile.features, profile.prediction)


@pytest.fixture(params=[plain, vectors], ids=["plain", "numpy"])
def fitting(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Fits a profile in two pieces, with numpy and without."""

    def fit(x: Any, *beside: Any, **options: Any) -> Profile:
        fitting = Fit(request.param, **options)
        for part in (slice(0, 333), slice(333, None)):
            fitting.update(x[part], *[None if each is None else each[part] for each in beside])
        return fitting.finish()

    return fit


@pytest.mark.parametrize("labels", [[0, 1], [False, True], ["no", "yes"], [9, 10]])
def test_scores_of_two_classes(fitting: Any, labels: list[Any]):
    """Accuracy, AUC, Brier score and logarithmic loss are scikit-learn's; the later of two labels is the positive."""
    rng = np.random.default_rng(3)
    scores = rng.random(1_000)
    positive = rng.random(1_000) < scores
    truth = [labels[int(each)] for each in positive]
    said = [labels[int(each)] for each in scores > 0.5]
    profile = fitting(scores, said, truth, scores)
    assert profile.training == pytest.approx(
        {
            "accuracy": accuracy_score(truth, said),
            "auc": roc_auc_score(positive, scores),
            "brier": brier_score_loss(positive, scores),
            "log_loss": log_loss(positive, scores),
        },
        abs=5e-4,
    )
    assert profile.positive == {False: "0", True: "1"}.get(labels[1], str(labels[1]))
    places = np.searchsorted(SCORE_BOUNDS, scores)
    yes, no = (np.bincount(places[mask], minlength=BINS) for mask in (scores > 0.5, scores <= 0.5))
    assert estimated_accuracy(profile.calibration, yes, no) == pytest.approx(profile.training["accuracy"], abs=0.02)


def test_the_positive_label_can_be_said(fitting: Any):
    """With a positive label of several, the others are one class."""
    truth, scores = ["cat", "dog", "cow", "cat"], [0.9, 0.2, 0.4, 0.3]
    profile = fitting([1] * 4, ["cat", "cow", "dog", "dog"], truth, scores, positive="cat")
    assert profile.positive == "cat"
    assert profile.training["auc"] == pytest.approx(0.75)
    assert profile.training["accuracy"] == 0.75


def test_scores_of_several_classes(fitting: Any):
    """Of several classes a score is the answer's, and positive is what is right."""
    rng = np.random.default_rng(4)
    said = rng.integers(0, 3, 1_000)
    scores = rng.random(1_000)
    right = rng.random(1_000) < scores
    truth = np.where(right, said, (said + 1) % 3)
    profile = fitting(scores, said, truth, scores)
    assert profile.positive is None
    assert profile.training == pytest.approx(
        {
            "accuracy": right.mean(),
            "auc": roc_auc_score(right, scores),
            "brier": brier_score_loss(right, scores),
            "log_loss": log_loss(right, scores),
        },
        abs=1e-3,
    )
    places = np.bincount(np.searchsorted(SCORE_BOUNDS, scores), minlength=BINS)
    assert estimated_accuracy(profile.calibration, places) == pytest.approx(right.mean(), abs=1e-9)


def test_rows_without_truth_or_score_are_left_out(fitting: Any):
    """A row without a truth is in no score; one without a score is in the accuracy alone."""
    profile = fitting([1] * 4, [1, 0, 1, 1], [1, 0, None, 0], [0.9, None, 0.9, 0.9], type="classification")
    assert profile.training == pytest.approx(
        {"accuracy": 2 / 3, "auc": 0.5, "brier": 0.41, "log_loss": 1.2040}, abs=1e-3
    )


def test_scores_of_a_regression(fitting: Any):
    """Errors and R2 of a regression are scikit-learn's, of the rows that have both numbers."""
    rng = np.random.default_rng(5)
    truth = rng.normal(1e6, 3.0, 1_000)
    said = truth + rng.normal(0.5, 1.0, 1_000)
    profile = fitting(truth, [NAN, *said[1:]], truth, None)
    error = (said - truth)[1:]
    assert profile.training == pytest.approx(
        {
            "rmse": math.sqrt(np.square(error).mean()),
            "mae": np.abs(error).mean(),
            "r2": r2_score(truth[1:], said[1:]),
            "truth_mean": truth[1:].mean(),
        },
        rel=1e-9,
    )


# --- Blocks of time ---------------------------------------------------------------------------------------

TIMES: list[Any] = [
    np.arange(40) * 21_600.0 + WHEN.timestamp(),
    [WHEN.timestamp() + i * 21_600 for i in range(40)],
    [WHEN + i * timedelta(hours=6) for i in range(40)],
    [(WHEN + i * timedelta(hours=6)).replace(tzinfo=None) for i in range(40)],
    [(WHEN + i * timedelta(hours=6)).isoformat() for i in range(40)],
    [date(2024, 1, 1 + i // 4) for i in range(40)],
    np.array([np.datetime64("2024-01-01") + np.timedelta64(6 * i, "h") for i in range(40)]),
    pd.Series([WHEN + i * timedelta(hours=6) for i in range(40)]),
    pl.Series([WHEN + i * timedelta(hours=6) for i in range(40)]),
]


@pytest.mark.parametrize("timestamps", TIMES)
def test_blocks_are_days(timestamps: Any):
    """Timestamps of any kind cut the rows into UTC's days, whose indices give each feature's threshold."""
    numbers = [float(i % 7) for i in range(40)]
    kinds = ["b" if i % 7 == 2 else "a" if i % 3 else None for i in range(40)]
    profile = Profile.fit({"n": numbers, "k": kinds}, numbers, timestamps=timestamps, bins=2, categories=1)
    feature = profile.features[1]
    days = [kinds[start : start + 4] for start in range(0, 40, 4)]
    blocks = [[day.count("a"), day.count("b"), day.count(None)] for day in days]
    assert feature.block == pytest.approx(block_quantile(block_scores(blocks)))
    assert profile.prediction is not None
    assert profile.prediction.block == profile.features[0].block
    assert profile.features[0].block is not None


@pytest.mark.parametrize("arithmetic", [plain, vectors])
def test_blocks_in_pieces(arithmetic: Any):
    """A second time over the pieces gives the blocks of the whole; rows without a time are in none of them."""
    rng = np.random.default_rng(6)
    x, days = rng.normal(size=(300, 2)), rng.integers(0, 12, 300) * 86_400.0
    days[7] = NAN
    whole = Profile.fit(x, timestamps=days)
    begun = Profile.fit(x)
    blocks = Blocks(begun, "day", arithmetic)
    for part in (slice(0, 100), slice(100, 300)):
        blocks.update(x[part], days[part])
    assert blocks.finish().digest == whole.digest != begun.digest


def test_naive_datetimes_are_utc(monkeypatch: pytest.MonkeyPatch):
    """What does not say its time zone is UTC's, wherever the machine stands."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "America/New_York")
        time.tzset()
        found = plain.seconds_of([WHEN.replace(tzinfo=None), "2024-01-01", WHEN.isoformat(), date(2024, 1, 1)])
    time.tzset()
    assert found == [WHEN.timestamp()] * 4


def test_both_arithmetics_choose_the_same_rows():
    """The marks of rows are those of splitmix64, with numpy and without."""
    assert plain.marks(0, 50) == vectors.marks(0, 50).tolist()
    assert plain.marks(0, 1) == [0xE220A8397B1DCDAF]  # the first of seed 0


def test_without_numpy():
    """Where numpy is not installed the profile is the same."""
    program = """
import sys
sys.modules["numpy"] = None
from otel_mlops.profile import Profile
print(Profile.fit([[1.5, "a"], [2.5, "b"], [2.5, "b"]], timestamps=["2024-01-01"] * 3).digest)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    expected = Profile.fit([[1.5, "a"], [2.5, "b"], [2.5, "b"]])
    assert done.stdout.strip() == expected.digest, done.stderr


def test_few_blocks_say_nothing():
    """With fewer than eight blocks there is no threshold of blocks."""
    x = np.random.default_rng(7).normal(size=80)
    for days, there in [(7, False), (8, True)]:
        profile = Profile.fit(x, timestamps=np.arange(80) % days * 3_600.0, block="hour")
        assert (profile.features[0].block is not None) is there
