"""Today's predictions: what is counted since midnight UTC, whatever happens in between."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial

import pytest

from otel_mlops.daily import Daily
from otel_mlops.metrics import DAILY_PREDICTIONS, PREDICTIONS
from otel_mlops.sdk.provider import MeterProvider
from otel_mlops.testing import collect, fresh_telemetry
from tests import waiting

PATIENCE_S = 30.0
eventually = partial(waiting.eventually, within_s=PATIENCE_S)
MIDNIGHT_S = datetime(2024, 3, 1, tzinfo=UTC).timestamp()


@pytest.fixture
def provider() -> Iterator[MeterProvider]:
    """A provider of the test's own."""
    provider = MeterProvider(shutdown_on_exit=False)
    yield provider
    provider.shutdown()


@pytest.fixture
def daily(provider: MeterProvider) -> Daily:
    """Today's predictions, before anything was predicted."""
    return Daily(provider)


def predict(provider: MeterProvider, count: int, version: str = "v1", kind: str = "single", **more: str) -> None:
    """Count predictions of a model."""
    provider.instrument(PREDICTIONS).add(count, {"model_version": version, "prediction_type": kind, **more})


def today(daily: Daily) -> dict[str, float]:
    """Today's counts by the model's version."""
    return {dict(each.attributes)["model_version"]: each.value for each in daily.observe(None)}


def test_it_counts_rows_of_singles_and_batches_together(provider, daily):
    """A model has one count of the day: its single predictions and the rows of its batches."""
    predict(provider, 3)
    predict(provider, 32, kind="batch")
    predict(provider, 1, version="v2")
    assert today(daily) == {"v1": 35, "v2": 1}


def test_before_the_first_prediction_there_is_nothing(daily):
    """A model that has predicted nothing has no series."""
    assert today(daily) == {}


def test_at_midnight_it_begins_again(provider, daily):
    """After midnight each model is at 0 until it predicts, and the total goes on as it was."""
    predict(provider, 5)
    predict(provider, 7, version="v2")
    daily.begin_day()
    assert today(daily) == {"v1": 0, "v2": 0}
    predict(provider, 2)
    predict(provider, 4, version="v3")
    assert today(daily) == {"v1": 2, "v2": 0, "v3": 4}
    daily.begin_day()
    assert today(daily) == {"v1": 0, "v2": 0, "v3": 0}
    assert sum(count for _, count in provider.totals(PREDICTIONS)) == 18


def test_models_of_one_version_are_told_apart_by_their_names(provider, daily):
    """The labels are those of the predictions, less their type."""
    predict(provider, 1, model_name="housing")
    predict(provider, 2)
    assert sorted((sorted(each.attributes.items()), each.value) for each in daily.observe(None)) == [
        ([("model_name", "housing"), ("model_version", "v1")], 1),
        ([("model_version", "v1")], 2),
    ]


@pytest.mark.parametrize(("told", "scraped_in_between"), [(True, True), (True, False), (False, True)])
def test_a_model_that_is_forgotten_begins_at_nothing(provider, daily, told, scraped_in_between):
    """Yesterday's reading goes with the series, so today's count never jumps back when it reaches that."""
    predict(provider, 5)
    daily.begin_day()
    predict(provider, 1)
    provider.forget({"model_version": "v1"})
    if told:
        daily.forget({"model_version": "v1"})
    if scraped_in_between:
        assert today(daily) == {}
    for count in range(1, 12):
        predict(provider, 1)
        assert today(daily) == {"v1": count}


def test_the_parts_of_a_count_are_forgotten_by_themselves(provider, daily):
    """When the batches of a model are forgotten its single predictions of today stay."""
    predict(provider, 5)
    predict(provider, 100, kind="batch")
    daily.begin_day()
    predict(provider, 2)
    predict(provider, 10, kind="batch")
    provider.forget({"prediction_type": "batch"})
    daily.forget({"prediction_type": "batch"})
    assert today(daily) == {"v1": 2}


def test_in_a_forked_child_it_begins_at_nothing(provider, daily):
    """A child's totals begin at nothing, and so does its day."""
    predict(provider, 5)
    daily.begin_day()
    daily.after_fork()
    predict(provider, 1)
    assert today(daily) == {"v1": 6}


def test_midnight_while_predictions_and_scrapes_go_on_loses_nothing(provider, daily):
    """Readings, scrapes and predictions at the same time: what was counted before and after adds up to the total."""
    stop = threading.Event()
    seen: list[float] = []

    def scrape() -> None:
        while not stop.is_set():
            seen.append(today(daily).get("v1", 0.0))

    scraping = threading.Thread(target=scrape)
    scraping.start()
    yesterday = 0.0
    for _ in range(20):
        for _ in range(50):
            predict(provider, 1)
        before = today(daily)["v1"]
        daily.begin_day()
        yesterday += before
        assert today(daily) == {"v1": 0}
    stop.set()
    scraping.join()
    assert yesterday == 1000
    assert max(seen) <= 50


def test_midnight_in_the_middle_of_a_scrape_waits_for_its_end(provider, daily, monkeypatch):
    """A reading that is newer than a scrape's totals must not look to it like a model that has begun anew."""
    predict(provider, 5)
    read = provider.everyone.totals

    def read_and_let_midnight_come(row):
        monkeypatch.setattr(provider.everyone, "totals", read)
        before = read(row)
        predict(provider, 1)
        midnight.start()
        midnight.join(0.1)
        return before

    midnight = threading.Thread(target=daily.begin_day)
    monkeypatch.setattr(provider.everyone, "totals", read_and_let_midnight_come)
    assert today(daily) == {"v1": 5}
    midnight.join(PATIENCE_S)
    assert today(daily) == {"v1": 0}


def test_a_full_metric_is_counted_by_its_overflow():
    """Past the cap of series the overflow's predictions are today's too, and what can be read stays readable."""
    with fresh_telemetry(max_series=2) as telemetry:
        for number in range(4):
            telemetry.record_prediction(1.0, f"v{number}")
        page = collect(telemetry)
    assert page.value("daily_predictions_total") == 4
    assert page.value("daily_predictions_total", otel_metric_overflow="true") == 2


def test_a_started_telemetry_begins_the_day_at_midnight_by_its_clock():
    """The sampler takes the reading when the clock passes midnight UTC, without anybody asking."""
    now_s = [MIDNIGHT_S - 0.05]
    with fresh_telemetry(clock=lambda: now_s[0]) as telemetry:
        telemetry.record_batch_prediction([1.0] * 32, 1.0, "v1")
        telemetry.start()
        assert collect(telemetry).value("daily_predictions_total", model_version="v1") == 32
        now_s[0] = MIDNIGHT_S + 0.001
        eventually(lambda: collect(telemetry).value("daily_predictions_total", model_version="v1") == 0)
        telemetry.record_prediction(1.0, "v1")
        page = collect(telemetry)
    assert page.value("daily_predictions_total", model_version="v1") == 1
    assert page.value("predictions_total", model_version="v1") == 33


def test_it_is_a_counter_on_the_page():
    """Prometheus is told that it is a counter, so that increase() reads the drop at midnight as a reset."""
    with fresh_telemetry() as telemetry:
        telemetry.record_prediction(1.0, "v1")
        text = telemetry.page().body.decode()
    assert f"# TYPE {DAILY_PREDICTIONS.page_name} counter\n" in text
    assert '\ndaily_predictions_total{model_version="v1"} 1.0\n' in text
