"""Kubernetes' manifests against the schemas of their kinds, the compose file, and what they hold by its own program."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
import yaml
from cryptography.x509 import DNSName, SubjectAlternativeName, load_pem_x509_certificate

from tests.servers.programs import CONFIG, program, started
from tests.servers.schemas import complaints
from tests.servers.service import free_port, listens, until

DOCS = CONFIG.parent / "docs"
FILES = sorted((CONFIG / "kubernetes").glob("*.yaml"))
OPEN = {"config", "labels", "annotations", "matchLabels", "requests", "limits"}
"""Fields whose keys are free, or are another program's."""


def documents(text: str) -> list[dict[str, Any]]:
    """The manifests in a text."""
    return list(yaml.load_all(text, yaml.CSafeLoader))


ALL = [(path.stem, each) for path in FILES for each in documents(path.read_text(encoding="utf-8"))]
MANIFESTS = [pytest.param(each, id=f"{stem}-{each['kind']}") for stem, each in ALL]


def one(kind: str, name: str) -> dict[str, Any]:
    """A copy of the manifest of a kind with a name."""
    (found,) = (each for _, each in ALL if each["kind"] == kind and each["metadata"]["name"] == name)
    return copy.deepcopy(found)


def fields(value: Any, path: tuple[Any, ...] = (), seen: set[str] | None = None) -> Iterator[tuple[Any, ...]]:
    """The path of each field that has a name of its own, of lists' items once for all."""
    seen = set() if seen is None else seen
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from fields(item, (*path, index), seen)
    if isinstance(value, dict):
        for key, item in value.items():
            here = (*path, key)
            shape = ".".join("*" if isinstance(part, int) else part for part in here)
            if shape not in seen:
                seen.add(shape)
                yield here
            if key not in OPEN and not (key == "selector" and isinstance(item, dict) and "matchLabels" not in item):
                yield from fields(item, here, seen)


def at(manifest: Any, path: tuple[Any, ...]) -> Any:
    """What stands at a path."""
    for part in path:
        manifest = manifest[part]
    return manifest


# --- Against the schemas --------------------------------------------------------------------------------------


@pytest.mark.parametrize("manifest", MANIFESTS)
def test_a_server_would_take_each_manifest(manifest: dict[str, Any]):
    """Kubernetes' own schemas, and those of the operators, have nothing against a manifest."""
    assert complaints(manifest) == []


@pytest.mark.parametrize("manifest", MANIFESTS)
def test_each_misspelt_field_is_refused(manifest: dict[str, Any]):
    """Whichever field of a manifest is misspelt, the schema does not know it."""
    for path in fields(manifest):
        wrong = copy.deepcopy(manifest)
        parent = at(wrong, path[:-1])
        parent[f"{path[-1]}x"] = parent.pop(path[-1])
        assert complaints(wrong), path


@pytest.mark.parametrize("manifest", MANIFESTS)
def test_each_value_of_a_wrong_type_is_refused(manifest: dict[str, Any]):
    """Whichever field of a manifest has a value of another type, it is refused."""
    for path in fields(manifest):
        wrong = copy.deepcopy(manifest)
        at(wrong, path[:-1])[path[-1]] = [[1]]
        assert complaints(wrong), path


@pytest.mark.parametrize(
    ("kind", "name", "path"),
    [
        ("Deployment", "housing", ("spec", "selector")),
        ("Deployment", "housing", ("spec", "template", "spec", "containers", 0, "name")),
        ("Deployment", "housing", ("spec", "template", "spec", "containers", 0, "readinessProbe", "httpGet", "port")),
        ("Deployment", "housing", ("spec", "template", "spec", "containers", 0, "volumeMounts", 0, "mountPath")),
        ("Service", "housing", ("spec", "ports", 0, "port")),
        ("ServiceMonitor", "housing", ("spec", "selector")),
        ("PodMonitor", "housing", ("spec", "selector")),
        ("PrometheusRule", "otel-mlops", ("spec", "groups", 0, "name")),
        ("PrometheusRule", "otel-mlops", ("spec", "groups", 0, "rules", 0, "expr")),
        ("OpenTelemetryCollector", "agent", ("spec", "config")),
        ("OpenTelemetryCollector", "gateway", ("spec", "config", "service")),
        ("OpenTelemetryCollector", "gateway", ("spec", "config", "receivers")),
        ("OpenTelemetryCollector", "sidecar", ("spec", "config", "exporters")),
        ("ClusterRole", "agent-targetallocator", ("rules", 0, "verbs")),
        ("ClusterRoleBinding", "agent-targetallocator", ("roleRef",)),
        ("NetworkPolicy", "housing", ("kind",)),
        ("ServiceAccount", "agent-targetallocator", ("apiVersion",)),
    ],
)
def test_what_is_missing_is_refused(kind: str, name: str, path: tuple[Any, ...]):
    """A manifest without a field that its kind must have is refused."""
    manifest = one(kind, name)
    del at(manifest, path[:-1])[path[-1]]
    assert complaints(manifest)


