"""A model: what it is, what state it is in, and its predictions, timed and counted."""

from __future__ import annotations

import inspect
import logging
import operator
import threading
from collections.abc import Callable, Mapping
from functools import wraps
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, Self, TypeAlias, TypeVar

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
from otel_mlops.numbers.values import count_rows, is_number, numbers_of

if TYPE_CHECKING:
    from otel_mlops.sdk.provider import MeterProvider

logger = logging.getLogger(__name__)

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
        self._labels = {"model_name": _text("name", name), "model_version": _text("version", version)}
        self._lock = threading.Lock()
        self._status: ModelStatus | None = None
        self._series = PredictionSeries(instruments, self._labels)
        self._load_duration = instruments.instrument(MODEL_LOAD_DURATION).bind(self._labels)
        status = instruments.instrument(MODEL_STATUS)
        self._states = {state: status.bind({**self._labels, "model_status": state}) for state in MODEL_STATES}
        self._info_instrument = instruments.instrument(MODEL_INFO)
        self._info: dict[str, str] = {}
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

        Errors:  ValueError for any other state.
        """
        return self._status

    @status.setter
    def status(self, status: ModelStatus) -> None:
        if status not in self._states:
            raise ValueError(f"status is {status!r}, expected one of {', '.join(self._states)}")
        with self._lock:
            self._status = status
            # The new one first: a page made in between shows two states rather than none.
            self._states[status].set(1.0)
            for state, series in self._states.items():
                if state != status:
                    series.set(0.0)

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
        told: dict[str, Any] = {
            "stage": _KEPT if stage is _KEPT else _optional_text("stage", stage),
            "type": _KEPT if type is _KEPT else _optional_text("type", type),
            "features": _KEPT if features is _KEPT else _number_of_features(features),
        }
        with self._lock:
            info = self._info | {title: text for title, text in told.items() if text is not _KEPT}
            self._info = {title: text for title, text in info.items() if text is not None}
            # Forgotten first: two infos of one model at a time would break every join on it.
            self._info_instrument.forget(self._labels)
            self._info_instrument.bind({**self._labels, **self._info}).set(1.0)

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

    def after_fork(self) -> None:
        """Begin anew in a forked child, with a fresh lock."""
        self._lock = threading.Lock()


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

    __slots__ = ("_began_s", "_series", "values")

    def __init__(self, series: PredictionSeries) -> None:
        self._series = series
        self._began_s = 0.0
        self.values: Any = None
        """What was predicted: a number, a label or a mapping is one answer, what has a length is a batch."""

    def __enter__(self) -> Self:
        self._series.in_progress.add(1.0)
        self._began_s = perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        duration_s = perf_counter() - self._began_s
        self._series.in_progress.add(-1.0)
        if error is None:
            self._series.record(self.values, duration_s)
        elif isinstance(error, Exception):
            self._series.record_error(error)

    def _another(self) -> Self:
        return type(self)(self._series)

    def returned(self, result: object) -> None:
        """Take the result of a decorated function as the values."""
        self.values = result


class PredictionSeries:
    """The series in which the predictions of one model version are recorded, each bound once."""

    __slots__ = (
        "_batch_duration", "_batch_rows", "_batch_size", "_errors", "_labels",
        "_single_duration", "_single_rows", "_told", "_values", "in_progress",
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
        self._told = False
        self.in_progress = instruments.instrument(PREDICTIONS_IN_PROGRESS).bind(labels)

    def record(self, values: Any, duration_s: float) -> None:
        """Record one prediction call and what it predicted; raises nothing, whatever the values are."""
        rows = None
        # By its type: isinstance() may run code of the object's own, and that may raise.
        if issubclass(type(values), (float, int)):
            self._values.record(values)
        elif values is not None:
            rows = self._record_values(values)
        if rows is None:
            self._single_rows.add(1.0)
            self._single_duration.record(duration_s)
        else:
            self._batch_rows.add(rows)
            self._batch_duration.record(duration_s)
            self._batch_size.record(rows)

    def record_error(self, error: Exception) -> None:
        """Count a prediction that raised."""
        self._errors.add(1.0, {**self._labels, "error_type": type(error).__name__})

    def _record_values(self, values: Any) -> int | None:
        """Record the numbers among the values; return the rows of a batch, None for a single prediction."""
        rows = None
        try:
            rows = count_rows(values)
            if rows is None and is_number(values):
                self._values.record(values)
            elif rows:
                numbers = numbers_of(values)
                if numbers is not None:
                    self._values.record_many(numbers)
        except Exception:
            # The values are somebody else's objects: whatever they raise is no affair of the request's.
            if not self._told:
                self._told = True
                logger.warning(
                    "Predicted values of type %s cannot be read; the prediction is counted without them",
                    type(values).__qualname__, exc_info=True,
                )  # fmt: skip
        return rows


def _is_async(func: object) -> bool:
    if not callable(func) or inspect.isgeneratorfunction(func) or inspect.isasyncgenfunction(func):
        raise TypeError(f"cannot decorate {func!r}, expected a function that returns its result")
    call = getattr(func, "__call__", None)  # noqa: B004 (an object may be called asynchronously)
    return inspect.iscoroutinefunction(func) or inspect.iscoroutinefunction(call)


def _text(title: str, text: object) -> str:
    if not isinstance(text, str):
        raise TypeError(f"{title} is {text!r}, expected a non-empty str")
    if not text:
        raise ValueError(f"{title} is {text!r}, expected a non-empty str")
    return text


def _optional_text(title: str, text: object) -> str | None:
    return None if text is None else _text(title, text)


def _number_of_features(features: object) -> str | None:
    if features is None:
        return None
    if isinstance(features, bool) or not hasattr(type(features), "__index__"):
        raise TypeError(f"features is {features!r}, expected the number of features")
    number = operator.index(features)  # type: ignore[arg-type]
    if number < 0:
        raise ValueError(f"features is {features!r}, expected 0 or more")
    return str(number)
