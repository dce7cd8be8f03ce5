"""What a Model records: its predictions, its loading, its status and its info."""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import subprocess
import sys
import threading
from collections import Counter
from decimal import Decimal
from typing import Annotated

import numpy as np
import pytest
from fastapi import Body, Depends, FastAPI
from httpx import ASGITransport, AsyncClient
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from otel_mlops.facts import describe
from otel_mlops.metrics import (
    DROPPED,
    MODEL_INFO,
    MODEL_LOAD_DURATION,
    MODEL_STATES,
    MODEL_STATUS,
    PREDICTION_BATCH_SIZE,
    PREDICTION_DURATION,
    PREDICTION_ERRORS,
    PREDICTION_VALUES,
    PREDICTIONS,
    PREDICTIONS_IN_PROGRESS,
    Metric,
)
from otel_mlops.model import Model
from otel_mlops.sdk.provider import MeterProvider
from otel_mlops.sdk.series import GaugeSeries
from otel_mlops.sdk.stream import Stream
from otel_mlops.verbs import Verbs

HOUSING = {"model_name": "housing", "model_version": "v1"}
SINGLE = {**HOUSING, "prediction_type": "single"}
BATCH = {**HOUSING, "prediction_type": "batch"}


class Recorded:
    """A provider, and what was recorded through it."""

    def __init__(self):
        self.reader = InMemoryMetricReader()
        self.provider = MeterProvider([self.reader], shutdown_on_exit=False)

    def points(self, row: Metric):
        """The data points of a metric by their attributes."""
        data = self.reader.get_metrics_data()
        metrics = [m for r in data.resource_metrics for s in r.scope_metrics for m in s.metrics] if data else []
        return {
            frozenset(point.attributes.items()): point
            for metric in metrics
            if metric.name == row.name
            for point in metric.data.data_points
        }

    def value(self, row: Metric, attributes):
        """The value of a counter or gauge, None without a series."""
        point = self.points(row).get(frozenset(attributes.items()))
        return None if point is None else point.value

    def count_and_sum(self, row: Metric, attributes):
        """The count and sum of a histogram, (0, 0) without a series."""
        point = self.points(row).get(frozenset(attributes.items()))
        return (0, 0.0) if point is None else (point.count, point.sum)


@pytest.fixture
def recorded():
    """A provider of the test's own."""
    recorded = Recorded()
    yield recorded
    recorded.provider.shutdown()


@pytest.fixture
def model(recorded):
    """A model whose records can be read."""
    return Model(recorded.provider, name="housing", version="v1")


def predict(model: Model, values: object) -> None:
    """Make one prediction of these values."""
    with model.prediction() as prediction:
        prediction.values = values


class Tensor:
    """Has what is asked of a torch tensor: on a GPU it has no array, only a list."""

    def __init__(self, rows, on_gpu=False):
        self.array = np.asarray(rows, dtype=float)
        self.on_gpu = on_gpu
        self.shape = self.array.shape

    def __len__(self):
        if not self.shape:
            raise TypeError("len() of a 0-d tensor")
        return len(self.array)

    def __float__(self):
        return float(self.array)

    def numpy(self):
        if self.on_gpu:
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        return self.array

    def tolist(self):
        return self.array.tolist()


class Column:
    """Has what is asked of a pandas or polars series."""

    def __init__(self, *values, dtype=None):
        self.array = np.array(values, dtype=dtype)
        self.shape = self.array.shape

    def __len__(self):
        return len(self.array)

    def to_numpy(self):
        return self.array


# --- What a prediction counts ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [4.0, 4, np.float64(4), np.float32(4), np.int64(4), np.array(4.0), Decimal(4), Tensor(4.0)],
    ids=lambda value: type(value).__name__,
)
def test_a_number_is_one_single_prediction_with_its_value(recorded, model, value):
    """A scalar of any library counts as one row, is timed once, and stands among the values."""
    predict(model, value)

    assert recorded.value(PREDICTIONS, SINGLE) == 1
    assert recorded.count_and_sum(PREDICTION_DURATION, SINGLE)[0] == 1
    assert recorded.count_and_sum(PREDICTION_VALUES, HOUSING) == (1, 4.0)
    assert not recorded.points(PREDICTION_BATCH_SIZE)


