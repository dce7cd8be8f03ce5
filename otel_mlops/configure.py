"""configure_telemetry(): makes the one telemetry of this process, and finds it again."""

from __future__ import annotations

import atexit
import copyreg
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opentelemetry import trace

from otel_mlops.sdk.global_provider import become_global
from otel_mlops.settings import Settings
from otel_mlops.telemetry import Telemetry

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics.export import MetricReader
    from opentelemetry.sdk.metrics.view import View
    from prometheus_client import CollectorRegistry


_NOBODY = "unknown_service"
"""OpenTelemetry's name for a service that has none."""


class _Current:
    """The telemetry of this process, once it is configured."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.telemetry: Telemetry | None = None
        """One that was shut down stays until the next is made: an endpoint that asks for it still must not fail."""
        self.objects: Mapping[str, Any] = {}
        """What it was given besides its settings."""
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._after_fork)

    def _after_fork(self) -> None:
        # Another thread of the parent may have held it.
        self.lock = threading.RLock()


current = _Current()


def configure_telemetry(
    app: Any = None,
    *,
    registry: CollectorRegistry | None = None,
    views: Sequence[View] = (),
    metric_readers: Sequence[MetricReader] = (),
    **settings: Any,
) -> Telemetry:
    """Make the telemetry of this process and return its handle; call it once, at start-up.

    With `app`, its requests are measured, and sockets and threads start with its lifespan or its first
    request; without one they start now. The keywords are those of `Settings`; what is not given comes from
    the environment. Called again with the same settings, registry, views and readers it returns the same handle.

    Errors:  TypeError or ValueError for a setting, naming the argument or variable, its value and what was
             expected; RuntimeError if the process is configured otherwise already, naming the differences.
    """
    if app is not None and not hasattr(app, "build_middleware_stack"):
        msg = f"app is {app!r:.100}, expected a FastAPI or Starlette application"
        raise TypeError(msg)
    _check_objects(registry, views, metric_readers)
    chosen = Settings.from_env(fallback_service_name=_NOBODY, **settings)
    if chosen.service_name == _NOBODY:
        known = current.telemetry
        chosen = replace(
            chosen, service_name=_service_name(app, None if known is None or known.is_shut_down else known)
        )
    telemetry = configure(chosen, registry=registry, views=views, metric_readers=metric_readers)
    if app is not None:
        telemetry.instrument_app(app)
    else:
        telemetry.start()
    return telemetry


def configure(settings: Settings, **objects: Any) -> Telemetry:
    """Return the telemetry of these settings, made if there is none yet; it is not started."""
    with current.lock:
        known = current.telemetry
        if known is not None and not known.is_shut_down:
            difference = known.settings.difference(settings)
            for name, given in objects.items():
                if not _is_same(current.objects.get(name), given):
                    difference[name] = current.objects.get(name), given
            if difference:
                told = "; ".join(f"{name} is {ours!r}, now {theirs!r}" for name, (ours, theirs) in difference.items())
                msg = f"telemetry is configured already with other settings: {told}"
                raise RuntimeError(msg)
            return known
        telemetry = Telemetry(settings, **objects)
        if settings.set_global and not settings.disabled:
            become_global(telemetry.meter_provider)
            if telemetry.tracer_provider is not None:
                trace.set_tracer_provider(telemetry.tracer_provider)
        # Workers of most servers end without running this: the lifespan's end does it for them.
        atexit.register(telemetry.shutdown)
        telemetry.at_end.append(lambda ended: atexit.unregister(ended.shutdown))
        current.telemetry, current.objects = telemetry, objects
        return telemetry


def _is_same(ours: Any, theirs: Any) -> bool:
    """Whether what was given is what is given now: the same objects, or views in the same words.

    A module that is executed once more (`python app.py`, whose server imports app) makes its views anew.
    """
    if isinstance(ours, Sequence) and isinstance(theirs, Sequence):
        return len(ours) == len(theirs) and all(map(_is_same, ours, theirs))
    return ours is theirs or (_words(ours) is not None and _words(ours) == _words(theirs))


def _words(view: Any) -> object:
    from opentelemetry.sdk.metrics.view import Aggregation, View

    if not isinstance(view, View | Aggregation):
        return None
    return type(view), {name: _words(each) or each for name, each in vars(view).items()}


# Where an application that holds the telemetry is unpickled, it is configured anew: threads and sockets do not
# travel, the settings do.
copyreg.pickle(Telemetry, lambda telemetry: (configure, (telemetry.settings,)))


def _check_objects(registry: Any, views: Any, metric_readers: Any) -> None:
    from opentelemetry.sdk.metrics.export import MetricReader
    from opentelemetry.sdk.metrics.view import View

    if registry is not None and not all(hasattr(registry, verb) for verb in ("register", "collect")):
        msg = f"registry is {registry!r:.100}, expected a prometheus_client CollectorRegistry"
        raise TypeError(msg)
    for name, given, kind in (("views", views, View), ("metric_readers", metric_readers, MetricReader)):
        if not isinstance(given, Sequence) or not all(isinstance(each, kind) for each in given):
            msg = f"{name} is {given!r:.100}, expected a sequence of {kind.__name__}s"
            raise TypeError(msg)


def _service_name(app: Any, known: Telemetry | None) -> str:
    """What a service is called that nobody has named: as it is already, else by its app, else by its script."""
    if known is not None:
        return known.settings.service_name
    title = getattr(app, "title", None)
    return title if isinstance(title, str) and title not in ("", "FastAPI") else _script_name()


def _script_name() -> str:
    script = Path(sys.argv[0])
    if script.stem == "__main__":  # python -m
        return script.parent.name
    return "python" if script.name in ("", "-", "-c") else script.stem


def get_telemetry() -> Telemetry:
    """Return the telemetry of this process.

    Errors:  RuntimeError before `configure_telemetry()` was called.
    """
    if current.telemetry is None:
        msg = "telemetry is not configured: call configure_telemetry() at start-up, before this"
        raise RuntimeError(msg)
    return current.telemetry


def initialize_metrics(
    start_server: bool = True,
    server_port: int | None = None,
    start_monitoring: bool = True,
    monitoring_interval: float | None = None,
    *,
    registry: CollectorRegistry | None = None,
    **settings: Any,
) -> Telemetry:
    """Configure the telemetry of this process: `configure_telemetry` under the specification's name."""
    if server_port is not None:
        settings["port"] = server_port
    if monitoring_interval is not None:
        settings["monitoring_interval"] = monitoring_interval
    return configure_telemetry(
        start_server=start_server, start_monitoring=start_monitoring, registry=registry, **settings
    )


def get_metrics() -> Telemetry:
    """Return the telemetry of this process: `get_telemetry` under the specification's name."""
    return get_telemetry()
