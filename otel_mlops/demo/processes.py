"""Programs that the demo starts: the service and Prometheus, neither of which outlives it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from otel_mlops.render import CHECKOUT
from otel_mlops.rules import ALERTS

if TYPE_CHECKING:
    import httpx

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
                self._said.append(line.decode(errors="replace").rstrip())


# --- Prometheus -------------------------------------------------------------------------------------------

SCRAPE_INTERVAL_S = 2
"""How often the demo's Prometheus reads the page: with the shipped 15 s a short demo would show nothing."""


SHIPPED = CHECKOUT / "collector-config" / "prometheus.yaml"


class Prometheus:
    """A real Prometheus that reads the page, with its data in a folder of the demo's."""

    def __init__(self, command: Sequence[str], folder: Path, *, url: str, page: str) -> None:
        self.url = url
        options = (
            f"--config.file={write_config(folder, page)}",
            f"--storage.tsdb.path={folder / 'data'}",
            "--storage.tsdb.retention.size=256MB",
            "--enable-feature=exemplar-storage",
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
        import httpx

        try:
            answer = client.get(f"{self.url}/api/v1/query", params={"query": expression})
            result = answer.raise_for_status().json()["data"]["result"]
        except (httpx.HTTPError, ValueError):
            return None
        return float(result[0]["value"][1]) if result else None


def find_prometheus() -> str | None:
    """Where Prometheus is installed."""
    return shutil.which("prometheus")


def write_config(folder: Path, page: str, shipped: Path = SHIPPED) -> Path:
    """Write the shipped configuration for a page that may stand elsewhere, and return where it is.

    Where nothing is shipped (an installed package), an equal one is made. The page is read more often than
    the shipped configuration says.
    """
    config = folder / "prometheus.yaml"
    if shipped.is_file():
        text = shipped.read_text(encoding="utf-8")
        shutil.copy(shipped.with_name("rules.yaml"), folder)
    else:
        # JSON is YAML.
        text = json.dumps(equal_config(), indent=2)
        (folder / "rules.yaml").write_text(json.dumps(equal_rules(), indent=2), encoding="utf-8")
    text = re.sub(r"((?:scrape|evaluation)_(?:interval|timeout)\"?: *\"?)\d+s", rf"\g<1>{SCRAPE_INTERVAL_S}s", text)
    config.write_text(text.replace("127.0.0.1:8001", page), encoding="utf-8")
    return config


def equal_config() -> dict[str, Any]:
    """What collector-config/prometheus.yaml says."""
    return {
        "global": {"scrape_interval": "15s", "scrape_timeout": "10s", "evaluation_interval": "15s"},
        "rule_files": ["rules.yaml"],
        "scrape_configs": [
            {"job_name": "otel_mlops", "static_configs": [{"targets": ["127.0.0.1:8001"]}]},
        ],
    }


def equal_rules() -> dict[str, Any]:
    """What collector-config/rules.yaml says."""
    rules = [
        {
            "alert": alert.name,
            "expr": alert.expression,
            "for": alert.lasting,
            "labels": {"severity": alert.severity},
            "annotations": {"summary": alert.summary, "description": alert.description},
        }
        for alert in ALERTS
    ]
    return {"groups": [{"name": "otel_mlops", "rules": rules}]}
