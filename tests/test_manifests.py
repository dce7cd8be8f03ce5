"""What is applied to a cluster or given to Docker fits together, and with the pipelines and our settings."""

from __future__ import annotations

import re
import shutil
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from otel_mlops.manifests import manifests
from otel_mlops.metrics import CATALOGUE
from otel_mlops.render import CHECKOUT
from otel_mlops.settings import SETTINGS, Settings

CONFIG = CHECKOUT / "collector-config"
PIPELINES = ("agent", "gateway", "sidecar")
VARIABLE = re.compile(r"\$\{env:(\w+)(:-)?")
OURS = {variable for row in SETTINGS for variable in row.variables}


def load(name: str) -> list[Any]:
    """The documents of a file of collector-config."""
    return list(yaml.load_all((CONFIG / name).read_text(encoding="utf-8"), yaml.CSafeLoader))


def versions() -> dict[str, str]:
    """The versions of the programs that tests/servers run."""
    text = (CHECKOUT / "tests" / "servers" / "versions.env").read_text(encoding="utf-8")
    return dict(re.findall(r"^(\w+)=(\S+)$", text, re.MULTILINE))


def mebibytes(text: str) -> int:
    """A quantity of memory in MiB."""
    (number, unit) = re.fullmatch(r"(\d+)(Mi|Gi)B?", text).groups()  # type: ignore[union-attr]
    return int(number) * {"Mi": 1, "Gi": 1024}[unit]


DEPLOYMENT, SERVICE = load("kubernetes/deployment.yaml")
POD = DEPLOYMENT["spec"]["template"]
(CONTAINER,) = POD["spec"]["containers"]
PORTS = {port["name"]: port["containerPort"] for port in CONTAINER["ports"]}


def collector(name: str) -> dict[str, Any]:
    """The `spec` of a pipeline's manifest."""
    return dict(load(f"kubernetes/opentelemetrycollector-{name}.yaml")[-1]["spec"])


def without_nulls(value: Any) -> Any:
    """A configuration with an empty map for each null, which is the same to the Collector."""
    if isinstance(value, dict):
        return {key: without_nulls(each) for key, each in value.items()}
    if isinstance(value, list):
        return [without_nulls(each) for each in value]
    return {} if value is None else value


def texts(value: Any) -> Iterator[str]:
    """Each text in a configuration."""
    if isinstance(value, dict):
        for each in value.values():
            yield from texts(each)
    elif isinstance(value, list):
        for each in value:
            yield from texts(each)
    elif isinstance(value, str):
        yield value


# --- The pipelines in the manifests ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", PIPELINES)
def test_a_manifest_holds_the_pipeline_that_is_shipped(name: str):
    """A manifest's pipeline is the shipped one, but for what the operator reads and what is different in a cluster."""
    (shipped,) = load(f"{name}.yaml")
    resource = shipped["service"]["telemetry"]["resource"]
    if "attributes" in resource:
        shipped["service"]["telemetry"]["resource"] = {each["name"]: each["value"] for each in resource["attributes"]}
    if name == "agent":
        assert shipped["receivers"]["prometheus"]["config"]["scrape_configs"]
        shipped["receivers"]["prometheus"]["config"]["scrape_configs"] = []
        shipped["receivers"]["host_metrics"]["root_path"] = "/hostfs"
    assert collector(name)["config"] == without_nulls(shipped)


@pytest.mark.parametrize("name", PIPELINES)
def test_the_operator_can_read_the_telemetry_of_a_pipeline(name: str):
    """A resource is a map of texts and the readers are there: of anything else the operator makes its own default."""
    telemetry = collector(name)["config"]["service"]["telemetry"]
    assert all(isinstance(value, str) for value in telemetry["resource"].values())
    assert telemetry["metrics"]["readers"]