@pytest.mark.parametrize(
    "values",
    [
        [1.0, 2.0, -3.5],
        (1, 2, -3.5),
        np.array([1.0, 2.0, -3.5]),
        np.array([[1.0], [2.0], [-3.5]], dtype=np.float32),
        np.array([1.0, 2.0, -3.5], dtype=object),
        [[1.0], [2.0], [-3.5]],
        [np.float32(1), np.float32(2), np.float32(-3.5)],
        [None, 1.0, 2.0, -3.5][1:],
        Tensor([1.0, 2.0, -3.5]),
        Tensor([[1.0], [2.0], [-3.5]]),
        Tensor([[1.0], [2.0], [-3.5]], on_gpu=True),
        Column(1.0, 2.0, -3.5),
        {1.0, 2.0, -3.5},
    ],
    ids=lambda values: type(values).__name__,
)
def test_what_has_a_length_is_a_batch_of_its_rows_and_values(recorded, model, values):
    """A batch counts its rows, is timed once, and each of its numbers stands among the values."""
    predict(model, values)

    assert recorded.value(PREDICTIONS, BATCH) == 3
    assert recorded.count_and_sum(PREDICTION_DURATION, BATCH)[0] == 1
    assert recorded.count_and_sum(PREDICTION_BATCH_SIZE, HOUSING) == (1, 3.0)
    assert recorded.count_and_sum(PREDICTION_VALUES, HOUSING) == (3, -0.5)
    assert recorded.value(PREDICTIONS, SINGLE) is None


@pytest.mark.parametrize("values", ["cat", b"cat", {"label": "cat", "score": 0.7}, None, object(), iter([1.0, 2.0])])
def test_what_is_no_number_is_one_single_prediction_without_a_value(recorded, model, values):
    """A label, a mapping, nothing, or an object counts as one row, and no value is recorded or dropped."""
    predict(model, values)

    assert recorded.value(PREDICTIONS, SINGLE) == 1
    assert not recorded.points(PREDICTION_VALUES)
    assert not recorded.points(DROPPED)


@pytest.mark.parametrize(
    "values",
    [
        ["cat", "dog"],
        np.array(["cat", "dog"]),
        np.array(["cat", None], dtype=object),
        Column("cat", "dog", dtype=object),
        np.array([[0.1, 0.9], [0.8, 0.2]]),
        [[0.1, 0.9], [0.8, 0.2]],
        np.zeros((2, 3, 3)),
        Tensor([[0.1, 0.9], [0.8, 0.2]], on_gpu=True),
        [None, None],
    ],
    ids=lambda values: type(values).__name__,
)
def test_a_batch_of_labels_or_of_vectors_counts_its_rows_only(recorded, model, values):
    """Class labels, and rows of several numbers, are rows; they are neither values nor dropped values."""
    predict(model, values)

    assert recorded.value(PREDICTIONS, BATCH) == 2
    assert not recorded.points(PREDICTION_VALUES)
    assert not recorded.points(DROPPED)


def test_a_missing_value_among_numbers_is_left_out_of_the_values(recorded, model):
    """A batch that begins with None has its other numbers recorded, and all of its rows counted."""
    predict(model, [None, 1.0, 2.0])

    assert recorded.value(PREDICTIONS, BATCH) == 3
    assert recorded.count_and_sum(PREDICTION_VALUES, HOUSING) == (2, 3.0)


def test_a_value_that_is_not_finite_is_dropped_and_counted(recorded, model):
    """NaN is a prediction, counted as dropped, and no value."""
    predict(model, float("nan"))
    predict(model, [1.0, float("inf")])

    assert recorded.value(PREDICTIONS, SINGLE) == 1
    assert recorded.value(PREDICTIONS, BATCH) == 2
    assert recorded.count_and_sum(PREDICTION_VALUES, HOUSING) == (1, 1.0)
    assert recorded.value(DROPPED, {"reason": "not_finite"}) == 2


def test_an_empty_batch_is_a_call_of_no_rows(recorded, model):
    """An empty batch is timed, adds no rows, and has a size of 0."""
    predict(model, [])
    predict(model, np.array([]))

    assert recorded.value(PREDICTIONS, BATCH) == 0
    assert recorded.count_and_sum(PREDICTION_DURATION, BATCH)[0] == 2
    assert recorded.count_and_sum(PREDICTION_BATCH_SIZE, HOUSING) == (2, 0.0)
    assert not recorded.points(PREDICTION_VALUES)


