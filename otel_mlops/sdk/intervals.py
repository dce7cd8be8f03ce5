"""When this worker predicts: its calls, written down in a file beside its ledger; who reads them is in calls.py.

How much runs on a GPU at a moment no worker knows by itself, and it must not ask. So each writes down when a call
began and ended, which takes neither a lock nor a system call, and the leader puts them together afterwards.
"""

from __future__ import annotations

import json
import logging
import mmap
import os
import struct
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.metrics._internal._view_instrument_match import _OVERFLOW_ATTRIBUTES

from otel_mlops.sdk.files import exists, reserve

if TYPE_CHECKING:
    from otel_mlops.sdk.ledger import Ledger

_logger = logging.getLogger(__name__)

SUFFIX = ".intervals"
SLOTS = 4096
"""The most calls that can run at a time in one worker, and that can begin between two looks of the leader."""
LENGTH = 192 * 1024
_MAGIC = b"OMINTV01"
_HEADER = struct.Struct("<8sII")  # what it is; the checksum of the facts, and their bytes
_CELLS_AT = LENGTH - 5 * SLOTS * 8
"""Before the cells are the header and, as JSON, the facts of the worker."""
_ENVIRONMENT = ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER")
_LONGEST_VARIABLE = 4000
_ROOM = _CELLS_AT - _HEADER.size - len(_ENVIRONMENT) * (_LONGEST_VARIABLE + 100)
"""For the models' labels: some 250 of them."""
_ASK_S = 30.0
"""How often it is asked whether to begin: a driver may come late."""


class Ring:
    """The last calls of a worker in one piece of memory, each in a slot of its own.

    A call keeps its slot while it runs. The slot that was given back first is taken first, so that the leader has
    the most time to read it. Nothing here needs a lock: a slot is one call's alone, and a deque gives and takes
    atomically with and without the GIL. Times are `time.perf_counter()`'s, the same in all processes of a machine.
    """

    __slots__ = ("_begins", "_ends", "_give", "_models", "_take", "_turns", "_weights", "memory", "path")

    def __init__(self, memory: memoryview, path: Path | None = None) -> None:
        self.memory = memory
        self.path = path
        """The ledger that the file is beside; None in private memory."""
        self._turns, self._models, self._begins, self._ends, self._weights = columns_of(memory)
        free = deque(range(SLOTS))
        self._take, self._give = free.popleft, free.append

    def begin(self, model: int, begin: float) -> int:
        """Write down that a call has begun, and return its slot; -1 if so many run that there is none."""
        try:
            slot = self._take()
        except IndexError:
            return -1
        self._models[slot] = model
        self._begins[slot] = begin
        self._ends[slot] = 0.0
        self._turns[slot] += 1.0  # last, so that whoever reads sees a whole call or none
        return slot

    def end(self, slot: int, end: float, weight: float) -> None:
        """Write down that the call in a slot has ended, and its weight: the rows of a batch."""
        if slot >= 0:
            self._weights[slot] = weight
            self._ends[slot] = end
            self._give(slot)

    def add(self, model: int, begin: float, end: float, weight: float) -> None:
        """Write down a call that is over."""
        self.end(self.begin(model, begin), end, weight)

    def tell(self, facts: bytes) -> None:
        """Write down the facts of the worker."""
        self.memory[_HEADER.size : _HEADER.size + len(facts)] = facts
        _HEADER.pack_into(self.memory, 0, _MAGIC, zlib.crc32(facts), len(facts))

    def abandon(self) -> None:
        """In a forked child: what ended there did so in memory of nobody's, not in the parent's."""
        nowhere = memoryview(bytearray(8 * SLOTS)).cast("d")
        self._turns = self._models = self._begins = self._ends = self._weights = nowhere


def columns_of(memory: memoryview) -> list[memoryview[float]]:
    """The cells by slot: how often it was taken, the model's number, begin, end (0 while the call runs), weight."""
    cells = memory[_CELLS_AT:LENGTH].cast("d")
    return [cells[first : first + SLOTS] for first in range(0, len(cells), SLOTS)]


def facts_of(memory: memoryview) -> Any:
    """What is known of the worker, `environment` and `models`; None while it is being written.

    Errors:  ValueError if this is no ring, or one of another format.
    """
    magic, checksum, size = _HEADER.unpack_from(memory)
    if magic != _MAGIC:
        msg = f"no ring of format {_MAGIC.decode()}: it begins with {magic!r}"
        raise ValueError(msg)
    text = bytes(memory[_HEADER.size : min(_HEADER.size + size, _CELLS_AT)])
    return json.loads(text) if zlib.crc32(text) == checksum else None


