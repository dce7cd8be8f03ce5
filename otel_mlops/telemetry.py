"""Telemetry: the wiring of everything a service has, and when it starts and ends."""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from opentelemetry import trace
from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID

from otel_mlops import metrics as rows
from otel_mlops.sdk.bounded import call_within
from otel_mlops.sdk.group import group_of, lasting_folder
from otel_mlops.sdk.ledger import Ledger
from otel_mlops.sdk.member import Member
from otel_mlops.sdk.provider import MeterProvider, exemplar_filter
from otel_mlops.sdk.resource import resource_of, versions
from otel_mlops.settings import Settings
from otel_mlops.verbs import Verbs

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from opentelemetry.sdk.metrics.export import MetricReader
    from opentelemetry.sdk.metrics.view import View
    from prometheus_client import CollectorRegistry

    from otel_mlops.model import Model
    from otel_mlops.sdk.page import Page
    from otel_mlops.sources.sampler import Source

_logger = logging.getLogger(__name__)

EXIT_TIMEOUT_S = 2.0
"""How long the end of the process waits for what is still to be sent."""

_REFRESH_TIMEOUT_S = 2.0
"""How long the callbacks of a worker that does not lead may take together."""


class Telemetry(Verbs):
    """What a service says about itself: made by `configure_telemetry`, found again by `get_telemetry`.

    A context manager, plain and async, that shuts down at its end; `at_end` is called when it has. `lead_file` and
    `listener` are open files that the process of the page has from its worker.
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
        lead_file: int | None = None,
        listener: int | None = None,
    ) -> None:
        from otel_mlops.leading import Leading, open_sources
        from otel_mlops.model.models import Models
        from otel_mlops.model.ways import Ways
        from otel_mlops.pauses import Pauses
        from otel_mlops.sdk.page import PageReader
        from otel_mlops.tasks import Tasks

        self.settings = settings
        self._lock = threading.RLock()
        self._started = self._ended = False
        self._export_failures: dict[str, Any] = {}
        self.at_end: list[Callable[[Telemetry], None]] = []
        self._page = PageReader(registry=registry)
        self._is_page_process = lead_file is not None
        self._group = group_of(settings, inherited_lead=lead_file)
        self.meter_provider = MeterProvider(
            (self._page, *metric_readers),
            resource_of(settings),
            exemplar_filter(settings.exemplar_filter),
            shutdown_on_exit=False,
            views=views,
            ledger=Ledger(self._group, on_fault=self._on_ledger_fault, max_bytes=settings.max_ledger_bytes),
            group=self._group,
            max_series=settings.max_series,
            stale_s=max(3 * settings.monitoring_interval, 15.0),
            disabled=settings.disabled,
            keeps_instance_id=SERVICE_INSTANCE_ID in settings.resource,
        )
        super().__init__(self.meter_provider)
        self._models = Models(
            self.meter_provider,
            Ways(self.meter_provider, settings.receipt_key, self._folder_of_truths, clock),
        )
        self.meter = self.meter_provider.get_meter(settings.service_name, settings.service_version)
        self.tracer_provider = self._open_tracer_provider()
        self.tracer = trace.get_tracer(settings.service_name, settings.service_version, self.tracer_provider)
        self._leading = Leading(
            settings,
            self.meter_provider,
            self._group,
            self.page,
            open_sources(settings, self.meter_provider.everyone.processes) if sources is None else sources,
            is_leader=self._speaks_for_all,
            on_export_failure=self._on_export_failure,
            clock=clock,
            listener=listener,
            stays_here=registry is not None or sources is not None,
        )
        self._member = Member(
            self._group,
            self.meter_provider,
            on_lead=self._leading.begin,
            on_lost=partial(self._leading.end, EXIT_TIMEOUT_S),
            on_forget=self._forget_here,
            refresh=self._refresh,
            refresh_s=settings.monitoring_interval,
            retires=lambda: not self._leading.is_handed_over,
        )
        self._tasks = Tasks(self.meter_provider, is_leader=lambda: self._member.leads)
        self._pauses = Pauses(self.meter_provider)
        if "otlp" in settings.metrics_exporter and not settings.disabled:
            from otel_mlops import otlp

            otlp.check("metrics")
        for signal in ("metrics", "traces"):  # now: the last exports fail when the provider has shut down
            self._export_failures[signal] = self.meter_provider.instrument(rows.EXPORT_FAILURES).bind(
                {"signal": signal}
            )
        _at_fork(self)

    # --- What a service asks for ---------------------------------------------------------------------------

    def model(self, name: str, version: str, **facts: Any) -> Model:
        """The model of a name and version; the same object when it is asked for again in the same words.

        The facts are those of Model: stage, type, features, profile and positive.

        Errors:  TypeError or ValueError that names the argument; ValueError if there is one of that name and
                 version that was described otherwise; OSError if the profile cannot be read.
        """
        return self._models.find(name, version, **facts)

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
        """Read all sources now, in this thread: it opens their drivers here. What they count the leader counts."""
        self._leading.sampler.sample()

    def forget(self, **labels: str) -> int:
        """Remove the series that carry all of these labels (`model_version="v1"`) in every worker of the group.

        Returns how many this worker had.

        Errors:  ValueError without a label, which would remove everything.
        """
        if not labels:
            raise ValueError("forget() is given no label, expected at least one, as in forget(model_version='v1')")
        gone = self._forget_here(labels)
        try:
            self.meter_provider.everyone.tell_to_forget(labels)
        except OSError as error:
            _logger.warning("the other workers were not told to forget %s: %s", labels, error)
        # At once, not with the next look: what comes after this call is not to be forgotten.
        for each in self.meter_provider.everyone.follow():
            self._forget_here(each)
        return gone

    def _forget_here(self, labels: Mapping[str, str]) -> int:
        gone = self.meter_provider.forget(labels)
        self._leading.daily.forget(labels)
        self._forget_health(labels)
        self._models.forget(labels)
        return gone

    @property
    def is_shut_down(self) -> bool:
        """Whether it has ended: records are still taken, and seen by nobody."""
        return self._ended

    @property
    def url(self) -> str:
        """Where the page is served."""
        return self._leading.server.url

    # --- Start and end ---------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to serve the page, read sources, run tasks and push; does nothing while that goes on."""
        if self.settings.disabled:
            return
        with self._lock:
            if self._started or self._ended:
                return
            self._started = True
            self.meter_provider.ledger.rejoin()
            self.meter_provider.ledger.note_started(has_started=True)
            self._say_what_runs()
            self.meter_provider.settle()
            self._member.start()
            self._tasks.start()
            if self.settings.start_monitoring:
                self._pauses.start()
        self._say()
        self.watch_loop()

    def watch_loop(self) -> None:
        """Time the event loop that runs here, if one does and this has started with monitoring, until `stop()`.

        An application's is from its start on, and so is that in which `start()` is called.
        """
        self._pauses.watch_loop()

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
        deadline = time.monotonic() + timeout_s
        self._pauses.stop()
        self._tasks.stop(timeout_s / 4)
        self._member.stop(timeout_s / 4)
        left_s = max(0.1, deadline - time.monotonic())
        calls: list[Callable[[], object]] = [partial(self._leading.end, left_s)]
        if self.tracer_provider is not None:
            calls.append(partial(self.tracer_provider.force_flush, int(left_s * 1e3)))
        call_within(left_s, *calls)
        self.meter_provider.force_flush(max(0.1, deadline - time.monotonic()) * 1e3)
        # The numbers first: whoever leads next must find them where the dead leave theirs.
        self.meter_provider.leave()
        self._member.give_up()

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
        self._models.close()
        for call in self.at_end:
            call(self)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.shutdown()

    async def __aenter__(self) -> Self:
        self.start()
        self.watch_loop()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        import asyncio

        await asyncio.to_thread(self.shutdown)

    def _folder_of_truths(self) -> Path | None:
        """Where the workers keep what late truths are found by; that of the group is made anew by its first worker."""
        if self._group is None:
            return None
        try:
            lasting = lasting_folder(self.settings, self._group)
        except OSError as error:
            _logger.debug("what waits for its truth does not outlast this service: %s", error)
            lasting = None
        return lasting or (None if self.meter_provider.ledger.path is None else self._group.folder)

    # --- Wiring ----------------------------------------------------------------------------------------------

    def _speaks_for_all(self) -> bool:
        """Whether this worker says what is said once for the group: as its leader, or as all there is of it."""
        if self._leading.is_handed_over:
            return False
        return self._member.leads or (not self._started and self.meter_provider.everyone.is_alone)

    def _refresh(self) -> None:
        """Have callbacks speak, and say how this worker's ledger is."""
        self._say_how_the_ledger_is()
        self.meter_provider.refresh(self._page, _REFRESH_TIMEOUT_S)

    def _say_how_the_ledger_is(self) -> None:
        ledger = self.meter_provider.ledger
        self.meter_provider.instrument(rows.LEDGER_SIZE).set(ledger.total_bytes)
        self.meter_provider.instrument(rows.LEDGER_UP).set(float(ledger.fault is None))

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

    def _say_what_runs(self) -> None:
        self.meter_provider.instrument(rows.BUILD_INFO).set(1.0, versions())
        self._say_how_the_ledger_is()

    def _say(self) -> None:
        """One line at the start: where the page is, and whether anybody may read it."""
        served = "prometheus" in self.settings.metrics_exporter and self.settings.start_server
        if not served or not self._member.leads or self._is_page_process:
            return
        loopback = self.settings.host in ("127.0.0.1", "::1", "localhost")
        config = self.settings.web_config_file
        level = logging.INFO if loopback or config else logging.WARNING
        who = "this machine only" if loopback else "anybody who reaches this port, without a password"
        who = who if config is None else f"whom {config} admits"
        if self._leading.server.fault is None:
            _logger.log(level, "the page of %s is on %s, open to %s", self.settings.service_name, self.url, who)

    def after_fork(self) -> None:
        """In a forked child: nothing of the parent's threads, sockets and locks."""
        self._lock = threading.RLock()
        self._started = False
        self._page.after_fork()
        self._member.after_fork()
        self._leading.after_fork()
        self._tasks.after_fork()
        self._models.after_fork()
        self._pauses.stop()


def _at_fork(telemetry: Telemetry) -> None:
    if not hasattr(os, "register_at_fork"):
        return
    weak = weakref.ref(telemetry)

    def after_in_child() -> None:
        if (alive := weak()) is not None:
            alive.after_fork()

    os.register_at_fork(after_in_child=after_in_child)