class Hostile:
    """Raises whatever it is asked."""

    def __init__(self, rows=None):
        self.rows = rows

    def __len__(self):
        if self.rows is None:
            raise RuntimeError("no length for you")
        return self.rows

    def __iter__(self):
        raise RuntimeError("no rows for you")

    def __getattr__(self, name):
        raise RuntimeError(f"no {name} for you")


class Unbound:
    """Raises when it is asked for its class, as a proxy outside its context does."""

    @property
    def __class__(self):
        raise RuntimeError("outside of its context")


def test_values_that_raise_are_counted_without_being_read(recorded, model, caplog):
    """Objects whose methods raise leave the request alone: the prediction counts, and one line is logged."""
    predict(model, Unbound())
    predict(model, Hostile())
    predict(model, Hostile(rows=5))

    assert recorded.value(PREDICTIONS, SINGLE) == 2
    assert recorded.value(PREDICTIONS, BATCH) == 5
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert recorded.value(PREDICTIONS_IN_PROGRESS, HOUSING) == 0


def test_values_can_be_read_after_the_block(model):
    """What was predicted stays on the prediction, for the response."""
    values = np.array([1.0])
    predict(model, values)
    with model.prediction() as prediction:
        prediction.values = values
    assert prediction.values is values


def test_numpy_is_not_needed(tmp_path):
    """A process without numpy records lists and numbers, and does not load it."""
    program = """
import sys
sys.modules["numpy"] = None
from otel_mlops.model import Model
from otel_mlops.sdk.provider import MeterProvider
from otel_mlops.metrics import PREDICTION_VALUES
provider = MeterProvider(shutdown_on_exit=False)
model = Model(provider, name="housing", version="v1")
for values in ([1.0, 2.0], [[3.0]], 4, ["cat"]):
    with model.prediction() as prediction:
        prediction.values = values
values = provider.instrument(PREDICTION_VALUES).bind({"model_name": "housing", "model_version": "v1"})
print(values.read()[-1])
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )  # fmt: skip
    assert (done.stdout.strip(), done.stderr) == ("10.0", "")


# --- Errors and cancellation -------------------------------------------------------------------------------


def test_a_prediction_that_is_entered_again_begins_without_values(recorded, model):
    """What one block predicted is not counted by the next block of the same object."""
    prediction = model.prediction()
    with prediction:
        prediction.values = [1.0, 2.0]
    with prediction:
        pass

    assert recorded.value(PREDICTIONS, BATCH) == 2
    assert recorded.value(PREDICTIONS, SINGLE) == 1
    assert recorded.count_and_sum(PREDICTION_VALUES, HOUSING) == (2, 3.0)


def test_a_prediction_that_raises_is_an_error_of_its_class_and_no_prediction(recorded, model):
    """The exception goes on its way and is counted by its class; rows, durations and values are not."""

    def predict_and_fail() -> None:
        with model.prediction() as prediction:
            prediction.values = 4.0
            raise KeyError("rooms")

    with pytest.raises(KeyError):
        predict_and_fail()

    assert recorded.value(PREDICTION_ERRORS, {**HOUSING, "error_type": "KeyError"}) == 1
    assert recorded.value(PREDICTIONS_IN_PROGRESS, HOUSING) == 0
    for row in (PREDICTIONS, PREDICTION_DURATION, PREDICTION_VALUES):
        assert not recorded.points(row)


@pytest.mark.parametrize("kind", [asyncio.CancelledError, GeneratorExit, KeyboardInterrupt, SystemExit])
def test_a_prediction_that_is_cancelled_is_neither_a_prediction_nor_an_error(recorded, model, kind):
    """What ends from outside counts as nothing, and is no longer in progress."""
    with pytest.raises(kind), model.prediction():
        raise kind

    assert recorded.value(PREDICTIONS_IN_PROGRESS, HOUSING) == 0
    assert not recorded.points(PREDICTIONS)
    assert not recorded.points(PREDICTION_ERRORS)


def test_a_prediction_is_in_progress_while_it_runs(recorded, model):
    """The gauge goes up when a prediction begins and down when it ends; nested ones count each."""
    with model.prediction():
        with model.prediction():
            assert recorded.value(PREDICTIONS_IN_PROGRESS, HOUSING) == 2
        assert recorded.value(PREDICTIONS_IN_PROGRESS, HOUSING) == 1
    assert recorded.value(PREDICTIONS_IN_PROGRESS, HOUSING) == 0
    assert recorded.value(PREDICTIONS, SINGLE) == 2


def test_concurrent_predictions_are_independent(recorded, model):
    """Threads that predict at once lose nothing and mix nothing."""
    barrier = threading.Barrier(4)

    def predict_many(value: float) -> None:
        barrier.wait(timeout=30)
        for _ in range(500):
            predict(model, value)

    threads = [threading.Thread(target=predict_many, args=(float(n),)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)

    assert recorded.value(PREDICTIONS, SINGLE) == 2000
    assert recorded.count_and_sum(PREDICTION_VALUES, HOUSING) == (2000, 3000.0)
    assert recorded.value(PREDICTIONS_IN_PROGRESS, HOUSING) == 0


async def test_concurrent_tasks_are_timed_each_for_itself(recorded, model):
    """Predictions that wait for one another on one event loop keep their own values and times."""
    entered, leave = asyncio.Event(), asyncio.Event()

    async def slow() -> None:
        async with model.prediction() as prediction:
            entered.set()
            await leave.wait()
            prediction.values = [1.0, 2.0]

    waiting = asyncio.create_task(slow())
    await entered.wait()
    async with model.prediction() as prediction:
        prediction.values = 7.0
    assert recorded.value(PREDICTIONS_IN_PROGRESS, HOUSING) == 1
    leave.set()
    await waiting

    assert recorded.value(PREDICTIONS, SINGLE) == 1
    assert recorded.value(PREDICTIONS, BATCH) == 2
    slow_s, quick_s = (recorded.count_and_sum(PREDICTION_DURATION, of)[1] for of in (BATCH, SINGLE))
    assert slow_s > quick_s


async def test_a_cancelled_task_leaves_nothing_in_progress(recorded, model):
    """Cancelling the task of a prediction, as a client that goes away does, balances the gauge."""
    entered = asyncio.Event()

    async def endless() -> None:
        async with model.prediction():
            entered.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(endless())
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert recorded.value(PREDICTIONS_IN_PROGRESS, HOUSING) == 0
    assert not recorded.points(PREDICTIONS)
    assert not recorded.points(PREDICTION_ERRORS)


# --- As a decorator ----------------------------------------------------------------------------------------


def test_each_call_of_a_decorated_function_is_a_prediction_of_its_result(recorded, model):
    """The result is the values; the function keeps its name, its signature and its exceptions."""

    @model.prediction()
    def price(rooms: int, *, factor: float = 2.0) -> float:
        """Price of a house."""
        return rooms * factor

    assert price(3) == 6.0
    assert price(1, factor=4.0) == 4.0
    with pytest.raises(TypeError):
        price("three", factor=None)

    assert recorded.value(PREDICTIONS, SINGLE) == 2
    assert recorded.count_and_sum(PREDICTION_VALUES, HOUSING) == (2, 10.0)
    assert recorded.value(PREDICTION_ERRORS, {**HOUSING, "error_type": "TypeError"}) == 1
    assert (price.__name__, price.__doc__) == ("price", "Price of a house.")
    assert list(inspect.signature(price).parameters) == ["rooms", "factor"]


async def test_an_asynchronous_function_can_be_decorated(recorded, model):
    """A coroutine function stays one, and its prediction ends when it does, not when it is called."""
    entered, leave = asyncio.Event(), asyncio.Event()

    @model.prediction()
    async def price(rooms: list[int]) -> list[float]:
        entered.set()
        await leave.wait()
        return [2.0 * n for n in rooms]

    assert inspect.iscoroutinefunction(price)
    waiting = asyncio.create_task(price([1, 2]))
    await entered.wait()
    assert recorded.value(PREDICTIONS_IN_PROGRESS, HOUSING) == 1
    leave.set()
    assert await waiting == [2.0, 4.0]

    assert recorded.value(PREDICTIONS, BATCH) == 2
    assert recorded.value(PREDICTIONS_IN_PROGRESS, HOUSING) == 0


def test_a_recursive_decorated_function_counts_each_call(recorded, model):
    """A decorated function may call itself: no call disturbs the one around it."""

    @model.prediction()
    def depth(n: int) -> int:
        return n if n == 0 else depth(n - 1) + 1

    assert depth(3) == 3
    assert recorded.value(PREDICTIONS, SINGLE) == 4
    assert recorded.value(PREDICTIONS_IN_PROGRESS, HOUSING) == 0


def test_an_object_that_can_be_called_can_be_decorated(recorded, model):
    """A pipeline object, called synchronously or asynchronously, is as good as a function."""

    class Pipeline:
        def __call__(self, row: float) -> float:
            return row

    class AsyncPipeline:
        async def __call__(self, row: float) -> float:
            return row

    assert model.prediction()(Pipeline())(4.0) == 4.0
    assert asyncio.run(model.prediction()(AsyncPipeline())(5.0)) == 5.0
    assert recorded.count_and_sum(PREDICTION_VALUES, HOUSING) == (2, 9.0)


def test_what_yields_cannot_be_decorated(model):
    """A generator's result is not there when it returns, so decorating one is an error at once."""

    def rows():
        yield 1.0

    async def stream():
        yield 1.0

    for func in (rows, stream, "predict"):
        with pytest.raises(TypeError, match="expected a function that returns its result"):
            model.prediction()(func)


