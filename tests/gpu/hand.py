"""The driver at hand, real or pretended, and what the checks need besides: its clock, loads, nvidia-smi. No checks."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import pynvml

from otel_mlops.sources.nvidia.device import World, find
from otel_mlops.sources.nvidia.driver import FAULTS, Driver, Gpu
from tests.gpu.loads import Loads, find_loads

HOW_TO_GET_A_GPU = "run it on a machine with an NVIDIA GPU and its driver"
HOW_TO_GET_LOADS = "install torch or cupy for the loads"
HOW_TO_GET_SMI = "run it where nvidia-smi is on the PATH"

Smi = Callable[[Sequence[str]], "list[str] | None"]
"""Asks nvidia-smi for fields of the GPU; None if it knows one of them not."""


class NoGpu(Exception):  # noqa: N818 (it is no error)
    """There is no NVIDIA GPU that answers here."""


@dataclass
class Hand:
    """One GPU of the driver at hand."""

    gpu: Gpu
    wait: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic
    loads: Loads | None = None
    smi: Smi | None = None

    def running(self, kind: str) -> AbstractContextManager[None]:
        """A block during which a load of that kind runs; only `idle` can be had without loads."""
        if kind == "idle":
            return nullcontext()
        if self.loads is None:
            raise ValueError(f"no load is at hand: {HOW_TO_GET_LOADS}")
        return self.loads.running(kind)

    @property
    def driver(self) -> Driver:
        """The driver that the GPU belongs to."""
        return self.gpu.driver


def hand_of(driver: Driver, index: int, clock: Callable[[], float] = time.monotonic) -> Hand:
    """The GPU with a number of a driver that is open; nothing but the driver is at hand with it.

    Errors:  Unsupported, Failed, Lost or Gone if it does not answer.
    """
    return Hand(find(driver, World(clock=clock), index), clock=clock)


@contextmanager
def real_hand() -> Iterator[Hand]:
    """The GPU that torch or cupy computes on, else the first, of the driver that is installed.

    Errors:  NoGpu.
    """
    driver = Driver(pynvml)
    try:
        driver.open()
    except FAULTS as fault:
        raise NoGpu(f"{fault}: {HOW_TO_GET_A_GPU}") from fault
    try:
        if not driver.ask("nvmlDeviceGetCount"):
            raise NoGpu(f"the driver has no GPU: {HOW_TO_GET_A_GPU}")
        loads = find_loads()
        uuid = loads.uuid() if loads else None
        index = driver.ask("nvmlDeviceGetIndex", driver.ask("nvmlDeviceGetHandleByUUID", uuid)) if uuid else 0
        hand = hand_of(driver, index)
        hand.loads = loads
        if shutil.which("nvidia-smi"):
            hand.smi = _smi_of(hand.gpu)
        yield hand
    finally:
        driver.close()


def _smi_of(gpu: Gpu) -> Smi:
    def ask(fields: Sequence[str]) -> list[str] | None:
        command = [
            "nvidia-smi",
            f"--id={gpu.uuid}",
            f"--query-gpu={','.join(fields)}",
            "--format=csv,noheader,nounits",
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        return done.stdout.strip().split(", ") if done.returncode == 0 else None

    return ask
