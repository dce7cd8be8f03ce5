"""The page: everything a provider's instruments say, as Prometheus text or OpenMetrics."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from threading import RLock, local
from typing import TYPE_CHECKING, Any, NamedTuple

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics.export import MetricsData
from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics

from otel_mlops.metrics import CATALOGUE, PAGE_DURATION, PAGE_SERIES
from otel_mlops.sdk.families import Fact, Family
from otel_mlops.sdk.peers import identity_of
from otel_mlops.sdk.text import OPENMETRICS, choose_format, label_text, labels

if TYPE_CHECKING:
    from otel_mlops.sdk.provider import MeterProvider
    from otel_mlops.sdk.shares import Share

_logger = logging.getLogger(__name__)

_PATIENCE_S = 5.0
"""How long a scrape waits for another one's rendering."""


def _ours() -> dict[str, tuple[str, str]]:
    families = (Family(row.name, row.kind, row.unit, row.help) for row in CATALOGUE)
    return {name: family.identity for family in families for name in family.names()}


_OURS = _ours()
"""The names of the catalogue: another metric that would take one of them is left out even if it comes first."""


class Page(NamedTuple):
    """What a scrape is answered with."""

    body: bytes
    content_type: str


class PageReader(PrometheusMetricReader):
    """The reader behind the page: a PrometheusMetricReader to whoever asks.

    With `registry` given, our metrics can be read from that prometheus_client registry, and what others have
    registered there stands on the page as well.
    """

    def __init__(self, *, registry: CollectorRegistry | None = None, observe_timeout_s: float = 2.0) -> None:
        # The stock reader registers a collector of its own somewhere; ours goes where the caller says.
        super().__init__(registry=CollectorRegistry())
        self._shared = registry
        self._observe_timeout_s = observe_timeout_s
        self._provider: MeterProvider | None = None
        self._told: set[str] = set()
        self._begin()
        self._entry = _RegistryEntry(self._as_metrics)
        if registry is not None:
            registry.register(self._entry)

    def _begin(self) -> None:
        self._lock = RLock()
        self._is_rendering = False
        self._last: dict[str, Page] = {}
        self._families: dict[str, Family] = {}
        self._owners: dict[str, Family] = {}
        self._homes: dict[Any, Family | None] = {}
        self._version: Any = None

    def after_fork(self) -> None:
        """Begin anew in a forked child: a rendering in the parent may have held the lock."""
        self._begin()

    def page(self, accept: str | None = None) -> Page:
        """Render the page in the format that the Accept header prefers; what fails is left out.

        Errors:  TimeoutError while another rendering does not end, as a callback of the service hangs.
        """
        content_type = choose_format(accept)
        self._observe()
        if not self._lock.acquire(timeout=_PATIENCE_S):
            msg = "another rendering of the page does not end: a collector of the shared registry hangs"
            raise TimeoutError(msg)
        try:
            if not self._is_rendering:
                self._is_rendering = True
                try:
                    self._last[content_type] = self._render(content_type)
                finally:
                    self._is_rendering = False
            # Else asked for in the middle of itself, by a callback or a signal handler.
            return self._last.get(content_type, Page(b"# EOF\n" * (content_type == OPENMETRICS), content_type))
        finally:
            self._lock.release()

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        """Do nothing: the page is made when somebody asks for it."""
        return True

    def _render(self, content_type: str) -> Page:
        openmetrics = content_type == OPENMETRICS
        started = time.perf_counter()
        parts: list[bytes] = []
        count = 0
        for family in self._refresh():
            try:
                lines = family.write(openmetrics=openmetrics)
            except Exception as error:
                self._tell(f"{family.name} could not be rendered and is left out: {error!r}")
                continue
            parts.append(family.head(openmetrics=openmetrics).encode("utf-8", "replace"))
            parts += lines
            count += len(lines)
        parts.append(self._of_others(openmetrics=openmetrics))
        if openmetrics:
            parts.append(b"# EOF\n")
        body = b"".join(parts)
        if self._provider is not None:
            self._provider.instrument(PAGE_SERIES).set(count)
            self._provider.instrument(PAGE_DURATION).record(time.perf_counter() - started)
        return Page(body, content_type)

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        """Leave the shared registry; a second call does nothing."""
        if self._shared is not None:
            shared, self._shared = self._shared, None
            shared.unregister(self._entry)

    def _set_meter_provider(self, meter_provider: Any) -> None:
        super()._set_meter_provider(meter_provider)
        self._provider = meter_provider

    def _receive_metrics(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any) -> None:
        """Keep nothing of a collection: the page is made when somebody asks for it."""

    def _as_metrics(self) -> Iterator[Metric]:
        """Our families as prometheus_client's, for the shared registry, less the names that others have there."""
        found: list[tuple[set[str], Metric]] = []
        self._observe()
        with self._lock:
            for family in self._refresh():
                try:
                    found.append((family.names(), family.as_metric()))
                except Exception as error:
                    self._tell(f"{family.name} could not be rendered and is left out: {error!r}")
        taken = self._registered_by_others({name for names, _ in found for name in names})
        if left_out := [metric.name for names, metric in found if names & taken]:
            self._tell(f"in the shared registry others have {', '.join(left_out)}: ours are on our page alone")
        yield from (metric for names, metric in found if not names & taken)

    def _registered_by_others(self, names: set[str]) -> set[str]:
        """Which of these names are somebody else's in the shared registry: prometheus_client's own collectors', say."""
        self._entry.silent.now = True
        try:
            theirs = [*self._shared.restricted_registry(names).collect()] if self._shared is not None else []
        except Exception as error:
            self._tell(f"the shared registry does not say what it has: {error!r}")
            return set()
        finally:
            self._entry.silent.now = False
        return {name for metric in theirs for name in (metric.name, *(sample.name for sample in metric.samples))}

    def _refresh(self) -> list[Family]:
        """The families that have series now, in the order in which they first came; the lock is held."""
        if self._provider is None:
            return []
        version, shares = self._provider.everyone.shares()
        if version != self._version:
            # Only when a series came or went: else each keeps its place, and its text, from last time.
            self._version = version
            self._arrange(shares)
        return [family for family in self._families.values() if family.drop_empty()]

    def _observe(self) -> None:
        """Have the callbacks of observable instruments speak; what they said before stands if one hangs."""
        if self._provider is not None:
            try:
                self._provider.refresh(self, self._observe_timeout_s)
            except Exception as error:
                self._tell(f"observable instruments could not be read: {error!r}")

    def _arrange(self, shares: list[Share]) -> None:
        for family in self._families.values():
            family.empty()
        self._put_target()
        for stream, every, worker in shares:
            home = self._family_of(stream) if every and stream.kind != "cells" else None
            for series in every if home is not None else ():
                key = series.rendered if worker is None else None
                if key is None:
                    key = label_text(labels(series.attributes, reserved=home.reserved, worker=worker))  # type: ignore[union-attr]
                    series.rendered = key if worker is None else None
                if not home.put(key, series, series.attributes, stream.bounds, worker):  # type: ignore[union-attr]
                    self._tell(f"{stream.name}{{{key}}} is left out where its bucket bounds differ from the first ones")

    def _family_of(self, stream: Any) -> Family | None:
        key = identity_of(stream)
        if key not in self._homes:
            about = stream.name, stream.shown, stream.unit, stream.description
            family = Family(*about, stream.rule, stream.states, stream.subject)
            self._homes[key] = self._family(family, f"{stream.name} ({stream.shown})")
        return self._homes[key]

    def _family(self, made: Family, told: str) -> Family | None:
        """The family of a metric, or None where its name belongs to a metric of another type."""
        found = self._families.get(made.name)
        if found is not None and found.type == made.type:
            return found
        owners = {self._owners[each].name for each in made.names() if each in self._owners}
        owners |= {_OURS[each][0] for each in made.names() if _OURS.get(each, made.identity) != made.identity}
        if owners:
            self._tell(f"{told} is left out: its name on the page belongs to {', '.join(sorted(owners))}")
            return None
        self._families[made.name] = made
        self._owners.update(dict.fromkeys(made.names(), made))
        return made

    def _put_target(self) -> None:
        target = self._family(Family("target", "info", "", "The resource that these metrics describe."), "target")
        if target is not None and self._provider is not None:
            target.put("", Fact(1.0), self._provider.shared_resource.attributes, ())

    def _of_others(self, *, openmetrics: bool) -> bytes:
        """What else is registered in the shared registry, less the names that are on the page already."""
        if self._shared is None:
            return b""
        others = _Others(self._shared, self._entry, set(self._owners), self._tell)
        try:
            return (generate_openmetrics if openmetrics else generate_latest)(others).removesuffix(b"# EOF\n")
        except Exception as error:
            self._tell(f"the shared registry could not be rendered and is left out: {error!r}")
            return b""

    def _tell(self, message: str) -> None:
        """Say a thing once: a page is made every few seconds."""
        if message not in self._told and len(self._told) < 1000:
            self._told.add(message)
            _logger.warning("page: %s", message)


