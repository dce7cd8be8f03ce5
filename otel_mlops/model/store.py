"""What a group's workers keep until a truth comes: predictions by their ids, truths that came first, and ids spent.

Measured, 100,000 predictions of a number take 8 to 10 MB, as many early truths 8 MB, and as many ids spent 6 MB.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable
from enum import Enum
from hashlib import blake2b
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias, TypeVar

from otel_mlops.model.database import Database, StoreError, Trouble
from otel_mlops.model.receipts import Answer, pack, unpack

if TYPE_CHECKING:
    from sqlite3 import Connection

T = TypeVar("T")
Dropped: TypeAlias = Literal["age", "number", "space", "again", "truth"]

_logger = logging.getLogger(__name__)

STORE_FILE = "answers.sqlite"
"""Of this schema; workers of two releases may meet, so another schema needs another name."""
_REST_S = 1.0
"""How long nobody is waited for after two calls in a row have waited in vain."""
_LOOKS_EVERY = 500
"""After so many rows this process looks whether there are too many."""
_QUIET_S = 60.0
"""A trouble is told again when there was none of its kind for so long."""
_AT_ONCE = 2000
"""Rows that one call removes at most, so that none takes long."""

# Rows are known by when they came, in microseconds and always rising: the oldest are at the beginning.
_SCHEMA = """
    CREATE TABLE predictions (at INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, answer BLOB NOT NULL);
    CREATE TABLE truths (at INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, truth BLOB NOT NULL);
    CREATE TABLE spent (at INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE);
"""
_FIND_PREDICTION = "SELECT at, answer FROM predictions WHERE id = ? AND at >= ?"
_FIND_TRUTH = "SELECT at, truth FROM truths WHERE id = ? AND at >= ?"
_FIND_SPENT = "SELECT at FROM spent WHERE id = ? AND at >= ?"
_ADD_PREDICTION = """
    INSERT OR IGNORE INTO predictions VALUES (max(?, ifnull((SELECT max(at) FROM predictions), 0) + 1), ?, ?)
"""
_ADD_TRUTH = """
    INSERT OR REPLACE INTO truths VALUES (max(?, ifnull((SELECT max(at) FROM truths), 0) + 1), ?, ?)
"""
_SPEND = """
    INSERT OR REPLACE INTO spent VALUES (max(?, ifnull((SELECT max(at) FROM spent), 0) + 1), ?)
