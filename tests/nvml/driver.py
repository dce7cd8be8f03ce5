"""The pretended NVIDIA driver in Python: building fake_nvml.c, giving it to pynvml, and setting its world.

    from tests.nvml.driver import FakeDriver  # conftest.py has the fixture nvml

    def test_it(nvml: FakeDriver):
        nvml.gpu(0).set("power_mw", 500_000)      # a number by its key, see the table NUMBERS in fake_nvml.c
        nvml.gpu(1).set("fan_speed", None)        # not supported by that GPU
        nvml.gpu(1).fail("nvmlDeviceGetPowerUsage", pynvml.NVML_ERROR_UNKNOWN)
        nvml.gpu(1).lose()
        nvml.advance(10)                          # seconds: the clock, energy, samples and counters move

Another process loads it with `env=nvml.environment(...)`, and is told with a `Control` file.
"""

from __future__ import annotations

import ctypes
import hashlib
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pynvml
import pytest

SOURCE = Path(__file__).with_name("fake_nvml.c")
LIBRARY = "libnvidia-ml.so.1"
MAX_GPUS = 16
NO_INSTANCE = 0xFFFFFFFF
HOPPER, TURING, TURING_TESLA = "NVIDIA H100 80GB HBM3", "NVIDIA GeForce RTX 2080", "Tesla T4"
EVERY_CALL = "*"
NEEDS, HOW = "the pretended NVIDIA driver needs Linux and a C compiler", "`apt-get install gcc`"

_CONTROLS: dict[str, tuple[type | None, tuple[type, ...]]] = {
    "fake_set_number": (ctypes.c_int, (ctypes.c_int, ctypes.c_char_p, ctypes.c_double)),
    "fake_number": (ctypes.c_double, (ctypes.c_int, ctypes.c_char_p)),
    "fake_set_text": (ctypes.c_int, (ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p)),
    "fake_set_field": (ctypes.c_int, (ctypes.c_int, ctypes.c_uint, ctypes.c_int, ctypes.c_double, ctypes.c_int)),
    "fake_set_process": (
        ctypes.c_int,
        (ctypes.c_int, ctypes.c_int, ctypes.c_uint, ctypes.c_double, *[ctypes.c_uint] * 6),
    ),
    "fake_end_process": (None, (ctypes.c_int, ctypes.c_uint)),
    "fake_fail": (ctypes.c_int, (ctypes.c_char_p, ctypes.c_int, ctypes.c_int)),
    "fake_hang": (ctypes.c_int, (ctypes.c_char_p, ctypes.c_int, ctypes.c_double)),
    "fake_clear_faults": (None, ()),
    "fake_push_event": (None, (ctypes.c_int, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint)),
    "fake_push_xid": (None, (ctypes.c_int, ctypes.c_uint64)),
    "fake_advance": (None, (ctypes.c_double,)),
    "fake_reload": (None, ()),
    "fake_reset": (None, ()),
    "fake_set_gpus": (None, (ctypes.c_int,)),
    "fake_become": (ctypes.c_int, (ctypes.c_int, ctypes.c_char_p)),
    "fake_calls": (ctypes.c_uint64, (ctypes.c_char_p, ctypes.c_int)),
    "fake_clock_us": (ctypes.c_uint64, ()),
    "fake_set_clock_us": (None, (ctypes.c_uint64,)),
    "fake_count": (ctypes.c_int, (ctypes.c_char_p,)),
}