@pytest.mark.parametrize("name", PIPELINES)
def test_a_manifest_sets_what_its_pipeline_asks_for(name: str):
    """Each variable without a default is set, and none is set that the pipeline does not know."""
    spec = collector(name)
    asked = {each for text in texts(spec["config"]) for each in VARIABLE.findall(text)}
    given = {each["name"] for each in spec["env"]} - {"GOMEMLIMIT"}
    assert {variable for variable, default in asked if not default} <= given
    assert given <= {variable for variable, _ in asked}


@pytest.mark.parametrize("name", PIPELINES)
def test_a_collector_ends_up_neither_killed_nor_short_of_memory(name: str):
    """Go keeps to 80 % of what the limiter allows, and the container has more than that."""
    spec = collector(name)
    environ = {each["name"]: each.get("value", "") for each in spec["env"]}
    default = re.search(r"\d+", spec["config"]["processors"]["memory_limiter"]["limit_mib"].rpartition(":-")[2])
    assert default is not None
    limit = int(default.group())
    assert 0.75 * limit <= mebibytes(environ["GOMEMLIMIT"]) <= 0.8 * limit
    assert mebibytes(spec["resources"]["limits"]["memory"]) >= 1.2 * limit


@pytest.mark.parametrize("name", PIPELINES)
def test_what_a_pipeline_writes_and_reads_is_mounted(name: str):
    """The queue of a pipeline, and the files that its variables name, are on volumes of its manifest."""
    spec = collector(name)
    mounts = {mount["mountPath"]: mount for mount in spec["volumeMounts"]}
    names = {volume["name"] for volume in spec["volumes"]}
    names |= {claim["metadata"]["name"] for claim in spec.get("volumeClaimTemplates", [])}
    assert {mount["name"] for mount in mounts.values()} == names
    directory = spec["config"]["extensions"]["file_storage"]["directory"].rpartition(":-")[2].rstrip("}")
    assert not mounts[str(Path(directory).parent)].get("readOnly")
    files = [each["value"] for each in spec["env"] if each["name"].endswith("_FILE")]
    assert files
    assert {str(Path(file).parent) for file in files} <= mounts.keys()


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A copy of collector-config."""
    shutil.copytree(CONFIG, tmp_path / "config")
    return tmp_path / "config"


def test_a_changed_pipeline_changes_its_manifest(config: Path):
    """What is rendered follows the pipeline and leaves the manifest's own part alone."""
    before = dict(manifests(config))
    path = config / "gateway.yaml"
    path.write_text(
        path.read_text(encoding="utf-8").replace("num_traces: 50000", "num_traces: 51234"), encoding="utf-8"
    )
    manifest = config / "kubernetes" / "opentelemetrycollector-gateway.yaml"
    after = dict(manifests(config))
    assert [each for each in after if after[each] != before[each]] == [manifest]
    assert "num_traces: 51234" in after[manifest]
    assert after[manifest].partition("\n  config:")[0] == before[manifest].partition("\n  config:")[0]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("agent.yaml", "scrape_configs:", "expected once"),
        ("agent.yaml", "host_metrics:\n", "expected once"),
        ("gateway.yaml", "\nextensions:", "has no extensions"),
        ("kubernetes/opentelemetrycollector-gateway.yaml", "\n  config:", "has no config"),
    ],
)
def test_what_cannot_be_rendered_is_an_error(config: Path, name: str, text: str, said: str):
    """A pipeline without what is different in a cluster, or a manifest without a place for it, is refused."""
    path = config / name
    path.write_text(path.read_text(encoding="utf-8").replace(text, text.replace(":", "_gone:")), encoding="utf-8")
    with pytest.raises(ValueError, match=f"{path.name}.*{said}"):
        list(manifests(config))


# --- The service ----------------------------------------------------------------------------------------------


def pod_environment() -> dict[str, str]:
    """The variables of the service's container, as a kubelet works them out."""
    labels = POD["metadata"]["labels"]
    facts = {f"metadata.labels['{key}']": value for key, value in labels.items()}
    facts |= {"metadata.namespace": "shop", "metadata.name": "housing-7d4", "spec.nodeName": "node-1"}
    environ: dict[str, str] = {}
    for each in CONTAINER["env"]:
        value = facts[each["valueFrom"]["fieldRef"]["fieldPath"]] if "valueFrom" in each else each["value"]
        environ[each["name"]] = re.sub(r"\$\((\w+)\)", lambda found: environ[found.group(1)], value)
    return environ