class _Unmade:
    """Stands in for the ring until the first call, which has it made, so that no call asks."""

    __slots__ = ("_make", "_ring")

    def __init__(self, make: Callable[[], Ring | None]) -> None:
        self._make = make
        self._ring: Ring | None = None

    def begin(self, model: int, begin: float) -> int:
        if self._ring is None:
            self._ring = self._make()
        return -1 if self._ring is None else self._ring.begin(model, begin)

    def end(self, slot: int, end: float, weight: float) -> None:
        if self._ring is not None:
            self._ring.end(slot, end, weight)

    def add(self, model: int, begin: float, end: float, weight: float) -> None:
        self.end(self.begin(model, begin), end, weight)


class Intervals:
    """The calls of this worker, once somebody wants them; nothing is made before the first.

    They lie beside the ledger's file; where it has none, in private memory, for this process alone. Where no file can
    be made nothing is written down, which is said once and tried again. Nothing raises.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.ring: Ring | _Unmade | None = None
        """Where calls are written; None where they are not wanted."""
        self._former: Ring | None = None
        self._wanted: Callable[[], bool] = lambda: False
        self._is_on = False
        self._ask_at = 0.0
        self._models = [json.dumps(_OVERFLOW_ATTRIBUTES)]
        self._room = _ROOM
        self._environment: str | None = None
        self._numbers: dict[tuple[tuple[str, str], ...], int] = {}
        self._told: set[str] = set()
        self._lock = threading.RLock()

    def begin_when(self, wanted: Callable[[], bool]) -> None:
        """Write calls down as soon as this says so; it is asked now, and then from time to time."""
        self._wanted = wanted
        self._ask_at = 0.0
        self.settle()

    def number(self, labels: Mapping[str, str]) -> int:
        """The number of the model that has these labels, the same for ever; 0 is all for which there is no room."""
        key = tuple(labels.items())
        try:
            number = self._numbers.get(key)
        except Exception:
            return 0  # a text of a stranger's class that cannot be hashed
        return self._enter(key) if number is None else number

    def rings(self) -> list[Ring]:
        """Where this process writes or has written, for itself to read; the others find the files."""
        return [ring for ring in (self._former, self.ring) if isinstance(ring, Ring)]

    def settle(self) -> None:
        """Begin if it is wanted by now, try again what has failed, and follow the ledger to its new file."""
        if self._is_on:
            ring = self.ring
            if ring is None or (isinstance(ring, Ring) and ring.path != self._ledger.path):
                self._begin_anew()
        elif time.monotonic() >= self._ask_at:
            self._ask_at = time.monotonic() + _ASK_S
            if self._wanted():
                self._is_on = True
                self._begin_anew()

    def after_fork(self) -> None:
        """In a forked child: nothing is written into the parent's file."""
        self._lock = threading.RLock()
        for ring in self.rings():
            ring.abandon()
        if self._is_on:
            self.ring = _Unmade(self._make)
        self._former = self._environment = None

    def _begin_anew(self) -> None:
        """Have a ring made by the next call; those that run end where they began."""
        with self._lock:
            if isinstance(self.ring, Ring):
                self._former = self.ring if self.ring.path is None else None
            self.ring = _Unmade(self._make)

    def _make(self) -> Ring | None:
        with self._lock:
            if not isinstance(self.ring, _Unmade):
                return self.ring  # another thread was first
            path = self._ledger.path
            try:
                memory = memoryview(bytearray(LENGTH)) if path is None else _create(path.with_suffix(SUFFIX))
            except (OSError, ValueError) as error:
                self.ring = None
                self._tell("predictions get no energy, as they cannot be written down: %s; trying again", error)
            else:
                self.ring = Ring(memory, path)
                self.ring.tell(self._facts())
            return self.ring

    def _enter(self, key: tuple[tuple[str, str], ...]) -> int:
        text = json.dumps(dict(key))
        with self._lock:
            if key not in self._numbers:
                if len(text) >= self._room:
                    self._tell("the energy of further models is that of one: there is room for %d", len(self._models))
                    return 0
                self._room -= len(text) + 1
                self._models.append(text)
                for ring in self.rings():
                    ring.tell(self._facts())  # before the number is used
                self._numbers[key] = len(self._models) - 1
            return self._numbers[key]

    def _facts(self) -> bytes:
        if self._environment is None:  # as it was at the first call: later CUDA does not ask any more
            texts = [(name, json.dumps(os.environ[name])) for name in _ENVIRONMENT if name in os.environ]
            self._environment = ",".join(f'"{name}":{text}' for name, text in texts if len(text) < _LONGEST_VARIABLE)
        return f'{{"environment":{{{self._environment}}},"models":[{",".join(self._models)}]}}'.encode()

    def _tell(self, fault: str, what: object) -> None:
        if fault not in self._told:
            self._told.add(fault)
            _logger.warning(fault, what)


def _create(path: Path) -> memoryview:
    for left in path.parent.glob(f"*{SUFFIX}"):
        # The leader removes what the dead leave; it may not, and then they must not pile up.
        if not exists(left.with_suffix(".ledger")):
            left.unlink(missing_ok=True)
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        reserve(file, 0, LENGTH)
        return memoryview(mmap.mmap(file, LENGTH))
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(file)
