"""The format of a ledger's file: how a record is written, and how a file is read; nothing here opens one.

The file is a row of segments; a segment is a header and records, one after the other; a record is a header, a
description (JSON) and its cells (float64). The header carries a checksum of the description: whoever reads
stops at the first record that does not check, so a worker killed in the middle of a registration leaves
nothing half-read.
"""

from __future__ import annotations

import base64
import json
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

MAGIC = b"OMLEDG05"

STREAM, SERIES, EXEMPLARS, NAMES = 1, 2, 3, 4
"""What a record describes: a metric, a series of it, its exemplars, or the ledgers folded into the retired."""

CELL_BYTES = 8
SEGMENT_HEADER = struct.Struct("<8sQ")
"""What it is, and its bytes."""
ABOUT = slice(16, 80)
"""Behind it, in a file's first segment, the cells about the ledger itself."""
ABOUT_BYTES = ABOUT.stop - ABOUT.start
BEGIN = ABOUT.stop
"""Where the records of a segment begin."""
GENERATION, FORGETS, STARTED, LEADS, ZEROED, PID, PID_NAMESPACE = 0, 1, 2, 3, 4, 5, 6
"""Of those cells: how often a record has come or gone, the last `forget` of the group that was followed, whether
the worker has started (a master that only imports the application has not), whether it leads, the last `forget`
that another worker has carried out here, by setting cells to zero, and which process the worker is, in which
namespace of pids."""

_HEADER = struct.Struct("<IIIHBx")  # checksum, bytes of description, cells, kind, whether it is forgotten
_FORGOTTEN_AT = 14
_STEP = 32


class Record(NamedTuple):
    """One record as read from a whole file."""

    kind: int
    description: Any
    cells: list[float]


class Found(NamedTuple):
    """One record where it stands in a segment; `first` is where its cells begin."""

    offset: int
    end: int
    first: int
    kind: int
    cells: int
    checksum: int
    forgotten: bool


def encode(description: Any) -> bytes:
    """A description as it is written, padded so that another of about that length can take its place."""
    text = json.dumps(description, default=_encode, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % _STEP)


def size_of(text: bytes, cells: int) -> int:
    """The bytes that a record takes."""
    return _HEADER.size + len(text) + cells * CELL_BYTES


def write(segment: memoryview, offset: int, kind: int, text: bytes, values: Sequence[float]) -> memoryview[float]:
    """Write a record and return its cells; its header comes last, so nobody reads one that is not whole."""
    start = offset + _HEADER.size
    first, end = start + len(text), offset + size_of(text, len(values))
    segment[start:first] = text
    cells = segment[first:end].cast("d")
    cells[:] = memoryview(struct.pack(f"={len(values)}d", *values)).cast("d")
    header = _HEADER.pack(_checksum(text, len(values), kind), len(text), len(values), kind, 1)
    segment[offset : offset + _HEADER.size] = header
    # One byte makes it a record: half a header over a forgotten one's would hide the records behind it.
    segment[offset + _FORGOTTEN_AT] = 0
    return cells


def forget(segment: memoryview, offset: int) -> bool:
    """Mark a record as gone, and say whether it was not so before."""
    at = offset + _FORGOTTEN_AT
    # No call stands between the two: a signal handler that forgets the same record must not do so as well.
    if segment[at]:
        return False
    # One byte, so that whoever reads just now finds a whole record or none, and those behind it.
    segment[at] = 1
    return True


def scan(segment: memoryview, offset: int) -> Iterator[Found]:
    """The records of a segment from an offset on, forgotten ones too, up to the first that is not whole."""
    while offset + _HEADER.size <= len(segment):
        checksum, size, cells, kind, forgotten = _HEADER.unpack_from(segment, offset)
        first = offset + _HEADER.size + size
        end = first + cells * CELL_BYTES
        if not checksum or end > len(segment):
            return
        record = Found(offset, end, first, kind, cells, checksum, bool(forgotten))
        if not forgotten and checksum != _checksum(bytes(segment[offset + _HEADER.size : first]), cells, kind):
            return
        yield record
        offset = end


def describe(segment: memoryview, record: Found) -> Any:
    """The description of a record."""
    return json.loads(bytes(segment[record.offset + _HEADER.size : record.first]), object_hook=_decode)


def cells_of(segment: memoryview, record: Found) -> memoryview[float]:
    """The cells of a record."""
    return segment[record.first : record.end].cast("d")


def segments(content: memoryview) -> Iterator[memoryview]:
    """The segments of a file's content, up to the first that is none."""
    begin = 0
    while begin + BEGIN <= len(content):
        magic, length = SEGMENT_HEADER.unpack_from(content, begin)
        if magic != MAGIC or length < BEGIN or length % CELL_BYTES:
            return
        yield content[begin : begin + length]
        begin += length


def read_ledger(path: Path) -> list[Record]:
    """Read the records of a ledger's file, its worker alive or dead, up to the first bad one.

    Errors: ValueError if the file is no ledger of this format.
    """
    content = memoryview(path.read_bytes())
    if bytes(content[: len(MAGIC)]) != MAGIC:
        msg = f"{path} is no ledger of format {MAGIC.decode()}: it begins with {bytes(content[:8])!r}"
        raise ValueError(msg)
    return [
        Record(found.kind, describe(segment, found), [*cells_of(segment, found)])
        for segment in segments(content)
        for found in scan(segment, BEGIN)
        if not found.forgotten
    ]


def _checksum(text: bytes, cells: int, kind: int) -> int:
    # Never 0: zero is what unused space reads as.
    return zlib.crc32(text, zlib.crc32(struct.pack("<II", cells, kind))) | 1 << 31


def _encode(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"__bytes__": base64.b64encode(value).decode()}
    return str(value)


def _decode(value: dict[str, Any]) -> Any:
    if value.keys() == {"__bytes__"}:
        try:
            return base64.b64decode(value["__bytes__"], validate=True)
        except (TypeError, ValueError):
            return value  # somebody's own mapping that has this key
    return value
