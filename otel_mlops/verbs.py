"""The recording verbs: what a service says in one line, on the instruments of the catalogue."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from otel_mlops import metrics as rows
from otel_mlops.facts import check_text, describe, facts_of, set_info
from otel_mlops.numbers.values import ValuesReader, is_number

if TYPE_CHECKING:
    from otel_mlops.metrics import Metric
    from otel_mlops.sdk.provider import MeterProvider

_METHODS = frozenset(rows.METHODS)
_MOST_COMPONENTS = 1000
_SCORES = {"accuracy": rows.MODEL_ACCURACY, "rmse": rows.MODEL_RMSE, "mae": rows.MODEL_MAE, "r2": rows.MODEL_R2}


class InfoVerb:
    """`system_info.info({...})`: facts of the deployment as labels of one series of value 1."""

    def __init__(self, provider: MeterProvider) -> None:
        self._provider = provider

    def info(self, facts: Any) -> None:
        """Say what is deployed; what was said before is replaced.

        Errors:  TypeError if the facts are not a mapping of strings to strings.
        """
        if not isinstance(facts, Mapping) or not all(isinstance(e, str) for kv in facts.items() for e in kv):
            raise TypeError(f"facts is {facts!r:.200}, expected a mapping of strings to strings")
        set_info(self._provider, rows.SYSTEM_INFO, dict(facts), of={})


class Verbs:
    """Everything that is recorded by name.

    The verbs that `record` or `update` are called while a request is served and raise nothing: a value that is no
    fit number is dropped, counted in otel_mlops_dropped_total and said once. Those that `set` describe the
    service, and refuse a mistake.
    """

    def __init__(self, provider: MeterProvider) -> None:
        self._provider = provider
        self._health: dict[str, bool] = {}
        self._reader = ValuesReader()
        self.system_info = InfoVerb(provider)

    def instrument(self, row: Metric) -> Any:
        """The instrument of a row of the catalogue: OpenTelemetry's, with `bind()`."""
        return self._provider.instrument(row)

    def record_request(self, method: str, endpoint: str, status_code: int | str, duration: float) -> None:
        """Count a request that the middleware does not see, and its duration in seconds."""
        method = _label(method)
        at = {"method": method if method in _METHODS else "_OTHER", "endpoint": _label(endpoint)}
        self.instrument(rows.API_REQUESTS).add(1, {**at, "status_code": _label(status_code)})
        self.instrument(rows.API_REQUEST_DURATION).record(duration, at)

    def record_error(self, error_type: str, endpoint: str) -> None:
        """Count an error by the name of its class and the endpoint it met."""
        self.instrument(rows.ERRORS).add(1, {"error_type": _label(error_type), "endpoint": _label(endpoint)})

    def record_prediction(
        self,
        duration_ms: float,
        model_version: str,
        prediction_value: float | None = None,
        *,
        model_name: str | None = None,
    ) -> None:
        """Count one prediction of one row, its duration in milliseconds and its value."""
        model = _model(model_version, model_name)
        self._prediction(duration_ms, model, "single", 1)
        if prediction_value is not None:
            self.instrument(rows.PREDICTION_VALUES).record(prediction_value, model)

    def record_batch_prediction(
        self, values: Any, duration_ms: float, model_version: str, *, model_name: str | None = None
    ) -> None:
        """Count a prediction of as many rows as there are values, its duration in milliseconds and the values.

        Of labels, and of an array with several columns, the rows are counted only. What has no length is one
        prediction, as are a text and a mapping.
        """
        count, numbers = self._reader.read(values)
        if count is None:
            self.record_prediction(duration_ms, model_version, numbers, model_name=model_name)
            return
        model = _model(model_version, model_name)
        self._prediction(duration_ms, model, "batch", count)
        self.instrument(rows.PREDICTION_BATCH_SIZE).record(count, model)
        if numbers is not None:
            self.instrument(rows.PREDICTION_VALUES).bind(model).record_many(numbers)

    def record_model_load(self, model_version: str, duration: float, *, model_name: str | None = None) -> None:
        """Record how many seconds a model took to load."""
        self.instrument(rows.MODEL_LOAD_DURATION).record(duration, _model(model_version, model_name))

    def set_model_info(
        self,
        model_name: str,
        model_version: str,
        *,
        stage: str | None = None,
        type: str | None = None,  # noqa: A002  (the label's name)
        features: int | None = None,
    ) -> None:
        """Say what a model is; what was said of this name and version before is replaced.

        Errors:  TypeError or ValueError that names the argument; `features` is the number of them.
        """
        model = _checked_model(model_version, check_text("model_name", model_name))
        described = describe(stage=stage, type=type, features=features)
        facts_of(self._provider, model).update_info(described)

    def set_model_status(self, model_version: str, status: str, *, model_name: str | None = None) -> None:
        """Say that a model is loading, ready, in error or unavailable.

        Errors:  TypeError or ValueError that names the argument.
        """
        facts_of(self._provider, _checked_model(model_version, model_name)).set_status(status)

    def update_model_performance_metrics(
        self,
        model_version: str,
        dataset: str,
        accuracy: float | None = None,
        rmse: float | None = None,
        mae: float | None = None,
        r2: float | None = None,
        *,
        model_name: str | None = None,
    ) -> None:
        """Set the scores of a model on a dataset; those that are None stay as they were."""
        on = {**_model(model_version, model_name), "dataset": _label(dataset)}
        for name, score in {"accuracy": accuracy, "rmse": rmse, "mae": mae, "r2": r2}.items():
            if score is not None:
                self.instrument(_SCORES[name]).set(score, on)

    def update_prediction_latency_percentiles(
        self,
        model_version: str,
        p95_latency: float | None = None,
        p99_latency: float | None = None,
        *,
        model_name: str | None = None,
    ) -> None:
        """Set the percentiles of a model's latency, in seconds."""
        model = _model(model_version, model_name)
        if p95_latency is not None:
            self.instrument(rows.PREDICTION_LATENCY_P95).set(p95_latency, model)
        if p99_latency is not None:
            self.instrument(rows.PREDICTION_LATENCY_P99).set(p99_latency, model)

    def update_model_drift_score(
        self, model_version: str, feature: str, drift_score: float, *, model_name: str | None = None
    ) -> None:
        """Set how far a feature has drifted from its reference."""
        on = {**_model(model_version, model_name), "feature": _label(feature)}
        self.instrument(rows.MODEL_DRIFT_SCORE).set(drift_score, on)

    def update_api_health_status(self, component: str, is_healthy: bool) -> None:
        """Say whether a component (`database`, `model`) is healthy; `/health` tells it too.

        True, False, 1 and 0 of any library say it. All else is dropped and counted: "down" must not count as healthy.
        """
        component = _label(component)
        status = self.instrument(rows.API_HEALTH_STATUS)
        healthy = _truth(is_healthy)
        if healthy is None:
            # In a list no gauge takes it, as it would take a 2 or a "1".
            status.set([is_healthy], {"component": component})
            return
        if component in self._health or len(self._health) < _MOST_COMPONENTS:
            self._health[component] = healthy
        status.set(healthy, {"component": component})

    def record_database_operation(self, operation: str, table: str, duration: float) -> None:
        """Count a database operation and its duration in seconds."""
        on = {"operation": _label(operation), "table": _label(table)}
        self.instrument(rows.DATABASE_OPERATIONS).add(1, on)
        self.instrument(rows.DATABASE_OPERATION_DURATION).record(duration, on)

    @contextmanager
    def database_operation(self, operation: str, table: str) -> Iterator[None]:
        """Time and count the database operation in the `with` block, one that raises too."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.record_database_operation(operation, table, time.perf_counter() - started)

    def health(self) -> dict[str, Any]:
        """Return `status`, `healthy` or `unhealthy`, and `components` with what was said of each."""
        components = dict(self._health)
        return {"status": "healthy" if all(components.values()) else "unhealthy", "components": components}

    def _forget_health(self, labels: Mapping[str, str]) -> None:
        if labels.keys() == {"component"}:
            self._health.pop(labels["component"], None)

    def _prediction(self, duration_ms: float, model: dict[str, str], prediction_type: str, count: int) -> None:
        of = {**model, "prediction_type": prediction_type}
        self.instrument(rows.PREDICTIONS).add(count, of)
        try:
            seconds = float(duration_ms) / 1000.0
        except Exception:
            seconds = duration_ms  # no number: the histogram drops and counts it
        self.instrument(rows.PREDICTION_DURATION).record(seconds, of)
        ring = self._provider.intervals.ring
        if ring is not None and type(seconds) is float and 0.0 <= seconds < math.inf:
            now = time.perf_counter()
            ring.add(self._provider.intervals.number(model), now - seconds, now, count)


def _model(version: str, name: str | None) -> dict[str, str]:
    model = {} if name is None else {"model_name": _label(name)}
    return {**model, "model_version": _label(version)}


def _checked_model(version: str, name: str | None) -> dict[str, str]:
    model = {} if name is None else {"model_name": check_text("model_name", name)}
    return {**model, "model_version": check_text("model_version", version)}


def _label(given: object) -> str:
    """The text of a label; of an exception or a class its name, since a text may hold an id or a secret."""
    if isinstance(given, str):
        return given
    if isinstance(given, BaseException):
        given = type(given)
    try:
        return given.__name__ if isinstance(given, type) else str(given)
    except Exception:
        return type(given).__name__  # whatever a stranger's object raises, it has no text


def _truth(given: object) -> bool | None:
    """What a truth value says, None for what is none."""
    try:
        number = float(given) if is_number(given) else None  # type: ignore[arg-type]
    except Exception:
        return None  # whatever a stranger's object raises, it is no truth value
    return {0.0: False, 1.0: True}.get(number)  # type: ignore[arg-type]
