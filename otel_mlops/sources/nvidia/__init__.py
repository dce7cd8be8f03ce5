"""NVIDIA's GPUs as a source: when the driver is opened, given up, and opened again; no value is read here."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Literal

from otel_mlops.sources.backoff import Backoff
from otel_mlops.sources.nvidia.device import Pids, Watch, World
from otel_mlops.sources.nvidia.driver import FAULTS, Driver, Gone, code_of
from otel_mlops.sources.nvidia.events import XidEvents
from otel_mlops.sources.nvidia.session import Session
from otel_mlops.sources.nvidia.survey import Finding, survey
from otel_mlops.sources.nvidia.visible import VISIBLE_DEVICES, Identity, Visible, leaves_none, visible_devices
from otel_mlops.sources.watched import Absent, Sample

__all__ = ["Finding", "Identity", "Nvidia", "Visible", "open_nvidia", "survey", "visible_devices"]

logger = logging.getLogger(__name__)

_STEADY_S = 60.0
"""A driver that was open for this long has recovered: what happens then is a new fault."""

_CLOSE_WITHIN_S = 0.5


def open_nvidia(
    nvml: Any = None,
    *,
    gpus: Literal["visible", "all"] = "visible",
    environ: Mapping[str, str] = os.environ,
    pids: Pids | None = None,
    clock: Callable[[], float] = time.monotonic,
    wall_clock: Callable[[], float] = time.time,
    watch: Watch = XidEvents,
) -> Nvidia:
    """Open the NVIDIA GPUs as a source, to be read once a second; the driver is not touched before the first reading.

    `gpus` are those that CUDA_VISIBLE_DEVICES in `environ` leaves, or all that the driver shows; `pids` gives the
    process id of each worker by its label; `watch` makes what waits for the driver's events.

    Reads:   NVML, by what it costs: the cheap calls each time, the others every 2, 5 or 60 s; a thread waits for the
             driver's events.
    Yields:  the rows of otel_mlops.metrics.gpu but for those of energy, and HARDWARE_TEMPERATURE. The last values of
             what is not read each time stay; increases are given once.
    Absent when: the GPU does not have it or this process may not read it, which is tried again after 5 minutes; of a
             GPU that is lost all but GPU_UP. `Absent` is raised where there is no NVIDIA driver, or no GPU is left.
    Errors:  ImportError without nvidia-ml-py. A reading raises while the driver cannot be opened; it is tried again
             after 1 s, then less and less often, at least once a minute.
    """
    if nvml is None:
        import pynvml

        nvml = pynvml
    return Nvidia(nvml, lambda: World(gpus, environ, pids, clock, wall_clock, watch))


class Nvidia:
    """The source. One thread reads it at a time; any may close it."""

    def __init__(self, nvml: Any, make_world: Callable[[], World]) -> None:
        self._nvml = nvml
        self._make_world = make_world
        _renew_pynvml_after_fork()
        self._begin()

    def __call__(self) -> list[Sample]:
        """Read what is due.

        Errors:  Absent; Unsupported, Failed, Lost or Gone while the driver cannot be opened.
        """
        if self._pid != os.getpid():
            # What the parent has opened is its own: its handles, its increases, and maybe its lock, held.
            self._begin()
        with self._lock:
            return self._read()

    @property
    def identities(self) -> list[Identity]:
        """What the driver's GPUs are called, by its numbers, those that are not shown too; empty before it is open.

        With `visible_devices` it says which of them another process may use.
        """
        return sorted(self._world.known.values(), key=lambda identity: identity.index)

    def close(self, timeout_s: float = _CLOSE_WITHIN_S) -> None:
        """Let the driver go, so that it can be unloaded; a later reading opens it again.

        A reading that does not come back within the time keeps the driver.
        """
        if self._pid != os.getpid():
            self._begin()
        if not self._lock.acquire(timeout=timeout_s):
            logger.debug("The NVIDIA driver is not shut down: a reading has not come back")
            return
        try:
            self._close()
        finally:
            self._lock.release()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._world = self._make_world()
        self._backoff = Backoff(self._world.clock)
        self._session: Session | None = None
        self._opened_at = 0.0
        self._was_there = False
        self._meanwhile: Exception | list[Sample] = []
        """What a reading gives until the driver is opened again."""

    def _read(self) -> list[Sample]:
        if self._session is None and not self._backoff.is_over:
            if isinstance(self._meanwhile, Exception):
                raise self._meanwhile.with_traceback(None)
            return [*self._meanwhile, *self._world.increases.take()]
        try:
            return self._take(self._session or self._open())
        except Gone as gone:
            if self._session is None:
                raise
            is_first = not self._backoff.failures
            self._give_up(gone)
            if not is_first:
                raise
            logger.info("The NVIDIA driver is opened again: %s", gone)
        try:
            return self._take(self._open())
        except Gone as gone:
            if self._session is not None:
                self._give_up(gone)
            raise

    def _take(self, session: Session) -> list[Sample]:
        samples = session.read()
        if session.is_silent:
            # A GPU cannot be reset while somebody has it open, and nothing is lost by letting it go.
            self._give_up([device.absence for device in session.devices])
        elif self._world.clock() - self._opened_at >= _STEADY_S:
            self._backoff.reset()
        return samples + self._world.increases.take()

    def _open(self) -> Session:
        world = self._world
        if world.gpus == "visible" and leaves_none(world.environ):
            raise Absent(f"{VISIBLE_DEVICES}={world.environ[VISIBLE_DEVICES]} leaves no GPU")
        driver = Driver(self._nvml)
        try:
            session = self._session = Session(driver, world)
        except FAULTS as fault:
            missing = code_of(fault) == self._nvml.NVML_ERROR_LIBRARY_NOT_FOUND
            if missing and not self._was_there:
                absence = Absent(f"no NVIDIA driver is here ({fault})")
                self._give_up(absence)
                raise absence from fault
            self._give_up(fault)
            raise
        self._was_there = True
        self._opened_at = world.clock()
        return session

    def _give_up(self, meanwhile: Exception | list[Sample]) -> None:
        self._backoff.fail()
        self._meanwhile = meanwhile
        self._close()

    def _close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.close()


@cache
def _renew_pynvml_after_fork() -> None:
    """Have a child begin with a fresh lock: one that another thread holds when this one forks stays locked there."""

    def renew() -> None:
        pynvml: Any = sys.modules.get("pynvml")
        if hasattr(pynvml, "libLoadLock"):
            pynvml.libLoadLock = threading.Lock()

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=renew)
