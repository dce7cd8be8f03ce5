"""What is reached over the network: the page's port, and what is pushed to."""

from __future__ import annotations

import errno
import re
import socket
from contextlib import ExitStack
from http.client import HTTPConnection, HTTPException
from urllib.parse import urlsplit

from otel_mlops.doctor.installed import Checked
from otel_mlops.doctor.patience import PATIENCE_S, within
from otel_mlops.settings import Settings

_REACH_TIMEOUT_S = 1.0
_ANSWER_TIMEOUT_S = 2.0
_MOST_PAGE_BYTES = 4 * 2**20
_ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 (compared, not listened on)


def check_page(settings: Settings) -> Checked:
    """Whether the page's port is free, or who has it."""
    if "prometheus" not in settings.metrics_exporter or settings.disabled:
        variable = "OTEL_SDK_DISABLED" if settings.disabled else "OTEL_METRICS_EXPORTER"
        yield "note", f"not served: {variable} leaves it out"
        return
    host, port = settings.host, settings.port
    where = f"{host} port {port}"
    if port == 0:
        yield "ok", f"{host}, on a free port"
    elif (service := served_service(host, port)) is not None:
        yield "ok", f"{where} serves the page of {service}"
    elif (fault := port_fault(host, port)) is None:
        yield "ok", f"{where} is free"
    elif workers := living_workers(settings):
        # With TLS or a password it tells nobody its name, but its workers are there.
        yield "ok", f"{where} is served by this service, of which {workers} workers run"
    else:
        yield "fault", f"{where} {fault}; choose another with OTEL_EXPORTER_PROMETHEUS_PORT"
    if host in _ANYWHERE:
        yield "note", "the page is open to anybody who reaches this machine: OTEL_EXPORTER_PROMETHEUS_HOST says where"


def check_collector(settings: Settings) -> Checked:
    """Whether what is pushed to is there."""
    pushed: dict[str, list[str]] = {}
    if "otlp" in settings.metrics_exporter and settings.metrics_endpoint is not None:
        pushed.setdefault(settings.metrics_endpoint, []).append("metrics")
    if settings.traces_endpoint is not None:
        pushed.setdefault(settings.traces_endpoint, []).append("traces")
    for endpoint, signals in pushed.items():
        url = urlsplit(endpoint)
        host, port = url.hostname or "", url.port or (443 if url.scheme == "https" else 80)
        where = f"{host} port {port}, to which {' and '.join(signals)} are pushed,"
        fault = _reach(host, port)
        if fault is None:
            yield "ok", f"{where} accepts connections"
        else:
            yield "fault", f"{where} cannot be reached: {fault}"
    if "otlp" in settings.metrics_exporter and settings.metrics_endpoint is None:
        yield "note", "OTEL_METRICS_EXPORTER has otlp without an endpoint: http://localhost:4318 is meant"
    elif not pushed:
        yield "ok", "nothing is pushed: no endpoint is set"


def served_service(host: str, port: int) -> str | None:
    """The name of the service whose page is served there; None if there is no page of ours."""
    connection = HTTPConnection(_ANYWHERE.get(host, host), port, timeout=_ANSWER_TIMEOUT_S)
    try:
        connection.request("GET", "/metrics", headers={"Accept": "text/plain"})
        text = connection.getresponse().read(_MOST_PAGE_BYTES).decode(errors="replace")
    except (OSError, HTTPException, ValueError):
        return None
    finally:
        connection.close()
    if "otel_mlops_build_info" not in text:
        return None
    name = re.search(r'^target_info\{.*?service_name="([^"]*)"', text, re.MULTILINE)
    return name[1] if name else "a service"


def living_workers(settings: Settings) -> int:
    """How many workers of the service these settings describe live on this machine."""
    from otel_mlops.sdk.files import is_alive
    from otel_mlops.sdk.group import group_of

    group = group_of(settings)
    return 0 if group is None else sum(is_alive(path) and not path.name.startswith("page-") for path in group.ledgers())


def port_fault(host: str, port: int) -> str | None:
    """Why nothing can listen there, None if something can; a port that is taken is told with who has it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as trial:
            # As servers do: a connection of before that is being forgotten is no hindrance.
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind((host, port))
            trial.listen(1)
    except PermissionError:
        return "may not be used by this user"
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            return f"cannot be used: {error.strerror}"
        return f"is taken by {_listener(port) or 'another program'}"
    return None


def take_free_ports(host: str, count: int) -> list[int]:
    """Different ports that are free now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with ExitStack() as taken:
        sockets = [taken.enter_context(socket.socket(family)) for _ in range(count)]
        for each in sockets:
            each.bind((host, 0))
        return [int(each.getsockname()[1]) for each in sockets]


def _listener(port: int) -> str | None:
    """The program that listens on a port, as far as this user may know."""
    import psutil

    try:
        for connection in psutil.net_connections(kind="tcp"):
            if connection.status != psutil.CONN_LISTEN or connection.pid is None:
                continue
            if connection.laddr and connection.laddr.port == port:
                return f"{psutil.Process(connection.pid).name()} (process {connection.pid})"
    except (psutil.Error, OSError):
        return None  # macOS tells root only
    return None


def _reach(host: str, port: int) -> str | None:
    """Why no connection can be made, None if one can."""
    try:
        # The time is for connecting; the look-up of the name has none of its own.
        within(PATIENCE_S, lambda: socket.create_connection((host, port), _REACH_TIMEOUT_S).close())
    except OSError as error:
        return error.strerror or str(error)
    return None
