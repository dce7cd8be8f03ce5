"""What `import otel_mlops` costs a process that starts, as the median over processes that take turns."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from tempfile import TemporaryDirectory

from benchmarks.measure import Line, Measured, in_a_process

OURS = "from otel_mlops import configure_telemetry"
"""What a service writes; the package alone would cost nothing if it were empty, or put its work off."""

STOCK = "import opentelemetry.sdk.metrics"


def import_s(statement: str, cache: str) -> float:
    """Seconds that a fresh interpreter needs for the import, with bytecode from a folder of our own.

    Where bytecode may not be written, ours would be compiled each time and the installed peer's not.
    """
    clock = "import time; start = time.perf_counter()"
    program = f"{clock}; {statement}; print(time.perf_counter() - start)"
    bytecode = {"PYTHONPYCACHEPREFIX": cache, "PYTHONDONTWRITEBYTECODE": ""}
    seconds: float = in_a_process("-c", program, **bytecode)
    return seconds


def lines(*, quick: bool) -> Iterator[Line]:
    """The lines of this topic."""
    seconds: dict[str, list[float]] = {OURS: [], STOCK: []}
    reasons = {}
    with TemporaryDirectory() as cache:
        for turn in range(4 if quick else 16):
            for statement, found in seconds.items():
                try:
                    taken_s = import_s(statement, cache)
                except RuntimeError as error:
                    reasons[statement] = str(error)
                    continue
                if turn:  # the first turn fills the caches of bytecode and of the disk
                    found.append(taken_s)
    medians = {statement: statistics.median(found) for statement, found in seconds.items() if found}
    yield Measured(medians, reasons).line("import otel_mlops", STOCK, OURS, STOCK, target=1.3)