def test_two_items_of_one_name_are_refused():
    """A list that Kubernetes keeps as a map has no two items with the same key."""
    manifest = one("Deployment", "housing")
    variables = manifest["spec"]["template"]["spec"]["containers"][0]["env"]
    variables.append({"name": variables[0]["name"], "value": "again"})
    assert any("twice" in complaint for complaint in complaints(manifest))


def test_the_manifests_in_the_docs_are_as_good():
    """What docs/kubernetes.md shows of a manifest is taken too, and says what prometheus-otlp.yaml says."""
    shown = re.findall(r"^```yaml\n(.*?)^```", (DOCS / "kubernetes.md").read_text(), re.DOTALL | re.MULTILINE)
    manifests = [each for text in shown for each in documents(text) if "apiVersion" in each]
    assert {each["kind"] for each in manifests} >= {"Prometheus"}
    assert [complaints(each) for each in manifests] == [[]] * len(manifests)
    (spec,) = (each["spec"] for each in manifests if each["kind"] == "Prometheus")
    shipped = yaml.safe_load((CONFIG / "prometheus-otlp.yaml").read_text(encoding="utf-8"))
    keys = {key: re.sub(r"_(\w)", lambda found: found[1].upper(), key) for key in shipped["otlp"]}
    assert spec["otlp"] == {keys[key]: each for key, each in shipped["otlp"].items()}
    assert spec["tsdb"]["outOfOrderTimeWindow"] == shipped["storage"]["tsdb"]["out_of_order_time_window"]


# --- The pipelines inside -------------------------------------------------------------------------------------


def validated(config: Mapping[str, Any], folder: Path, environ: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """What the Collector says to a configuration."""
    path = folder / "config.yaml"
    path.write_text(json.dumps(config))
    command = [program("otelcol-mlops"), "validate", f"--config={path}"]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, env={**os.environ, **environ}
    )


@pytest.mark.parametrize("name", ["agent", "gateway", "sidecar"])
def test_the_collector_takes_the_pipeline_of_a_manifest(name: str, tmp_path: Path):
    """The Collector takes the pipeline inside a manifest with the variables that the manifest sets."""
    spec = one("OpenTelemetryCollector", name)["spec"]
    config = spec["config"]
    environ = {each["name"]: each.get("value", "from-the-cluster") for each in spec["env"]}
    if name == "agent":  # what the operator puts in the place of an empty list, and where the node is in a pod
        config["receivers"]["prometheus"] = {
            "config": {},
            "target_allocator": {
                "endpoint": "http://agent-targetallocator",
                "interval": "30s",
                "collector_id": "agent-1",
            },
        }
        config["receivers"]["host_metrics"]["root_path"] = "/"
    done = validated(config, tmp_path, environ)
    assert done.returncode == 0, done.stderr
    config["exporters"]["otlp_grcp"] = {}
    assert "otlp_grcp" in validated(config, tmp_path, environ).stderr


# --- Prometheus -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("promtool", ["promtool", "promtool-2"])
def test_both_versions_take_the_configuration_for_scraping(promtool: str, tmp_path: Path):
    """Prometheus 3 and 2.42 take prometheus.yaml with its rules, and neither takes it misspelt."""
    for name in ("prometheus.yaml", "rules.yaml"):
        (tmp_path / name).write_text((CONFIG / name).read_text())

    def check() -> subprocess.CompletedProcess[str]:
        command = [program(promtool), "check", "config", str(tmp_path / "prometheus.yaml")]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert check().returncode == 0, check().stdout
    path = tmp_path / "prometheus.yaml"
    path.write_text(path.read_text().replace("sample_limit", "samples_limit"))
    assert "samples_limit" in check().stderr + check().stdout


# --- Docker ---------------------------------------------------------------------------------------------------

COMPOSE = yaml.safe_load((CONFIG / "docker-compose.yaml").read_text(encoding="utf-8"))["services"]


