"""What the user asks of the demo, and whether it can be had here."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

from otel_mlops.demo.processes import find_prometheus
from otel_mlops.doctor.network import port_fault, take_free_ports
from otel_mlops.settings import Settings

_NEEDED = {
    "fastapi": "fastapi", "httpx": "httpx", "numpy": "numpy", "sklearn": "scikit-learn", "uvicorn": "uvicorn",
}  # fmt: skip


class DemoError(Exception):
    """Why the demo cannot go on, for the user."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the user asked for; a port of 0 takes a free one."""

    host: str = "127.0.0.1"
    port: int = 8000
    page_port: int = 8001
    prometheus_port: int = 0
    seconds: float | None = None
    rate: float = 20.0
    prometheus: bool = True


def check_packages() -> None:
    """Find out whether what the demo needs is installed.

    Errors:  DemoError with the install line.
    """
    missing = sorted(title for module, title in _NEEDED.items() if find_spec(module) is None)
    if missing:
        raise DemoError(f"it needs packages that are missing: {', '.join(missing)}. pip install 'otel-mlops[demo]'")


def check_settings() -> None:
    """Find out whether the environment lets the service start and serve its page.

    Errors:  DemoError that names the variable.
    """
    try:
        settings = Settings.from_env()
    except ValueError as error:
        raise DemoError(str(error)) from None
    if settings.disabled:
        raise DemoError("OTEL_SDK_DISABLED is true, so there would be nothing to see; unset it")
    if "prometheus" not in settings.metrics_exporter:
        raise DemoError("OTEL_METRICS_EXPORTER leaves the page out, which is what is shown; unset it")


def choose_ports(options: Options) -> Options:
    """Choose a free port wherever 0 asks for one, and find out whether the others are free.

    Errors:  DemoError that names the port, who has it, and how another is chosen.
    """
    wanted = {
        "port": ("the service", "--port or DEMO_PORT"),
        "page_port": ("the page", "--page-port or OTEL_EXPORTER_PROMETHEUS_PORT"),
    }
    if options.prometheus and find_prometheus() is not None:
        wanted["prometheus_port"] = ("Prometheus", "--prometheus-port or DEMO_PROMETHEUS_PORT")
    if not options.host:  # the kernel would take it for every address, and no browser would find it
        raise DemoError("nothing can listen on '': it is empty. Choose another with --host or DEMO_HOST")
    try:
        free = iter(take_free_ports(options.host, len(wanted)))
    except (OSError, TypeError, UnicodeError) as error:  # the last two for what can be no name
        reason = getattr(error, "strerror", None) or error
        raise DemoError(
            f"nothing can listen on {options.host!r}: {reason}. Choose another with --host or DEMO_HOST"
        ) from None
    chosen: dict[str, Any] = {}
    for field, (title, means) in wanted.items():
        port = getattr(options, field)
        fault = port and ("is wanted twice" if port in chosen.values() else port_fault(options.host, port))
        if fault:
            raise DemoError(f"port {port}, which {title} needs, {fault}. Choose another with {means}")
        chosen[field] = port or next(free)
    return replace(options, **chosen)
