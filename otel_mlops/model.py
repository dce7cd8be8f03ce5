"""A model: what it is, what state it is in, and its predictions, timed and counted."""

from __future__ import annotations

import inspect
import operator
import os
import threading
from collections.abc import Callable, Mapping
from functools import wraps
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, Self, TypeAlias, TypeVar
from weakref import WeakValueDictionary

from otel_mlops.metrics import (
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
)
from otel_mlops.numbers.values import ValuesReader

if TYPE_CHECKING:
    from otel_mlops.metrics import Metric
    from otel_mlops.sdk.provider import MeterProvider

P = ParamSpec("P")
R = TypeVar("R")
ModelStatus: TypeAlias = Literal["loading", "ready", "error", "unavailable"]

_KEPT: Any = object()


class Model:
    """One version of a model in service.

    Errors:  TypeError or ValueError that names the argument, its value and what was expected.
    """

    def __init__(
        self,
        instruments: MeterProvider,
        *,
        name: str,
        version: str,
        stage: str | None = None,
        type: str | None = None,  # noqa: A002 (the label's name)
        features: int | None = None,
    ) -> None:
        self._labels = {"model_name": check_text("name", name), "model_version": check_text("version", version)}
        self.description = describe(stage=stage, type=type, features=features)
        """What was said of it when it was made, as `describe()` puts it."""
        self._facts = facts_of(instruments, self._labels)
        self._series = PredictionSeries(instruments, self._labels)
        self._load_duration = instruments.instrument(MODEL_LOAD_DURATION).bind(self._labels)
        self.info(stage=stage, type=type, features=features)

    @property
    def name(self) -> str:
        """The model's name."""
        return self._labels["model_name"]

    @property
    def version(self) -> str:
        """The model's version."""
        return self._labels["model_version"]

    @property
    def status(self) -> ModelStatus | None:
        """The state it is in: `loading`, `ready`, `error` or `unavailable`; None before one is known.

        Errors:  TypeError or ValueError for any other state.
        """
        return self._facts.status

    @status.setter
    def status(self, status: ModelStatus) -> None:
        self._facts.set_status(status)

    def info(
        self,
        *,
        stage: str | None = _KEPT,
        type: str | None = _KEPT,  # noqa: A002 (the label's name)
        features: int | None = _KEPT,
    ) -> None:
        """Say what the model is; what is not given stays, and None takes it away.

        Errors:  TypeError or ValueError; `features` is the number of them.
        """
        told: dict[str, Any] = {"stage": stage, "type": type, "features": features}
        told = {title: fact for title, fact in told.items() if fact is not _KEPT}
        self._facts.update_info({title: text for title, text in describe(**told).items() if title in told})

    def loading(self) -> Loading:
        """Time the loading of the model, as a `with` block or a decorator.

        Its status is `loading` meanwhile, `ready` after it; `error` after an exception, which goes on its
        way, and `unavailable` if it was cancelled or interrupted. Only a load that succeeded is timed.
        """
        return Loading(self, self._load_duration)

    def prediction(self) -> Prediction:
        """Time and count one prediction, as a `with` block or a decorator; ask for a new one each time.

        Give it what was predicted as `values`; of a decorated function they are the result. A prediction that
        raises is counted by the exception's class, and neither counted nor timed among the predictions: a
        failure that comes fast must not make the model look fast. One that was cancelled or interrupted is
        not counted at all.
        """
        return Prediction(self._series)


class _Timed:
    """What `with` blocks on a model share: `async with` as well, and use as a decorator."""

    __slots__ = ()

    def __enter__(self) -> Self:
        raise NotImplementedError

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, traceback)

    def __call__(self, func: Callable[P, R]) -> Callable[P, R]:
        """Decorate a function, synchronous or asynchronous: each call is a block of its own.

        Errors:  TypeError for what is no function, or one that yields.
        """
        if _is_async(func):

            @wraps(func)
            async def run_async(*args: P.args, **kwargs: P.kwargs) -> Any:
                with self._another() as block:
                    result = await func(*args, **kwargs)  # type: ignore[misc]
                    block.returned(result)
                return result

            return run_async  # type: ignore[return-value]

        @wraps(func)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            with self._another() as block:
                result = func(*args, **kwargs)
                block.returned(result)
            return result

        return run

    def _another(self) -> Self:
        raise NotImplementedError

    def returned(self, result: object) -> None:
        """Be told what the decorated function returned."""


