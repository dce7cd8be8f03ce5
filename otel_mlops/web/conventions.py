"""Whose semantic conventions an application gets: FastAPI's telemetry, OpenTelemetry's package, or none."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, Literal

from opentelemetry import metrics, trace

from otel_mlops.web.requests import Telemetry
from otel_mlops.web.routes import Scope, route_path

Choice = Literal["fastapi", "opentelemetry", "none", "as it is"]

_OPT_IN = "OTEL_SEMCONV_STABILITY_OPT_IN"
_PACKAGE = "opentelemetry.instrumentation.fastapi"


def choose(app: Any, wanted: str) -> Choice:
    """Choose whose conventions an application gets by the setting `instrumentation`.

    An application that is not FastAPI's stays as it is: FastAPI applications mounted in it report themselves.

    Errors:  ValueError if the application cannot have what is wanted.
             RuntimeError with the install line if a package for it is missing.
    """
    has_own, has_package = hasattr(app, "_native_telemetry"), _has_package()
    if wanted == "none":
        return "none"
    if not _is_fastapi(app):
        if wanted == "auto":
            return "as it is"
        raise ValueError(
            f"instrumentation is {wanted!r}, expected 'auto' or 'none': "
            f"only a FastAPI application can have it, and this is a {type(app).__name__}"
        )
    if wanted == "auto":
        return "fastapi" if has_own else "opentelemetry" if has_package else "as it is"
    if wanted == "fastapi":
        if has_own:
            return "fastapi"
        raise ValueError(
            "instrumentation is 'fastapi', which needs FastAPI 0.142 or newer; "
            "update it, or choose 'opentelemetry' or 'auto'"
        )
    if not has_package:
        raise RuntimeError(
            "instrumentation is 'opentelemetry', which needs a package that is missing: "
            "pip install opentelemetry-instrumentation-fastapi"
        )
    return "opentelemetry"


def apply(choice: Choice, app: Any, telemetry: Telemetry, own_pages: OwnPages) -> None:
    """Give an application the conventions that were chosen; what the user set on it stays."""
    config = getattr(app, "_telemetry", None)
    if choice == "opentelemetry":
        _instrument_with_package(app, telemetry)
    elif choice == "fastapi" and config is not None:
        meters, tracers = _providers(telemetry)
        _set_unless_given(config, "meter_provider", meters)
        _set_unless_given(config, "tracer_provider", tracers)
        own_pages.excluded_by_user = config["exclude"]
        config["exclude"] = own_pages
    elif choice == "none" and config is not None:
        # What would go to a global provider; one that the user gave to the application is meant.
        config["metrics"] = config["metrics"] and config["meter_provider"] is not None
        config["tracing"] = config["tracing"] and config["tracer_provider"] is not None


class OwnPages:
    """Tells FastAPI's telemetry what to leave out: scrapes and probes say nothing of the application."""

    def __init__(self) -> None:
        self.paths: frozenset[str] = frozenset()
        self.excluded_by_user: Callable[[Scope], bool] | None = None

    def __call__(self, scope: Scope) -> bool:
        """Whether a request is left out."""
        if self.paths and scope["type"] == "http" and route_path(scope) in self.paths:
            return True
        return self.excluded_by_user is not None and self.excluded_by_user(scope)


class ProvidedMeters(metrics.MeterProvider):
    """A telemetry's meter provider by way of the telemetry, which is pickled with its application."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry

    def get_meter(self, *arguments: Any, **keywords: Any) -> metrics.Meter:
        """Return a meter of the telemetry's provider."""
        meter: metrics.Meter = self._telemetry.meter_provider.get_meter(*arguments, **keywords)
        return meter

    def add_metric_reader(self, reader: Any) -> None:
        """Add a reader to the telemetry's provider, as FastAPI's `auto_configure` does."""
        self._telemetry.meter_provider.add_metric_reader(reader)


class ProvidedTracers(trace.TracerProvider):
    """A telemetry's tracer provider by way of the telemetry."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry

    def get_tracer(self, *arguments: Any, **keywords: Any) -> trace.Tracer:
        """Return a tracer of the telemetry's provider."""
        tracer: trace.Tracer = self._telemetry.tracer_provider.get_tracer(*arguments, **keywords)
        return tracer

    def add_span_processor(self, processor: Any) -> None:
        """Add a processor to the telemetry's provider, as FastAPI's `auto_configure` does."""
        self._telemetry.tracer_provider.add_span_processor(processor)


def _is_fastapi(app: Any) -> bool:
    try:
        from fastapi import FastAPI
    except ImportError:
        return False
    return isinstance(app, FastAPI)


def _has_package() -> bool:
    try:
        return find_spec(_PACKAGE) is not None
    except ModuleNotFoundError:
        return False


def _providers(telemetry: Telemetry) -> tuple[metrics.MeterProvider | None, trace.TracerProvider | None]:
    """Our providers, unless somebody else's is global: what another has set up keeps its pipeline."""
    meters: metrics.MeterProvider | None = None
    tracers: trace.TracerProvider | None = None
    if not _is_foreign(metrics.get_meter_provider(), telemetry.meter_provider):
        meters = ProvidedMeters(telemetry)
    # Without an exporter there is no tracer provider, and spans that nobody sees would only cost.
    has_tracers = telemetry.tracer_provider is not None
    if has_tracers and not _is_foreign(trace.get_tracer_provider(), telemetry.tracer_provider):
        tracers = ProvidedTracers(telemetry)
    return meters, tracers


def _is_foreign(current: Any, ours: Any) -> bool:
    """Whether a global provider was set by somebody else: not by us, nor by nobody (what the API ships)."""
    nobodys_or_ours = ("opentelemetry.metrics", "opentelemetry.trace", __package__.partition(".")[0])
    return current is not ours and not type(current).__module__.startswith(nobodys_or_ours)


def _set_unless_given(config: Any, key: str, value: object) -> None:
    if config[key] is None:
        config[key] = value


def _instrument_with_package(app: Any, telemetry: Telemetry) -> None:
    from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor

    if getattr(app, "_is_instrumented_by_opentelemetry", False):
        return
    meters, tracers = _providers(telemetry)
    # Its older names carry the Host header as a label, which any client can fill. There is no API to choose:
    # it reads the environment, once in a process. The environment is left as it was.
    is_chosen = _OPT_IN in os.environ
    if not is_chosen:
        os.environ[_OPT_IN] = "http"
    try:
        FastAPIInstrumentor.instrument_app(
            app, meter_provider=meters, tracer_provider=tracers, exclude_spans=["send", "receive"]
        )
    finally:
        if not is_chosen:
            del os.environ[_OPT_IN]