def test_the_service_reads_its_settings_from_the_pod():
    """The variables of the Deployment are ours, and say who the service is."""
    environ = pod_environment()
    assert {name for name in environ if name.startswith("OTEL_")} <= OURS
    settings = Settings.from_env(environ)
    assert settings.service_name == DEPLOYMENT["metadata"]["name"]
    assert (settings.service_version, settings.environment) == ("1.0.0", "production")
    assert settings.host == "0.0.0.0"
    attributes = dict(settings.resource_attributes)
    assert attributes["k8s.pod.name"] == "housing-7d4"
    assert attributes["k8s.namespace.name"] == "shop"


def test_what_is_commented_out_is_right_too():
    """With what pushing and a GPU need, the Deployment is YAML whose variables are ours."""
    text = (CONFIG / "kubernetes" / "deployment.yaml").read_text(encoding="utf-8")
    text, times = re.subn(
        r"^( +)# (- \{name|annotations:|  sidecar|nvidia\.com/gpu)", r"\1\2", text, flags=re.MULTILINE
    )
    assert times == 7
    pod = next(yaml.safe_load_all(text))["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    added = {each["name"]: each["value"] for each in container["env"] if each not in CONTAINER["env"]}
    assert added.pop("NVIDIA_DRIVER_CAPABILITIES") == "compute,utility"
    assert added.keys() <= OURS
    assert Settings.from_env(added).metrics_exporter == ("otlp",)
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    sidecar = load("kubernetes/opentelemetrycollector-sidecar.yaml")[-1]["metadata"]["name"]
    assert pod["metadata"]["annotations"] == {"sidecar.opentelemetry.io/inject": sidecar}


def test_the_ports_probes_and_volumes_of_the_pod_are_there():
    """A probe asks where the health is, the page's port is ours, and each mount has its volume."""
    settings = Settings()
    assert {"http": 8000, "metrics": settings.port} == PORTS
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert CONTAINER[probe]["httpGet"] == {"path": settings.health_path, "port": "http"}
    mounts = {mount["name"]: mount["mountPath"] for mount in CONTAINER["volumeMounts"]}
    assert mounts == {"shm": "/dev/shm", "tmp": "/tmp"}
    assert {volume["name"] for volume in POD["spec"]["volumes"]} == mounts.keys()
    assert CONTAINER["securityContext"]["readOnlyRootFilesystem"]
    assert POD["spec"]["securityContext"]["runAsNonRoot"]


def test_the_shared_memory_holds_the_workers():
    """What all workers may take at most fits into the volume, and that into the container's limit."""
    workers = int(CONTAINER["args"][CONTAINER["args"].index("--workers") + 1])
    (shm,) = (volume["emptyDir"] for volume in POD["spec"]["volumes"] if volume["name"] == "shm")
    assert shm["medium"] == "Memory"
    assert (workers + 1) * Settings().max_ledger_bytes <= mebibytes(shm["sizeLimit"]) * 2**20
    assert mebibytes(shm["sizeLimit"]) < mebibytes(CONTAINER["resources"]["limits"]["memory"])


def test_the_manifests_speak_of_the_same_pods():
    """Deployment, Service, monitors and policy choose the same labels, and ports by names that are there."""
    labels = POD["metadata"]["labels"].items()
    assert DEPLOYMENT["spec"]["selector"]["matchLabels"].items() <= labels
    assert SERVICE["spec"]["selector"].items() <= labels
    assert {port["targetPort"] for port in SERVICE["spec"]["ports"]} == PORTS.keys()
    (service_monitor,) = load("kubernetes/servicemonitor.yaml")
    assert service_monitor["spec"]["selector"]["matchLabels"].items() <= SERVICE["metadata"]["labels"].items()
    assert service_monitor["spec"]["jobLabel"] in SERVICE["metadata"]["labels"]
    assert service_monitor["spec"]["endpoints"][0]["port"] in {port["name"] for port in SERVICE["spec"]["ports"]}
    (pod_monitor,) = load("kubernetes/podmonitor.yaml")
    assert pod_monitor["spec"]["selector"]["matchLabels"].items() <= labels
    assert pod_monitor["spec"]["jobLabel"] in POD["metadata"]["labels"]
    assert pod_monitor["spec"]["podMetricsEndpoints"][0]["port"] in PORTS
    (policy,) = load("kubernetes/networkpolicy.yaml")
    assert policy["spec"]["podSelector"]["matchLabels"].items() <= labels
    assert [rule["ports"] for rule in policy["spec"]["ingress"]] == [[{"port": "http"}], [{"port": "metrics"}]]
    assert "from" not in policy["spec"]["ingress"][0]
    assert policy["spec"]["ingress"][1]["from"]


@pytest.mark.parametrize(
    ("file", "endpoints", "given"),
    [
        ("servicemonitor", "endpoints", {"job", "instance", "namespace", "service", "pod", "container", "endpoint"}),
        ("podmonitor", "podMetricsEndpoints", {"job", "instance", "namespace", "pod", "container", "endpoint"}),
    ],
)
def test_a_target_has_no_label_of_the_page(file: str, endpoints: str, given: set[str]):
    """What the operator calls a target takes the place of no label that a metric of ours has."""
    (monitor,) = load(f"kubernetes/{file}.yaml")
    (endpoint,) = monitor["spec"][endpoints]
    assert not endpoint["honorLabels"]
    (drop,) = endpoint["relabelings"]
    assert drop["action"] == "labeldrop"
    kept = {label for label in given if not re.fullmatch(drop["regex"], label)}
    assert {"job", "instance", "namespace", "pod"} <= kept
    ours = {label for metric in CATALOGUE for label in (*metric.attributes, *metric.optional_attributes)}
    assert "endpoint" in ours
    assert not kept & ours


# --- Docker ---------------------------------------------------------------------------------------------------

(COMPOSE,) = load("docker-compose.yaml")
SERVICES: Mapping[str, Any] = COMPOSE["services"]


def test_the_images_are_of_the_versions_that_are_tested():
    """Images are pinned, and where the tests run the same program it is the same version."""
    tested = versions()
    images = {name: service["image"] for name, service in SERVICES.items()}
    assert images.pop("prepare") == images.pop("service") == images.pop("notifications")  # built here
    grafana, _, version = images.pop("grafana").partition(":")
    assert grafana == "grafana/grafana"
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)
    contrib = f"otel/opentelemetry-collector-contrib:{tested['COLLECTOR']}"
    assert images == {
        "sidecar": contrib,
        "gateway": contrib,
        "prometheus": f"prom/prometheus:v{tested['PROMETHEUS']}",
        "alertmanager": f"prom/alertmanager:v{tested['ALERTMANAGER']}",
    }
    assert {collector(name)["image"] for name in PIPELINES} == {contrib}


