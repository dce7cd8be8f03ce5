"""Where the workers of one user keep their ledgers: the folder, its checks, and the sweeping of the dead."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

from otel_mlops.sdk.ledger import is_alive

_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  (its folder in there is checked for owner, mode and links)
_ABANDONED_AFTER_S = 60.0


def open_folder(state_dir: Path | None = None) -> Path:
    """Make and check the folder of this user's ledgers, and remove what dead workers left in it.

    Errors: OSError if the folder cannot be made, belongs to somebody else, or is a link.
    """
    user = os.getuid()
    folder = _root(state_dir) / f"otel_mlops-{user}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != user or status.st_mode & 0o077:
        msg = f"{folder} must be a directory of user {user} that nobody else can open"
        raise PermissionError(msg)
    _sweep(folder)
    return folder


def _root(state_dir: Path | None) -> Path:
    if state_dir is not None:
        state_dir.mkdir(parents=True, exist_ok=True)
        return state_dir
    if _SHARED_MEMORY.is_dir() and os.access(_SHARED_MEMORY, os.W_OK | os.X_OK):
        return _SHARED_MEMORY
    import tempfile

    return Path(tempfile.gettempdir())


def _sweep(folder: Path) -> None:
    """Remove the files of the dead: a ledger has its name only once it is locked, so unlocked means dead."""
    for path in folder.iterdir():
        if path.suffix == ".ledger":
            dead = not is_alive(path)
        else:
            # A worker that was killed before it had locked its file; a living one is done within moments.
            dead = path.suffix == ".new" and _age_s(path) > _ABANDONED_AFTER_S
        if dead:
            path.unlink(missing_ok=True)


def _age_s(path: Path) -> float:
    try:
        return time.time() - path.lstat().st_mtime
    except FileNotFoundError:
        return 0.0  # its worker has given it its name meanwhile
