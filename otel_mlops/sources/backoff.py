"""When a driver that failed is tried again; nothing is tried here."""

from __future__ import annotations

from collections.abc import Callable

_SHORTEST_S, _LONGEST_S = 1.0, 60.0


class Backoff:
    """When something that failed is tried again: after 1 s, then twice as long each time, at most 60 s."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._wait_s = _SHORTEST_S
        self._due_at: float | None = None
        self.failures = 0
        """How often it has failed since it last worked."""

    def fail(self) -> None:
        """Note a failure and wait."""
        self.failures += 1
        self._due_at = self._clock() + self._wait_s
        self._wait_s = min(_LONGEST_S, 2 * self._wait_s)

    def reset(self) -> None:
        """Note that it works: the next failure is the first."""
        self._wait_s, self._due_at, self.failures = _SHORTEST_S, None, 0

    @property
    def is_over(self) -> bool:
        """Whether it is time to try."""
        return self._due_at is None or self._clock() >= self._due_at