async def test_fastapi_sees_the_parameters_of_a_decorated_endpoint(recorded, model):
    """A decorated endpoint keeps its query, body and dependencies, also where annotations are strings."""
    app = FastAPI()

    def rate() -> float:
        return 2.0

    @app.post("/predict")
    @model.prediction()
    async def price(
        rooms: Annotated[list[float], Body()], offset: float = 0.0, rate: float = Depends(rate)
    ) -> list[float]:
        return [n * rate + offset for n in rooms]

    async with AsyncClient(transport=ASGITransport(app), base_url="http://test") as client:
        assert (await client.post("/predict?offset=1", json=[1, 2])).json() == [3.0, 5.0]
        assert (await client.post("/predict", json="three")).status_code == 422
    assert recorded.value(PREDICTIONS, BATCH) == 2
    assert recorded.count_and_sum(PREDICTION_VALUES, HOUSING) == (2, 8.0)


def test_features_without_a_profile_are_said_to_do_nothing(model, caplog):
    """A model that has nothing to compare its features with says so, once, and predicts on."""
    for _ in range(2):
        with model.prediction(features=[1.0]) as prediction:
            prediction.values = 1.0
    assert [each.getMessage() for each in caplog.records] == [
        "housing v1 has no profile: its features are not compared"
    ]


