"""One rendering of the page for all who ask for it at a time, compressed once."""

from __future__ import annotations

import gzip
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from otel_mlops.sdk.page import Page

PATIENCE_S = 10.0
"""How long a request waits for a rendering that others began, or that must end before its own begins."""


class SharedPage:
    """A page for several requests."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self._lock = threading.Lock()
        self._gzip: bytes | None = None

    def compressed(self) -> bytes:
        """The page's body, compressed; the first who asks does it for all."""
        with self._lock:
            if self._gzip is None:
                # Level 1: the higher ones cost several times the page itself and save a tenth.
                self._gzip = gzip.compress(self.page.body, compresslevel=1, mtime=0)
            return self._gzip


class _Rendering:
    """A rendering that is going to be, or has been."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.shared: SharedPage | None = None


class Renderings:
    """Makes pages so that those who ask at the same time share one.

    What was recorded before a request must be on its page. So a request shares only a rendering that begins after
    it has come: who comes in the middle of one shares the next.
    """

    def __init__(self, make: Callable[[str | None], Page | None]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._running: dict[str, _Rendering] = {}
        self._next: dict[str, _Rendering] = {}

    def share(self, content_type: str, accept: str | None) -> SharedPage | None:
        """The page in a format; None if it cannot be made, or not in time. What fails fails for all who share it."""
        until_s = time.monotonic() + PATIENCE_S
        with self._lock:
            mine = self._next.get(content_type)
            begins_it = mine is None
            if mine is None:
                mine = self._next[content_type] = _Rendering()
            running = self._running.get(content_type)
        if not begins_it:
            mine.done.wait(max(0.0, until_s - time.monotonic()))
            return mine.shared
        try:
            if running is None or running.done.wait(max(0.0, until_s - time.monotonic())):
                self._render(content_type, accept, mine)
        finally:
            with self._lock:
                if self._next.get(content_type) is mine:
                    del self._next[content_type]
            mine.done.set()
        return mine.shared

    def _render(self, content_type: str, accept: str | None, mine: _Rendering) -> None:
        with self._lock:
            # Who comes from here on shares the next.
            del self._next[content_type]
            self._running[content_type] = mine
        try:
            page = self._make(accept)
            mine.shared = None if page is None else SharedPage(page)
        finally:
            with self._lock:
                del self._running[content_type]
