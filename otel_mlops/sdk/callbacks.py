"""Callbacks of observable instruments, made safe: what fails is said once, and nothing else is lost."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Generator, Iterable
from typing import Any

from opentelemetry.metrics import CallbackOptions, Observation

_logger = logging.getLogger(__name__)


class Guarded:
    """A callback whose failures are logged once per change of state and counted; a plain callable to the SDK.

    What it said before it failed is kept. Values that are no finite numbers are left out: there is no such
    thing as an observation of NaN.
    """

    def __init__(self, callback: Any, instrument: str, on_dropped: Callable[[str], None]) -> None:
        self.callback = callback
        self._instrument = instrument
        self._on_dropped = on_dropped
        self._failing = False
        self._told = False
        if isinstance(callback, Generator):
            next(callback)  # a generator is sent its options, which needs it to have begun

    def __call__(self, options: CallbackOptions) -> Iterable[Observation]:
        observations: list[Observation] = []
        try:
            for observation in self._call(options):
                observations += self._fit(observation)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            # SystemExit or CancelledError of a callback must not end the thread that serves the page.
            self._on_dropped("callback")
            if not self._failing:
                _logger.warning("callback of %s failed: %r; said once until it works again", self._instrument, error)
            self._failing = True
        else:
            if self._failing:
                _logger.info("callback of %s works again", self._instrument)
            self._failing = False
        return observations

    def _fit(self, observation: Observation) -> list[Observation]:
        """The observation with a number that the SDK can count with, or nothing."""
        value: Any = observation.value
        try:
            number = float(value)
        except Exception:
            number = None
        if number is not None and math.isfinite(number):
            plain = type(value) in (int, float)
            return [observation if plain else Observation(number, observation.attributes, observation.context)]
        self._on_dropped("type" if number is None else "not_finite")
        if not self._told:
            self._told = True
            _logger.warning("callback of %s gave a %s that is no finite number", self._instrument, type(value).__name__)
        return []

    def _call(self, options: CallbackOptions) -> Iterable[Observation]:
        if isinstance(self.callback, Generator):
            try:
                return self.callback.send(options) or ()
            except StopIteration:
                return ()
        return self.callback(options) or ()
