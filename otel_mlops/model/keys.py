"""The keys that receipts are signed with: those that were given, or a random one that a group's workers share."""

from __future__ import annotations

import logging
import os
import secrets
import stat
import time
from collections.abc import Callable
from hashlib import blake2b
from math import inf
from pathlib import Path

_logger = logging.getLogger(__name__)

VARIABLE = "OTEL_MLOPS_RECEIPT_KEY"
SHORTEST_KEY = 16
"""In characters."""
KEY_FILE = "receipt.key"
_KEY_BYTES = 32
_LOOKS_EVERY_S = 1.0
_MOST_KEYS = 4
"""The shared one, and what it was before the folder was made anew."""


class Keys:
    """The keys of receipts: the first signs, all of them are good for reading.

    `given` is what was set: one text, or several with commas between them, the newest first. Without it a random
    key lies in a file of the group's folder. The first to need it makes it, all workers have the same, and whoever
    finds it gone puts it back. Without a folder, or where nothing can be written, the key is this process' own.

    Errors:  ValueError for a text of fewer than 16 characters, which it does not show.
    """

    def __init__(
        self,
        given: str | None,
        folder: Callable[[], Path | None] = lambda: None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._monotonic = monotonic
        self._told: set[str] = set()
        self._misses = 0
        # Made now, not when it is needed: the children of a master that forks then have the same one.
        self._keys = (secrets.token_bytes(_KEY_BYTES),) if given is None else keys_from(given)
        self._next_look_s = -inf if given is None else inf

    def current(self) -> tuple[bytes, ...]:
        """The keys there are, the one that signs first; the file is looked at once a second."""
        if self._monotonic() >= self._next_look_s:
            self.look()
        return self._keys

    def look(self) -> bool:
        """Look at the file now, and say whether its key is another than it was."""
        if self._next_look_s == inf:
            return False
        self._next_look_s = self._monotonic() + _LOOKS_EVERY_S
        own = self._keys[0]
        try:
            folder = self._folder()
            if folder is None:
                raise FileNotFoundError("there is no folder")
            shared = self._shared(folder / KEY_FILE, own)
        except OSError as error:
            self._misses += 1
            # A folder that is not there yet comes when its worker joins, which is about now.
            if self._misses > 1 or not isinstance(error, FileNotFoundError):
                self._tell_once("of this process, which no other worker knows", str(error))
            return False
        self._misses = 0
        # The file's wins; what this process has signed before stays readable for it.
        self._keys = (shared, *[key for key in self._keys if key != shared])[:_MOST_KEYS]
        return shared != own

    def _shared(self, path: Path, own: bytes) -> bytes:
        """The key in the file, which is our own if there was none.

        Errors:  OSError.
        """
        try:
            return read_key(path)
        except FileNotFoundError:
            if not _put(path, own):
                return read_key(path)  # another worker was faster
        self._tell_once("in the group's folder, with which it is lost", str(path))
        return own

    def _tell_once(self, where: str, why: str) -> None:
        if where not in self._told:
            self._told.add(where)
            _logger.warning(
                "receipts are signed with a random key %s (%s): set %s, to a text of at least %d characters, for "
                "receipts that outlive it or go to other machines",
                where,
                why,
                VARIABLE,
                SHORTEST_KEY,
            )


def keys_from(given: str) -> tuple[bytes, ...]:
    """The keys that a setting stands for.

    Errors:  ValueError for a text of fewer than 16 characters, which it does not show.
    """
    texts = [text.strip() for text in given.split(",")]
    if any(len(text) < SHORTEST_KEY for text in texts):
        raise ValueError(
            f"the receipt key is too short, expected a text of at least {SHORTEST_KEY} characters, or several with "
            "commas between them"
        )
    return tuple(
        blake2b(text.encode("utf-8", "surrogatepass"), digest_size=_KEY_BYTES, person=b"receipt key").digest()
        for text in texts
    )


def read_key(path: Path) -> bytes:
    """The key in a file, if nobody else can have read or written it.

    Errors:  OSError.
    """
    # Without waiting: what lies there may be a pipe.
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        status, user = os.fstat(file), os.getuid()
        if not stat.S_ISREG(status.st_mode) or status.st_uid != user or status.st_mode & 0o077:
            raise PermissionError(f"{path} must be a file of user {user} that nobody else can open")
        key = os.read(file, _KEY_BYTES + 1)
    finally:
        os.close(file)
    if len(key) != _KEY_BYTES:
        raise OSError(f"{path} holds no key: it has another length")
    return key


def _put(path: Path, key: bytes) -> bool:
    """Put a key under its name, whole or not at all; False if there is one by now.

    Errors:  OSError.
    """
    # The name of what is not finished, which the group's first worker clears away.
    hidden = path.with_name(f"receipt-{secrets.token_hex(8)}.new")
    file = os.open(hidden, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(file, "wb") as out:
            out.write(key)
        os.link(hidden, path)
    except FileExistsError:
        return False
    finally:
        hidden.unlink(missing_ok=True)
    return True
