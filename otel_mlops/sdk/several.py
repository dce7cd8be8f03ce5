"""One recording for several streams; the ways to record into one are in series.py."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from otel_mlops.sdk.batch import drawn

if TYPE_CHECKING:
    from opentelemetry.context import Context


class Several:
    """One recording for several streams, where more than one view selects an instrument; or for none."""

    __slots__ = ("_each",)

    def __init__(self, each: list[Any]) -> None:
        self._each = each

    def add(self, amount: float) -> None:
        """Add to each."""
        for series in self._each:
            series.add(amount)

    def record(self, value: float) -> None:
        """Record in each."""
        for series in self._each:
            series.record(value)

    def record_in(self, value: float, context: Context) -> None:
        """Record in each, with a context."""
        for series in self._each:
            series.record_in(value, context)

    def record_many(self, values: Iterable[float]) -> None:
        """Record many in each."""
        if len(self._each) > 1 and not hasattr(values, "__len__"):
            values = drawn(values, partial(self._each[0].stream.drop, "type", values))
        for series in self._each:
            series.record_many(values)

    def set(self, value: float) -> None:
        """Set each."""
        for series in self._each:
            series.set(value)


NOWHERE = Several([])
"""The handle of an instrument that is disabled, shut down, or dropped by a view."""
