"""A stream: one metric's numbers in this worker, that is its series, their cap, and what was dropped."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from threading import RLock
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from opentelemetry.attributes import _clean_attribute_value
from opentelemetry.sdk.metrics._internal._view_instrument_match import _OVERFLOW_ATTRIBUTES, _hash_attributes

from otel_mlops.metrics import OVERFLOW
from otel_mlops.sdk import records
from otel_mlops.sdk.batch import LARGEST
from otel_mlops.sdk.exemplars import ALWAYS, NEVER, current_context
from otel_mlops.sdk.merge import KEEP_THE_DEAD, rule_of
from otel_mlops.sdk.recording import RECORDING
from otel_mlops.sdk.records import STREAM

if TYPE_CHECKING:
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope
    from opentelemetry.util.types import AnyValue

    from otel_mlops.metrics import Metric
    from otel_mlops.sdk.ledger import Ledger, Place
    from otel_mlops.sdk.series import Series

_logger = logging.getLogger(__name__)

_WITHOUT = _hash_attributes({})

Attributes = Mapping[str, Any]
Counted = Callable[["Stream", str], None]
"""Told of a measurement that was dropped, with the reason, or of one that met a full metric."""


@dataclass(slots=True, eq=False)
class Stream:
    """What a metric is and its series; everything a ledger or a page must know of it.

    `kind` is how it is recorded: counter, updown, histogram, gauge, or cells, which are no metric by themselves. `row`
    is the catalogue's row, absent for the metrics of others.
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
    size: int = 1
    """How many cells a series has, where the kind does not say it."""
    attribute_keys: frozenset[str] | None = None
    exemplar_filter: str = "trace_based"
    observed: bool = False
    """Its numbers are what callbacks say: set, not added, whatever its kind."""

    series: dict[Any, Series] = field(default_factory=dict)
    lock: RLock = field(default_factory=RLock)
    lowest: float = 0.0
    sampling: Any = None
    version: int = 0
    """Grows when a series comes or goes, so that whoever has arranged them knows whether to look again."""
    _number: int = -1
    _described: Place | None = None
    _overflow: Series | None = None
    _forgotten: WeakValueDictionary[Any, Series] = field(default_factory=WeakValueDictionary)
    _told: set[str] = field(default_factory=set)
    stays: dict[Series, float] = field(default_factory=dict)
    """Of what callbacks count: how much of it has stayed with a group that this worker has left."""

    def __post_init__(self) -> None:
        if self.row is not None and self.row.signed:
            self.lowest = -LARGEST
        choices = {"always_on": ALWAYS, "always_off": NEVER}
        self.sampling = choices.get(self.exemplar_filter) or current_context()

    @property
    def shown(self) -> str:
        """What it is on the page: an `info` and a `stateset` are gauges to OpenTelemetry."""
        return self.row.kind if self.row else self.kind

    @property
    def rule(self) -> str:
        """How workers combine."""
        if self.row is None:
            return rule_of(self.name, self.kind, observed=self.observed)
        # What the leader works out of everybody's numbers, today's count say, is not added to another leader's, and
        # does not outlive it as what a service has set does.
        return "once" if self.observed and self.row.across in ("sum", "latest") else self.row.across

    @property
    def states(self) -> tuple[str, ...]:
        """The states of a state set, the worst first."""
        return self.row.states if self.row else ()

    @property
    def subject(self) -> tuple[str, ...] | None:
        """Of an info: the attributes that say what it is about, where the latest of several is shown."""
        return self.row.subject if self.row else None

    @property
    def sampling_always(self) -> bool:
        """Whether they are taken without a sampled span too."""
        return self.exemplar_filter == "always_on"

    def find(self, attributes: Attributes | None) -> Series:
        """The series of these attributes, made if need be; the overflow's once the metric is full."""
        key, clean = self._identify(attributes)
        with self.ledger.lock:
            series = self.series.get(key)
            if series is None and self._has_room():
                # One that was forgotten may be held still: its handle and the new one are the same series.
                series = self._forgotten.pop(key, None) or self._new(clean)
                series = self.series.setdefault(key, series)
        # Outside of the lock: counting what overflows takes the locks of the metric that counts it.
        return series if series is not None else self._overflowing()

    def taken_by(self, attributes: Attributes | None) -> Series | None:
        """The series that has these attributes by now; the overflow's, which may have to take them, if none has."""
        return self.series.get(self._identify(attributes)[0]) or self._overflow

    def _has_room(self) -> bool:
        # What a full ledger has no room for is counted all the same: by metric, of which there are few.
        return len(self.series) < self.limit and (self.row is OVERFLOW or not self.ledger.is_full)

    def is_overflow(self, series: Series) -> bool:
        """Whether this is the series of what the metric has no room for."""
        return series is self._overflow

    def keep(self, series: Series) -> None:
        """Know that a series was born; list it again if it had been forgotten."""
        self.version += 1
        if series is not self._overflow:
            key = _hash_attributes(series.attributes)
            self._forgotten.pop(key, None)
            self.series.setdefault(key, series)

    def living(self) -> list[Series]:
        """The series that something was recorded into, the overflow's last."""
        with self.ledger.lock:
            return [series for series in self._every() if series.place is not None]

    def _every(self) -> list[Series]:
        # Copied in one step: a finaliser may add a series while the list is gone through.
        every = list(self.series.values())
        return every if self._overflow is None else [*every, self._overflow]

    def forget(self, attributes: Attributes, *, but: Attributes | None = None, spare_busy: bool = False) -> int:
        """Remove the series that carry all of these attributes, `but` one, and return how many there were.

        With `spare_busy` an up-down counter that does not stand at 0 stays: what was added is yet to be taken
        away again, and would leave it at less than nothing.
        """
        wanted = {(name, _hash_attributes(_clean_attribute_value(value, None))) for name, value in attributes.items()}
        with self.ledger.lock:
            spared = None if but is None else self.series.get(self._identify(but)[0])
            gone = [
                series
                for series in self._every()
                if series is not spared
                and wanted <= {(name, _hash_attributes(value)) for name, value in series.attributes.items()}
                and not (spare_busy and self.kind == "updown" and any(series.read()))
            ]
            living = sum(series.place is not None for series in gone)
            for series in gone:
                series.leave()
                if series is not self._overflow:
                    key = _hash_attributes(series.attributes)
                    self._forgotten[key] = self.series.pop(key)
            self.version += bool(gone)
            return living

    def number(self) -> int:
        """The number of this stream in the ledger, which is described there when its first series is."""
        if self._described is None or self.ledger.is_private(self._described):
            number = self._number
            if number < 0:
                number = self.ledger.streams = self.ledger.streams + 1
            place = self.ledger.append(STREAM, {"number": number, **self._description()}, 0)
            # Not before: a signal handler's series must stand behind the description.
            self._number, self._described = number, place
        return self._number

    def is_unused(self) -> bool:
        """Whether it has no series, and nobody holds one that it had."""
        return not self.series and not len(self._forgotten)

    def leave(self) -> None:
        """Give the description up, as no series is left."""
        place, self._described = self._described, None
        if place is not None:
            self.ledger.forget(place)

    def move(self) -> None:
        """Move what lies in private memory into the ledger's file."""
        for series in self.living():
            series.move()

    def keep_only(self, said: Collection[Series | None]) -> None:
        """Let go of the series that callbacks do not speak of any more."""
        with self.ledger.lock:
            for series in self._every():
                if series.place is not None and series not in said:
                    series.leave()
                    if series is not self._overflow:
                        self.series.pop(_hash_attributes(series.attributes), None)
                    self.version += 1

    def begin_anew(self) -> None:
        """Let every series whose numbers stay with the group begin at nothing with its next record.

        Handles that are held go on; so do numbers in private memory, which nobody else has, and those that
        count for the living only: what is in progress here is so still when this worker comes back.
        """
        self._described = None
        self.version += 1
        for series in self._every():
            if series.place is not None and self.ledger.holds(series.place):
                if self.rule in KEEP_THE_DEAD:
                    if self.observed:
                        # Callbacks say all that they have ever counted: only what comes on top is news here.
                        self.stays[series] = self.stays.get(series, 0.0) + series.read()[0]
                    series.unbear()
                else:
                    series.take_along()

    def after_fork(self) -> None:
        """Begin at nothing in a forked child, whose ledger is another."""
        self.lock = RLock()
        self._number = -1
        self._described = None
        self._told = set()
        self.stays = {}
        self.version += 1
        for series in self._every():
            series.unbear()

    def drop(self, reason: str, value: object) -> None:
        """Count a measurement that is not fit to be recorded, and say so once."""
        if self._is_news(reason):
            _logger.warning(
                "%s: dropped %s (%s); more of the same are counted in otel_mlops_dropped_total",
                self.name,
                _shown(value),
                reason,
            )
        self.on_dropped(self, reason)

    def _overflowing(self) -> Series:
        series = self._overflow
        if series is None:
            series = self._new(dict(_OVERFLOW_ATTRIBUTES))
            with self.ledger.lock:
                series = self._overflow = self._overflow or series
        if self._is_news("overflow"):
            _logger.warning(
                "%s: %s; further sets of attributes are recorded in one series with otel_metric_overflow=true. "
                "Raise %s or use fewer attribute values.",
                self.name,
                *self._full(),
            )
        self.on_overflow(self, "overflow")
        return series

    def _full(self) -> tuple[str, str]:
        """What there is no room for, and the setting that gives more."""
        if len(self.series) < self.limit:
            return f"this worker's series take {self.ledger.total_bytes} bytes", "OTEL_MLOPS_MAX_LEDGER_BYTES"
        return f"more than {self.limit} sets of attributes", "OTEL_MLOPS_MAX_SERIES"

    def _new(self, attributes: dict[str, AnyValue]) -> Series:
        return RECORDING["gauge" if self.observed else self.kind](self, attributes)

    def _is_news(self, what: str) -> bool:
        """Whether this has not been said before."""
        news = what not in self._told
        self._told.add(what)
        return news

    def _identify(self, attributes: Any) -> tuple[Any, dict[str, AnyValue]]:
        """What the series of these attributes is found by, and the attributes in order."""
        if attributes is None:
            return _WITHOUT, {}
        try:
            if not isinstance(attributes, Mapping):
                if self._is_news("mapping"):
                    _logger.warning(
                        "%s: attributes must be a mapping, not %s: recorded without", self.name, _shown(attributes)
                    )
                return _WITHOUT, {}
            clean: dict[str, AnyValue] = dict(_clean_attribute_value(attributes, None))
            if self.attribute_keys is not None:
                clean = {key: value for key, value in clean.items() if key in self.attribute_keys}
            found = _hash_attributes(clean)
            if found not in self.series:
                records.encode([*clean.items()])  # what cannot be written must not raise out of the first record
        except Exception as error:
            # A value whose str() fails, or a list within itself: what was measured counts all the same.
            if self._is_news("attributes"):
                _logger.warning("%s: attributes could not be read, recorded without: %s", self.name, _shown(error))
            return _WITHOUT, {}
        return found, clean

    def _description(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "unit": self.unit,
            "description": self.description,
            "kind": self.kind,
            "rule": self.rule,
            "shown": self.shown,
            "observed": self.observed,
            "states": list(self.states),
            "subject": self.subject,
            "bounds": list(self.bounds),
            "size": self.size,
            "scope": [self.scope.name, self.scope.version, self.scope.schema_url],
        }


def _shown(value: object) -> str:
    try:
        return f"{value!r:.80}"
    except Exception:
        return f"a {type(value).__name__}"  # of ours or not: what it says of itself must not break a record
