"""A source that is read in parts: one that fails leaves the others whole, and is logged once until it is back."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping

from otel_mlops.sources.sampler import Sample

logger = logging.getLogger(__name__)


class Parts:
    """The parts of a source by name; `owner` is whose they are."""

    def __init__(self, owner: str, parts: Mapping[str, Callable[[], Iterable[Sample]]]) -> None:
        self._owner = owner
        self._parts = dict(parts)
        self._failing: set[str] = set()

    def read(self) -> list[Sample]:
        """Read every part.

        Errors:  what the first part raised, if nothing at all could be read.
        """
        samples: list[Sample] = []
        faults: list[Exception] = []
        for part, read in self._parts.items():
            try:
                samples.extend([_plausible(sample) for sample in read()])
            except Exception as error:
                faults.append(error)
                if part not in self._failing:
                    self._failing.add(part)
                    logger.warning("The %s's %s cannot be read: %r", self._owner, part, error)
            else:
                self._failing.discard(part)
        if faults and not samples:
            raise faults[0]
        return samples


def _plausible(sample: Sample) -> Sample:
    """Let a sample pass whose value can be: a finite number, below 0 for a temperature only."""
    row, value, _ = sample
    if not math.isfinite(value) or (value < 0 and row.unit != "Cel"):
        raise ValueError(f"{row.name} is {value!r}, expected a finite number from 0 on")
    return sample
