"""The pipelines of collector-config, run as they are shipped: ports, folders and patience are all that differs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import trustme
import yaml

from tests.servers.programs import CONFIG, Prometheus, Running, answers, program, prometheus, started
from tests.servers.service import free_port, status

TOKEN = "a-token-that-only-these-tests-know"

FEATURES = "exemplar-storage,created-timestamp-zero-ingestion"
"""What prometheus-otlp.yaml says to enable."""


def sooner(name: str) -> list[str]:
    """Settings over those of a file: it waits tenths of seconds where the file says seconds."""
    config = yaml.safe_load((CONFIG / f"{name}.yaml").read_text())
    readers = config["service"]["telemetry"]["metrics"]["readers"]
    readers[0]["periodic"]["interval"] = 500
    settings = [f"service::telemetry::metrics::readers: {json.dumps(readers)}"]
    for exporter in config["exporters"]:
        of_exporter = f"exporters::{exporter}"
        settings += [
            f"{of_exporter}::retry_on_failure::initial_interval: 200ms",
            f"{of_exporter}::retry_on_failure::max_interval: 500ms",
            f"{of_exporter}::sending_queue::batch::flush_timeout: 100ms",
        ]
    if "span_metrics" in config.get("connectors", ()):
        settings.append("connectors::span_metrics::metrics_flush_interval: 500ms")
    return [f"--config=yaml:{setting}" for setting in settings]


def push(url: str, attributes: Mapping[str, str], metrics: Sequence[Mapping[str, Any]]) -> None:
    """Push metrics of a resource over OTLP, in its JSON."""
    resource = {"attributes": [{"key": key, "value": {"stringValue": text}} for key, text in attributes.items()]}
    body = {"resourceMetrics": [{"resource": resource, "scopeMetrics": [{"metrics": metrics}]}]}
    assert status(f"{url}/v1/metrics", "POST", json.dumps(body).encode()) == 200


class Life:
    """A program that can end, and begin again where it was."""

    def __init__(self, begins: Callable[[], AbstractContextManager[Any]]) -> None:
        self._begins = begins
        self._now = ExitStack()
        self.it: Any = None

    def __enter__(self) -> Self:
        self.begin()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def begin(self) -> None:
        """Start it."""
        self.it = self._now.enter_context(self._begins())

    def end(self) -> None:
        """Let it end, if it runs."""
        self._now.close()


@dataclass
class Place:
    """Where pipelines meet: a folder with certificates and tokens, and ports."""

    folder: Path
    prometheus_port: int = field(default_factory=free_port)
    gateway_port: int = field(default_factory=free_port)
    grpc_port: int = field(default_factory=free_port)
    otlp_port: int = field(default_factory=free_port)
    traces_url: str = "http://127.0.0.1:9"  # nobody listens there

    def __post_init__(self) -> None:
        authority = trustme.CA()
        server = authority.issue_cert("127.0.0.1")
        authority.cert_pem.write_to_path(self.folder / "ca.pem")
        server.private_key_pem.write_to_path(self.folder / "key.pem")
        server.cert_chain_pems[0].write_to_path(self.folder / "cert.pem")
        (self.folder / "tokens").write_text(f"another-token\n{TOKEN}\n")

    @property
    def gateway_url(self) -> str:
        """The gateway's base URL."""
        return f"https://127.0.0.1:{self.gateway_port}"

    @property
    def otlp_url(self) -> str:
        """The sidecar's base URL."""
        return f"http://127.0.0.1:{self.otlp_port}"

    def environ(self, name: str) -> dict[str, str]:
        """What a file takes from the environment."""
        sends = {
            "GATEWAY_ENDPOINT": self.gateway_url,
            "GATEWAY_TOKEN": TOKEN,
            "GATEWAY_CA_FILE": str(self.folder / "ca.pem"),
        }
        return {
            "QUEUE_DIR": str(self.folder / name),
            **{
                "agent": {"HOST_NAME": "host-1", "SCRAPE_INTERVAL": "500ms", **sends},
                "sidecar": {
                    "OTLP_GRPC_ENDPOINT": f"127.0.0.1:{free_port()}",
                    "OTLP_HTTP_ENDPOINT": f"127.0.0.1:{self.otlp_port}",
                    **sends,
                },
                "gateway": {
                    "OTLP_GRPC_ENDPOINT": f"127.0.0.1:{self.grpc_port}",
                    "OTLP_HTTP_ENDPOINT": f"127.0.0.1:{self.gateway_port}",
                    "TLS_CERT_FILE": str(self.folder / "cert.pem"),
                    "TLS_KEY_FILE": str(self.folder / "key.pem"),
                    "TOKEN_FILE": str(self.folder / "tokens"),
                    "PROMETHEUS_ENDPOINT": f"http://127.0.0.1:{self.prometheus_port}/api/v1/otlp",
                    "TRACES_ENDPOINT": self.traces_url,
                },
            }[name],
        }


@contextmanager
def pipeline(
    name: str, place: Place, *, before: Sequence[str] = (), arguments: Sequence[str] = (), **environ: str
) -> Iterator[Running]:
    """Run the Collector with a file of collector-config until the block ends.

    `before` is a command that runs it, in mounts of its own for example.
    """
    health = f"127.0.0.1:{free_port()}"
    command = [*before, program("otelcol-mlops"), f"--config={CONFIG / name}.yaml", *sooner(name), *arguments]
    environ = {"HEALTH_ENDPOINT": health, **place.environ(name), **environ}
    with started(command, place.folder / f"{name}.log", lambda: answers(f"http://{health}/"), environ) as running:
        yield running


def receiving(place: Place, **settings: Any) -> AbstractContextManager[Prometheus]:
    """Run Prometheus 3 as prometheus-otlp.yaml has it, without the rules."""
    config: Mapping[str, Any] = yaml.safe_load((CONFIG / "prometheus-otlp.yaml").read_text())
    return prometheus(
        place.folder / "prometheus",
        {**config, "rule_files": [], **settings},
        port=place.prometheus_port,
        arguments=[f"--enable-feature={FEATURES}"],
    )
