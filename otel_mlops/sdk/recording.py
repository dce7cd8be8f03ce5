"""Which way of recording is right for this interpreter: without locks, or each record under its stream's."""

from __future__ import annotations

import sys
from typing import Any

from otel_mlops.sdk.cells import CellSeries
from otel_mlops.sdk.series import CounterSeries, GaugeSeries, HistogramSeries, Series, UpDownSeries


def _locked(recording: type[Series], *verbs: str) -> type[Series]:
    """The same recording under the stream's lock, for interpreters that give no atomicity."""

    def under_lock(verb: str) -> Any:
        plain = getattr(recording, verb)

        def method(self: Series, *values: Any) -> None:
            with self.stream.lock:
                plain(self, *values)

        method.__doc__ = plain.__doc__
        return method

    return type(f"Locked{recording.__name__}", (recording,), {"__slots__": (), **{v: under_lock(v) for v in verbs}})


LOCKED: dict[str, type[Series]] = {
    "counter": _locked(CounterSeries, "add"),
    "updown": _locked(UpDownSeries, "add"),
    "gauge": _locked(GaugeSeries, "set"),
    "histogram": _locked(HistogramSeries, "record", "record_many"),
    "cells": _locked(CellSeries, "count", "record", "add"),
}
LOCK_FREE: dict[str, type[Series]] = {
    "counter": CounterSeries,
    "updown": UpDownSeries,
    "gauge": GaugeSeries,
    "histogram": HistogramSeries,
    "cells": CellSeries,
}


def is_atomic() -> bool:
    """Say whether this interpreter runs `cells[i] += value` without interruption."""
    return sys.implementation.name == "cpython" and getattr(sys, "_is_gil_enabled", lambda: True)()


RECORDING = LOCK_FREE if is_atomic() else LOCKED
