"""Counter, UpDownCounter, Histogram and Gauge over cells: OpenTelemetry's instruments, and `bind()`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from opentelemetry import metrics as api
from opentelemetry.metrics._internal.instrument import _ProxyInstrument
from opentelemetry.sdk import metrics as sdk

from otel_mlops.sdk.recording import RECORDING
from otel_mlops.sdk.several import NOWHERE, Several

if TYPE_CHECKING:
    from opentelemetry.context import Context

    from otel_mlops.sdk.stream import Stream

Attributes = Mapping[str, Any]

_FORMS_PER_SERIES = 4
"""How many ways of writing a set of attributes (its order) are remembered for each series."""

_SCALARS = (str, bool, int, float, bytes, type(None))

_TYPES_PER_FORM = 16
"""How many ways of typing its values."""


class Instrument:
    """What the four share: from attributes to a series, remembered for the next time.

    A set of attributes is looked up as its keys and values, as they come. Where all are strings, what is equal
    is the same series. Elsewhere 1, True and 1.0 are equal and yet three series, so there the form leads to
    the series by the types of the values.
    """

    _streams: tuple[Stream, ...] = ()
    _recording: type = Several
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

    def forget(self, attributes: Attributes | None = None, *, but: Attributes | None = None) -> int:
        """Remove the series that carry these attributes, `but` one, and return how many there were.

        Recording into one begins it anew.
        """
        gone = sum(stream.forget(attributes or {}, but=but) for stream in self._streams)
        self._forget_forms()
        return gone

    def _find(self, attributes: Any, known: Any = None) -> Any:
        if known.__class__ is _ByType:
            known = known.find(attributes)
        if known is not None:
            return known
        if self._disabled:
            return NOWHERE
        series, is_overflow = self._series(attributes)
        if not is_overflow:
            # The overflow is looked up each time, so that each record that it takes is counted.
            self._remember(series, attributes)
        return series

    def _remember(self, series: Any, attributes: Any) -> None:
        try:
            if not attributes:
                self._plain = series
                return
            form = (*attributes, *attributes.values())
            # A tuple is found each time: (1,), (True,) and (1.0,) are equal, and so are their types.
            if not all(isinstance(key, str) and isinstance(value, _SCALARS) for key, value in attributes.items()):
                return
            if len(self._forms) >= self._limit:
                self._forms.clear()
            odd = [key for key, value in attributes.items() if not isinstance(value, str)]
            if odd:
                self._forms.setdefault(form, _ByType(odd)).keep(attributes, series)
            else:
                self._forms[form] = series
        except Exception:
            return  # no mapping, or a value that cannot be hashed (a list): found each time

    def _series(self, attributes: Attributes | None) -> tuple[Any, bool]:
        """The series of these attributes, one for each stream, and whether one of them is an overflow's."""
        each = [stream.find(attributes) for stream in self._streams]
        is_overflow = any(stream.is_overflow(series) for stream, series in zip(self._streams, each, strict=True))
        return (each[0] if len(each) == 1 else Several(each)), is_overflow


class _ByType:
    """The series of one form, by the types of those of its values that are no strings."""

    __slots__ = ("_first", "_others", "_series")

    def __init__(self, keys: list[str]) -> None:
        self._first, *self._others = keys
        self._series: dict[Any, Any] = {}

    def find(self, attributes: Attributes) -> Any:
        """The series of these attributes, if it was kept."""
        first = attributes[self._first].__class__
        if not self._others:
            return self._series.get(first)
        return self._series.get((first, *[attributes[key].__class__ for key in self._others]))

    def keep(self, attributes: Attributes, series: Any) -> None:
        """Remember the series of these attributes."""
        if len(self._series) >= _TYPES_PER_FORM:
            self._series.clear()
        first = attributes[self._first].__class__
        others = [attributes[key].__class__ for key in self._others]
        self._series[(first, *others) if others else first] = series


class Counter(Instrument, sdk.Counter):
    """A sum that only grows."""

    def add(self, amount: float, attributes: Any = None, context: Context | None = None) -> None:
        """Add a number that is not negative."""
        try:
            series: Any = self._forms.get((*attributes, *attributes.values())) if attributes else self._plain
        except Exception:
            series = None  # no mapping, or a value that cannot be hashed
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
            series: Any = self._forms.get((*attributes, *attributes.values())) if attributes else self._plain
        except Exception:
            series = None  # no mapping, or a value that cannot be hashed
        if series.__class__ is not self._recording:
            series = self._find(attributes, series)
        if context:
            series.record_in(amount, context)
        else:
            series.record(amount)


class Gauge(Instrument, sdk._Gauge):
    """The last value."""

    def set(self, amount: float, attributes: Any = None, context: Context | None = None) -> None:
        """Set the value."""
        try:
            series: Any = self._forms.get((*attributes, *attributes.values())) if attributes else self._plain
        except Exception:
            series = None  # no mapping, or a value that cannot be hashed
        if series.__class__ is not self._recording:
            series = self._find(attributes, series)
        series.set(amount)


class _Bindable:
    """`bind()` and `forget()` of an instrument that records nothing."""

    def bind(self, attributes: Attributes | None = None) -> Any:
        """Return a handle that records nothing."""
        return NOWHERE

    def forget(self, attributes: Attributes | None = None, *, but: Attributes | None = None) -> int:
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
                one = verb.removesuffix("_many")
                record = partial(getattr(real, one), attributes=self._attributes)
                return record if one == verb else lambda values: [record(value) for value in values]
        return getattr(handle, verb)


def _bind_proxy(instrument: Any, attributes: Attributes | None = None) -> Any:
    """Return a handle that records nothing until a provider is set, and is bound then."""
    return _ProxyHandle(instrument, attributes)


# Instruments that are made before there is a provider have `bind()` as well, as all of ours do.
_ProxyInstrument.bind = _bind_proxy  # type: ignore[attr-defined]
