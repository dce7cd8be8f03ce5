"""What is done once for all workers of a group: the page is served, the sources are read, metrics are pushed."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, Resource

from otel_mlops import metrics as rows
from otel_mlops.daily import Daily
from otel_mlops.sdk.bounded import call_within
from otel_mlops.sdk.group import RESOURCE

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics.export import MetricReader

    from otel_mlops.sdk.group import Group
    from otel_mlops.sdk.page import Page
    from otel_mlops.sdk.provider import MeterProvider
    from otel_mlops.settings import Settings
    from otel_mlops.sources.sampler import Source

_logger = logging.getLogger(__name__)

_OBSERVED = (
    *(row for row in rows.CATALOGUE if row.across == "once" and row.kind == "gauge" and row is not rows.PAGE_SERIES),
)
"""The rows that a source reads, those about the sources themselves, and those about the group."""


class Leading:
    """What the leader of a group does, ready to begin.

    `is_leader` says whether this process speaks for the group; `on_export_failure` is told of each failed push.
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
    ) -> None:
        from otel_mlops.sdk.server import PageServer
        from otel_mlops.sources.sampler import Sampler

        self._settings = settings
        self._provider = provider
        self._group = group
        self._is_leader = is_leader
        self._on_export_failure = on_export_failure
        self.daily = Daily(provider, group, is_leader=is_leader, clock=clock)
        self.sampler = Sampler(
            sources,
            settings.monitoring_interval,
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
        self._push: MetricReader | None = None
        self._describe()

    def start(self, listener: socket.socket | None = None) -> None:
        """Begin to serve, to read and to push; does nothing of that which goes on already."""
        self._share_resource()
        self.daily.resume()
        if "prometheus" in self._settings.metrics_exporter and self._settings.start_server:
            self.server.start(listener)
        self.sampler.start()
        if "otlp" in self._settings.metrics_exporter and self._push is None:
            from otel_mlops.otlp import open_metric_reader

            self._push = open_metric_reader(self._settings, on_failure=self._on_export_failure)
            self._provider.add_metric_reader(self._push, of_group=True)

    def stop(self, timeout_s: float) -> None:
        """End within the time what `start()` began, and push for the last time."""
        push, self._push = self._push, None
        deadline = time.monotonic() + timeout_s
        self.sampler.stop(timeout_s / 2)
        left_s = max(0.1, deadline - time.monotonic())
        calls: list[Callable[[], object]] = [partial(self.server.stop, left_s)]
        if push is not None:
            # Its end is its last export.
            calls.append(partial(self._provider.remove_metric_reader, push))
        call_within(left_s, *calls)

    def after_fork(self) -> None:
        """In a forked child: nothing of the parent's threads, sockets and locks."""
        self.server.after_fork()
        self.sampler.after_fork()
        self.daily.after_fork()
        push, self._push = self._push, None
        if push is not None:
            self._provider.remove_metric_reader(push)

    def _count_refused(self, reason: str) -> None:
        self._provider.instrument(rows.PAGE_REFUSED).add(1, {"reason": reason})

    def _describe(self) -> None:
        """Create what is observed."""
        meter = self._provider.get_meter("otel_mlops")
        for row in _OBSERVED:
            observe: Any = self._observe_workers if row is rows.WORKERS else self.sampler.observe(row)
            meter.create_observable_gauge(row.name, [observe], row.unit, row.help)
        daily = rows.DAILY_PREDICTIONS
        meter.create_observable_counter(daily.name, [self.daily.observe], daily.unit, daily.help)

    def _observe_workers(self, _options: Any) -> list[Any]:
        from opentelemetry.metrics import Observation

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