class _RegistryEntry:
    """Our place in a shared prometheus_client registry; silent while we read what the others have there."""

    def __init__(self, metrics: Callable[[], Iterable[Metric]]) -> None:
        self._metrics = metrics
        self.silent = local()

    def describe(self) -> Iterable[Metric]:
        """Nothing: the names are not known beforehand, and asking must not run anybody's callbacks."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """Our metrics."""
        return () if getattr(self.silent, "now", False) else self._metrics()


class _Others:
    """A shared registry without us and without names that we have; one bad collector loses the rest after it."""

    def __init__(
        self, registry: CollectorRegistry, entry: _RegistryEntry, taken: set[str], tell: Callable[[str], None]
    ) -> None:
        self._registry, self._entry, self._taken, self._tell = registry, entry, taken, tell

    def collect(self) -> Iterator[Metric]:
        """The families of the others."""
        left_out = []
        self._entry.silent.now = True
        try:
            for metric in self._registry.collect():
                if self._taken & {metric.name, *(sample.name for sample in metric.samples)}:
                    left_out.append(metric.name)
                else:
                    yield metric
        except Exception as error:
            self._tell(f"a collector of the shared registry failed: {error!r}")
        finally:
            self._entry.silent.now = False
        if left_out:
            self._tell(f"of the shared registry {', '.join(left_out)} is left out, as we have the name")
