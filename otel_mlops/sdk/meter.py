"""Meter: makes instruments; the synchronous ones record into cells, the observable ones are the stock SDK's."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from opentelemetry.metrics import NoOpMeter
from opentelemetry.sdk import metrics as sdk
from opentelemetry.sdk.metrics._internal.instrument import _Counter, _Gauge, _Histogram, _UpDownCounter

from otel_mlops.sdk import instruments
from otel_mlops.sdk.callbacks import Guarded

if TYPE_CHECKING:
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope

    from otel_mlops.metrics import Metric
    from otel_mlops.sdk.provider import MeterProvider

_logger = logging.getLogger(__name__)

_STOCK = {"counter": _Counter, "updown": _UpDownCounter, "histogram": _Histogram, "gauge": _Gauge}
_OURS = {
    "counter": instruments.Counter,
    "updown": instruments.UpDownCounter,
    "histogram": instruments.Histogram,
    "gauge": instruments.Gauge,
}


class Meter(sdk.Meter):
    """Makes instruments; the synchronous ones record into cells, the observable ones are the stock SDK's."""

    def __init__(self, scope: InstrumentationScope, provider: MeterProvider) -> None:
        config = provider._apply_meter_configurator(scope)
        super().__init__(scope, provider._measurement_consumer, _meter_config=config)
        self._provider = provider
        self.fresh_locks()

    def fresh_locks(self) -> None:
        """Make locks that a signal handler, a `__del__` and a forked child can take while they are held."""
        self._instrument_registration_lock = threading.RLock()  # type: ignore[assignment]
        self._instrument_ids_lock = threading.RLock()  # type: ignore[assignment]

    def create_counter(self, name: str, unit: str = "", description: str = "") -> Any:
        """Create a counter, or return the one that was created before under the same identity."""
        return self._create("counter", name, unit, description)

    def create_up_down_counter(self, name: str, unit: str = "", description: str = "") -> Any:
        """Create an up-down counter."""
        return self._create("updown", name, unit, description)

    def create_gauge(self, name: str, unit: str = "", description: str = "") -> Any:
        """Create a gauge."""
        return self._create("gauge", name, unit, description)

    def create_histogram(
        self,
        name: str,
        unit: str = "",
        description: str = "",
        *,
        explicit_bucket_boundaries_advisory: Sequence[float] | None = None,
    ) -> Any:
        """Create a histogram.

        Errors: ValueError if the bounds are not finite numbers in rising order; the stock SDK raises it out
        of the first `record()`.
        """
        bounds = None
        if explicit_bucket_boundaries_advisory is not None:
            bounds = check_bounds(explicit_bucket_boundaries_advisory)
        return self._create("histogram", name, unit, description, bounds=bounds)

    def create_observable_counter(self, name: str, callbacks: Any = None, unit: str = "", description: str = "") -> Any:
        """Create an observable counter; a second one of the same identity adds its callbacks to the first."""
        return self._observable(super().create_observable_counter, name, callbacks, unit, description)

    def create_observable_up_down_counter(
        self, name: str, callbacks: Any = None, unit: str = "", description: str = ""
    ) -> Any:
        """Create an observable up-down counter."""
        return self._observable(super().create_observable_up_down_counter, name, callbacks, unit, description)

    def create_observable_gauge(self, name: str, callbacks: Any = None, unit: str = "", description: str = "") -> Any:
        """Create an observable gauge."""
        return self._observable(super().create_observable_gauge, name, callbacks, unit, description)

    def instrument(self, row: Metric) -> Any:
        """The instrument of a row of the catalogue."""
        kind = "gauge" if row.kind in ("info", "stateset") else row.kind
        return self._create(kind, row.name, row.unit, row.help, bounds=row.buckets or None, row=row)

    def _create(
        self,
        kind: str,
        name: str,
        unit: str,
        description: str,
        *,
        bounds: tuple[float, ...] | None = None,
        row: Metric | None = None,
    ) -> Any:
        stock: type = _STOCK[kind]
        ours: Any = _OURS[kind]
        unit, description = unit or "", description or ""
        with self._instrument_registration_lock:
            status = self._register_instrument(name, stock, unit, description, bounds)  # type: ignore[arg-type]
            found: Any = self._instrument_id_instrument.get(status.instrument_id)
            if found is None:
                found = ours(
                    name,
                    self._instrumentation_scope,
                    self._measurement_consumer,
                    unit,
                    description,
                    _meter_config=self._meter_config,
                )
                found._open(self._provider._streams_of(found, kind, bounds, row))
                found._enable(self._is_enabled())
                self._instrument_id_instrument[status.instrument_id] = found
        if status.conflict:
            _logger.warning("%s was created before with other bucket bounds, which stay", name)
        return found

    def _observable(self, create: Callable[..., Any], name: str, callbacks: Any, unit: str, description: str) -> Any:
        # Without callbacks at first: the stock SDK drops those of a second instrument without a word.
        instrument = create(name, [], unit or "", description or "")
        known = [each.callback for each in instrument._callbacks]
        instrument._callbacks.extend(
            Guarded(each, name, self._provider.count_dropped) for each in callbacks or () if each not in known
        )
        return instrument

    def _set_meter_config(self, meter_config: Any) -> None:
        super()._set_meter_config(meter_config)
        for instrument in self._instrument_id_instrument.values():
            if isinstance(instrument, instruments.Instrument):
                instrument._enable(meter_config.is_enabled)


class DisabledMeter(NoOpMeter):
    """The meter of a provider that is disabled or shut down: its instruments have `bind()` too."""

    def create_counter(self, name: str, unit: str = "", description: str = "") -> Any:
        """Create a counter that records nothing."""
        return instruments.NoOpCounter(name, unit=unit, description=description)

    def create_up_down_counter(self, name: str, unit: str = "", description: str = "") -> Any:
        """Create an up-down counter that records nothing."""
        return instruments.NoOpUpDownCounter(name, unit=unit, description=description)

    def create_gauge(self, name: str, unit: str = "", description: str = "") -> Any:
        """Create a gauge that records nothing."""
        return instruments.NoOpGauge(name, unit=unit, description=description)

    def create_histogram(self, name: str, unit: str = "", description: str = "", **advisory: Any) -> Any:
        """Create a histogram that records nothing."""
        return instruments.NoOpHistogram(name, unit=unit, description=description)

    def instrument(self, row: Metric) -> Any:
        """The instrument of a row, recording nothing."""
        create = {
            "counter": self.create_counter,
            "updown": self.create_up_down_counter,
            "histogram": self.create_histogram,
        }
        return create.get(row.kind, self.create_gauge)(row.name, row.unit, row.help)


def check_bounds(bounds: Sequence[float]) -> tuple[float, ...]:
    """Return the bounds of a histogram's buckets as floats.

    Errors: ValueError if they are not finite numbers in rising order.
    """
    try:
        numbers = tuple(float(each) for each in bounds)
        fit = all(low < high for low, high in pairwise(numbers)) and all(map(math.isfinite, numbers))
    except (TypeError, ValueError, OverflowError):
        numbers, fit = (), False
    if not fit:
        msg = f"explicit_bucket_boundaries_advisory must be finite numbers in rising order, not {bounds!r:.200}"
        raise ValueError(msg)
    return numbers
