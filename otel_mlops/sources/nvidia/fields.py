"""The field values of a GPU: many of them in one call, each with a return code of its own."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

from otel_mlops.sources.nvidia.driver import Gpu, Unsupported, value_field
from otel_mlops.sources.nvidia.quantities import Field, Value
from otel_mlops.sources.watched import Sample, is_increase

_UNSIGNED_INT = 1

_ALL = "field values"
"""The part that is the call itself."""

_NOT_AVAILABLE = frozenset({2**32 - 1, 2**64 - 1})
"""What NVML gives for a value that it does not have, besides saying so."""


class Fields:
    """The field values of a GPU that are read at a time.

    Reads:   nvmlDeviceGetFieldValues once, and once more when one is found missing for which there is another.
    Yields:  the rows of the fields; of a counter that adds up over workers the increase, 0 at the first reading.
    Absent when: the GPU does not have it; it is not asked for in the next minutes then.
    Errors:  Lost, Gone.
    """

    def __init__(self, gpu: Gpu, fields: Iterable[Field]) -> None:
        self._gpu = gpu
        self._fields = tuple((field, labels_of(gpu, field.value)) for field in fields)
        self._last: dict[str, float] = {}

    def read(self) -> Iterator[Sample]:
        """Read those that the GPU is not known to lack."""
        asked: set[str] = set()
        while batch := [each for each in self._fields if each[0].part not in asked and self._is_wanted(each[0])]:
            asked.update(field.part for field, _ in batch)
            yield from self._read(batch)

    def _is_wanted(self, field: Field) -> bool:
        gpu = self._gpu
        return gpu.supports(field.part) and not (field.instead_of and gpu.supports(field.instead_of))

    def _read(self, batch: list[tuple[Field, dict[str, str]]]) -> Iterator[Sample]:
        gpu = self._gpu
        if not gpu.supports(_ALL):
            return
        answers: Iterable[Any] = ()
        with gpu.part(_ALL):
            answers = gpu.ask("nvmlDeviceGetFieldValues", [(field.number, field.scope) for field, _ in batch])
        for (field, labels), answer in zip(batch, answers, strict=False):
            number = None
            with gpu.part(field.part):
                number = self._number(field, answer)
            if number is not None:
                # At once: what a counter has grown by is not read a second time if the GPU is lost at the next field.
                yield Sample(field.value.row, number, labels)

    def _number(self, field: Field, answer: Any) -> float | None:
        """The value of a field in its row's unit; None if it makes no sense.

        Errors:  Unsupported, Failed, Lost, Gone, by the field's own return code.
        """
        driver = self._gpu.driver
        code = answer.nvmlReturn
        if code == driver.nvml.NVML_ERROR_INVALID_ARGUMENT:
            raise Unsupported(f"field {field.number}: not in this driver")
        if code != driver.nvml.NVML_SUCCESS:
            raise driver.fault(code, f"field {field.number}")
        raw = getattr(answer.value, value_field(answer.valueType))
        if is_increase(field.value.row):
            if answer.valueType == _UNSIGNED_INT:
                raise Unsupported(f"field {field.number}: its 32 bits overflow faster than it can be read")
            before, self._last[field.part] = self._last.get(field.part, raw), raw
            # One that steps back has begun anew, and nobody knows when: that counts as nothing.
            return field.value.pick(max(0, raw - before))
        return number_of(field.value, raw)


def number_of(value: Value, answer: Any) -> float | None:
    """Return what a row's sample is by an answer of the driver, or None if that makes no sense."""
    if isinstance(answer, int) and answer in _NOT_AVAILABLE:
        return None
    number = float(value.pick(answer))
    return number if math.isfinite(number) and value.least <= number <= value.most else None


def labels_of(gpu: Gpu, value: Value) -> dict[str, str]:
    """Return the labels of a value: the GPU's where its row has them, and its own."""
    own = {key: text.format(gpu.index) for key, text in value.labels.items()}
    return gpu.labels | own if "gpu_id" in value.row.attributes else own
