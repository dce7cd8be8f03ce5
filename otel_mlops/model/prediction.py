"""One prediction, of a row or of a batch, and the series in which it is recorded."""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Callable, Mapping
from time import perf_counter
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeVar

from otel_mlops.metrics import (
    PREDICTION_BATCH_SIZE,
    PREDICTION_CACHE,
    PREDICTION_DURATION,
    PREDICTION_ERRORS,
    PREDICTION_PHASE_DURATION,
    PREDICTION_VALUES,
    PREDICTIONS,
    PREDICTIONS_IN_PROGRESS,
)
from otel_mlops.model.blocks import Block
from otel_mlops.numbers.sketch import BOUNDS
from otel_mlops.numbers.values import ValuesReader
from otel_mlops.sdk.sketch import LATENCY

if TYPE_CHECKING:
    from types import TracebackType

    from otel_mlops.model.inputs import Inputs
    from otel_mlops.model.truth import Truth
    from otel_mlops.sdk.provider import MeterProvider

P = ParamSpec("P")
R = TypeVar("R")

_logger = logging.getLogger(__name__)

_MOST_PHASES = 50


class Prediction(Block):
    """One prediction, of a row or of a batch."""

    __slots__ = (
        "_began_s", "_features", "_id", "_receipts", "_ring", "_series", "_slot", "cache_hit", "scores", "values",
    )  # fmt: skip

    def __init__(self, series: PredictionSeries, features: Any = None, id: Any = None) -> None:  # noqa: A002
        self._series = series
        self._features = features
        self._id = id
        self._began_s, self._slot = 0.0, -1
        self._ring: Any = None
        self._receipts: list[str] | None = None
        self.values: Any = None
        """What was predicted: a number, a label or a mapping is one answer, what has a length is a batch."""
        self.scores: Any = None
        """The probabilities behind the answers of a classifier: of the positive class, or of each class."""
        self.cache_hit: bool | None = None
        """Whether a cache gave the answer; None where none was asked."""

    def __enter__(self) -> Self:
        self.values = self.scores = self.cache_hit = self._receipts = None
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
        series = self._series
        series.in_progress.add(-1.0)
        rows = series.record(self.values, ended_s - self._began_s) if error is None else None
        ring, self._ring = self._ring, None
        if ring is not None:
            ring.end(self._slot, ended_s, rows or 1.0)
        if error is None:
            if series.inputs is not None:
                series.inputs.count(self._features, self.values)
            if self.scores is not None or series.classifies:
                series.truth.estimate(self.values, self.scores)
            if self._id is not None:
                series.truth.remember(self._id, self.values, self.scores)
            if self.cache_hit is not None:
                series.record_lookup(self.cache_hit)
        elif isinstance(error, Exception):
            series.record_error(error)
            if series.inputs is not None:
                # What made the model fail is what the inputs are watched for.
                series.inputs.count(self._features, None)

    @property
    def receipts(self) -> list[str]:
        """A receipt for each answer, by which its truth can be told later, `model.record_truth(receipt=…)`."""
        if self._receipts is None:
            self._receipts = self._series.truth.issue(self.values, self.scores)
        return self._receipts

    @property
    def receipt(self) -> str | None:
        """The receipt of the one answer, or of a batch's first; None where nothing was predicted."""
        return self.receipts[0] if self.receipts else None

    def phase(self, name: str) -> Phase:
        """Time a part of the prediction, as a `with` block: `queue`, `preprocess`, `inference`, `postprocess`."""
        return Phase(self._series.phases, name)

    def _another(self) -> Self:
        return type(self)(self._series, self._features, self._id)

    def called(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Take features and id from the arguments of a decorated function, where functions were given for them."""
        # A block of a decorator must not have the same features each time; that was checked when it was made.
        if self._features is not None:
            self._features = _picked(self._features, args, kwargs)
        if self._id is not None:
            self._id = _picked(self._id, args, kwargs)

    def __call__(self, func: Callable[P, R]) -> Callable[P, R]:
        """Decorate a function; `features` and `id` must be functions then, of its arguments.

        Errors:  TypeError for what is no function, or one that yields, and if `features` or `id` is not callable.
        """
        for title, given in (("features", self._features), ("id", self._id)):
            if given is not None and not callable(given):
                raise TypeError(f"{title} is {given!r:.80}, expected of a decorator a function of the call's arguments")
        return super().__call__(func)

    def returned(self, result: object) -> None:
        """Take the result of a decorated function as the values."""
        self.values = result


def _picked(pick: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    try:
        return pick(*args, **kwargs)
    except Exception as error:
        _logger.debug("what a prediction is asked cannot be told: %r", error)
        return None


class Phase:
    """A part of a prediction."""

    __slots__ = ("_began_s", "_name", "_phases")

    def __init__(self, phases: Phases, name: str) -> None:
        self._phases = phases
        self._name = name
        self._began_s = 0.0

    def __enter__(self) -> Self:
        self._began_s = perf_counter()
        return self

    def __exit__(self, *_about: object) -> None:
        self._phases.record(self._name, perf_counter() - self._began_s)

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(self, *_about: object) -> None:
        self.__exit__()


class Phases:
    """The series of a model's phases, each bound once."""

    __slots__ = ("_bound", "_duration", "_labels")

    def __init__(self, instruments: MeterProvider, labels: Mapping[str, str]) -> None:
        self._duration = instruments.instrument(PREDICTION_PHASE_DURATION)
        self._labels = labels
        self._bound: dict[str, Any] = {}

    def record(self, name: Any, seconds: float) -> None:
        """Record how long a phase took; what is named like none of the first names pays for being looked up."""
        found = self._bound.get(name) if type(name) is str else None
        if found is None:
            labels = {**self._labels, "phase": name if isinstance(name, str) else type(name).__name__}
            if type(name) is not str or len(self._bound) >= _MOST_PHASES:
                self._duration.record(seconds, labels)
                return
            found = self._bound[name] = self._duration.bind(labels)
        found.record(seconds)


class PredictionSeries:
    """The series in which the predictions of one model version are recorded, each bound once."""

    __slots__ = (
        "_batch_duration", "_batch_rows", "_batch_size", "_cache", "_errors", "_labels", "_latency", "_reader",
        "_single_duration", "_single_rows", "_values", "classifies", "in_progress", "inputs", "intervals", "number",
        "phases", "truth",
    )  # fmt: skip

    def __init__(
        self,
        instruments: MeterProvider,
        labels: Mapping[str, str],
        truth: Truth,
        inputs: Inputs | None = None,
        *,
        classifies: bool = False,
    ) -> None:
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
        self._latency = instruments.cells(LATENCY.cells, LATENCY.size, labels)
        self._cache = instruments.instrument(PREDICTION_CACHE)
        self.phases = Phases(instruments, labels)
        self.truth = truth
        self.inputs = inputs
        self.classifies = classifies
        """Whether the answers are classes also where no scores come with them."""

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
        self._latency.record(bisect_left(BOUNDS, duration_s), duration_s)
        return rows

    def record_lookup(self, is_hit: object) -> None:
        """Count that a cache was asked; anything but True and False says nothing."""
        if is_hit is True or is_hit is False:
            self._cache.add(1.0, {**self._labels, "result": "hit" if is_hit else "miss"})

    def record_error(self, error: Exception) -> None:
        """Count a prediction that raised."""
        self._errors.add(1.0, {**self._labels, "error_type": type(error).__name__})