class FakeGpu:
    """One GPU of the pretended driver, or one of its MIG devices."""

    def __init__(self, library: ctypes.CDLL, index: int, mig: int | None = None) -> None:
        self._library = library
        self.index = index
        self._slot = index if mig is None else index + MAX_GPUS * (mig + 1)

    def mig(self, index: int) -> FakeGpu:
        """The MIG device at that place; there are three on an H100 once mig_mode is 1, at 0, 1 and 3.

        One goes when its gpu_instance is set to None.
        """
        return FakeGpu(self._library, self.index, index)

    def set(self, key: str, value: float | None) -> None:
        """Set a number; None: the GPU does not have it, and calls for it say that they are not supported."""
        if self._library.fake_set_number(self._slot, key.encode(), math.nan if value is None else value):
            raise KeyError(key)

    def get(self, key: str) -> float | None:
        """A number as it is now, with all digits; None if the GPU does not have it."""
        value: float = self._library.fake_number(self._slot, key.encode())
        return None if math.isnan(value) else value

    def set_text(self, key: str, text: str) -> None:
        """Set the name, uuid, serial or bus_id; an empty one is not supported."""
        if self._library.fake_set_text(self._slot, key.encode(), text.encode()):
            raise KeyError(key)

    def set_field(self, field: int, value: float, value_type: int = pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG) -> None:
        """Give a field value another value or type than the table of fields does."""
        if self._library.fake_set_field(self._slot, field, value_type, value, pynvml.NVML_SUCCESS):
            raise OverflowError("too many fields were set")

    def fail_field(self, field: int, code: int) -> None:
        """Let one field fail, and the others of the same call succeed."""
        if self._library.fake_set_field(self._slot, field, 0, 0.0, code):
            raise OverflowError("too many fields were set")

    def become(self, model: str) -> None:
        """Be another model with its first numbers: HOPPER, TURING or TURING_TESLA."""
        if self._library.fake_become(self.index, model.encode()):
            raise KeyError(model)

    def fail(self, function: str, code: int) -> None:
        """Let a function fail for this GPU; 0 clears it. EVERY_CALL: all functions about this GPU."""
        _fail(self._library, function, self.index, code)

    def recover(self, function: str) -> None:
        """Take back a fault."""
        self.fail(function, pynvml.NVML_SUCCESS)

    def hang(self, function: str, milliseconds: float) -> None:
        """Let a function hang for this GPU; 0 lets go those that hang now."""
        _hang(self._library, function, self.index, milliseconds)

    def lose(self) -> None:
        """Fall off the bus: everything about this GPU fails."""
        self.fail(EVERY_CALL, pynvml.NVML_ERROR_GPU_IS_LOST)

    def find(self) -> None:
        """Be there again after lose()."""
        self.recover(EVERY_CALL)

    def push_xid(self, code: int) -> None:
        """Tell the event sets registered for it of an XID error."""
        self._library.fake_push_xid(self.index, code)

    def push_event(self, event_type: int, data: int, gpu_instance: int = NO_INSTANCE) -> None:
        """Tell the event sets registered for it of any event."""
        self._library.fake_push_event(self.index, event_type, data, gpu_instance)

    def run(
        self,
        pid: int,
        memory_bytes: int | None = None,
        *,
        graphics: bool = False,
        sm: int = 0,
        memory: int = 0,
        encoder: int = 0,
        decoder: int = 0,
        gpu_instance: int = NO_INSTANCE,
        compute_instance: int = NO_INSTANCE,
    ) -> None:
        """Let a process use the GPU, or use it otherwise; memory_bytes None is what a container or WSL shows."""
        if self._library.fake_set_process(
            self.index,
            graphics,
            pid,
            math.nan if memory_bytes is None else memory_bytes,
            sm,
            memory,
            encoder,
            decoder,
            gpu_instance,
            compute_instance,
        ):
            raise OverflowError("too many processes")

    def end(self, pid: int) -> None:
        """Let a process end."""
        self._library.fake_end_process(self.index, pid)

    def calls(self, function: str | None = None) -> int:
        """How often a function, or any, was called about this GPU."""
        return _calls(self._library, function, self.index)