def test_a_decorator_does_not_take_the_features_of_one_call(model):
    """A decorator given a row, which would be that of each call, is an error that says what is expected."""
    with pytest.raises(TypeError, match=r"features is .* expected of a decorator a function"):
        model.prediction(features=[1.0])(float)
    with pytest.raises(TypeError, match="id is 'a', expected of a decorator a function"):
        model.prediction(id="a")(float)


# --- Loading and status ------------------------------------------------------------------------------------


def states(recorded: Recorded) -> dict[str, float]:
    """The state set as it stands."""
    return {dict(labels)["model_status"]: point.value for labels, point in recorded.points(MODEL_STATUS).items()}


def test_a_model_is_loading_and_then_ready(recorded, model):
    """Loading sets the status before and after, and is timed."""
    assert (model.status, states(recorded)) == (None, {})
    with model.loading():
        assert model.status == "loading"
        assert states(recorded) == {state: float(state == "loading") for state in MODEL_STATES}
    assert model.status == "ready"
    assert states(recorded) == {state: float(state == "ready") for state in MODEL_STATES}
    assert recorded.count_and_sum(MODEL_LOAD_DURATION, HOUSING)[0] == 1


@pytest.mark.parametrize(("kind", "status"), [(OSError, "error"), (KeyboardInterrupt, "unavailable")])
def test_a_load_that_fails_is_an_error_and_not_timed(recorded, model, kind, status):
    """An exception in loading goes on its way; the status tells whether it failed or was given up."""
    with pytest.raises(kind), model.loading():
        raise kind
    assert model.status == status
    assert not recorded.points(MODEL_LOAD_DURATION)


async def test_loading_works_in_asynchronous_code_and_as_a_decorator(recorded, model):
    """All forms of loading record the same."""
    async with model.loading():
        await asyncio.sleep(0)

    @model.loading()
    def load() -> str:
        return "weights"

    @model.loading()
    async def load_async() -> str:
        return "weights"

    assert (load(), await load_async()) == ("weights", "weights")
    assert model.status == "ready"
    assert recorded.count_and_sum(MODEL_LOAD_DURATION, HOUSING)[0] == 3


