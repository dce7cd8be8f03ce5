"""One prediction, of a row or of a batch, and the series in which it is recorded."""

from __future__ import annotations

from collections.abc import Mapping
from time import perf_counter
from typing import TYPE_CHECKING, Any, Self

from otel_mlops.metrics import (
    PREDICTION_BATCH_SIZE,
    PREDICTION_DURATION,
    PREDICTION_ERRORS,
    PREDICTION_VALUES,
    PREDICTIONS,
    PREDICTIONS_IN_PROGRESS,
)
from otel_mlops.model.blocks import Block
from otel_mlops.numbers.values import ValuesReader

if TYPE_CHECKING:
    from types import TracebackType

    from otel_mlops.sdk.provider import MeterProvider


class Prediction(Block):
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