class FakeDriver:
    """The pretended driver: what it has, what happens to it, and what it was asked."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._library = ctypes.CDLL(str(path))
        for name, (result, arguments) in _CONTROLS.items():
            function = getattr(self._library, name)
            function.restype, function.argtypes = result, arguments

    def gpu(self, index: int) -> FakeGpu:
        """One of its GPUs."""
        return FakeGpu(self._library, index)

    def set_gpus(self, count: int) -> None:
        """Have so many GPUs, all with their first numbers: 2 are an H100 and an RTX 2080, others are all H100."""
        self._library.fake_set_gpus(count)

    def set_version(self, version: str) -> None:
        """Be that version of the driver, with the functions and field ids it has."""
        self._library.fake_set_text(-1, b"driver_version", version.encode())

    def set_cuda_version(self, version: int) -> None:
        """Know CUDA up to that version: 13000 is 13.0."""
        self._library.fake_set_number(-1, b"cuda_version", version)

    def fail(self, function: str, code: int) -> None:
        """Let a function fail, for all GPUs; 0 clears it. EVERY_CALL: all but init and shutdown."""
        _fail(self._library, function, -1, code)

    def recover(self, function: str) -> None:
        """Take back a fault."""
        self.fail(function, pynvml.NVML_SUCCESS)

    def hang(self, function: str, milliseconds: float) -> None:
        """Let a function hang; 0 lets go those that hang now. EVERY_CALL: init and shutdown as well."""
        _hang(self._library, function, -1, milliseconds)

    def clear_faults(self) -> None:
        """Take back all faults; what hangs goes on."""
        self._library.fake_clear_faults()

    def advance(self, seconds: float) -> None:
        """Let time pass: the clock, energy, samples and counters move."""
        self._library.fake_advance(seconds)

    def set_clock(self, clock_us: int) -> None:
        """Show another time, without time passing: some drivers count from boot, some from 1970."""
        self._library.fake_set_clock_us(clock_us)

    def reload(self) -> None:
        """Reload the driver: counters start again, and every call is UNINITIALIZED until the next init."""
        self._library.fake_reload()

    def reset(self) -> None:
        """Be as when it was loaded: not initialized, first numbers, no faults, no calls."""
        self._library.fake_reset()

    def calls(self, function: str | None = None) -> int:
        """How often a function, or any, was called."""
        return _calls(self._library, function, -1)

    @property
    def clock_us(self) -> int:
        """Its clock in microseconds since boot, as the samples are stamped; field values are stamped since 1970."""
        return int(self._library.fake_clock_us())

    @property
    def hanging(self) -> int:
        """How many calls hang now."""
        return self._count("hanging")

    @property
    def initialized(self) -> int:
        """How many inits were not shut down."""
        return self._count("initialized")

    @property
    def event_sets(self) -> int:
        """How many event sets were not freed."""
        return self._count("event_sets")

    @property
    def gpm_samples(self) -> int:
        """How many GPM samples were not freed."""
        return self._count("gpm_samples")

    def _count(self, what: str) -> int:
        return int(self._library.fake_count(what.encode()))

    def environment(
        self,
        *,
        gpus: int | None = None,
        version: str | None = None,
        faults: str | None = None,
        xid: str | None = None,
        realtime: bool = False,
        control: Control | None = None,
    ) -> dict[str, str]:
        """The environment of another process that finds this driver; its words are in fake_nvml.c."""
        found = {
            "LD_LIBRARY_PATH": os.pathsep.join(
                filter(None, [str(self.path.parent), os.environ.get("LD_LIBRARY_PATH")])
            ),
            "FAKE_NVML_GPUS": None if gpus is None else str(gpus),
            "FAKE_NVML_DRIVER": version,
            "FAKE_NVML_FAULTS": faults,
            "FAKE_NVML_XID": xid,
            "FAKE_NVML_REALTIME": "1" if realtime else None,
            "FAKE_NVML_CONTROL": None if control is None else str(control.path),
        }
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("FAKE_NVML_")}
        return inherited | {name: value for name, value in found.items() if value is not None}


class Control:
    """The file by which the driver of a running process is told what happens."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, *orders: str) -> None:
        """Give orders; the faults are those of this writing alone, so `write()` takes all back."""
        fresh = self.path.with_suffix(".fresh")
        fresh.write_text("\n".join(orders))
        fresh.replace(self.path)  # the driver never reads half of it


def _fail(library: ctypes.CDLL, function: str, gpu: int, code: int) -> None:
    if library.fake_fail(function.encode(), gpu, code):
        raise OverflowError("too many faults")


def _hang(library: ctypes.CDLL, function: str, gpu: int, milliseconds: float) -> None:
    if library.fake_hang(function.encode(), gpu, milliseconds):
        raise OverflowError("too many faults")


def _calls(library: ctypes.CDLL, function: str | None, gpu: int) -> int:
    return int(library.fake_calls(function and function.encode(), gpu))


def compiler() -> str | None:
    """The C compiler that is installed, if any."""
    return next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)


def build(folder: Path) -> Path:
    """The library in a folder of its own below this one; compiled unless another test did, from the same source."""
    found = compiler()
    if not sys.platform.startswith("linux") or found is None:
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(f"{NEEDS}: run {HOW}")
        pytest.skip(f"{NEEDS}: run {HOW}")
    source = SOURCE.read_bytes()
    path = folder / hashlib.sha256(source).hexdigest()[:16] / LIBRARY
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as place:
        made = Path(place, LIBRARY)
        subprocess.run(
            [found, "-O1", "-shared", "-fPIC", "-pthread", f"-Wl,-soname,{LIBRARY}", "-o", made, SOURCE, "-lm"],
            check=True,
            timeout=60,
        )
        made.replace(path)  # whoever is last wins, and all made the same
    return path


@contextmanager
def load(path: Path) -> Iterator[FakeDriver]:
    """Give pynvml the library, with fresh state; afterwards pynvml is as it was."""
    before = pynvml.nvmlLib, dict(pynvml._nvmlGetFunctionPointer_cache), pynvml._nvmlLib_refcount
    driver = FakeDriver(path)
    driver.reset()
    pynvml._nvmlGetFunctionPointer_cache.clear()
    pynvml.nvmlLib, pynvml._nvmlLib_refcount = ctypes.CDLL(str(path)), 0
    try:
        yield driver
    finally:
        driver.reset()  # what hangs goes on
        pynvml.nvmlLib, _, pynvml._nvmlLib_refcount = before
        pynvml._nvmlGetFunctionPointer_cache.clear()
        pynvml._nvmlGetFunctionPointer_cache.update(before[1])
