"""What is done once for all workers of a group: the page is served, the sources are read, metrics are pushed."""

from __future__ import annotations

import logging
import socket
import sys
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from opentelemetry.metrics import Observation
from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, Resource

from otel_mlops import metrics as rows
from otel_mlops.daily import Daily
from otel_mlops.energy import share_energy_out
from otel_mlops.page_process import PageProcess, why_not
from otel_mlops.scores import PUSHED, Scores
from otel_mlops.sdk.bounded import call_within
from otel_mlops.sdk.group import RESOURCE

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics.export import MetricReader

    from otel_mlops.sdk.group import Group
    from otel_mlops.sdk.page import Page
    from otel_mlops.sdk.provider import MeterProvider
    from otel_mlops.settings import Settings
    from otel_mlops.sources.sampler import Sample, Source

_logger = logging.getLogger(__name__)

_HAND_OVER_S = 2.0
_FIRST_READING_S = 0.5
"""How long the first page waits for the sources: as a rule they take some milliseconds."""

_OBSERVED = (*PUSHED, *(row for row in rows.CATALOGUE if row.across == "once" and row is not rows.PAGE_SERIES))
"""The rows that a source reads, those about the sources themselves, and those about the group."""

_GPUS = ("nvidia", "amd")
"""Not opened in a worker, which may compute on them, while the process of the page is on its way."""

_PACES_S = dict.fromkeys(_GPUS, 1.0)
"""Sources that know better than the settings how often they are to be read; what is costly they read less often."""


