"""The Kubernetes manifests that hold a Collector's pipeline: its text comes from the pipeline's own file."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from textwrap import indent

PIPELINES: Mapping[str, Mapping[str, str]] = {
    "agent": {
        # The key with all that stands deeper than it.
        r"^ {6}scrape_configs:\n( {7}.*\n)+": "      scrape_configs: [] # the target allocator names the targets\n",
        r"^  host_metrics:\n": "  host_metrics:\n    root_path: /hostfs # the node's, not the container's\n",
    },
    "gateway": {},
    "sidecar": {},
}
"""The pipelines that have a manifest, and what is different in a cluster: what stands there once, and its successor."""


def manifests(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield each manifest in the folder's `kubernetes` that holds a pipeline, with the text that it should have.

    Errors:  ValueError if a manifest has no `config`, or a pipeline not what is different in a cluster.
    """
    for name, changes in PIPELINES.items():
        path = folder / "kubernetes" / f"opentelemetrycollector-{name}.yaml"
        own, found, _ = path.read_text(encoding="utf-8").partition("\n  config:")
        if not found:
            raise ValueError(f"{path} has no config, expected it as the last of its spec")
        pipeline = (folder / f"{name}.yaml").read_text(encoding="utf-8")
        for here, there in changes.items():
            pipeline, times = re.subn(here, there, pipeline, flags=re.MULTILINE)
            if times != 1:
                raise ValueError(f"{name}.yaml has {times} times {here!r}, expected once")
        _, found, parts = pipeline.partition("\nextensions:")  # below the comment for those who start it by hand
        if not found:
            raise ValueError(f"{name}.yaml has no extensions, expected them first")
        text = f"# {name}.yaml, which explains its variables; `make render` copies it.\nextensions:{parts}"
        yield path, f"{own}\n  config:\n{indent(_without_nulls(_with_plain_resource(text)), '    ')}"


def _with_plain_resource(text: str) -> str:
    """Return a pipeline whose own resource is a map: of a list the operator makes nothing, and drops its telemetry."""
    text = re.sub(r"^    resource:\n      attributes:\n", "    resource:\n", text, flags=re.MULTILINE)
    return re.sub(r"^ {8}- name: (\S+)\n {10}value: (.*)\n", r"      \1: \2\n", text, flags=re.MULTILINE)


def _without_nulls(text: str) -> str:
    """Return YAML in which a key that stands alone has an empty map: `kubectl apply` takes null for a removal."""
    return re.sub(r"^( *)([\w/.]+):(?=\n(?!\1 ))", r"\1\2: {}", text, flags=re.MULTILINE)
