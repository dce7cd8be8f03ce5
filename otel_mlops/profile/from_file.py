"""A profile of a file: CSV with the standard library, Parquet with polars or pyarrow; piece by piece."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

from . import Profile
from .columns import check_names

_CELLS = 500_000
"""How many values are read at a time."""

_NO_VALUE = {"", "na", "nan", "null"}

Pieces = Callable[[], Iterator[Mapping[str, Any]]]
"""Goes over the data from its beginning; each piece is a mapping of columns."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Which column of a file is what; all others are features."""

    prediction: str | None = None
    truth: str | None = None
    score: str | None = None
    time: str | None = None
    drop: Sequence[str] = ()


def profile_of(
    path: str | os.PathLike[str],
    plan: Plan = Plan(),
    *,
    block: str | float = "day",
    find: Callable[[str], object] = find_spec,
    **options: Any,
) -> Profile:
    """Return the profile of a CSV or Parquet file; `options` are those of Profile.fit, `find` says what is installed.

    A file with a time is read twice, and a CSV once more to see which columns are numbers.

    Errors:  ValueError for what is wrong in the file, naming it; OSError where it cannot be read.
    """
    path = Path(path)
    try:
        if path.suffix.lower() in (".parquet", ".pq"):
            names, pieces = _parquet(path, find)
        else:
            names, pieces = _csv(path, set(options.get("categorical", ())))
        return _fitted(names, pieces, plan, block, options)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _fitted(names: Sequence[str], pieces: Pieces, plan: Plan, block: str | float, options: Any) -> Profile:
    special = [name for name in (plan.prediction, plan.truth, plan.score, plan.time, *plan.drop) if name]
    for name in special:
        if name not in names:
            raise ValueError(f"there is no column {name!r}; there are {', '.join(names):.200}")
    features = [name for name in names if name not in special]
    check_names(features)
    fitting = Profile.begin(**options, names=features)
    beside = [plan.prediction, plan.truth, plan.score]
    for piece in pieces():
        fitting.update(piece, *[piece[name] if name else None for name in beside])
    profile = fitting.finish()
    if plan.time is None:
        return profile
    blocks = profile.blocks(block)
    for piece in pieces():
        blocks.update(piece, piece[plan.time], piece[plan.prediction] if plan.prediction else None)
    return blocks.finish()


def _csv(path: Path, texts: set[str]) -> tuple[list[str], Pieces]:
    """The columns of a CSV. One is of numbers if all its cells are, but for the empty ones."""
    names, _ = _opened(path)
    if len(set(names)) < len(names):
        raise ValueError("two columns have the same name")
    numbers = set(names) - texts

    def columns() -> Iterator[Mapping[str, tuple[str, ...]]]:
        _, rows = _opened(path)
        while piece := list(islice(rows, max(1, _CELLS // len(names)))):
            yield dict(zip(names, zip(*piece, strict=True), strict=True))

    for piece in columns():
        numbers = {name for name in numbers if _numbers(piece[name]) is not None}

    def pieces() -> Iterator[Mapping[str, Any]]:
        for piece in columns():
            yield {name: _numbers(cells) if name in numbers else _texts(cells) for name, cells in piece.items()}

    return names, pieces


def _opened(path: Path) -> tuple[list[str], Iterator[list[str]]]:
    """The names and the rows of a CSV that is separated by commas, semicolons or tabs."""

    def lines() -> Iterator[list[str]]:
        with path.open(newline="", encoding="utf-8-sig") as file:
            head = file.readline()
            file.seek(0)
            reader = csv.reader(file, delimiter=max(",;\t", key=head.count), strict=True)
            width = None
            try:
                for cells in reader:
                    width = width or len(cells)
                    if cells and len(cells) != width:
                        raise ValueError(f"line {reader.line_num} has {len(cells)} cells, not {width}")
                    if cells:
                        yield cells
            except csv.Error as error:
                raise ValueError(f"line {reader.line_num}: {error}") from None

    rows = lines()
    names = next(rows, None)
    if names is None:
        raise ValueError("there is no line with the names of the columns")
    return names, rows


def _texts(cells: Sequence[str]) -> list[str | None]:
    return [None if _is_none(cell) else cell for cell in cells]


def _numbers(cells: Sequence[str]) -> list[float | None] | None:
    """The cells as numbers; None where some are none."""
    if "_" in "".join(cells):
        return None  # Python reads 1_000 as a number; nobody else does
    try:
        return list(map(float, cells))
    except ValueError:
        texts = _texts(cells)
    try:
        return [None if text is None else float(text) for text in texts]
    except ValueError:
        return None


def _is_none(cell: str) -> bool:
    return cell.strip().lower() in _NO_VALUE


def _parquet(path: Path, find: Callable[[str], object]) -> tuple[list[str], Pieces]:
    """The columns of a Parquet file, through whichever library is installed."""
    if find("polars"):
        return _through_polars(path)
    if find("pyarrow"):
        return _through_pyarrow(path)
    raise ValueError("reading Parquet needs polars or pyarrow: pip install 'otel-mlops[parquet]'")


def _through_polars(path: Path) -> tuple[list[str], Pieces]:
    polars = import_module("polars")
    try:
        frame = polars.scan_parquet(path)
        names = list(frame.collect_schema().names())
        rows = frame.select(polars.len()).collect().item()
    except polars.exceptions.PolarsError as error:
        raise ValueError(f"expected Parquet: {error}") from None

    def pieces() -> Iterator[Mapping[str, Any]]:
        size = max(1, _CELLS // len(names))
        for part in range(math.ceil(rows / size)):
            piece = frame.slice(part * size, size).collect()
            yield {name: piece[name] for name in names}

    return names, pieces


def _through_pyarrow(path: Path) -> tuple[list[str], Pieces]:
    parquet = import_module("pyarrow.parquet")
    try:
        names = list(parquet.read_schema(path).names)
    except (OSError, ValueError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(f"expected Parquet: {error}") from None

    def pieces() -> Iterator[Mapping[str, Any]]:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=max(1, _CELLS // len(names))):
                yield {name: batch.column(name).to_pylist() for name in names}

    return names, pieces