class Leading:
    """What the leader of a group does, ready to begin.

    `is_leader` says whether this process speaks for the group; `on_export_failure` is told of each failed push.
    The page is served on the `listener`, an open file, if there is one, and on a socket of its own otherwise; with
    `stays_here` never in a process of its own.
    """

    def __init__(
        self,
        settings: Settings,
        provider: MeterProvider,
        group: Group | None,
        page: Callable[[str | None], Page],
        sources: Mapping[str, Source],
        *,
        is_leader: Callable[[], bool],
        on_export_failure: Callable[[str], None],
        clock: Callable[[], float] = time.time,
        listener: int | None = None,
        stays_here: bool = False,
    ) -> None:
        from otel_mlops.sdk.server import PageServer
        from otel_mlops.sources.sampler import Sampler

        self._settings = settings
        self._provider = provider
        self._group = group
        self._is_leader = is_leader
        self._on_export_failure = on_export_failure
        self.daily = Daily(provider, group, is_leader=is_leader, clock=clock)
        sources = share_energy_out(sources, settings, provider, group, is_leader)
        if "models" in settings.sources and settings.start_monitoring and not settings.disabled:
            sources = {**sources, "models": Scores(provider, group, settings, is_leader=is_leader, clock=clock)}
        self.sampler = Sampler(
            sources,
            settings.monitoring_interval,
            paces=_PACES_S,
            count=self._count,
            on_dropped=provider.count_dropped,
            at_midnight=self.daily.begin_day,
            wall_clock=clock,
        )
        self.server = PageServer(
            page,
            settings.host,
            settings.port,
            web_config_file=settings.web_config_file,
            on_refused=self._count_refused,
        )
        self._listener = None if listener is None else socket.socket(fileno=listener)
        self._push: MetricReader | None = None
        self._page_process = self._plan_page_process(stays_here=stays_here)
        self._has_begun = False
        self.is_handed_over = False
        """Whether the process of the page leads in this one's stead."""
        self._describe()

    def begin(self) -> None:
        """Begin to lead: here, until the process of the page goes on with it, to which the push is left at once."""
        self._has_begun = True
        if self._page_process is None:
            self.start()
        else:
            self._serve_and_read(without=_GPUS)
            self._page_process.start()

    def end(self, timeout_s: float) -> None:
        """End leading within the time, wherever that is done."""
        deadline = time.monotonic() + timeout_s
        if self._page_process is not None:
            was_here = self._has_begun and not self.is_handed_over
            self._page_process.stop(timeout_s / 2)
            self.is_handed_over = False
            if was_here:
                self._start_push()  # it was over before the process of the page came: this is the only export
        self._has_begun = False
        self._end(max(0.1, deadline - time.monotonic()), end_server=self.server.stop)

    def start(self) -> None:
        """Serve, read and push here; does nothing of that which goes on already."""
        self._serve_and_read()
        self._start_push()

    def _serve_and_read(self, *, without: Collection[str] = ()) -> None:
        self._share_resource()
        self.daily.resume()  # before the first page: today's count would be that of all days
        self.sampler.start(without=without)
        if "prometheus" in self._settings.metrics_exporter and self._settings.start_server:
            self.sampler.wait(_FIRST_READING_S)  # so that no series of the machine is away on the first page
            listener, self._listener = self._listener, None
            self.server.start(listener)

    def _start_push(self) -> None:
        if "otlp" in self._settings.metrics_exporter and self._push is None:
            from otel_mlops.otlp import open_metric_reader

            self._push = open_metric_reader(self._settings, on_failure=self._on_export_failure)
            self._provider.add_metric_reader(self._push, of_group=True)

    def _hand_over(self) -> None:
        """End here what the process of the page goes on with; the page last, so that it is away for a moment only."""
        self._end(_HAND_OVER_S)
        self.server.pause(_HAND_OVER_S)
        self.is_handed_over = True
        # Two who fold the dead at a time would lose some of them: this waits for one that goes on.
        self._provider.everyone.retire()

    def _take_back(self) -> None:
        self.is_handed_over = False
        self.start()

    def _plan_page_process(self, *, stays_here: bool) -> PageProcess | None:
        """The process of the page, where it is wanted and can be had."""
        settings = self._settings
        served = "prometheus" in settings.metrics_exporter and settings.start_server and not settings.disabled
        if settings.page_process is False or not served or self._group is None:
            return None
        fault = "a registry or sources of this process stand on the page" if stays_here else why_not()
        if fault is not None:
            if settings.page_process:
                _logger.warning("the page has no process of its own: %s", fault)
            return None
        return PageProcess(
            settings,
            self._group,
            self.server,
            sees_all=self._is_seen,
            hand_over=self._hand_over,
            take_back=self._take_back,
        )

    def _is_seen(self) -> bool:
        """Whether other processes see all numbers of this one: none lie in private memory for want of room."""
        ledger = self._provider.ledger
        return ledger.path is not None and ledger.fault is None

    def _end(self, timeout_s: float, end_server: Callable[[float], object] | None = None) -> None:
        push, self._push = self._push, None
        deadline = time.monotonic() + timeout_s
        self.sampler.stop(timeout_s / 2)
        left_s = max(0.1, deadline - time.monotonic())
        calls: list[Callable[[], object]] = [] if end_server is None else [partial(end_server, left_s)]
        if push is not None:
            # Its end is its last export.
            calls.append(partial(self._provider.remove_metric_reader, push))
        call_within(left_s, *calls)

    def after_fork(self) -> None:
        """In a forked child: nothing of the parent's threads, sockets and locks."""
        self._has_begun = self.is_handed_over = False
        if self._page_process is not None:
            self._page_process.after_fork()
        self.server.after_fork()
        self.sampler.after_fork()
        self.daily.after_fork()
        push, self._push = self._push, None
        if push is not None:
            self._provider.remove_metric_reader(push)

    def _count(self, row: rows.Metric, increase: float, attributes: Mapping[str, str]) -> None:
        # Who does not lead may read the sources too, by `sample()`; what it reads the leader counts. A 0 harms nobody,
        # and has the series stand there before the first increase.
        if not increase or self._is_leader():
            self._provider.instrument(row).add(increase, attributes)

    def _count_refused(self, reason: str) -> None:
        self._provider.instrument(rows.PAGE_REFUSED).add(1, {"cause": reason})

    def _describe(self) -> None:
        """Create what is observed."""
        meter = self._provider.get_meter("otel_mlops")
        for row in _OBSERVED:
            own = {rows.WORKERS: self._observe_workers, rows.PAGE_CONFIG_UP: self._observe_config}
            observe: Any = own.get(row) or self.sampler.observe(row)
            if row.kind == "counter":
                meter.create_observable_counter(row.name, [observe], row.unit, row.help)
            else:
                meter.create_observable_gauge(row.name, [observe], row.unit, row.help)
        daily = rows.DAILY_PREDICTIONS
        meter.create_observable_counter(daily.name, [self.daily.observe], daily.unit, daily.help)

    def _observe_config(self, _options: Any) -> list[Observation]:
        if self._settings.web_config_file is None or not self._is_leader():
            return []
        return [Observation(float(self.server.config_fault is None))]

    def _observe_workers(self, _options: Any) -> list[Observation]:
        if self._group is None or not self._is_leader():
            return []
        return [Observation(self._provider.everyone.workers())]

    def _share_resource(self) -> None:
        """Have one `service.instance.id` for all who lead this group, one after the other."""
        own = self._provider.resource
        if self._group is None or SERVICE_INSTANCE_ID in self._settings.resource:
            return
        try:
            kept = self._group.load(RESOURCE)
            if kept is None:
                kept = own.attributes.get(SERVICE_INSTANCE_ID)
                self._group.keep(RESOURCE, kept)
        except OSError as error:
            _logger.debug("the instance's id is this worker's own: %s", error)
            return
        if isinstance(kept, str):
            self._provider.shared_resource = own.merge(Resource({SERVICE_INSTANCE_ID: kept}))


