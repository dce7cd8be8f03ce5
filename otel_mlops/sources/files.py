"""The small text files in which Linux tells about itself: how they are read, and nothing about what they say."""

from __future__ import annotations

import errno
from pathlib import Path

_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.EOPNOTSUPP)
"""The last is what a kernel says whose accounting was switched off at its start."""


def text_of(path: Path) -> str | None:
    """Return what a file says, or None where the kernel has no such file.

    What is not UTF-8 in it, names and paths, is kept as it is in the names of files.
    """
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape").strip()
    except OSError as error:
        if error.errno in _NOT_THERE:
            return None
        raise


def lines_of(path: Path) -> list[str]:
    """Return the lines of a file; none where there is no such file."""
    # Not splitlines(): it takes more for the end of a line than the kernel does, and names may hold it.
    return [line for line in (text_of(path) or "").split("\n") if line]


def pairs_of(path: Path) -> dict[str, str]:
    """Return the lines `key value` of a file by their keys; nothing where there is no such file."""
    pairs = (line.partition(" ") for line in lines_of(path))
    return {key: value.strip() for key, _, value in pairs}
