"""Telemetry: the wiring of everything a service has, and when it starts and ends."""

from __future__ import annotations

import logging
import os
import platform
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource

from otel_mlops import metrics as rows
from otel_mlops.daily import Daily
from otel_mlops.sdk import group
from otel_mlops.sdk.bounded import call_within
from otel_mlops.sdk.ledger import Ledger
from otel_mlops.sdk.provider import MeterProvider, exemplar_filter
from otel_mlops.settings import Settings
from otel_mlops.verbs import Verbs

if TYPE_CHECKING:
    from types import TracebackType

    from opentelemetry.sdk.metrics.export import MetricReader
    from opentelemetry.sdk.metrics.view import View
    from prometheus_client import CollectorRegistry

    from otel_mlops.model import Model
    from otel_mlops.sdk.page import Page
    from otel_mlops.sources.sampler import Sample, Source

_logger = logging.getLogger(__name__)

EXIT_TIMEOUT_S = 2.0
"""How long the end of the process waits for what is still to be sent."""

_OBSERVED = (
    *(row for row in rows.CATALOGUE if row.across == "once" and row.kind == "gauge" and row is not rows.PAGE_SERIES),
)
"""The rows that a source reads, and those about the sources themselves."""


class Telemetry(Verbs):
    """What a service says about itself: made by `configure_telemetry`, found again by `get_telemetry`.

    A context manager, plain and async, that shuts down at its end; `at_end` is called when it has.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        registry: CollectorRegistry | None = None,
        views: Sequence[View] = (),
        metric_readers: Sequence[MetricReader] = (),
        sources: Mapping[str, Source] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        from otel_mlops.sdk.page import PageReader
        from otel_mlops.sdk.server import PageServer
        from otel_mlops.sources.sampler import Sampler
        from otel_mlops.tasks import Tasks

        self.settings = settings
        self._lock = threading.RLock()
        self._started = self._ended = False
        self._export_failures: dict[str, Any] = {}
        self.at_end: list[Callable[[Telemetry], None]] = []
        self._models: dict[tuple[str, str], Any] = {}
        self._page = PageReader(registry=registry)
        self.meter_provider = MeterProvider(
            (self._page, *metric_readers),
            _resource(settings),
            exemplar_filter(settings.exemplar_filter),
            shutdown_on_exit=False,
            views=views,
            ledger=Ledger(self._folder, on_fault=self._on_ledger_fault),
            max_series=settings.max_series,
            disabled=settings.disabled,
        )
        super().__init__(self.meter_provider)
        self.meter = self.meter_provider.get_meter(settings.service_name, settings.service_version)
        self.tracer_provider = self._open_tracer_provider()
        self.tracer = trace.get_tracer(settings.service_name, settings.service_version, self.tracer_provider)
        self._daily = Daily(self.meter_provider)
        self._sampler = Sampler(
            self._open_sources() if sources is None else sources,
            settings.monitoring_interval,
            on_dropped=self.meter_provider.count_dropped,
            at_midnight=self._daily.begin_day,
            wall_clock=clock,
        )
        self._tasks = Tasks(self.meter_provider, is_leader=self._leads)
        self._server = PageServer(self.page, settings.host, settings.port)
        self._push: MetricReader | None = None
        if "otlp" in settings.metrics_exporter and not settings.disabled:
            from otel_mlops import otlp

            otlp.check("metrics")
        for signal in ("metrics", "traces"):  # now: the last exports fail when the provider has shut down
            self._export_failures[signal] = self.meter_provider.instrument(rows.EXPORT_FAILURES).bind(
                {"signal": signal}
            )
        self._describe()
        _at_fork(self)

    # --- What a service asks for ---------------------------------------------------------------------------

    def model(self, name: str, version: str, **facts: Any) -> Model:
        """The model of a name and version; the same object when it is asked for again in the same words.

        Errors:  TypeError or ValueError that names the argument; ValueError if there is one of that name and
                 version that was described otherwise.
        """
        from otel_mlops.model import Model, check_text, describe

        key = check_text("name", name), check_text("version", version)
        described = describe(**facts)
        with self._lock:
            model: Model | None = self._models.get(key)
            if model is None:
                model = self._models[key] = Model(self.meter_provider, name=name, version=version, **facts)
            elif model.description != described:
                raise ValueError(
                    f"model {name!r} version {version!r} is there with {model.description}; this call says {described}"
                )
            return model

    def instrument_app(self, app: Any) -> None:
        """Measure the requests of a FastAPI or Starlette application, and start and stop with it.

        Errors:  RuntimeError if the application has begun to serve: call this right after it is made.
        """
        from otel_mlops.web import instrument_app

        instrument_app(app, self)

    def schedule_task(
        self, func: Callable[[], object], interval_seconds: float, task_name: str, *, once_per_group: bool = False
    ) -> None:
        """Run a function, plain or async, every so many seconds in the background.

        Errors:  TypeError or ValueError that names the argument.
        """
        self._tasks.schedule(func, interval_seconds, task_name, once_per_group=once_per_group)

    def page(self, accept: str | None = None) -> Page:
        """The page in the format that an Accept header prefers."""
        return self._page.page(accept)

    def sample(self) -> None:
        """Read all sources now, in this thread."""
        self._sampler.sample()

    def forget(self, **labels: str) -> int:
        """Remove the series that carry all of these labels (`model_version="v1"`) and return how many.

        Errors:  ValueError without a label, which would remove everything.
        """
        if not labels:
            raise ValueError("forget() is given no label, expected at least one, as in forget(model_version='v1')")
        gone = self.meter_provider.forget(labels)
        self._daily.forget(labels)
        self._forget_health(labels)
        with self._lock:
            for name, version_ in list(self._models):
                if labels.items() <= {"model_name": name, "model_version": version_}.items():
                    del self._models[name, version_]
        return gone

    @property
    def is_shut_down(self) -> bool:
        """Whether it has ended: records are still taken, and seen by nobody."""
        return self._ended

    @property
    def url(self) -> str:
        """Where the page is served."""
        return self._server.url

    # --- Start and end ---------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to serve the page, read sources, run tasks and push; does nothing while that goes on."""
        if self.settings.disabled:
            return
        with self._lock:
            if self._started or self._ended:
                return
            self._started = True
            if "prometheus" in self.settings.metrics_exporter and self.settings.start_server:
                self._server.start()
            self._sampler.start()
            self._tasks.start()
            if "otlp" in self.settings.metrics_exporter:
                from otel_mlops.otlp import open_metric_reader

                self._push = open_metric_reader(self.settings, on_failure=self._on_export_failure)
                self.meter_provider.add_metric_reader(self._push)
        self._say()

    def force_flush(self, timeout_s: float = 10.0) -> bool:
        """Push what there is now; False if that failed or took longer than the time."""
        timeout_millis = timeout_s * 1e3
        calls = [partial(self.meter_provider.force_flush, timeout_millis)]
        if self.tracer_provider is not None:
            calls.append(partial(self.tracer_provider.force_flush, int(timeout_millis)))
        return call_within(timeout_s, *calls)

    def stop(self, timeout_s: float = EXIT_TIMEOUT_S) -> None:
        """End within the time what `start()` began, and push what waits; `start()` begins it again.

        Workers of most servers are ended right after their lifespan without another word: nothing is left
        behind then, no thread that works and no file.
        """
        with self._lock:
            if not self._started:
                return
            self._started = False
            push, self._push = self._push, None
        deadline = time.monotonic() + timeout_s
        self._tasks.stop(timeout_s / 4)
        self._sampler.stop(timeout_s / 4)
        left_s = max(0.1, deadline - time.monotonic())
        calls: list[Callable[[], object]] = [partial(self._server.stop, left_s)]
        if push is not None:
            # Its end is its last export.
            calls.append(partial(self.meter_provider.remove_metric_reader, push))
        if self.tracer_provider is not None:
            calls.append(partial(self.tracer_provider.force_flush, int(left_s * 1e3)))
        call_within(left_s, *calls)
        self.meter_provider.force_flush(max(0.1, deadline - time.monotonic()) * 1e3)
        self.meter_provider.ledger.close()

    def shutdown(self, timeout_s: float = EXIT_TIMEOUT_S) -> None:
        """End everything within the time; a second call does nothing. Records are still taken, and seen by nobody."""
        with self._lock:
            if self._ended:
                return
            self._ended = True
        deadline = time.monotonic() + timeout_s
        self.stop(timeout_s)
        left_s = max(0.1, deadline - time.monotonic())
        calls: list[Callable[[], object]] = [partial(self.meter_provider.shutdown, left_s * 1e3)]
        if self.tracer_provider is not None:
            calls.append(self.tracer_provider.shutdown)
        call_within(left_s, *calls)
        for call in self.at_end:
            call(self)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.shutdown()

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        import asyncio

        await asyncio.to_thread(self.shutdown)

    # --- Wiring ----------------------------------------------------------------------------------------------

    def _folder(self) -> Path:
        return group.open_folder(self.settings.state_dir)

    def _leads(self) -> bool:
        # The worker that has the page is the one that does what is to be done once.
        return not self.settings.start_server or self._server.serving.is_set()

    def _on_ledger_fault(self, fault: str) -> None:
        _logger.warning(
            "numbers go on in private memory, where they do not survive this process: %s. "
            "Give shared memory more room, or set OTEL_MLOPS_STATE_DIR to a folder that can be written.",
            fault,
        )

    def _on_export_failure(self, signal: str) -> None:
        self._export_failures[signal].add(1)

    def _open_tracer_provider(self) -> Any:
        if self.settings.disabled or self.settings.traces_endpoint is None:
            return None
        from otel_mlops.otlp import open_tracer_provider

        return open_tracer_provider(
            self.settings,
            self.meter_provider.resource,
            on_failure=self._on_export_failure,
            on_dropped=partial(self.meter_provider.count_dropped, "queue_full"),
        )

    def _open_sources(self) -> dict[str, Source]:
        sources: dict[str, Source] = {}
        if self.settings.disabled or not self.settings.start_monitoring:
            return sources
        if "host" in self.settings.sources:
            from otel_mlops.sources.host import open_host

            try:
                sources["host"] = open_host()
            except ImportError as error:
                sources["host"] = _missing(str(error))
        return sources

    def _describe(self) -> None:
        """Create what is observed, and say what runs here."""
        meter = self.meter_provider.get_meter("otel_mlops")
        for row in _OBSERVED:
            meter.create_observable_gauge(row.name, [self._sampler.observe(row)], row.unit, row.help)
        daily = rows.DAILY_PREDICTIONS
        meter.create_observable_counter(daily.name, [self._daily.observe], daily.unit, daily.help)

    def _say(self) -> None:
        """One line at the start: where the page is, and whether anybody may read it."""
        self.meter_provider.instrument(rows.BUILD_INFO).set(
            1.0,
            {
                "version": _version("otel-mlops"),
                "python_version": platform.python_version(),
                "opentelemetry_version": _version("opentelemetry-sdk"),
            },
        )
        if "prometheus" not in self.settings.metrics_exporter or not self.settings.start_server:
            return
        loopback = self.settings.host in ("127.0.0.1", "::1", "localhost")
        level = logging.INFO if loopback else logging.WARNING
        who = "this machine only" if loopback else "anybody who reaches this port, without a password"
        if self._server.fault is None:
            _logger.log(level, "the page of %s is on %s, open to %s", self.settings.service_name, self.url, who)

    def after_fork(self) -> None:
        """In a forked child: nothing of the parent's threads, sockets and locks."""
        self._lock = threading.RLock()
        self._started = False
        self._page.after_fork()
        self._server.after_fork()
        self._sampler.after_fork()
        self._tasks.after_fork()
        self._daily.after_fork()
        if self._push is not None:
            self.meter_provider.remove_metric_reader(self._push)
            self._push = None


def _missing(fault: str) -> Source:
    """A source whose driver is not installed: it is down, which is said once and stands on the page."""

    def read() -> Iterable[Sample]:
        raise ImportError(fault)

    return read


def _resource(settings: Settings) -> Resource:
    try:
        return Resource.create(dict(settings.resource))
    except RuntimeError:
        # It looks around in threads, and there may be no more to be had.
        _logger.warning("the resource is what the settings say alone: no thread can be started")
        return Resource(dict(settings.resource))


def _at_fork(telemetry: Telemetry) -> None:
    if not hasattr(os, "register_at_fork"):
        return
    weak = weakref.ref(telemetry)

    def after_in_child() -> None:
        if (alive := weak()) is not None:
            alive.after_fork()

    os.register_at_fork(after_in_child=after_in_child)


def _version(distribution: str) -> str:
    from importlib.metadata import PackageNotFoundError, version  # late: half as costly as all of the SDK's metrics

    try:
        return version(distribution)
    except PackageNotFoundError:
        return "unknown"  # run from a checkout that is not installed
