"""The real programs between a page and a person: the Collector, Prometheus 3 and 2, Alertmanager; found and run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import quote, urlencode
from urllib.request import urlopen

import pytest
import yaml

from tests.servers.service import CLEAN, WAIT_S, free_port, until

BUILT = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "otel-mlops", "servers", "bin")
"""Where `make servers` keeps what it has built with Go: the pinned versions."""

_BUILT = ("otelcol-mlops", "prometheus", "promtool", "alertmanager", "amtool", "compose-go")

CONFIG = Path(__file__).parents[2] / "collector-config"


def program(name: str) -> str:
    """Where a program lies; without it the test skips.

    `prometheus` and `promtool` are those of Prometheus 3, which was built, as were the Collector `otelcol-mlops`,
    `alertmanager` and `amtool`. `prometheus-2` and `promtool-2` are the distribution's, on the PATH like all others.
    """
    found = shutil.which(name, path=str(BUILT)) if name in _BUILT else shutil.which(name.removesuffix("-2"))
    if found is None:
        pytest.skip(f"{name} is missing: run make servers")
    return found


def said(*command: str, cwd: Path | None = None) -> tuple[bool, str]:
    """Whether a program that ends by itself is content, and what it says."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=4 * WAIT_S, check=False)
    return done.returncode == 0, done.stdout + done.stderr


def succeeds(*command: str, cwd: Path | None = None) -> str:
    """What a program says that ends well."""
    content, text = said(*command, cwd=cwd)
    assert content, text
    return text


@dataclass
class Running:
    """A program that runs, what it says, and how it was started."""

    process: subprocess.Popen[bytes]
    log: Path

    def said(self) -> str:
        """What it has logged."""
        return self.log.read_text(errors="replace")

    def kill(self) -> None:
        """End it as the kernel does when memory runs out."""
        self.process.kill()
        self.process.wait(WAIT_S)


@contextmanager
def started(
    command: Sequence[str],
    log: Path,
    is_ready: Callable[[], object],
    environ: Mapping[str, str] | None = None,
) -> Iterator[Running]:
    """Run a program until the block ends; the block begins when it is ready."""
    with log.open("ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env={**CLEAN, **(environ or {})})
    running = Running(process, log)
    try:
        until(lambda: is_ready() or process.poll() is not None)
        assert process.poll() is None, running.said()
        yield running
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(WAIT_S)
            finally:
                process.kill()
                process.wait()


def answers(url: str) -> bool:
    """Whether a GET is answered with success."""
    try:
        with urlopen(url, timeout=1) as response:
            return bool(response.status == 200)
    except OSError:
        return False


# --- Prometheus -----------------------------------------------------------------------------------------------


class Prometheus:
    """A Prometheus that runs."""

    def __init__(self, port: int, running: Running) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.running = running

    def ask(self, path: str, **parameters: Any) -> Any:
        """The data of an API call, of `query_range` for example."""
        with urlopen(f"{self.url}/api/v1/{path}?{urlencode(parameters, quote_via=quote)}", timeout=10) as response:
            return json.load(response)["data"]

    def series(self, query: str) -> list[tuple[dict[str, str], float]]:
        """The labels and values of an instant query."""
        result = self.ask("query", query=query)["result"]
        return [(each["metric"], float(each["value"][1])) for each in result]

    def by_job(self, query: str) -> dict[str, list[float]]:
        """The values of an instant query by job."""
        found: dict[str, list[float]] = {}
        for labels, value in self.series(query):
            found.setdefault(labels.get("job", ""), []).append(value)
        return found

    def complaints(self) -> list[str]:
        """The lines of its log that are no mere information."""
        words = ("level=warn", "level=error", "scrape failed", "append failed", "duplicate sample", "out of order")
        return [line for line in self.running.said().splitlines() if any(word in line.lower() for word in words)]

    def value(self, query: str) -> float | None:
        """The value of a query that gives one, or None."""
        found = self.series(query)
        assert len(found) < 2, found
        return found[0][1] if found else None

    def alerts(self) -> dict[str, str]:
        """The state of each alert that is pending or fires, by name."""
        return {each["labels"]["alertname"]: each["state"] for each in self.ask("alerts")["alerts"]}


@contextmanager
def prometheus(
    folder: Path,
    config: Mapping[str, Any],
    *,
    name: str = "prometheus",
    port: int | None = None,
    arguments: Sequence[str] = (),
) -> Iterator[Prometheus]:
    """Run `prometheus` (3, which takes OTLP) or `prometheus-2`; its data in `folder` are found again by the next."""
    folder.mkdir(exist_ok=True)
    written = folder / "prometheus.yaml"
    written.write_text(json.dumps(config))
    port = port or free_port()
    command = [
        program(name),
        f"--config.file={written}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        *(["--web.enable-otlp-receiver"] if name == "prometheus" else []),
        *arguments,
    ]
    with started(command, folder / "log", lambda: answers(f"http://127.0.0.1:{port}/-/ready")) as running:
        yield Prometheus(port, running)


def scraping(ports: Mapping[str, int], **more: Any) -> dict[str, Any]:
    """A configuration that scrapes each port as the job of its name, every second."""
    jobs = [{"job_name": job, "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]} for job, port in ports.items()]
    every = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    return {"global": every, "scrape_configs": jobs, **more}


# --- The Collector --------------------------------------------------------------------------------------------


@contextmanager
def collector(config: Path, log: Path, health_port: int) -> Iterator[Running]:
    """Run the Collector with a configuration that tells its health at a port."""
    command = [program("otelcol-mlops"), f"--config={config}"]
    with started(command, log, lambda: answers(f"http://127.0.0.1:{health_port}/")) as running:
        yield running


# --- Alertmanager ---------------------------------------------------------------------------------------------


@contextmanager
def alertmanager(folder: Path, routes: Mapping[str, Any]) -> Iterator[int]:
    """Run an Alertmanager by itself, and give its port."""
    config = folder / "alertmanager.yaml"
    config.write_text(json.dumps(routes))  # JSON is YAML
    port = free_port()
    command = [
        program("alertmanager"),
        f"--config.file={config}",
        f"--storage.path={folder / 'alertmanager'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--cluster.listen-address=",
    ]
    with started(command, folder / "alertmanager.log", lambda: answers(f"http://127.0.0.1:{port}/-/ready")):
        yield port


def routes_to(url: str, folder: Path) -> dict[str, Any]:
    """The shipped routes of Alertmanager, all of which lead to one URL, by a file in the folder."""
    file = folder / "url"
    file.write_text(url)
    routes: dict[str, Any] = yaml.safe_load((CONFIG / "alertmanager.yaml").read_text())
    for receiver in routes["receivers"]:
        for hook in receiver["webhook_configs"]:
            hook["url_file"] = str(file)
    return routes


@contextmanager
def answering(handler: type[BaseHTTPRequestHandler]) -> Iterator[int]:
    """Answer HTTP until the block ends, and give the port."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        serving = Thread(target=server.serve_forever, args=(0.05,))
        serving.start()
        try:
            yield int(server.server_address[1])
        finally:
            server.shutdown()
            serving.join()


@contextmanager
def webhook() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A URL to which notifications can be posted, and those that came."""
    came: list[dict[str, Any]] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            came.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with answering(Receiver) as port:
        yield f"http://127.0.0.1:{port}/", came
