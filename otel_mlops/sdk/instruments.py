"""Counter, UpDownCounter, Histogram and Gauge over cells: OpenTelemetry's instruments, and `bind()`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from opentelemetry import metrics as api
from opentelemetry.metrics._internal.instrument import _ProxyInstrument
from opentelemetry.sdk import metrics as sdk

from otel_mlops.sdk.series import NOWHERE, RECORDING, Several

if TYPE_CHECKING:
    from opentelemetry.context import Context

    from otel_mlops.sdk.stream import Stream

Attributes = Mapping[str, Any]

_FORMS_PER_SERIES = 4
"""How many ways of writing a set of attributes (its order) are remembered for each series."""

_TYPES_PER_FORM = 16
"""How many ways of typing its values."""


class Instrument:
    """What the four share: from attributes to a series, remembered for the next time.

    A set of attributes is looked up as its keys and values, as they come. Where all are strings, what is equal
    is the same series. Elsewhere 1, True and 1.0 are equal and yet three series, so there the form leads to
    the series by the types of the values.
    """

    _streams: tuple[Stream, ...] = ()
    _recording: type = type(None)
    _disabled = False

    def _open(self, streams: Iterable[Stream]) -> None:
        self._streams = tuple(streams)
        if len(self._streams) == 1:
            self._recording = RECORDING[self._streams[0].kind]
        self._limit = _FORMS_PER_SERIES * max((stream.limit for stream in self._streams), default=1)
        self._forget_forms()

    def _forget_forms(self) -> None:
        self._plain: Any = None
        self._forms: dict[Any, Any] = {}

    def _enable(self, enabled: bool) -> None:
        self._disabled = not enabled
        self._forget_forms()

    def bind(self, attributes: Attributes | None = None) -> Any:
        """Return the handle of one set of attributes, whose `add`, `record` or `set` looks nothing up.

        The series appears on the page when it is first recorded into.
        """
        return self._find(attributes)

    def forget(self, attributes: Attributes | None = None) -> int:
        """Remove the series that carry these attributes and return how many; recording begins them anew."""
        gone = sum(stream.forget(attributes or {}) for stream in self._streams)
        self._forget_forms()
        return gone

    def _find(self, attributes: Attributes | None, known: Any = None) -> Any:
        if self._disabled:
            return NOWHERE
        if not attributes:
            series = self._plain = self._series(None)
            return series
        if type(known) is dict:
            series = known.get((*map(type, attributes.values()),))
            if series is not None:
                return series
        series = self._series(attributes)
        if not any(stream.is_full for stream in self._streams):
            # In a full metric each record is looked up, so that each that overflows is counted.
            self._remember(series, attributes)
        return series

    def _remember(self, series: Any, attributes: Any) -> None:
        try:
            form = (*attributes, *attributes.values())
            types = (*map(type, attributes.values()),)
            if set(map(type, attributes)) != {str}:
                return
            if len(self._forms) >= self._limit:
                self._forms.clear()
            if set(types) == {str}:
                self._forms[form] = series
                return
            by_types = self._forms.setdefault(form, {})
            if len(by_types) >= _TYPES_PER_FORM:
                by_types.clear()
            by_types[types] = series
        except (TypeError, AttributeError):
            return  # no mapping, or a value that cannot be hashed (a list): found each time

    def _series(self, attributes: Attributes | None) -> Any:
        if len(self._streams) == 1:
            return self._streams[0].find(attributes)
        return Several([stream.find(attributes) for stream in self._streams])


class Counter(Instrument, sdk.Counter):
    """A sum that only grows."""

    def add(self, amount: float, attributes: Any = None, context: Context | None = None) -> None:
        """Add a number that is not negative."""
        try:
            series = self._forms.get((*attributes, *attributes.values())) if attributes else self._plain
        except (TypeError, AttributeError):
            series = None
        if series.__class__ is not self._recording:
            series = self._find(attributes, series)
        series.add(amount)


class UpDownCounter(Instrument, sdk.UpDownCounter):
    """A sum that goes both ways."""

    def add(self, amount: float, attributes: Any = None, context: Context | None = None) -> None:
        """Add a number."""
        Counter.add(self, amount, attributes, context)  # type: ignore[arg-type]


class Histogram(Instrument, sdk.Histogram):
    """A distribution by explicit buckets."""

    def record(self, amount: float, attributes: Any = None, context: Context | None = None) -> None:
        """Count a value in its bucket."""
        try:
            series = self._forms.get((*attributes, *attributes.values())) if attributes else self._plain
        except (TypeError, AttributeError):
            series = None
        if series.__class__ is not self._recording:
            series = self._find(attributes, series)
        if context is None:
            series.record(amount)
        else:
            series.record_in(amount, context)


class Gauge(Instrument, sdk._Gauge):
    """The last value."""

    def set(self, amount: float, attributes: Any = None, context: Context | None = None) -> None:
        """Set the value."""
        try:
            series = self._forms.get((*attributes, *attributes.values())) if attributes else self._plain
        except (TypeError, AttributeError):
            series = None
        if series.__class__ is not self._recording:
            series = self._find(attributes, series)
        series.set(amount)


class _Bindable:
    """`bind()` and `forget()` of an instrument that records nothing."""

    def bind(self, attributes: Attributes | None = None) -> Any:
        """Return a handle that records nothing."""
        return NOWHERE

    def forget(self, attributes: Attributes | None = None) -> int:
        """Remove nothing."""
        return 0


class NoOpCounter(_Bindable, api.NoOpCounter):
    """A counter of a provider that is disabled or shut down."""


class NoOpUpDownCounter(_Bindable, api.NoOpUpDownCounter):
    """An up-down counter of a provider that is disabled or shut down."""


class NoOpHistogram(_Bindable, api.NoOpHistogram):
    """A histogram of a provider that is disabled or shut down."""


class NoOpGauge(_Bindable, api._NoOpGauge):
    """A gauge of a provider that is disabled or shut down."""


class _ProxyHandle:
    """The handle of an instrument made before there was a provider: bound when there is one."""

    __slots__ = ("_attributes", "_handle", "_instrument")

    def __init__(self, instrument: Any, attributes: Attributes | None) -> None:
        self._instrument = instrument
        self._attributes = dict(attributes or {})
        self._handle: Any = None

    def __getattr__(self, verb: str) -> Any:
        handle = self._handle
        if handle is None:
            real = self._instrument._real_instrument
            if real is None:
                return getattr(NOWHERE, verb)
            if isinstance(real, (Instrument, _Bindable)):
                handle = self._handle = real.bind(self._attributes)
            else:
                # Somebody else's provider won: its instruments take the attributes with each call.
                return lambda value: getattr(real, verb)(value, self._attributes)
        return getattr(handle, verb)


def _bind_proxy(instrument: Any, attributes: Attributes | None = None) -> Any:
    """Return a handle that records nothing until a provider is set, and is bound then."""
    return _ProxyHandle(instrument, attributes)


def give_proxies_bind() -> None:
    """Let instruments that were made before the provider have `bind()` as well, as all of ours do."""
    _ProxyInstrument.bind = _bind_proxy  # type: ignore[attr-defined]
