"""For tests, users' and ours: telemetry that shares nothing with anybody, and what it has recorded."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from otel_mlops.configure import current
from otel_mlops.settings import Settings
from otel_mlops.telemetry import Telemetry

if TYPE_CHECKING:
    from otel_mlops.sources.sampler import Source


class Samples(Mapping[tuple[str, frozenset[tuple[str, str]]], float]):
    """What stands on a page, by name and labels.

    `value("api_requests_total", method="GET")` is the sum of the samples of that name that carry these labels.
    """

    def __init__(self, telemetry: Telemetry) -> None:
        from prometheus_client.parser import text_string_to_metric_families

        text = telemetry.page().body.decode()
        self._samples = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def value(self, name: str, **labels: str) -> float:
        """The sum over the samples of a name that carry all of these labels.

        Errors:  KeyError if there is none, naming what there is under that name.
        """
        found = [value for (each, has), value in self._samples.items() if each == name and labels.items() <= set(has)]
        if not found:
            there = [dict(has) for each, has in self._samples if each == name]
            raise KeyError(f"no sample {name} with {labels}; under that name there is {there or 'nothing'}")
        return sum(found)

    def labels(self, name: str) -> list[dict[str, str]]:
        """The labels of every sample of a name."""
        return [dict(has) for each, has in self._samples if each == name]

    def names(self) -> set[str]:
        """The names there are."""
        return {name for name, _ in self._samples}

    def __getitem__(self, key: tuple[str, frozenset[tuple[str, str]]]) -> float:
        return self._samples[key]

    def __iter__(self) -> Iterator[tuple[str, frozenset[tuple[str, str]]]]:
        return iter(self._samples)

    def __len__(self) -> int:
        return len(self._samples)


def collect(telemetry: Telemetry) -> Samples:
    """Return what the page says now."""
    return Samples(telemetry)


@contextmanager
def fresh_telemetry(
    *, sources: Mapping[str, Source] | None = None, clock: Callable[[], float] = time.time, **settings: Any
) -> Iterator[Telemetry]:
    """Telemetry of its own for the `with` block, which `get_telemetry()` finds too.

    It takes no setting from the environment, opens no port, starts no thread and sets nothing global unless it is
    told to: `start_server=True, port=0` gives it a page on a free port after `start()`. `sources` stand for the
    drivers and are read when `sample()` is called. After `start()` a new day begins when `clock` says so.

    Units:   `clock` counts seconds from the epoch in UTC.
    """
    private: dict[str, Any] = {"service_name": "test", "start_server": False, "set_global": False}
    private["page_process"] = False
    private["group"] = f"test-{uuid.uuid4().hex}"
    telemetry = Telemetry(Settings(**(private | settings)), sources=sources or {}, clock=clock)
    before = current.telemetry
    current.telemetry = telemetry
    try:
        yield telemetry
    finally:
        telemetry.shutdown()
        current.telemetry = before


if find_spec("pytest") is not None:  # a service may use fresh_telemetry() under another test runner
    import pytest

    @pytest.fixture
    def telemetry() -> Iterator[Telemetry]:
        """A pytest fixture: import it into conftest.py."""
        with fresh_telemetry() as fresh:
            yield fresh
