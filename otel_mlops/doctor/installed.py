"""What is installed: the interpreter, the packages and their versions, and who else uses OpenTelemetry."""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib import metadata
from typing import Literal, TypeAlias

from otel_mlops.settings import Settings

Level: TypeAlias = Literal["ok", "note", "fault"]
"""Fine, worth knowing, or to be put right."""

Checked: TypeAlias = Iterator[tuple[Level, str]]
"""What a check has found."""


def check_python(_: Settings) -> Checked:
    """Whether this Python is tested, and whether it makes records atomic."""
    from otel_mlops.sdk.recording import is_atomic

    this = f"{platform.python_implementation()} {platform.python_version()}"
    how = "records are atomic by the GIL" if is_atomic() else "no GIL: each record takes a lock, which costs a little"
    yield "ok", f"{this}; {how}"
    short = f"{sys.version_info.major}.{sys.version_info.minor}"
    with suppress(metadata.PackageNotFoundError):  # which check_packages tells
        tested = metadata.metadata("otel-mlops").get_all("Classifier") or []
        if f"Programming Language :: Python :: {short}" not in tested:
            yield "note", f"{short} is not among the versions that are tested"


def check_opentelemetry(_: Settings) -> Checked:
    """Whether OpenTelemetry is there in the versions that are tested: some of its private names are used."""
    yield from _check_versions(lambda name: name.startswith("opentelemetry-"))


def check_packages(_: Settings) -> Checked:
    """Whether what else is required is there in the versions that are tested."""
    yield from _check_versions(lambda name: not name.startswith("opentelemetry-"))


def _check_versions(is_meant: Callable[[str], bool]) -> Checked:
    try:
        required = metadata.requires("otel-mlops") or []
    except metadata.PackageNotFoundError:
        yield "note", "otel-mlops is run from a folder and not installed, so its requirements are not known"
        return
    fitting = []
    for line in required:
        name, bounds, extra = _requirement(line)
        installed = _version(name)
        if not is_meant(name) or (extra and not (extra == "otlp" and installed)):
            continue
        if installed is None:
            yield "fault", f"{name} is missing: pip install otel-mlops"
        elif not _fits(installed, bounds):
            yield "fault", f"{name} is {installed}, tested is {bounds}: pip install '{name}{bounds}'"
        else:
            fitting.append(f"{name.removeprefix('opentelemetry-')} {installed}")
    if fitting:
        yield "ok", f"as tested: {', '.join(fitting)}"


def check_fastapi(settings: Settings) -> Checked:
    """Whether requests can be measured, and whose semantic conventions they get."""
    version = _version("fastapi")
    if version is None:
        yield "note", "not installed, so no requests are measured: pip install 'otel-mlops[fastapi]'"
        return
    from fastapi import FastAPI

    from otel_mlops.web import conventions

    try:
        choice = conventions.choose(FastAPI(), settings.instrumentation)
    except (ValueError, RuntimeError) as error:
        yield "fault", f"{version}; {error}"
        return
    whose = {
        "fastapi": "the semantic conventions come from its own telemetry",
        "opentelemetry": "the semantic conventions come from opentelemetry-instrumentation-fastapi",
    }
    yield "ok", f"{version}; {whose.get(choice, 'no semantic conventions')}"
    if choice == "opentelemetry" and settings.instrumentation == "auto":
        yield "note", "FastAPI 0.142 and newer has telemetry of its own, which costs less"


def check_extras(settings: Settings) -> Checked:
    """Whether the optional packages are there, and those that the settings ask for."""
    wants_otlp = "otlp" in settings.metrics_exporter or settings.traces_endpoint is not None
    if _version("opentelemetry-exporter-otlp-proto-http") is not None:
        yield "ok", "otlp is installed"
    else:
        yield "fault" if wants_otlp else "note", "otlp is not installed: pip install 'otel-mlops[otlp]' to push"
    if _version("numpy") is None:
        yield "note", "numpy is not installed; with it large batches of predictions are recorded faster"


def check_provider(_: Settings) -> Checked:
    """Whether somebody has set OpenTelemetry's global provider before us."""
    from opentelemetry import metrics

    found = metrics.get_meter_provider()
    name = f"{type(found).__module__}.{type(found).__qualname__}"
    if name.startswith("opentelemetry.metrics."):
        yield "ok", "nobody has set one, so ours becomes it"
        return
    stays = f"{name} is set already and stays; ours serves our metrics and the page"
    yield "note", f"{stays}. Start without opentelemetry-instrument, and ours becomes it"


def _requirement(line: str) -> tuple[str, str, str]:
    """The name, the versions and the extra of a requirement."""
    wanted, _, marker = line.partition(";")
    found = re.fullmatch(r"([\w.-]+)(.*)", wanted.strip())
    extra = re.search(r"extra == '([^']*)'", marker)
    return (found[1], found[2].strip(), extra[1] if extra else "") if found else (wanted, "", "")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _fits(version: str, bounds: str) -> bool:
    """Whether a version lies within bounds such as `<1.46,>=1.45`."""
    ours = _order(version)
    return all(
        ours < _order(bound) if sign == "<" else ours >= _order(bound)
        for sign, bound in re.findall(r"(<|>=)([^,]+)", bounds)
    )


def _order(version: str) -> tuple[tuple[int, ...], tuple[str, int]]:
    """What versions are ordered by: the release, then alpha, beta, candidate, final.

    Source:  PEP 440, without epochs, local versions and development releases, which we name nowhere.
    """
    found = re.match(r"(\d+(?:\.\d+)*)(?:(a|b|rc)(\d+))?", version)
    if found is None:
        return (), ("", 0)
    release = [int(number) for number in found[1].split(".")]
    while release and release[-1] == 0:
        release.pop()
    return tuple(release), (found[2] or "z", int(found[3] or 0))