"""


class Duplicate(Enum):
    """The answer for an id whose truth has come before."""

    DUPLICATE = "duplicate"


DUPLICATE: Final = Duplicate.DUPLICATE


class EarlyTruth(NamedTuple):
    """A truth that came before its prediction."""

    value: float | str
    time_s: float
    """When it came, by the wall clock."""


class Store:
    """Predictions that wait for their truth, and ids that are spent, for all workers of a group.

    At most about `max_rows` of each kind are kept (each worker lets 500 more in before it looks), for `max_age_s`
    and in a file of `max_bytes`, with half as much for its log; the oldest go first. `on_dropped` is told how many
    predictions went without a truth and why (`age`, `number`, `space`; `again` is one whose id was predicted again),
    and how many truths without a prediction (`truth`). Without a folder all of it lies in this process.

    Nothing waits longer than `timeout_s` for others. Ids are kept as digests of 16 bytes, so they may be of any
    length; whoever keeps several models apart puts their names into the ids.
    """

    def __init__(
        self,
        folder: Callable[[], Path | None] = lambda: None,
        *,
        max_rows: int = 100_000,
        max_age_s: float = 7 * 86_400.0,
        max_bytes: int = 32 * 1024 * 1024,
        timeout_s: float = 0.1,
        on_dropped: Callable[[Dropped, int], None] = lambda _reason, _count: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._database = Database(folder, STORE_FILE, _SCHEMA, timeout_s, max_bytes)
        self._max_rows = max_rows
        self._max_age_s = max_age_s
        self._on_dropped = on_dropped
        self._clock = clock
        self._looks_every = max(1, min(_LOOKS_EVERY, max_rows // 100))
        self._rows_until_look = 0
        self._was_busy = False
        self._rests_until = 0.0
        self._troubles: dict[Trouble, float] = {}
        """When each was last met."""

    def remember(self, id: str, answer: Answer) -> EarlyTruth | None:  # noqa: A002 (the caller's word)
        """Keep a prediction until its truth comes; if that has come before, it is returned, and both are done.

        An id that waits already is predicted again: the later answer is kept.

        Errors:  StoreError; TypeError, ValueError or OverflowError for an answer that cannot be packed.
        """
        return self.remember_many([(id, answer)])[0]

    def remember_many(self, predictions: Iterable[tuple[str, Answer]]) -> list[EarlyTruth | None]:
        """Keep several predictions, all of them or none, and return the truth that has come before for each.

        Others wait meanwhile: 1,000 are some 10 ms.

        Errors:  as of `remember`.
        """
        rows = [(_digest(id), pack(*answer[:4])) for id, answer in predictions]  # noqa: A001 (the caller's word)

        def work(connection: Connection, dropped: Counter[Dropped]) -> list[EarlyTruth | None]:
            now, oldest = self._now()
            found = []
            for digest, answer in rows:
                row = connection.execute(_FIND_TRUTH, (digest, oldest)).fetchone()
                if row is not None:
                    connection.execute("DELETE FROM truths WHERE at = ?", row[:1])
                    connection.execute(_SPEND, (now, digest))
                elif connection.execute(_ADD_PREDICTION, (now, digest, answer)).rowcount == 0:
                    dropped["again"] += 1
                    connection.execute("DELETE FROM predictions WHERE id = ?", (digest,))
                    connection.execute(_ADD_PREDICTION, (now, digest, answer))
                found.append(None if row is None else _read(row[1], ""))
            return [None if truth is None else EarlyTruth(truth.value, truth.time_s) for truth in found]

        return self._run(work, len(rows))

    def take(self, id: str) -> Answer | Duplicate | None:  # noqa: A002 (the caller's word)
        """Find a prediction and remove it: whoever asks at the same time, one gets it.

        DUPLICATE for an id that was taken before, as long as that is remembered; None for one that is not known.

        Errors:  StoreError.
        """
        digest = _digest(id)
        return self._run(lambda connection, _: self._take(connection, digest, id))

    def wait(self, id: str, truth: float | str) -> Answer | Duplicate | None:  # noqa: A002 (the caller's word)
        """Take the prediction if it is there by now; else keep its truth until it comes, and return None.

        DUPLICATE as well for an id that has a truth waiting, which stays.

        Errors:  StoreError; TypeError, ValueError or OverflowError for a truth that cannot be packed.
        """
        digest, packed = _digest(id), pack(truth, None, None, self._clock())

        def work(connection: Connection, _: Counter[Dropped]) -> Answer | Duplicate | None:
            found = self._take(connection, digest, id)
            if found is None:
                now, oldest = self._now()
                if connection.execute(_FIND_TRUTH, (digest, oldest)).fetchone() is not None:
                    return DUPLICATE
                connection.execute(_ADD_TRUTH, (now, digest, packed))
            return found

        return self._run(work)

    def redeem(self, receipt_id: str) -> bool:
        """Spend the id of a receipt; False if it was spent before, as long as that is remembered.

        Errors:  StoreError.
        """
        digest = _digest(receipt_id, b"receipt")

        def work(connection: Connection, _: Counter[Dropped]) -> bool:
            now, oldest = self._now()
            if connection.execute(_FIND_SPENT, (digest, oldest)).fetchone() is not None:
                return False
            connection.execute(_SPEND, (now, digest))
            return True

        return self._run(work)

    def waiting(self) -> int:
        """How many predictions wait for their truth.

        Errors:  StoreError.
        """
        return self._run(lambda connection, _: _count(connection, "predictions"), 0)

    def close(self) -> None:
        """Close the file; the next use opens it again."""
        self._database.close()

    def _take(self, connection: Connection, digest: bytes, id: str) -> Answer | Duplicate | None:  # noqa: A002
        now, oldest = self._now()
        row = connection.execute(_FIND_PREDICTION, (digest, oldest)).fetchone()
        if row is None:
            return DUPLICATE if connection.execute(_FIND_SPENT, (digest, oldest)).fetchone() else None
        connection.execute("DELETE FROM predictions WHERE at = ?", row[:1])
        connection.execute(_SPEND, (now, digest))
        return _read(row[1], id)

    def _now(self) -> tuple[int, int]:
        """Now, and when the oldest that counts came, in microseconds."""
        now_s = self._clock()
        return int(now_s * 1e6), int((now_s - self._max_age_s) * 1e6)

    # --- Carrying out ----------------------------------------------------------------------------------------

    def _run(self, work: Callable[[Connection, Counter[Dropped]], T], rows: int = 1) -> T:
        """Carry out some work, and tell what was dropped once that is certain."""
        if time.monotonic() < self._rests_until:
            raise StoreError("busy", "others have just had it too long")
        try:
            try:
                result = self._once(work, rows)
            except StoreError as error:
                if error.reason != "full":
                    raise
                self._once(self._make_room, 0)
                result = self._once(work, rows)
        except StoreError as error:
            self._note(error)
            raise
        self._was_busy = False
        return result

    def _once(self, work: Callable[[Connection, Counter[Dropped]], T], rows: int) -> T:
        dropped: Counter[Dropped] = Counter()
        rows_until_look = self._rows_until_look - rows

        def all_of_it(connection: Connection) -> T:
            nonlocal rows_until_look
            dropped.clear()  # it may be the second try
            result = work(connection, dropped)
            if rows and rows_until_look < 0:
                rows_until_look = 0 if self._prune(connection, dropped) else self._looks_every - 1
            return result

        result = self._database.run(all_of_it)
        self._rows_until_look = rows_until_look
        for reason, count in dropped.items():
            self._on_dropped(reason, count)
        return result

    def _note(self, error: StoreError) -> None:
        """Tell of a trouble when it begins; that others are busy passes.

        A call that succeeds does not end it: on a full file system one that has nothing to write does.
        """
        if error.reason == "busy":
            # Who was stopped in the middle of it would hold up every call of an event loop, each as long as it may.
            self._rests_until = time.monotonic() + _REST_S if self._was_busy else 0.0
            self._was_busy = True
            return
        now_s = self._clock()
        if not abs(now_s - self._troubles.get(error.reason, -inf)) < _QUIET_S:
            _logger.warning("predictions cannot be kept for their truth now, and each call tries again: %s", error)
        self._troubles[error.reason] = now_s

    # --- Bounds ----------------------------------------------------------------------------------------------

    def _prune(self, connection: Connection, dropped: Counter[Dropped]) -> bool:
        """Remove what is too old or too much, and say whether more than this is left to do."""
        _, oldest = self._now()
        removed = 0
        for table, why_old, why_many in _TABLES:
            old = connection.execute(_OLDEST.format(table, "WHERE at < ?"), (oldest, _AT_ONCE)).fetchone()
            many = min(_AT_ONCE, _count(connection, table) - old[0] - self._max_rows)
            removed = max(removed, old[0], many)
            _remove(connection, table, old, dropped, why_old)
            if many > 0:
                excess = connection.execute(_OLDEST.format(table, ""), (many,)).fetchone()
                _remove(connection, table, excess, dropped, why_many)
        return removed >= _AT_ONCE

    def _make_room(self, connection: Connection, dropped: Counter[Dropped]) -> None:
        """Remove the oldest of what there is most of."""
        table, _, why = max(_TABLES, key=lambda each: _count(connection, each[0]))
        oldest = connection.execute(_OLDEST.format(table, ""), (self._looks_every,)).fetchone()
        _remove(connection, table, oldest, dropped, "space" if why == "number" else why)


_TABLES: tuple[tuple[str, Dropped | None, Dropped | None], ...] = (
    ("predictions", "age", "number"),
    ("truths", "truth", "truth"),
    ("spent", None, None),
)
_OLDEST = "SELECT count(*), max(at) FROM (SELECT at FROM {0} {1} ORDER BY at LIMIT ?)"


def _remove(
    connection: Connection, table: str, rows: tuple[int, int], dropped: Counter[Dropped], why: Dropped | None
) -> None:
    """Remove the first so many rows, the last of which came at the given time."""
    count, last = rows
    if count:
        connection.execute(f"DELETE FROM {table} WHERE at <= ?", (last,))  # noqa: S608 (one of ours)
        if why is not None:
            dropped[why] += count


def _count(connection: Connection, table: str) -> int:
    count: int = connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]  # noqa: S608 (one of ours)
    return count


def _read(packed: object, id: str) -> Answer:  # noqa: A002 (the field's name)
    """What a row says; of a row that cannot be read the file is damaged."""
    import sqlite3

    try:
        return unpack(bytes(packed), id)  # type: ignore[call-overload]
    except (TypeError, ValueError) as error:
        damage = sqlite3.DatabaseError(f"a row is damaged: {error}")
        damage.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
        raise damage from error


def _digest(id: str, kind: bytes = b"id") -> bytes:  # noqa: A002 (the caller's word)
    return blake2b(id.encode("utf-8", "surrogatepass"), digest_size=16, person=kind).digest()