def composed(path: Path) -> subprocess.CompletedProcess[str]:
    """What the library that `docker compose` reads its file with makes of a file."""
    command = [program("compose-go"), "-format", "json", str(path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=path.parent)


def test_docker_compose_takes_its_file():
    """The compose file is one by the specification of Compose."""
    done = composed(CONFIG / "docker-compose.yaml")
    assert done.returncode == 0, done.stderr
    services = json.loads(done.stdout)["services"]
    assert services.keys() == {
        "prepare",
        "service",
        "sidecar",
        "gateway",
        "prometheus",
        "alertmanager",
        "notifications",
        "grafana",
    }


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("healthcheck:", "health_check:"),
        ("  prometheus:\n    image:", "  prometheus:\n    imagine:"),
        ("restart: unless-stopped", "restart: [unless-stopped]"),
        ("{condition: service_healthy}", "{condition: service_well}"),
        ('"127.0.0.1:9090:9090"', '"127.0.0.1:9090:http"'),
    ],
)
def test_a_faulty_compose_file_is_refused(right: str, wrong: str, tmp_path: Path):
    """A misspelt field, a wrong type and a wrong value are refused."""
    text = (CONFIG / "docker-compose.yaml").read_text()
    assert right in text
    path = tmp_path / "docker-compose.yaml"
    path.write_text(text.replace(right, wrong))
    assert composed(path).returncode != 0


@pytest.mark.parametrize("name", ["sidecar", "gateway"])
def test_the_collectors_in_docker_have_all_that_their_pipelines_ask_for(name: str, tmp_path: Path):
    """The Collector takes each pipeline with the variables of the compose file and the secrets where they will be."""
    done = composed(CONFIG / "docker-compose.yaml")
    environ: dict[str, str] = json.loads(done.stdout)["services"][name]["environment"]
    (tmp_path / "token").write_text("a-token")
    environ = {key: value.replace("/secrets/", f"{tmp_path}/") for key, value in environ.items()}
    environ["QUEUE_DIR"] = str(tmp_path / "queue")
    config = yaml.safe_load((CONFIG / f"{name}.yaml").read_text())
    done = validated(config, tmp_path, environ)
    assert done.returncode == 0, done.stderr


def script(service: str) -> str:
    """The program that a service of the compose file is started with, as the shell or Python gets it."""
    return str(COMPOSE[service]["command"][-1]).replace("$$", "$")


def test_what_is_secret_is_made_once(tmp_path: Path):
    """The first start makes a certificate, a token and the URLs of webhooks, and a second one leaves them alone."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is missing: install it, apt-get install openssl")
    text = "chown() { :; }\n" + script("prepare")
    for mount in COMPOSE["prepare"]["volumes"]:
        target = mount.split(":")[1]
        (tmp_path / target.lstrip("/")).mkdir(parents=True)
        text = text.replace(target, f"{tmp_path}{target}")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    made: list[dict[str, bytes]] = []
    for _ in range(2):
        subprocess.run(["sh", "-ec", text], check=True, capture_output=True, timeout=60, env={"PATH": path})
        made.append({each.name: each.read_bytes() for each in sorted(tmp_path.rglob("*")) if each.is_file()})
    assert made[0] == made[1]
    assert made[0].keys() == {"tls.crt", "tls.key", "token", "pages", "tickets", "watchdog"}
    assert len(made[0]["token"]) == 43
    assert not any(letter in b" \n" for letter in made[0]["token"])
    certificate = load_pem_x509_certificate(made[0]["tls.crt"])
    names = certificate.extensions.get_extension_for_class(SubjectAlternativeName).value
    assert names.get_values_for_type(DNSName) == ["gateway"]
    assert (tmp_path / "secrets" / "tls.key").stat().st_mode & 0o777 == 0o400
    asked = (CONFIG / "alertmanager.yaml").read_text(encoding="utf-8")
    assert set(re.findall(r"/etc/alertmanager/secrets/(\w+)", asked)) == {"pages", "tickets", "watchdog"}


def test_what_alertmanager_sends_is_printed(tmp_path: Path):
    """The service that stands for a pager prints each alert with its state, its labels and its summary."""
    port = free_port()
    text = script("notifications")
    assert text.count("9095") == 1
    assert "http://127.0.0.1:9095/" in script("prepare")
    labels = {"alertname": "HighErrorRate", "job": "housing"}
    alert = {"status": "firing", "labels": labels, "annotations": {"summary": "One of ten requests fails"}}
    command = [sys.executable, *COMPOSE["notifications"]["command"][1:-1], text.replace("9095", str(port))]
    with started(command, tmp_path / "log", lambda: listens(port)) as running:
        body = json.dumps({"alerts": [alert]}).encode()
        with urlopen(Request(f"http://127.0.0.1:{port}/pages", body), timeout=10) as response:
            assert response.status == 200
        until(lambda: "One of ten" in running.said())
        assert running.said().strip() == f"/pages firing {labels} One of ten requests fails"