class Loading(_Timed):
    """The loading of a model."""

    __slots__ = ("_began_s", "_duration", "_model")

    def __init__(self, model: Model, duration: Any) -> None:
        self._model = model
        self._duration = duration
        self._began_s = 0.0

    def __enter__(self) -> Self:
        self._model.status = "loading"
        self._began_s = perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self._duration.record(perf_counter() - self._began_s)
            self._model.status = "ready"
        else:
            self._model.status = "error" if isinstance(error, Exception) else "unavailable"

    def _another(self) -> Self:
        return type(self)(self._model, self._duration)


class Prediction(_Timed):
    """One prediction, of a row or of a batch."""

    __slots__ = ("_began_s", "_ring", "_series", "_slot", "values")

    def __init__(self, series: PredictionSeries) -> None:
        self._series = series
        self._began_s, self._slot = 0.0, -1
        self._ring: Any = None
        self.values: Any = None
        """What was predicted: a number, a label or a mapping is one answer, what has a length is a batch."""

    def __enter__(self) -> Self:
        self.values = None
        self._series.in_progress.add(1.0)
        began_s = self._began_s = perf_counter()
        if self._ring is not None:
            self._ring.end(self._slot, began_s, 1.0)  # entered again while it ran: its slot is not lost
        ring = self._ring = self._series.intervals.ring
        if ring is not None:
            self._slot = ring.begin(self._series.number, began_s)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        ended_s = perf_counter()
        self._series.in_progress.add(-1.0)
        rows = self._series.record(self.values, ended_s - self._began_s) if error is None else None
        if isinstance(error, Exception):
            self._series.record_error(error)
        ring, self._ring = self._ring, None
        if ring is not None:
            ring.end(self._slot, ended_s, rows or 1.0)

    def _another(self) -> Self:
        return type(self)(self._series)

    def returned(self, result: object) -> None:
        """Take the result of a decorated function as the values."""
        self.values = result


class PredictionSeries:
    """The series in which the predictions of one model version are recorded, each bound once."""

    __slots__ = (
        "_batch_duration", "_batch_rows", "_batch_size", "_errors", "_labels", "_reader", "_single_duration",
        "_single_rows", "_values", "in_progress", "intervals", "number",
    )  # fmt: skip

    def __init__(self, instruments: MeterProvider, labels: Mapping[str, str]) -> None:
        single, batch = {**labels, "prediction_type": "single"}, {**labels, "prediction_type": "batch"}
        rows, duration = instruments.instrument(PREDICTIONS), instruments.instrument(PREDICTION_DURATION)
        self._single_rows, self._batch_rows = rows.bind(single), rows.bind(batch)
        self._single_duration, self._batch_duration = duration.bind(single), duration.bind(batch)
        self._batch_size = instruments.instrument(PREDICTION_BATCH_SIZE).bind(labels)
        self._values = instruments.instrument(PREDICTION_VALUES).bind(labels)
        self._errors = instruments.instrument(PREDICTION_ERRORS)
        self._labels = labels
        self._reader = ValuesReader()
        self.in_progress = instruments.instrument(PREDICTIONS_IN_PROGRESS).bind(labels)
        self.intervals, self.number = instruments.intervals, instruments.intervals.number(labels)

    def record(self, values: Any, duration_s: float) -> int | None:
        """Record one prediction call and return a batch's rows; raises nothing, whatever the values are."""
        rows = None
        # By its type: isinstance() may run code of the object's own, and that may raise.
        if issubclass(type(values), (float, int)):
            self._values.record(values)
        elif values is not None:
            rows, numbers = self._reader.read(values)
            if numbers is not None and rows is None:
                self._values.record(numbers)
            elif numbers is not None:
                self._values.record_many(numbers)
        if rows is None:
            self._single_rows.add(1.0)
            self._single_duration.record(duration_s)
        else:
            self._batch_rows.add(rows)
            self._batch_duration.record(duration_s)
            self._batch_size.record(rows)
        return rows

    def record_error(self, error: Exception) -> None:
        """Count a prediction that raised."""
        self._errors.add(1.0, {**self._labels, "error_type": type(error).__name__})


