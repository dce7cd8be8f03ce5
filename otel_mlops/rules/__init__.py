"""Recording and alerting rules as data, written with the constants of `metrics`: a misspelt metric is a NameError."""

from __future__ import annotations

from otel_mlops.rules import fleet, gpu, machine, models, objectives, requests, service, telemetry
from otel_mlops.rules.row import Alert as Alert
from otel_mlops.rules.row import Group as Group
from otel_mlops.rules.row import Recording as Recording

GROUPS: tuple[Group, ...] = (
    objectives.GROUP,
    requests.SHARES,
    requests.GROUP,
    service.GROUP,
    fleet.DRIFT,
    fleet.QUALITY,
    models.GROUP,
    gpu.GROUP,
    machine.GROUP,
    telemetry.TELEMETRY,
    telemetry.COLLECTOR,
    telemetry.WATCHDOG,
)
"""Every group, in the order in which they are written."""

ALERTS: tuple[Alert, ...] = tuple(rule for group in GROUPS for rule in group.rules if isinstance(rule, Alert))
"""Every alert."""

RECORDINGS: tuple[Recording, ...] = tuple(
    rule for group in GROUPS for rule in group.rules if isinstance(rule, Recording)
)
"""Every recording rule; those that are `shown` are for dashboards and people too."""
