"""NVIDIA's driver as the one place through which it is asked: every failure is sorted here, no value is read here."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

logger = logging.getLogger(__name__)

_FORGET_UNSUPPORTED_S = 300.0
"""A part that a GPU did not support is tried again after this time: permissions and MIG modes change."""


class Unsupported(Exception):  # noqa: N818 (absent is no error)
    """The GPU does not have it, or this process may not read it: there is no sample."""


class Failed(Exception):  # noqa: N818 (counted where it is caught)
    """A call failed that works at other times: there is no sample now."""


class Lost(Exception):  # noqa: N818 (the GPU's state)
    """The GPU does not answer any more: all its series go, and the others stay."""


class Gone(Exception):  # noqa: N818 (the driver's state)
    """The driver is not there any more, or was loaded anew: everything is opened again."""


class Driver:
    """NVML through nvidia-ml-py, whose calls raise `Unsupported`, `Failed`, `Lost` or `Gone` and nothing else.

    `nvml` is the module `pynvml`, or what stands for it.
    """

    def __init__(self, nvml: Any) -> None:
        self.nvml = nvml
        self._unsupported = {
            nvml.NVML_ERROR_NOT_SUPPORTED,
            nvml.NVML_ERROR_FUNCTION_NOT_FOUND,
            nvml.NVML_ERROR_NO_PERMISSION,
            nvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH,
            nvml.NVML_ERROR_DEPRECATED,
        }
        self._lost = {nvml.NVML_ERROR_GPU_IS_LOST, nvml.NVML_ERROR_RESET_REQUIRED}
        self._gone = {
            nvml.NVML_ERROR_UNINITIALIZED,
            nvml.NVML_ERROR_DRIVER_NOT_LOADED,
            nvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH,
            nvml.NVML_ERROR_LIBRARY_NOT_FOUND,
        }

    def ask(self, function: str, *arguments: Any, **options: Any) -> Any:
        """Call a function of NVML by its name.

        Errors:  Unsupported, Failed, Lost or Gone, which say the function and NVML's own words.
        """
        nvml = self.nvml
        try:
            # What this release of nvidia-ml-py does not know it cannot ask for.
            found = getattr(nvml, function, None)
            if found is None:
                raise Unsupported(f"{function}: not in this nvidia-ml-py")
            return found(*arguments, **options)
        except nvml.NVMLError as error:
            raise self.sorted(error.value)(f"{function}: {error}") from error

    def sorted(self, code: int) -> type[Exception]:
        """What a return code of NVML means to whoever asked."""
        if code in self._unsupported:
            return Unsupported
        if code in self._lost:
            return Lost
        return Gone if code in self._gone else Failed


class Gpu:
    """One GPU as the parts of the source see it: its handle, its labels, and what it does not support."""

    def __init__(
        self,
        driver: Driver,
        handle: Any,
        *,
        index: int,
        uuid: str,
        name: str,
        driver_version: tuple[int, ...],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.driver = driver
        self.handle = handle
        self.index = index
        self.uuid = uuid
        self.name = name
        self.driver_version = driver_version
        self.labels = {"gpu_id": str(index), "gpu_name": name}
        self.faults: Counter[str] = Counter()
        """How often calls have failed since they were last told, by the error."""
        self._clock = clock
        self._unsupported_until: dict[str, float] = {}
        self._told: set[str] = set()

    def ask(self, function: str, *arguments: Any, **options: Any) -> Any:
        """Call a function of NVML about this GPU.

        Errors:  as `Driver.ask`.
        """
        return self.driver.ask(function, self.handle, *arguments, **options)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """A block in which something may be unsupported or fail: it ends there, and what comes after it goes on.

        Ask `supports(name)` before it. A failure is counted and logged once until the part works again.
        """
        try:
            yield
        except Unsupported as absence:
            self._unsupported_until[name] = self._clock() + _FORGET_UNSUPPORTED_S
            logger.debug("GPU %d has no %s: %s", self.index, name, absence)
        except Failed as failure:
            self.faults[error_name(failure)] += 1
            if name not in self._told:
                self._told.add(name)
                logger.warning("GPU %d: %s cannot be read: %s; said once until it can", self.index, name, failure)
        else:
            if name in self._told:
                self._told.discard(name)
                logger.info("GPU %d: %s can be read again", self.index, name)

    def supports(self, name: str) -> bool:
        """Whether a part is to be tried: it was not found unsupported in the last minutes."""
        return self._clock() >= self._unsupported_until.get(name, 0.0)

    @property
    def unsupported(self) -> Iterable[str]:
        """The parts that were found unsupported."""
        return sorted(name for name in self._unsupported_until if not self.supports(name))


def error_name(failure: Exception) -> str:
    """The class of NVML's error as a label: `NVMLError_Timeout` is `timeout`."""
    cause = failure.__cause__
    return type(cause if cause is not None else failure).__name__.removeprefix("NVMLError_").lower()
