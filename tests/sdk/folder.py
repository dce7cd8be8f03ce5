"""The simplest home of a ledger, for tests of the ledger alone; the workers of a service meet in a Group."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from pathlib import Path

from otel_mlops.sdk.files import create


class Folder:
    """A folder of ledgers that know nothing of one another."""

    def __init__(self, folder: Callable[[], Path]) -> None:
        self._folder = folder

    def join(self, length: int) -> tuple[Path, int]:
        """Make a file in the folder."""
        return create(self._folder(), uuid.uuid4().hex, length)

    def leave(self, path: Path, lock_file: int, on_stay: Callable[[], None]) -> None:
        """Remove it."""
        path.unlink(missing_ok=True)
        os.close(lock_file)
