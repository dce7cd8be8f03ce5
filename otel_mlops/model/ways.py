"""The ways by which a late truth finds its prediction: the keys of the receipts, and the store of the ids."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from otel_mlops.metrics import DROPPED

if TYPE_CHECKING:
    from otel_mlops.model.keys import Keys
    from otel_mlops.model.store import Store
    from otel_mlops.sdk.provider import MeterProvider

MAX_AGE_S = 30 * 86_400.0
"""How old a prediction may be when its truth comes, by receipt or by id."""


class Ways:
    """What all models of a process share to find predictions by; made when the first of them needs it.

    `folder` is that of the group, None as long as this process has not joined it: then all is this process' own.
    """

    def __init__(
        self,
        instruments: MeterProvider,
        receipt_key: str | None = None,
        folder: Callable[[], Path | None] = lambda: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.clock = clock
        self._instruments = instruments
        self._receipt_key = receipt_key
        self._folder = folder
        self._keys: Keys | None = None
        self._store: Store | None = None
        self._lock = threading.Lock()

    def keys(self) -> Keys:
        """What receipts are signed with."""
        from otel_mlops.model.keys import Keys

        with self._lock:
            if self._keys is None:
                self._keys = Keys(self._receipt_key, self._folder)
            return self._keys

    def store(self) -> Store:
        """Predictions that wait for their truth by an id, and receipts that were handed in."""
        from otel_mlops.model.store import Store

        with self._lock:
            if self._store is None:
                self._store = Store(self._folder, max_age_s=MAX_AGE_S, on_dropped=self._drop, clock=self.clock)
            return self._store

    def close(self) -> None:
        """Let go of the store's file, if it was opened."""
        if self._store is not None:
            self._store.close()

    def after_fork(self) -> None:
        """In a forked child: a lock that nobody holds."""
        self._lock = threading.Lock()

    def _drop(self, reason: str, count: int) -> None:
        # One whose id was predicted again has not waited in vain; a truth that waited for its prediction is unmatched.
        if reason in ("age", "number", "space"):
            self._instruments.instrument(DROPPED).add(count, {"reason": "truth"})
