"""Programs that the demo starts: the service and Prometheus, neither of which outlives it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

from otel_mlops.rules.text import as_data

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")

_STOP_TIMEOUT_S = 8.0
_KEPT_LINES = 200

# Becomes the program, after it has left a watch behind: when the demo dies, even by SIGKILL, its end of the
# pipe closes, `read` returns, and the program is told to end. The watch lives in the program's process group,
# so the number of the group, which is that of the program, is not given to anybody else meanwhile.
_WATCHED = 'exec 3<&0; { read -r _ <&3; kill "$$"; } >/dev/null 2>&1 & exec "$@" </dev/null 3<&-'


class Program:
    """A program in a process group of its own, so that Ctrl-C in the terminal reaches the demo alone."""

    def __init__(self, command: Sequence[str], environ: Mapping[str, str]) -> None:
        watched = ["/bin/sh", "-c", _WATCHED, "sh", *command] if os.name == "posix" else list(command)
        self._process = subprocess.Popen(  # noqa: S603 (no shell sees anything but its arguments)
            watched,
            env=dict(environ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._said: deque[str] = deque(maxlen=_KEPT_LINES)
        self._listener = threading.Thread(target=self._listen, args=(self._process.stdout,), daemon=True)
        self._listener.start()

    @property
    def pid(self) -> int:
        """The program's process id."""
        return self._process.pid

    def has_ended(self) -> bool:
        """Say whether the program has ended by itself."""
        return self._process.poll() is not None

    def said(self, lines: int) -> list[str]:
        """The last lines that it wrote."""
        if self.has_ended():
            self._listener.join(1.0)
        return list(self._said)[-lines:]

    def stop(self) -> None:
        """End the program and all that it started, gently first."""
        if not self.has_ended():
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):  # what did not end in time is killed next
                self._process.wait(_STOP_TIMEOUT_S)
        if os.name == "posix":
            with suppress(ProcessLookupError, PermissionError):  # macOS says the second of a group of zombies
                os.killpg(self._process.pid, signal.SIGKILL)
        elif not self.has_ended():
            self._process.kill()
        self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._listener.join(1.0)

    def _listen(self, output: IO[bytes]) -> None:
        with output:
            for line in output:
                # What it writes is shown in a terminal, which is not to obey it.
                text = line.decode(errors="replace").rstrip()
                self._said.append("".join(each if each.isprintable() else "?" for each in text))


# --- Prometheus and Alertmanager --------------------------------------------------------------------------

INTERVAL = "2s"
"""How often the demo's Prometheus reads the page and evaluates the rules: a short demo is to show something."""


class Alertmanager:
    """A real Alertmanager, which shows the alerts and tells nobody."""

    def __init__(self, command: Sequence[str], folder: Path, *, url: str) -> None:
        self.url = url
        config = folder / "alertmanager.yaml"
        route = {"receiver": "nobody", "group_by": ["alertname", "job"], "group_wait": "1s"}
        config.write_text(json.dumps({"route": route, "receivers": [{"name": "nobody"}]}), encoding="utf-8")
        options = (
            f"--config.file={config}",
            f"--storage.path={folder / 'alertmanager'}",
            "--cluster.listen-address=",
            "--log.level=warn",
        )
        self.program = Program([*command, *options], os.environ)


class Prometheus:
    """A real Prometheus that reads the page and evaluates the rules, with its data in a folder of the demo's."""

    def __init__(
        self, command: Sequence[str], folder: Path, *, url: str, page: str, alertmanager: Alertmanager | None
    ) -> None:
        self.url = url
        self.alertmanager = alertmanager
        options = (
            f"--config.file={write_config(folder, page, alertmanager.url if alertmanager else None)}",
            f"--storage.tsdb.path={folder / 'data'}",
            "--storage.tsdb.retention.size=256MB",
            "--enable-feature=exemplar-storage",
            # What fires before Alertmanager is known would else be told after a minute.
            f"--rules.alert.resend-delay={INTERVAL}",
            "--log.level=warn",
        )
        self.program = Program([*command, *options], os.environ)

    def is_ready(self, client: httpx.Client) -> bool:
        """Say whether it answers queries."""
        import httpx

        try:
            return client.get(f"{self.url}/-/ready").is_success
        except httpx.HTTPError:
            return False

    def query(self, client: httpx.Client, expression: str) -> float | None:
        """The value of an expression that gives one; None where it gives nothing, or nobody answers."""
        return self._told(client, "query", lambda data: float(data["result"][0]["value"][1]), query=expression)

    def alerts(self, client: httpx.Client) -> list[str] | None:
        """The names of the alerts that fire, less the one that always does; None where nobody answers."""

        def names(data: Any) -> list[str]:
            firing = [alert["labels"] for alert in data["alerts"] if alert["state"] == "firing"]
            return sorted({labels["alertname"] for labels in firing if labels["severity"] != "none"})

        return self._told(client, "alerts", names)

    def _told(self, client: httpx.Client, path: str, read: Callable[[Any], T], **parameters: str) -> T | None:
        """What is read of the answer to a question; None where there is none, or it is not Prometheus' own."""
        import httpx

        try:
            return read(client.get(f"{self.url}/api/v1/{path}", params=parameters).raise_for_status().json()["data"])
        except (httpx.HTTPError, ValueError, LookupError, TypeError):
            return None


def find_prometheus() -> str | None:
    """Where Prometheus is installed."""
    return shutil.which("prometheus")


def find_alertmanager() -> str | None:
    """Where Alertmanager is installed; Debian gives it another name."""
    return shutil.which("alertmanager") or shutil.which("prometheus-alertmanager")


def write_config(folder: Path, page: str, alertmanager: str | None = None) -> Path:
    """Write a configuration that reads the page and has our rules, and return where it is. JSON is YAML."""
    (folder / "rules.yaml").write_text(json.dumps(as_data()), encoding="utf-8")
    config: dict[str, Any] = {
        "global": {"scrape_interval": INTERVAL, "scrape_timeout": INTERVAL, "evaluation_interval": INTERVAL},
        "rule_files": ["rules.yaml"],
        "scrape_configs": [{"job_name": "otel_mlops", "static_configs": [{"targets": [page]}]}],
    }
    if alertmanager is not None:
        target = alertmanager.removeprefix("http://")
        config["alerting"] = {"alertmanagers": [{"static_configs": [{"targets": [target]}]}]}
    path = folder / "prometheus.yaml"
    path.write_text(json.dumps(config, indent=2), encoding="utf-8")
    return path
