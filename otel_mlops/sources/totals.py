"""What is made of totals that only grow: how fast one grows, and one sum of many that come and go."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

SHORTEST_WINDOW_S = 0.1
"""In less the kernel's own steps show: it counts much in ticks of 1 to 10 ms."""


class Rate:
    """How fast a total grows between two readings of it, per second of `clock`."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._last: tuple[float, float] | None = None
        self._rate: float | None = None

    def of(self, total: float) -> float | None:
        """Take the total of now; a window too short gives the last rate, the first reading None.

        A total that begins anew grows by 0 in that window.
        """
        now = self._clock()
        if self._last is None:
            self._last = total, now
            return None
        last_total, last_at = self._last
        if now - last_at >= SHORTEST_WINDOW_S:
            self._rate = max(0.0, (total - last_total) / (now - last_at))
            self._last = total, now
        return self._rate


class Sum:
    """One total of many devices, each of which counts from 0 when it comes.

    It never steps back. The plain sum does when a device goes, or begins anew, and Prometheus takes a step back for
    a restart: it would count all that remains a second time.
    """

    def __init__(self) -> None:
        self._counts: dict[str, float] = {}
        self._total = 0.0

    def of(self, counts: Mapping[str, float]) -> float:
        """Take what each device counts now; at the first reading the total is their sum.

        Errors:  ValueError if a count is not a finite number from 0 on; the total then stays.

        >>> total = Sum()
        >>> total.of({"sda": 10, "sdb": 5}), total.of({"sda": 12}), total.of({"sda": 12, "sdb": 1})
        (15.0, 17.0, 18.0)
        """
        for device, count in counts.items():
            if not 0 <= count < math.inf:
                raise ValueError(f"{device} counts {count!r}, expected a finite number from 0 on")
        for device, count in counts.items():
            last = self._counts.get(device, 0)
            self._total += count - last if count >= last else count
        self._counts = dict(counts)
        return self._total
