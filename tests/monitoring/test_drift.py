"""Drift on data: where a change is known it is found, and where there is none nothing is said."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from itertools import repeat
from typing import Any, TypeAlias

import numpy as np
import pytest

from otel_mlops.profile import PREDICTION, Profile
from tests.monitoring.replay import Columns, Replay, cut, of, replaying, table

CAR_LOAN = (
    "car_value", "salary_range", "debt_to_income_ratio", "loan_length", "repaid_loan_on_prev_car",
    "size_of_downpayment", "driver_tenure",
)  # fmt: skip
CHANGED = {"car_value", "salary_range", "loan_length", "repaid_loan_on_prev_car", PREDICTION}
CHANGE = 25_000
"""The row of the car loans at which they change."""

FLIGHTS = ("hour", "carrier", "origin", "distance", "dep_delay", "air_time")
DAY_S = 86_400.0


def replay_rows(replay: Replay, columns: Columns, answers: Any, each: int) -> Iterable[int]:
    """Serve columns in batches, a row a second, look after each, and tell how many rows were served."""
    for begin in range(0, len(answers), each):
        rows = slice(begin, begin + each)
        replay.serve(cut(columns, rows), answers[rows])
        replay.wait(float(each))
        replay.look()
        yield begin + each


@pytest.mark.stress
def test_the_change_of_the_car_loans_is_found_and_nothing_before_it():
    """In a window of 1,000 rows what has changed is found within 1,000 rows, and in 25,000 before nothing is said."""
    reference, analysis = table("car_loan_reference"), table("car_loan_analysis")
    profile = Profile.fit(of(reference, *CAR_LOAN), reference["y_pred_proba"])
    first: dict[str, int] = {}
    with replaying(profile, window_s=1_000.0) as replay:
        for rows in replay_rows(replay, of(analysis, *CAR_LOAN), analysis["y_pred_proba"], 500):
            for feature in replay.drifted():
                first.setdefault(feature, rows)
        assert replay.drifted() == CHANGED
        assert replay.value("model_drift_features") == len(CHANGED - {PREDICTION})
    assert {feature: CHANGE < rows <= CHANGE + 1_000 for feature, rows in first.items()} == dict.fromkeys(CHANGED, True)


@pytest.mark.stress
def test_three_quiet_years_give_no_alarm():
    """In employment, 2016 to 2018 against 2015, no feature of 16 is called drifted in any of 96 looks."""
    reference, analysis = table("employment_reference"), table("employment_analysis")
    features = [name for name in reference if name not in ("employed", "year", "prediction", "predicted_probability")]
    profile = Profile.fit(of(reference, *features), reference["predicted_probability"], categorical=features[1:])
    with replaying(profile, window_s=1_000.0) as replay:
        looks = [
            replay.drifted()
            for _ in replay_rows(replay, of(analysis, *features), analysis["predicted_probability"], 250)
        ]
        assert set(replay.each("model_drift_score")) == {*features, PREDICTION}
        assert sum(replay.each("model_feature_invalid_total").values()) <= 0.001 * len(analysis["year"])
    assert len(looks) == 96
    assert looks == [set()] * 96


def flights_of(days: Any) -> Columns:
    """The flights of some days of the year, which are counted from 1."""
    every = table("flights")
    return of(cut(every, np.isin(every["day"], days)), "day", *FLIGHTS)


@cache
def profile_of_winter(*, has_days: bool = True) -> Profile:
    """January to March, whose days say by how much one differs from another."""
    winter = flights_of(range(1, 91))
    return Profile.fit(of(winter, *FLIGHTS), timestamps=winter["day"] * DAY_S if has_days else None)


Fault: TypeAlias = Callable[[Columns], Columns]


def replay_days(
    days: Iterable[int], faults: Iterable[Fault] = repeat(lambda day: day), profile: Profile | None = None
) -> list[set[str]]:
    """The features that are called drifted on each of some days, each with a fault."""
    days = [*days]
    columns = flights_of(days)
    found = []
    # A Saturday that has lost an airport has 450 flights.
    with replaying(profile or profile_of_winter(), window_s=DAY_S, drift_samples=400) as replay:
        for day, fault in zip(days, faults, strict=False):
            replay.serve(of(fault(cut(columns, columns["day"] == day)), *FLIGHTS))
            replay.wait(DAY_S)
            replay.look()
            found.append(replay.drifted())
    return found


def in_kilometres(day: Columns) -> Columns:
    return day | {"distance": day["distance"] * 1.609344}


def without_a_tenth(column: Any) -> Any:
    """A column of which every tenth value is missing, by chance."""
    return np.where(np.random.default_rng(0).random(len(column)) < 0.1, np.nan, column)


def with_gaps(day: Columns) -> Columns:
    return day | {"distance": without_a_tenth(day["distance"])}


def with_united_renamed(day: Columns) -> Columns:
    return day | {"carrier": np.where(day["carrier"] == "UA", "United", day["carrier"])}


def in_utc(day: Columns) -> Columns:
    return day | {"hour": (day["hour"] + 5.0) % 24.0}


def without_jfk(day: Columns) -> Columns:
    return cut(day, day["origin"] != "JFK")


def in_seconds(day: Columns) -> Columns:
    return day | {"air_time": day["air_time"] * 60.0}


def without_early_ones(day: Columns) -> Columns:
    return day | {"dep_delay": np.maximum(day["dep_delay"], 0.0)}


FAULTS = {
    in_kilometres: "distance", with_gaps: "distance", with_united_renamed: "carrier", in_utc: "hour",
    without_jfk: "origin", in_seconds: "air_time", without_early_ones: "dep_delay",
}  # fmt: skip


@pytest.mark.stress
def test_faults_of_a_feed_are_found_within_a_day():
    """Each of seven faults of one column of the flights is found in the first window that is a day of it."""
    found = replay_days(range(91, 91 + len(FAULTS)), FAULTS)
    assert [column in each for column, each in zip(FAULTS.values(), found, strict=True)] == [True] * len(FAULTS)


@pytest.mark.stress
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_fault_of_a_feed_is_found_on_each_day(fault: Fault):
    """A fault of one column of the flights is found on each of 61 days that it lasts."""
    days = range(91, 152)
    found = replay_days(days, repeat(fault))
    assert [day for day, each in zip(days, found, strict=True) if FAULTS[fault] not in each] == []


def test_gaps_that_a_column_is_used_to_are_seen_in_their_counter():
    """A tenth of a column that has gaps on some days anyway is within its habit, and the counter of gaps tells it."""
    day = flights_of([100])
    gaps = without_a_tenth(day["air_time"])
    with replaying(profile_of_winter(), window_s=DAY_S, drift_samples=400) as replay:
        replay.serve(of(day | {"air_time": gaps}, *FLIGHTS))
        replay.look()
        assert replay.drifted() == set()
        missing = replay.each("model_feature_missing_total")["air_time"]
        assert missing == np.isnan(gaps).sum() > 0.1 * len(gaps)


@pytest.mark.stress
def test_nine_months_of_real_days_give_hardly_an_alarm():
    """Of 275 real days after the profile was made, no feature is called drifted on more than one percent."""
    found = replay_days(range(91, 366))
    alarms = {
        feature: [day for day, each in zip(range(91, 366), found, strict=True) if feature in each]
        for feature in FLIGHTS
    }
    # 1 July: thunderstorms. 28 November: Thanksgiving, with the timetable of no other day.
    assert alarms == {"dep_delay": [182], "hour": [332], "air_time": [], "distance": [], "carrier": [], "origin": []}


@pytest.mark.stress
def test_without_the_habit_of_days_most_of_them_give_an_alarm():
    """By floor and chance alone, delays and times in the air would be called drifted on two days of three."""
    found = replay_days(range(91, 366), profile=profile_of_winter(has_days=False))
    shares = {feature: sum(feature in each for each in found) / len(found) for feature in ("dep_delay", "air_time")}
    assert shares == {"dep_delay": pytest.approx(0.70, abs=0.01), "air_time": pytest.approx(0.73, abs=0.01)}


FEATURES = [f"x{number}" for number in range(20)]


@pytest.mark.stress
def test_a_thousand_looks_without_drift_give_no_alarm():
    """Twenty features that do not change, looked at a thousand times in a rolling window, are never called drifted."""
    rng = np.random.default_rng(20)
    profile = Profile.fit(rng.normal(size=(10_000, 20)), names=FEATURES)
    with replaying(profile, window_s=1_000.0) as replay:
        rows = rng.normal(size=(50_000, 20))
        alarms, judged = 0, 0
        for _ in replay_rows(replay, dict(zip(FEATURES, rows.T, strict=True)), rows[:, 0], 50):
            alarms += len(replay.drifted())
            judged += len(replay.each("model_drift_detected"))
    assert judged > 980 * 20
    assert alarms == 0


def test_few_rows_without_drift_give_as_few_alarms_as_chance_may():
    """In windows of 100 rows a feature in four passes the floor, and in one percent of looks its threshold."""
    rng = np.random.default_rng(1)
    profile = Profile.fit(rng.normal(size=(10_000, 5)))
    passed, alarms = 0, 0
    with replaying(profile, window_s=100.0, drift_samples=100) as replay:
        for _ in range(50):
            replay.serve(rng.normal(size=(100, 5)))
            replay.wait(100.0)
            replay.look()
            passed += sum(score > 0.1 for score in replay.each("model_drift_score").values())
            alarms += len(replay.drifted())
    assert passed > 250 // 4
    assert alarms <= 3  # of 50 looks; half of one is what to expect


def test_too_few_rows_are_called_nothing():
    """Below the least samples a score is shown, however high, and whether that is a drift is not."""
    profile = Profile.fit({"x": np.arange(1_000.0)})
    with replaying(profile, window_s=100.0) as replay:
        for rows, detected in ((499, {}), (1, {"x": 1.0})):
            replay.serve({"x": np.full(rows, 5_000.0)})
            replay.look()
            assert replay.each("model_drift_score")["x"] > replay.each("model_drift_threshold")["x"]
            assert replay.each("model_drift_detected") == detected


def test_one_outlier_does_not_hide_a_drift():
    """A shift of one sigma in a thousand rows scores the same with one value of a million among them."""
    rng = np.random.default_rng(0)
    profile = Profile.fit({"x": rng.normal(size=10_000)})
    shifted = rng.normal(1.0, size=1_000)
    scores = []
    for rows in (shifted, np.append(shifted[1:], 1e6)):
        with replaying(profile, window_s=3_600.0) as replay:
            replay.serve({"x": rows})
            replay.look()
            scores.append(replay.each("model_drift_score")["x"])
            assert replay.drifted() == {"x"}
    assert scores[0] > 0.8
    assert scores[1] == pytest.approx(scores[0], rel=0.02)


def test_one_outlier_is_no_drift():
    """A thousand rows as in training and one value of a million are not called drifted; the value is counted."""
    rng = np.random.default_rng(0)
    profile = Profile.fit({"x": rng.normal(size=10_000)})
    with replaying(profile, window_s=3_600.0) as replay:
        replay.serve({"x": np.append(rng.normal(size=1_000), 1e6)})
        replay.look()
        assert replay.drifted() == set()
        assert replay.each("model_drift_score")["x"] < 0.03
        assert replay.each("model_feature_invalid_total", by="reason")["above_range"] >= 1.0
