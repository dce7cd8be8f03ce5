"""Loads with a known answer: what a GPU does while they run, made with torch or cupy. Nothing is measured here."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

GIB = 1024**3
KINDS = ("matmul", "copy")
"""A product of big half-precision matrices, for the tensor cores; an addition, which waits for the memory."""


class Loads(Protocol):
    """What can be run on the GPU at hand."""

    name: str

    def uuid(self) -> str | None:
        """The GPU that it runs on, as NVML calls it, or None where the library does not say."""

    def running(self, kind: str) -> AbstractContextManager[None]:
        """A block during which a load of that kind runs."""

    def allocated(self, size: int) -> AbstractContextManager[None]:
        """A block during which so many bytes of the GPU's memory are taken."""

    def prediction(self) -> Callable[[], None]:
        """What a small inference does, each time it is called."""


class Torch:
    """Loads made with PyTorch."""

    def __init__(self, torch: Any):
        self._torch = torch
        self.name = f"torch {torch.__version__}"

    def uuid(self) -> str | None:
        found = getattr(self._torch.cuda.get_device_properties(0), "uuid", None)
        return None if found is None else f"GPU-{found}"

    def _step(self, kind: str) -> Callable[[], None]:
        torch = self._torch
        if kind == "matmul":
            left, right = (torch.randn(8192, 8192, device="cuda", dtype=torch.float16) for _ in range(2))
            product = torch.empty_like(left)
            return lambda: [torch.matmul(left, right, out=product) for _ in range(20)] and torch.cuda.synchronize()
        numbers = torch.zeros(GIB // 4, device="cuda")
        sums = torch.empty_like(numbers)
        return lambda: [torch.add(numbers, 1.0, out=sums) for _ in range(20)] and torch.cuda.synchronize()

    def running(self, kind: str) -> AbstractContextManager[None]:
        return _running(kind, self._step)

    @contextmanager
    def allocated(self, size: int) -> Iterator[None]:
        torch = self._torch
        torch.cuda.synchronize()  # what CUDA takes for itself it has taken then
        held = torch.empty(size, dtype=torch.uint8, device="cuda")
        try:
            yield
        finally:
            del held
            torch.cuda.empty_cache()

    def prediction(self) -> Callable[[], None]:
        torch = self._torch
        layers = [torch.nn.Linear(1024, 1024).cuda().half() for _ in range(8)]
        model = torch.nn.Sequential(*layers).eval()
        features = torch.randn(32, 1024, device="cuda", dtype=torch.float16)

        def predict() -> None:
            with torch.inference_mode():
                model(features)
            torch.cuda.synchronize()

        return predict


class Cupy:
    """Loads made with CuPy."""

    def __init__(self, cupy: Any):
        self._cupy = cupy
        self.name = f"cupy {cupy.__version__}"

    def uuid(self) -> str | None:
        raw = self._cupy.cuda.runtime.getDeviceProperties(0).get("uuid")
        if raw is None:
            return None
        digits = bytes(raw).hex()
        return f"GPU-{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"

    def _step(self, kind: str) -> Callable[[], None]:
        cupy = self._cupy
        wait = cupy.cuda.Device().synchronize
        if kind == "matmul":
            left, right = (cupy.random.rand(8192, 8192).astype(cupy.float16) for _ in range(2))
            product = cupy.empty_like(left)
            return lambda: [cupy.matmul(left, right, out=product) for _ in range(20)] and wait()
        numbers = cupy.zeros(GIB // 4, dtype=cupy.float32)
        sums = cupy.empty_like(numbers)
        return lambda: [cupy.add(numbers, 1.0, out=sums) for _ in range(20)] and wait()

    def running(self, kind: str) -> AbstractContextManager[None]:
        return _running(kind, self._step)

    @contextmanager
    def allocated(self, size: int) -> Iterator[None]:
        cupy = self._cupy
        held = cupy.empty(size, dtype=cupy.uint8)
        try:
            yield
        finally:
            del held
            cupy.get_default_memory_pool().free_all_blocks()

    def prediction(self) -> Callable[[], None]:
        cupy = self._cupy
        weights = [cupy.random.rand(1024, 1024).astype(cupy.float16) for _ in range(8)]
        features = cupy.random.rand(32, 1024).astype(cupy.float16)

        def predict() -> None:
            result = features
            for layer in weights:
                result = result @ layer
            cupy.cuda.Device().synchronize()

        return predict


def find_loads() -> Loads | None:
    """The loads of the library that is installed and sees a GPU, torch before cupy; None if there is none."""
    if importlib.util.find_spec("torch"):
        import torch  # type: ignore[import-not-found,unused-ignore]

        if torch.cuda.is_available():
            return Torch(torch)
    if importlib.util.find_spec("cupy"):
        import cupy  # type: ignore[import-not-found,unused-ignore]

        if cupy.cuda.is_available():
            return Cupy(cupy)
    return None


@contextmanager
def _running(kind: str, step_of: Callable[[str], Callable[[], None]]) -> Iterator[None]:
    """Repeat the step of a kind in a thread of its own, from before the block begins until it ends."""
    step = step_of(kind)
    step()  # compiles, and takes its memory
    over = threading.Event()
    faults: list[Exception] = []

    def repeat() -> None:
        try:
            while not over.is_set():
                step()
        except Exception as fault:
            faults.append(fault)

    worker = threading.Thread(target=repeat, name=f"load-{kind}", daemon=True)
    worker.start()
    try:
        yield
    finally:
        over.set()
        worker.join(60)
    if faults:
        raise faults[0]
