"""Finds out what works here and what does not; it starts no service and leaves nothing behind."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any, NamedTuple

from otel_mlops.doctor import installed, machine, network, sources
from otel_mlops.doctor.installed import Checked, Level
from otel_mlops.settings import SETTINGS, Setting, Settings, in_container

CHECKS: Mapping[str, Callable[[Settings], Checked]] = {
    "Python": installed.check_python,
    "OpenTelemetry": installed.check_opentelemetry,
    "packages": installed.check_packages,
    "FastAPI": installed.check_fastapi,
    "extras": installed.check_extras,
    "global provider": installed.check_provider,
    "shared memory": machine.check_memory,
    "machine": sources.check_host,
    "container": sources.check_container,
    "processes": sources.check_process,
    "GPU": sources.check_gpu,
    "AMD GPU": sources.check_amd,
    "page": network.check_page,
    "Collector": network.check_collector,
}
"""Every check by what it looks at."""


class Finding(NamedTuple):
    """What a check has found: fine, worth knowing, or to be put right."""

    level: Level
    subject: str
    text: str


class InForce(NamedTuple):
    """A setting as it is, fit to be shown, and where it comes from."""

    name: str
    value: str
    origin: str


@dataclass(frozen=True)
class Report:
    """Everything that was found."""

    findings: tuple[Finding, ...]
    settings: tuple[InForce, ...]

    @property
    def faults(self) -> int:
        """How many things are to be put right."""
        return sum(finding.level == "fault" for finding in self.findings)

    def lines(self) -> Iterator[str]:
        """The report as text, a line for each finding."""
        yield f"otel-mlops {own_version()} on {platform.system()}"
        yield ""
        width = max(len(finding.subject) for finding in self.findings)
        for level, subject, text in self.findings:
            yield f"{level:<6} {subject:<{width}}  {text}"
        yield ""
        yield "Settings in force; what a service says in its own code goes before them."
        names, values = (max(len(str(each[at])) for each in self.settings) for at in (0, 1))
        for name, value, origin in self.settings:
            yield f"  {name:<{names}}  {value!s:<{min(values, 40)}}  {origin}"
        yield ""
        notes = sum(finding.level == "note" for finding in self.findings)
        faults = dict.fromkeys(finding.subject for finding in self.findings if finding.level == "fault")
        yield f"To be put right: {', '.join(faults)}." if faults else f"What is needed works; notes: {notes}."

    def as_json(self) -> dict[str, Any]:
        """The report as data."""
        return {
            "version": own_version(),
            "healthy": not self.faults,
            "findings": [finding._asdict() for finding in self.findings],
            "settings": [each._asdict() for each in self.settings],
        }


def examine(environ: Mapping[str, str]) -> Report:
    """Examine this machine and the settings of an environment; raises nothing of what it meets."""
    findings: list[Finding] = []
    try:
        settings = Settings.from_env(environ)
    except ValueError as error:
        findings.append(
            Finding("fault", "settings", f"{error}; a service does not start. What follows is for the defaults")
        )
        environ = {}
        settings = Settings()
    else:
        findings.append(Finding("ok", "settings", "accepted"))
    for subject, check in CHECKS.items():
        try:
            findings += [Finding(level, subject, text) for level, text in check(settings)]
        except Exception as error:
            findings.append(Finding("fault", subject, f"cannot be examined: {type(error).__name__}: {error}"))
    return Report(tuple(findings), tuple(in_force(settings, environ)))


def in_force(settings: Settings, environ: Mapping[str, str]) -> Iterator[InForce]:
    """Each setting with its value and where it comes from; of a secret no more than its host."""
    attributes = settings.resource_attributes
    for row in SETTINGS:
        value = getattr(settings, row.field)
        shown = _text(row.shown(value))
        if row.from_environment(environ) is not None:
            yield InForce(row.field, shown, next(name for name in row.variables if environ.get(name, "").strip()))
        elif row.resource_attribute and row.resource_attribute in attributes:
            yield InForce(row.field, shown, f"OTEL_RESOURCE_ATTRIBUTES, {row.resource_attribute}")
        else:
            yield InForce(row.field, shown, _default_of(row, environ))


def own_version() -> str:
    """The version that is installed."""
    try:
        return metadata.version("otel-mlops")
    except metadata.PackageNotFoundError:
        return "not installed"


def _default_of(row: Setting, environ: Mapping[str, str]) -> str:
    if row.field == "host" and in_container(environ):
        return "default in a container"
    if row.field == "service_name":
        return "default; of an app its title, else the name of the script"
    return "default"


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "none"
    if isinstance(value, Mapping):
        return ",".join(f"{key}={item}" for key, item in value.items()) or "none"
    return str(value)