@pytest.mark.parametrize("state", MODEL_STATES)
def test_exactly_one_state_is_set(recorded, model, state):
    """Whatever was set before, one state is 1 and the others are 0."""
    model.status = "loading"
    model.status = state
    assert states(recorded) == {each: float(each == state) for each in MODEL_STATES}


def test_an_unknown_state_is_an_error(recorded, model):
    """A state that does not exist is refused with the list of those that do, and changes nothing."""
    with pytest.raises(ValueError, match=r"status is 'broken'.*unavailable"):
        model.status = "broken"
    with pytest.raises(TypeError, match=r"status is \['ready'\], expected"):
        model.status = ["ready"]
    assert model.status is None
    assert not recorded.points(MODEL_STATUS)


def test_two_threads_that_set_the_status_leave_one_state(recorded, model, monkeypatch):
    """A second thread's word waits for the first's, through another Model of the same name and version too."""
    other = Model(recorded.provider, name="housing", version="v1")
    entered, interrupting = threading.Event(), threading.Thread(target=setattr, args=(other, "status", "error"))
    set_value = GaugeSeries.set

    def set_slowly(series: GaugeSeries, value: float) -> None:
        set_value(series, value)
        if not entered.is_set() and series.stream.name == MODEL_STATUS.name:
            entered.set()
            interrupting.start()
            interrupting.join(timeout=0.2)  # nobody waits for it to end: it must not get between

    monkeypatch.setattr(GaugeSeries, "set", set_slowly)
    model.status = "ready"
    interrupting.join(timeout=30)
    assert states(recorded) == {each: float(each == "error") for each in MODEL_STATES}
    assert model.status == other.status == "error"


def test_a_signal_handler_may_set_the_status_that_is_just_being_set(model, monkeypatch):
    """What runs in the midst of a change, in the same thread, does not wait for it."""
    set_value = GaugeSeries.set
    handled = []

    def handle(series: GaugeSeries, value: float) -> None:
        set_value(series, value)
        if not handled:
            handled.append(series)
            model.info(stage="retired")

    monkeypatch.setattr(GaugeSeries, "set", handle)
    model.status = "ready"
    assert handled
    assert model.status == "ready"


# --- Info --------------------------------------------------------------------------------------------------


def infos(recorded: Recorded) -> list[dict[str, str]]:
    """The info series as they stand, each of which must be 1."""
    points = recorded.points(MODEL_INFO)
    assert {point.value for point in points.values()} <= {1.0}
    return [dict(labels) for labels in points]


def test_a_model_has_one_info_and_what_is_told_later_replaces_it(recorded):
    """The old series goes when the info changes; what is not told stays, and None takes it away."""
    model = Model(recorded.provider, name="housing", version="v1", stage="staging", features=8)
    assert infos(recorded) == [{**HOUSING, "stage": "staging", "features": "8"}]
    model.info(stage="production", type="regression")
    assert infos(recorded) == [{**HOUSING, "stage": "production", "type": "regression", "features": "8"}]
    model.info(type=None, features=np.int64(9))
    assert infos(recorded) == [{**HOUSING, "stage": "production", "features": "9"}]


def test_the_infos_of_two_versions_stand_side_by_side(recorded):
    """Changing one version's info leaves the other's alone."""
    Model(recorded.provider, name="housing", version="v2", stage="shadow")
    Model(recorded.provider, name="housing", version="v1", stage="production").info(stage="retired")
    stages = Counter((each["model_version"], each["stage"]) for each in infos(recorded))
    assert stages == {("v2", "shadow"): 1, ("v1", "retired"): 1}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"name": ""}, ValueError, "name is ''"),
        ({"name": None}, TypeError, "name is None"),
        ({"version": 3}, TypeError, "version is 3"),
        ({"version": ""}, ValueError, "version is ''"),
        ({"stage": ""}, ValueError, "stage is ''"),
        ({"type": 1}, TypeError, "type is 1"),
        ({"features": -1}, ValueError, "features is -1"),
        ({"features": 8.0}, TypeError, "features is 8.0"),
        ({"features": True}, TypeError, "features is True"),
        ({"features": ["rooms"]}, TypeError, "features is .* expected the number of features"),
        ({"profile": "no such file.json"}, OSError, "no such file.json"),
        ({"profile": 7}, TypeError, "profile is 7"),
        ({"positive": 1}, TypeError, "positive is 1"),
    ],
)
def test_a_mistake_in_the_call_names_the_argument(recorded, arguments, error, message):
    """A wrong argument is an error at construction that names it, its value and what was expected."""
    with pytest.raises(error, match=message):
        Model(recorded.provider, **{"name": "housing", "version": "v1", **arguments})


