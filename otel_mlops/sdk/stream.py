"""A stream: one metric's numbers in this worker, that is its series, their cap, and what was dropped."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from threading import RLock
from typing import TYPE_CHECKING, Any

from opentelemetry.attributes import _clean_attribute_value
from opentelemetry.sdk.metrics._internal._view_instrument_match import _OVERFLOW_ATTRIBUTES, _hash_attributes

from otel_mlops.sdk.exemplars import ALWAYS, NEVER, current_context
from otel_mlops.sdk.ledger import STREAM
from otel_mlops.sdk.series import LARGEST, RECORDING, Series

if TYPE_CHECKING:
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope
    from opentelemetry.util.types import AnyValue

    from otel_mlops.metrics import Metric
    from otel_mlops.sdk.ledger import Ledger

_logger = logging.getLogger(__name__)

Attributes = Mapping[str, Any]
Counted = Callable[["Stream", str], None]
"""Told of a measurement that was dropped, with the reason, or of one that met a full metric."""


@dataclass(slots=True, eq=False)
class Stream:
    """What a metric is and its series; everything a ledger or a page must know of it.

    `kind` is how it is recorded: counter, updown, histogram or gauge. `row` is the catalogue's row, absent
    for the metrics of others.
    """

    name: str
    unit: str
    description: str
    kind: str
    scope: InstrumentationScope
    ledger: Ledger
    limit: int
    on_dropped: Counted
    on_overflow: Counted
    row: Metric | None = None
    bounds: tuple[float, ...] = ()
    attribute_keys: frozenset[str] | None = None
    exemplar_filter: str = "trace_based"

    series: dict[Any, Series] = field(default_factory=dict)
    lock: RLock = field(default_factory=RLock)
    lowest: float = 0.0
    bounds_array: Any = None
    sampling: Any = None
    page: Any = None
    version: int = 0
    """Grows when a series comes or goes, so that whoever has arranged them knows whether to look again."""
    _number: int = -1
    _overflow: Series | None = None
    _told: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        if self.row is not None and self.row.signed:
            self.lowest = -LARGEST
        choices = {"always_on": ALWAYS, "always_off": NEVER}
        self.sampling = choices.get(self.exemplar_filter) or current_context()

    @property
    def sampling_on(self) -> bool:
        """Whether exemplars are taken at all."""
        return self.exemplar_filter != "always_off"

    @property
    def sampling_always(self) -> bool:
        """Whether they are taken without a sampled span too."""
        return self.exemplar_filter == "always_on"

    def find(self, attributes: Attributes | None) -> Series:
        """The series of these attributes, made if need be; the overflow's once the metric is full."""
        clean = self._clean(attributes)
        key = _hash_attributes(clean)
        with self.ledger.lock:
            series = self.series.get(key)
            if series is None:
                if len(self.series) >= self.limit:
                    return self._overflowing()
                series = self.series[key] = RECORDING[self.kind](self, clean)
            return series

    @property
    def is_full(self) -> bool:
        """Whether further sets of attributes go to the overflow."""
        return len(self.series) >= self.limit

    def keep(self, series: Series) -> None:
        """Know that a series was born; list it again if it had been forgotten."""
        self.version += 1
        if series is not self._overflow:
            self.series.setdefault(_hash_attributes(series.attributes), series)

    def living(self) -> list[Series]:
        """The series that something was recorded into, the overflow's last."""
        with self.ledger.lock:
            found = [series for series in self.series.values() if series.place is not None]
            if self._overflow is not None and self._overflow.place is not None:
                found.append(self._overflow)
            return found

    def forget(self, attributes: Attributes) -> int:
        """Remove the series that carry all of these attributes and return how many there were."""
        with self.ledger.lock:
            gone = [
                key
                for key, series in self.series.items()
                if all(series.attributes.get(name) == value for name, value in attributes.items())
            ]
            for key in gone:
                series = self.series.pop(key)
                if series.place is not None:
                    self.ledger.forget(series.place)
                series.unbear()
            self.version += bool(gone)
            return len(gone)

    def number(self) -> int:
        """The number of this stream in the ledger, which is described there when its first series is."""
        if self._number < 0:
            self.ledger.streams += 1
            self._number = self.ledger.streams
            self.ledger.append(STREAM, {"number": self._number, **self._description()}, 0)
        return self._number

    def after_fork(self) -> None:
        """Begin at nothing in a forked child; handles that are held go on and join the child's ledger."""
        self.lock = RLock()
        self._number = -1
        self._told = set()
        self.version += 1
        for series in [*self.series.values(), *([self._overflow] if self._overflow else [])]:
            series.unbear()

    def drop(self, reason: str, value: object) -> None:
        """Count a measurement that is not fit to be recorded, and say so once."""
        if reason not in self._told:
            self._told.add(reason)
            _logger.warning(
                "%s: dropped %.80r (%s); more of the same are counted in otel_mlops_dropped_total",
                self.name,
                value,
                reason,
            )
        self.on_dropped(self, reason)

    def _overflowing(self) -> Series:
        if self._overflow is None:
            self._overflow = RECORDING[self.kind](self, dict(_OVERFLOW_ATTRIBUTES))
            _logger.warning(
                "%s: more than %d sets of attributes; further ones are recorded in one series with "
                "otel_metric_overflow=true. Raise OTEL_MLOPS_MAX_SERIES or use fewer attribute values.",
                self.name,
                self.limit,
            )
        self.on_overflow(self, "overflow")
        return self._overflow

    def _clean(self, attributes: Any) -> dict[str, AnyValue]:
        if not attributes:
            return {}
        if not isinstance(attributes, Mapping):
            _logger.warning("%s: attributes must be a mapping, not %.80r: recorded without", self.name, attributes)
            return {}
        clean: dict[str, AnyValue] = dict(_clean_attribute_value(attributes, None))
        if self.attribute_keys is not None:
            clean = {key: value for key, value in clean.items() if key in self.attribute_keys}
        return clean

    def _description(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "unit": self.unit,
            "description": self.description,
            "kind": self.kind,
            "across": self.row.across if self.row else None,
            "shown": self.row.kind if self.row else self.kind,
            "bounds": list(self.bounds),
            "scope": [self.scope.name, self.scope.version, self.scope.schema_url],
        }