def test_what_a_service_needs_is_a_service():
    """A service waits for services that are there, and shares their network; for health only where it is asked for."""
    for service in SERVICES.values():
        needs = service.get("depends_on", {})
        shared = re.findall(r"^service:(.+)$", service.get("network_mode", ""))
        assert {*needs, *shared} <= SERVICES.keys()
        assert all("healthcheck" in SERVICES[name] for name in needs if needs[name]["condition"] == "service_healthy")


def test_only_this_machine_reaches_the_ports():
    """Each published port is bound to 127.0.0.1, once."""
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert sorted(ports) == [f"127.0.0.1:{port}:{port}" for port in (3000, 8000, 8001, 9090, 9093)]


def test_each_file_that_is_mounted_exists():
    """What Docker mounts of this folder is there: of a missing file it would make an empty folder."""
    mounts = [mount.split(":") for service in SERVICES.values() for mount in service.get("volumes", [])]
    here = [mount for mount in mounts if mount[0].startswith(".")]
    assert len(here) >= 7
    for mount in here:
        assert (CONFIG / mount[0]).exists(), mount
        assert mount[2:] == ["ro"]
    assert {mount[0] for mount in mounts if mount not in here} == COMPOSE["volumes"].keys()
    build = SERVICES["service"]["build"]
    assert (CONFIG / build["context"] / build["dockerfile"]).exists()


