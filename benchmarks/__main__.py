"""The table: what we cost beside the peers, all measured in one run."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks import drift, energy, gpu, imports, latency, page, record, request
from benchmarks.measure import Line

TOPICS: dict[str, Callable[..., Iterator[Line]]] = {
    "record": record.lines,
    "page": page.lines,
    "request": request.lines,
    "latency": latency.lines,
    "imports": imports.lines,
    "gpu": gpu.lines,
    "energy": energy.lines,
    "drift": drift.lines,
}
PACKAGES = (
    "otel-mlops",
    "opentelemetry-sdk",
    "opentelemetry-exporter-prometheus",
    "opentelemetry-instrumentation-fastapi",
    "prometheus-client",
    "prometheus-fastapi-instrumentator",
    "starlette-exporter",
    "fastapi",
    "numpy",
    "whylogs",
)
ROW = "{:<41} {:>9}  {:<34} {:>9}  {:>8}  {:>8}  {}"


def amount_text(amount: float | None, unit: str) -> str:
    """A time with three digits and a unit that suits it, or a number of what is counted."""
    if amount is None:
        return "-"
    if unit != "s":
        return f"{amount:.4g} {unit}"
    for name, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if amount >= size:
            return f"{amount / size:.3g} {name}"
    return f"{amount / 1e-9:.3g} ns"


def ratio_text(ratio: float | None) -> str:
    """A ratio as the design writes it: a fraction where ours is far below."""
    if ratio is None:
        return "-"
    return f"1/{1 / ratio:.3g}" if 0 < ratio <= 0.25 else f"{ratio:.2f}"


def environment() -> dict[str, object]:
    """What the figures were measured on."""
    packages = {}
    for package in PACKAGES:
        try:
            packages[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            packages[package] = "not installed"
    return {
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        "packages": packages,
    }


def as_json(line: Line) -> dict[str, object]:
    """One line for a program to read."""
    return {
        "what": line.what,
        "peer": line.peer,
        "unit": line.unit,
        "ours": line.ours,
        "peer's": line.theirs,
        "ratio": line.ratio,
        "target": line.target,
        "verdict": line.verdict,
        "reason": line.reason,
    }


def main() -> None:
    """Measures the topics, prints a line as soon as it is known, and writes the JSON file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds: a look, no figure to quote")
    parser.add_argument("--only", choices=TOPICS, action="append", help="measure this topic alone")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the lines to a file as well")
    arguments = parser.parse_args()

    print(ROW.format("what", "ours", "peer", "peer's", "ratio", "target", ""), flush=True)
    lines = []
    for topic in arguments.only or TOPICS:
        for line in TOPICS[topic](quick=arguments.quick):
            lines.append(line)
            ours, theirs = (amount_text(amount, line.unit) for amount in (line.ours, line.theirs))
            cells = line.what, ours, line.peer, theirs, ratio_text(line.ratio), ratio_text(line.target)
            print(ROW.format(*cells, line.verdict), flush=True)
    for reason in dict.fromkeys(line.reason for line in lines if line.reason):
        print(f"absent: {reason}")
    verdicts = [line.verdict for line in lines]
    print(", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in ("ok", "short", "absent")))
    if arguments.json:
        content = {"environment": environment(), "lines": [as_json(line) for line in lines]}
        arguments.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
