"""What the tests of the engine share: providers that are shut down, and readings of what they hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from opentelemetry.sdk.resources import Resource

from otel_mlops.sdk.page import PageReader
from otel_mlops.sdk.provider import MeterProvider

RESOURCE = Resource({"service.name": "test"})


@pytest.fixture
def open_provider() -> Iterator[Callable[..., MeterProvider]]:
    """Opens providers, which are shut down after the test."""
    opened: list[MeterProvider] = []

    def open_one(**arguments: Any) -> MeterProvider:
        made = MeterProvider(**{"resource": RESOURCE, "shutdown_on_exit": False, **arguments})
        opened.append(made)
        return made

    yield open_one
    for provider in opened:
        provider.shutdown(timeout_millis=5_000)


@pytest.fixture
def provider(open_provider: Callable[..., MeterProvider]) -> MeterProvider:
    """A provider in private memory, without readers."""
    return open_provider()


@pytest.fixture
def reader() -> PageReader:
    """A reader for the page."""
    return PageReader()


@pytest.fixture
def paged(open_provider: Callable[..., MeterProvider], reader: PageReader) -> MeterProvider:
    """A provider that `reader` makes the page of."""
    return open_provider(metric_readers=[reader])