def test_a_wrong_info_leaves_the_old_one(recorded):
    """An info that is refused changes nothing on the page."""
    model = Model(recorded.provider, name="housing", version="v1", stage="production")
    with pytest.raises(TypeError, match="features"):
        model.info(stage="staging", features="8")
    assert infos(recorded) == [{**HOUSING, "stage": "production"}]


def test_no_page_is_without_the_info_while_it_changes(recorded, monkeypatch):
    """When the old info is taken away the new one stands there already."""
    model = Model(recorded.provider, name="housing", version="v1", stage="staging")
    seen = []

    def forget(stream: Stream, attributes: object, **more: object) -> int:
        seen.append(Counter(each.get("stage") for each in infos(recorded)))
        gone = forget_series(stream, attributes, **more)
        seen.append(Counter(each.get("stage") for each in infos(recorded)))
        return gone

    forget_series = Stream.forget
    monkeypatch.setattr(Stream, "forget", forget)
    model.info(stage="production")
    assert seen == [Counter(staging=1, production=1), Counter(production=1)]


def test_the_same_info_again_takes_no_room(recorded):
    """What is said again in the same words leaves no dead series behind, however often."""
    model, verbs = Model(recorded.provider, name="housing", version="v1"), Verbs(recorded.provider)
    used = set()
    for _ in range(3):
        model.info(stage="production")
        verbs.set_model_info("housing", "v2", stage="production")
        verbs.system_info.info({"environment": "production"})
        used.add(recorded.provider.ledger._used)
    assert len(used) == 1


def test_an_info_that_was_forgotten_comes_back_when_it_is_said_again(recorded):
    """The same words put the info on the page once more after it was taken off."""
    model = Model(recorded.provider, name="housing", version="v1", stage="production")
    recorded.provider.forget({"model_version": "v1"})
    assert infos(recorded) == []
    model.info(stage="production")
    assert infos(recorded) == [{**HOUSING, "stage": "production"}]


def test_an_info_that_only_grows_or_shrinks_is_one(recorded):
    """Facts that include the old ones, or are among them, stand alone all the same."""
    model = Model(recorded.provider, name="housing", version="v1")
    model.info(stage="production")
    assert infos(recorded) == [{**HOUSING, "stage": "production"}]
    model.info(features=8)
    assert infos(recorded) == [{**HOUSING, "stage": "production", "features": "8"}]
    model.info(stage=None, features=None)
    assert infos(recorded) == [HOUSING]


def test_an_info_changes_in_a_metric_that_is_full():
    """Where there is no room for one series more the new info takes the old one's."""
    provider = MeterProvider(shutdown_on_exit=False, max_series=1)
    model = Model(provider, name="housing", version="v1", stage="staging")
    model.info(stage="production")
    assert ({**HOUSING, "stage": "production"}, 1.0) in provider.totals(MODEL_INFO)
    assert ({**HOUSING, "stage": "staging"}, 1.0) not in provider.totals(MODEL_INFO)


def test_a_description_is_the_same_in_other_words(recorded):
    """What is left out and what is None, 8 and another library's 8, describe a model alike."""
    model = Model(recorded.provider, name="housing", version="v1", features=np.int64(8))
    assert model.description == describe(stage=None, features=8) == describe(features=8, type=None)
    assert model.description != describe(stage="production", features=8)
    model.info(stage="production")
    assert model.description == describe(features=8), "it stays what was said first"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="run it where processes fork: Linux or macOS")
def test_a_lock_held_at_the_fork_does_not_hang_the_child():
    """A forked child can set the status although a thread of the parent was just setting one."""
    program = """
import os, signal, threading
from otel_mlops import facts, model as models
from otel_mlops.sdk.provider import MeterProvider

provider = MeterProvider(shutdown_on_exit=False)
model = models.Model(provider, name="housing", version="v1")
held, done = threading.Event(), threading.Event()

def hold():
    with facts._lock:
        held.set()
        done.wait(30)

threading.Thread(target=hold).start()
assert held.wait(30)
child = os.fork()
if child == 0:
    signal.alarm(10)
    model.status = "ready"
    os._exit(model.status != "ready")
print(os.waitpid(child, 0)[1])
done.set()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "0\n", done.stderr
