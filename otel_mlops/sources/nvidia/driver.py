"""NVIDIA's driver as the one place through which it is asked: every failure is sorted here, no value is read here."""

from __future__ import annotations

import logging
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

logger = logging.getLogger(__name__)

_FORGET_UNSUPPORTED_S = 300.0
"""A part that a GPU did not support is tried again after this time: permissions and MIG modes change."""

_TYPES = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")
"""In the order of NVML's numbers for the types; a release of nvidia-ml-py may not know all of them."""


class Unsupported(Exception):  # noqa: N818 (absent is no error)
    """The GPU does not have it, or this process may not read it: there is no sample."""


class Failed(Exception):  # noqa: N818 (counted where it is caught)
    """A call failed that works at other times: there is no sample now."""


class Lost(Exception):  # noqa: N818 (the GPU's state)
    """The GPU does not answer any more: all its series go, and the others stay."""


class Gone(Exception):  # noqa: N818 (the driver's state)
    """The driver is not there any more, or was loaded anew: everything is opened again."""


FAULTS = (Unsupported, Failed, Lost, Gone)
"""All that asking the driver raises."""


class Driver:
    """NVML through nvidia-ml-py, whose calls raise `Unsupported`, `Failed`, `Lost` or `Gone` and nothing else.

    `nvml` is the module `pynvml`, or what stands for it.
    """

    def __init__(self, nvml: Any) -> None:
        self.nvml = nvml
        self.version: tuple[int, ...] = ()
        """The driver's, as numbers; empty where it is not known."""
        self.about: Mapping[str, str] = {}
        """The versions as labels."""
        self._mismatch: Any = getattr(nvml, "NVMLLibraryMismatchError", ())  # older releases have none
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
        self._advice = {
            nvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: "the driver was changed under this process, which has the old "
            "library loaded: restart it",
        }

    def open(self) -> None:
        """Initialise NVML.

        Errors:  Unsupported, Failed, Lost or Gone; then there is nothing to close.
        """
        self.ask("nvmlInit")
        # The newer function for CUDA's version has libcuda loaded, which a process that forks later may not survive.
        version, cuda = (
            self._learn(function) for function in ("nvmlSystemGetDriverVersion", "nvmlSystemGetCudaDriverVersion")
        )
        self.version = tuple(int(number) for number in re.findall(r"\d+", version or ""))
        about = {"driver_version": version, "cuda_version": cuda and f"{cuda // 1000}.{cuda % 1000 // 10}"}
        self.about = {label: text for label, text in about.items() if text}

    def close(self) -> None:
        """Shut NVML down; whoever else in this process has initialised it keeps it."""
        try:
            self.ask("nvmlShutdown")
        except FAULTS as fault:
            logger.debug("The NVIDIA driver was not shut down: %s", fault)

    def _learn(self, function: str) -> Any:
        try:
            return self.ask(function)
        except FAULTS as fault:
            logger.debug("Not known of the NVIDIA driver: %s", fault)
            return None

    def ask(self, function: str, *arguments: Any, **options: Any) -> Any:
        """Call a function of NVML by its name.

        Errors:  Unsupported, Failed, Lost or Gone, which say the function and NVML's own words.
        """
        found = getattr(self.nvml, function, None)
        if found is None:
            raise Unsupported(f"{function}: not in this nvidia-ml-py")
        try:
            return found(*arguments, **options)
        except self.nvml.NVMLError as error:
            raise self.fault(error.value, function) from error
        except self._mismatch as error:
            raise Unsupported(f"{function}: not in this driver") from error
        except Exception as error:
            # A release that does not fit the driver, a name that is no UTF-8.
            raise Failed(f"{function}: {error!r}") from error

    def sorted(self, code: int) -> type[Exception]:
        """What a return code of NVML means to whoever asked."""
        if code in self._unsupported:
            return Unsupported
        if code in self._lost:
            return Lost
        return Gone if code in self._gone else Failed

    def fault(self, code: int, what: str) -> Exception:
        """The exception that a return code means, with what was asked and NVML's words; its cause is NVML's own."""
        error = self.nvml.NVMLError(code)
        words = f"{what}: {error}"
        if code in self._advice:
            words += f" ({self._advice[code]})"
        fault = self.sorted(code)(words)
        fault.__cause__ = error
        return fault


class State(NamedTuple):
    """What became of a part when it was last tried."""

    state: str
    """`supported`, `not supported`, `no permission` or `failed`."""
    why: str = ""


_SUPPORTED = State("supported")


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
        self.states: dict[str, State] = {}
        """What became of each part that was tried."""
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
            forbidden = error_name(absence) == "no_permission"
            self.states[name] = State("no permission" if forbidden else "not supported", str(absence))
            self._unsupported_until[name] = self._clock() + _FORGET_UNSUPPORTED_S
            self._told.discard(name)
            logger.debug("GPU %d has no %s: %s", self.index, name, absence)
        except Failed as failure:
            self.note(name, failure)
        else:
            self.states[name] = _SUPPORTED
            if name in self._told:
                self._told.discard(name)
                logger.info("GPU %d: %s can be read again", self.index, name)

    def note(self, name: str, failure: Exception) -> None:
        """Count a failure of a part, and log it once until the part works again."""
        self.states[name] = State("failed", str(failure))
        self.faults[error_name(failure)] += 1
        if name not in self._told:
            self._told.add(name)
            surprise = None if isinstance(failure, Failed) else failure
            logger.warning(
                "GPU %d: %s cannot be read: %s; said once until it can", self.index, name, failure, exc_info=surprise
            )

    def supports(self, name: str) -> bool:
        """Whether a part is to be tried: it was not found unsupported in the last minutes."""
        return self._clock() >= self._unsupported_until.get(name, 0.0)

    def renew(self, handle: Any) -> None:
        """Be as if nothing of it had been tried yet, under the handle it has now: it was lost, and is back."""
        self.handle = handle
        self._unsupported_until = {}
        self._told = set()
        self.states = {}

    @property
    def unsupported(self) -> Iterable[str]:
        """The parts that were found unsupported."""
        return sorted(name for name in self._unsupported_until if not self.supports(name))


def value_field(value_type: int) -> str:
    """Return where in a value of NVML's the number lies, by the number that NVML has for its type.

    Errors:  Failed if there is no such type.

    >>> value_field(1)
    'uiVal'
    """
    if not 0 <= value_type < len(_TYPES):
        raise Failed(f"a value of the unknown type {value_type}")
    return _TYPES[value_type]


def code_of(failure: Exception) -> int | None:
    """Return NVML's return code behind a failure; None if NVML has not failed."""
    return getattr(failure.__cause__, "value", None)


def error_name(failure: Exception) -> str:
    """Return NVML's error as a label: `NVMLError_GpuIsLost` is `gpu_is_lost`.

    A code without a name is `other`, and what is no error of NVML's is `failed`.
    """
    cause = type(failure.__cause__).__name__
    if cause == "NVMLError":
        return "other"
    name = cause.removeprefix("NVMLError_")
    return "failed" if name == cause else re.sub(r"\B(?=[A-Z])", "_", name).lower()