def open_sources(settings: Settings, pids: Callable[[], Mapping[str, int]]) -> dict[str, Source]:
    """The sources that the settings name; `pids` says which the worker processes are."""
    sources: dict[str, Source] = {}
    if settings.disabled or not settings.start_monitoring:
        return sources
    for name in settings.sources:
        if name == "models":
            continue  # what the workers have counted, which is no part of the machine
        if name == "amd" and not has_amdsmi():
            continue  # few have such a GPU: where the package is missing nothing is wrong
        source = sources[name] = _AtFirstReading(partial(_open_source, name, settings, pids))
        if name not in _GPUS:
            with suppress(ImportError):  # which each reading says
                source.open()  # now: the CPU's figure is that of the time since
    return sources


def has_amdsmi() -> bool:
    """Say whether ROCm's package, which is an extra, is installed; it is not imported."""
    return bool(sys.modules.get("amdsmi") or find_spec("amdsmi"))


def _open_source(name: str, settings: Settings, pids: Callable[[], Mapping[str, int]]) -> Source:
    match name:
        case "host":
            from otel_mlops.sources.host import open_host

            return open_host()
        case "container":
            from otel_mlops.sources.container import open_container

            return open_container()
        case "process":
            from otel_mlops.sources.process import open_process

            return open_process(pids)
        case "amd":
            from otel_mlops.sources.amd import open_amd

            return open_amd(gpus=settings.gpus)
        case _:
            from otel_mlops.sources.nvidia import open_nvidia

            return open_nvidia(gpus=settings.gpus, pids=pids)


class _AtFirstReading:
    """A source that is opened by its first reading: who never reads, as most workers, does not pay for its driver.

    Where the driver is not installed each reading raises: the source is down, which is said once.
    """

    def __init__(self, open_: Callable[[], Source]) -> None:
        self._open = open_
        self._source: Source | None = None

    def __call__(self) -> Iterable[Sample]:
        return self.open()()

    def open(self) -> Source:
        """Open the source, unless that was done.

        Errors:  ImportError without its driver.
        """
        if self._source is None:
            self._source = self._open()
        return self._source

    def close(self) -> None:
        """Have the source let go of its driver, if it was opened and can."""
        getattr(self._source, "close", lambda: None)()
