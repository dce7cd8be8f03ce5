"""Cell samples and their diagnoses in SQLite; every statement is a database operation on the page."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from otel_mlops import Telemetry

FEATURES = ("radius", "texture", "smoothness", "compactness", "concavity", "symmetry")


class Samples:
    """The tables `samples` and `diagnoses`. A connection for each operation: threads share nothing."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry
        self._path = Path()

    def create(self, path: Path, rows: Iterable[Sequence[float | None]]) -> None:
        """Make the database in a file, with a sample for each row, numbered from 1."""
        self._path = path
        columns = ", ".join(f"{feature} REAL" for feature in FEATURES)
        places = ", ".join("?" * len(FEATURES))
        with self._operation("create", "samples") as database:
            database.execute("PRAGMA journal_mode = WAL")  # readers do not wait for the writer
            database.execute(f"CREATE TABLE samples (id INTEGER PRIMARY KEY, {columns})")
            database.execute("CREATE TABLE diagnoses (id INTEGER PRIMARY KEY, malignant REAL, model_version TEXT)")
            database.executemany(
                f"INSERT INTO samples ({', '.join(FEATURES)}) VALUES ({places})",  # noqa: S608 (our names)
                rows,
            )

    def find(self, sample_id: int) -> list[float | None] | None:
        """The measurements of a sample, None for each that is missing; None if there is no such sample."""
        with self._operation("select", "samples") as database:
            query = f"SELECT {', '.join(FEATURES)} FROM samples WHERE id = ?"  # noqa: S608 (our names)
            row = database.execute(query, (sample_id,)).fetchone()
        return None if row is None else list(row)

    def keep(self, diagnoses: Iterable[float], model_version: str) -> None:
        """Write down what a model said."""
        with self._operation("insert", "diagnoses") as database:
            database.executemany(
                "INSERT INTO diagnoses (malignant, model_version) VALUES (?, ?)",
                [(malignant, model_version) for malignant in diagnoses],
            )

    def prune(self, keep: int) -> None:
        """Delete all but the newest diagnoses."""
        with self._operation("delete", "diagnoses") as database:
            database.execute("DELETE FROM diagnoses WHERE id <= (SELECT max(id) FROM diagnoses) - ?", (keep,))

    @contextmanager
    def _operation(self, operation: str, table: str) -> Iterator[sqlite3.Connection]:
        """A connection for one operation, which is counted, timed, and committed unless it raises."""
        with (
            self._telemetry.database_operation(operation, table),
            closing(sqlite3.connect(self._path)) as database,
            database,
        ):
            yield database