def test_the_image_is_built_from_what_is_there():
    """The Dockerfile copies files of the checkout, installs extras that there are, and starts an example."""
    text = (CHECKOUT / "examples" / "Dockerfile").read_text(encoding="utf-8")
    copied = [source for line in re.findall(r"^COPY (.+) \S+$", text, re.MULTILINE) for source in line.split()]
    assert {"pyproject.toml", "otel_mlops", "examples"} <= set(copied)
    assert all((CHECKOUT / source).exists() for source in copied)
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {project["readme"], *project["license-files"]} <= set(copied)
    (extras,) = re.findall(r"/source\[([\w,]+)\]", text)
    assert set(extras.split(",")) <= project["optional-dependencies"].keys()
    (example,) = re.findall(r'"(\w+):app"', text)
    assert (CHECKOUT / "examples" / f"{example}.py").exists()
    (user,) = re.findall(r"^USER (\d+):", text, re.MULTILINE)
    assert int(user) == POD["spec"]["securityContext"]["runAsUser"]


@pytest.mark.parametrize("name", ["prometheus", "alertmanager", "sidecar", "gateway"])
def test_each_program_is_given_the_file_that_is_mounted(name: str):
    """The configuration that a program is started with is mounted, and with it what that names."""
    (file,) = (each.partition("=")[2] for each in SERVICES[name]["command"] if each.startswith("--config"))
    mounted = {mount.split(":")[1]: CONFIG / mount.split(":")[0] for mount in SERVICES[name]["volumes"]}
    config = yaml.safe_load(mounted[file].read_text(encoding="utf-8"))
    for each in config.get("rule_files", []):
        assert str(Path(file).parent / each) in mounted


@pytest.mark.parametrize("name", ["sidecar", "gateway"])
def test_docker_sets_what_a_pipeline_asks_for(name: str):
    """Each variable without a default is set, none that the pipeline does not know, and files lie on a volume."""
    (config,) = load(f"{name}.yaml")
    asked = {each for text in texts(config) for each in VARIABLE.findall(text)}
    environ = SERVICES[name]["environment"]
    assert {variable for variable, default in asked if not default} <= environ.keys()
    assert environ.keys() - {"GOMEMLIMIT"} <= {variable for variable, _ in asked}
    targets = {mount.split(":")[1] for mount in SERVICES[name]["volumes"]}
    assert {str(Path(value).parent) for key, value in environ.items() if key.endswith("_FILE")} <= targets
    assert "/var/lib/otelcol" in targets


def test_the_service_in_docker_pushes_to_the_sidecar_beside_it():
    """The service's variables are ours and name the sidecar's port, in one network."""
    environ = SERVICES["service"]["environment"]
    assert environ.keys() <= OURS
    settings = Settings.from_env(environ)
    assert settings.metrics_exporter == ("prometheus", "otlp")
    assert settings.metrics_endpoint == "http://127.0.0.1:4318/v1/metrics"
    assert settings.traces_endpoint is None
    assert SERVICES["sidecar"]["network_mode"] == "service:service"


def test_no_secret_stands_in_the_files():
    """No password, token or key is written down in the compose file or a manifest: variables name files or Secrets."""
    files = [CONFIG / "docker-compose.yaml", *(CONFIG / "kubernetes").glob("*.yaml")]
    for path in files:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"(?i)(password|secret_?key|token)\s*[:=]\s*['\"]?[\w+/-]{6,}", text), path
        assert "PRIVATE KEY" not in text