class ModelFacts:
    """What is said of one model version, by a Model and by the verbs alike: its state and its info."""

    def __init__(self, instruments: MeterProvider, labels: Mapping[str, str]) -> None:
        self._instruments = instruments
        self._labels = labels
        self._states = instruments.instrument(MODEL_STATUS)
        self._info: dict[str, str] = {}
        # A verb may have said it before, whose own facts are gone by now.
        told = [attributes for attributes, value in instruments.totals(MODEL_STATUS) if value == 1.0]
        said: list[Any] = [state for state in MODEL_STATES if {**labels, "model_status": state} in told]
        self.status: ModelStatus | None = said[0] if said else None

    def set_status(self, status: Any) -> None:
        """Say which state it is in.

        Errors:  TypeError or ValueError for what is no state.
        """
        if check_text("status", status) not in MODEL_STATES:
            raise ValueError(f"status is {status!r:.80}, expected one of {', '.join(sorted(MODEL_STATES))}")
        with _lock:
            self.status = status
            # The new one first: a page made in between shows two states rather than none.
            for state in sorted(MODEL_STATES, key=status.__ne__):
                self._states.set(float(state == status), {**self._labels, "model_status": state})

    def update_info(self, facts: Mapping[str, str | None]) -> None:
        """Say what it is; what is not among the facts stays, and None takes it away."""
        with _lock:
            self._info = {title: text for title, text in {**self._info, **facts}.items() if text is not None}
            set_info(self._instruments, MODEL_INFO, self._info, of=self._labels)


def facts_of(instruments: MeterProvider, labels: Mapping[str, str]) -> ModelFacts:
    """The facts of the model with these labels, the same object for all who hold it."""
    key = (id(instruments), *sorted(labels.items()))
    with _lock:
        found = _facts.get(key)
        if found is None:
            found = _facts[key] = ModelFacts(instruments, labels)
        return found


def set_info(instruments: MeterProvider, row: Metric, facts: Mapping[str, str], of: Mapping[str, str]) -> None:
    """Make the facts the one info series among those that carry the labels `of`."""
    instrument, told = instruments.instrument(row), {**of, **facts}
    with _lock:
        # The new one first: a page made in between shows two infos rather than none.
        instrument.set(1.0, told)
        if instrument.forget(of, but=told):
            instrument.set(1.0, told)  # there may have been no room for it, in a metric that was full


_lock = threading.RLock()
"""Held while something is said, which is seldom; a signal handler that says something may hold it again."""
_facts: WeakValueDictionary[Any, ModelFacts] = WeakValueDictionary()
"""By the provider's id, its own as long as the facts hold it, and the labels; a Model keeps its facts alive."""


def _renew_lock() -> None:
    global _lock  # noqa: PLW0603 (a forked child may find it held by a thread that it does not have)
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


def _is_async(func: object) -> bool:
    if not callable(func) or inspect.isgeneratorfunction(func) or inspect.isasyncgenfunction(func):
        raise TypeError(f"cannot decorate {func!r}, expected a function that returns its result")
    call = getattr(func, "__call__", None)  # noqa: B004 (an object may be called asynchronously)
    return inspect.iscoroutinefunction(func) or inspect.iscoroutinefunction(call)


def describe(
    *,
    stage: str | None = None,
    type: str | None = None,  # noqa: A002 (the label's name)
    features: int | None = None,
) -> dict[str, str | None]:
    """The facts of a model as the texts of its labels, None for what is not said.

    Errors:  TypeError or ValueError; `features` is the number of them.
    """
    texts = {"stage": stage, "type": type}
    checked = {title: None if text is None else check_text(title, text) for title, text in texts.items()}
    return {**checked, "features": None if features is None else _number_of_features(features)}


def check_text(title: str, text: object) -> str:
    """Return a text that a label needs.

    Errors:  TypeError for what is no str, ValueError for an empty one, which is no label.
    """
    if not isinstance(text, str):
        raise TypeError(f"{title} is {text!r:.200}, expected a non-empty str")
    if not text:
        raise ValueError(f"{title} is {text!r}, expected a non-empty str")
    return text


def _number_of_features(features: object) -> str:
    if isinstance(features, bool) or not hasattr(type(features), "__index__"):
        raise TypeError(f"features is {features!r:.200}, expected the number of features")
    number = operator.index(features)  # type: ignore[arg-type]
    if number < 0:
        raise ValueError(f"features is {features!r}, expected 0 or more")
    return str(number)
