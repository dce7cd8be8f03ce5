"""What GPUs cost us, and what OpenLIT and nvitop-exporter cost and show, all on one pretended NVIDIA driver.

The driver is the tests': a C library that the real nvidia-ml-py loads in place of NVIDIA's, so that no GPU is needed.
It answers quicker than a real one, and what a call costs a GPU is not seen; therefore the calls are counted as well.
The peers want other versions of OpenTelemetry than we do. They get a virtual environment in the user's cache, which
is made once; a `quick` run takes the one that is there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.measure import ROOT, Line, in_a_process

SOURCE = ROOT / "tests" / "nvml" / "fake_nvml.c"
LIBRARY = "libnvidia-ml.so.1"
GPUS = 8
SAMPLING_S, EVERYTHING_S = 0.002, 0.005
"""What the sampling of so many GPUs may take of each second: what is read each time, and all in the mean."""
SCRAPE_S = 0.010
"""What a scrape may take."""
INSTALL_S = 600

PEERS = {"openlit": "OpenLIT 1.45.0", "nvitop": "nvitop-exporter 1.7.2"}
ALONE = "openlit==1.45.0"
"""Installed without what it needs: the SDKs of several clouds, which its GPU metrics do without."""
WITH_ALL = (
    "nvitop-exporter==1.7.2",
    "opentelemetry-exporter-otlp==1.45.*",
    "opentelemetry-exporter-prometheus==0.66b2",
    "opentelemetry-instrumentation==0.66b2",
    "opentelemetry-sdk==1.45.*",
    "pydantic>=2,<3",
    "requests>=2.26,<3",
    "schedule>=1.2.2,<2",
    "xmltodict>=0.13,<2",
)
"""The other peer, and what OpenLIT's GPU metrics need."""


def build(folder: Path) -> None:
    """Compile the pretended driver.

    Errors: RuntimeError if there is no C compiler, or it fails.
    """
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if not sys.platform.startswith("linux") or compiler is None:
        msg = "the pretended NVIDIA driver needs Linux and a C compiler: apt-get install gcc"
        raise RuntimeError(msg)
    options = "-O1", "-shared", "-fPIC", "-pthread", f"-Wl,-soname,{LIBRARY}"
    _run(compiler, *options, "-o", str(folder / LIBRARY), str(SOURCE), "-lm", within_s=60)


def peers_python(*, quick: bool) -> str:
    """The interpreter of the environment that the peers are installed in, which is made if it is not there.

    Errors: RuntimeError if it cannot be made, or a quick run would have to.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "otel-mlops-benchmarks")
    versions = "-".join(PEERS.values()).replace(" ", "-").lower()
    folder = cache / f"{versions}-python{sys.version_info.major}.{sys.version_info.minor}"
    if not folder.exists():
        if quick:
            msg = "the peers are not installed: a run without --quick installs them once"
            raise RuntimeError(msg)
        cache.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=cache) as place:
            made = Path(place, "made")
            _run(sys.executable, "-m", "venv", str(made), within_s=120)
            for packages in (("--no-deps", ALONE), WITH_ALL):
                pip = str(made / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"
                _run(*pip, *packages, within_s=INSTALL_S)
            made.rename(folder)  # all of it, or nothing
    return str(folder / "bin" / "python")


def _run(*command: str, within_s: float) -> None:
    """Run a program to its end.

    Errors: RuntimeError with the end of what it said, if it failed.
    """
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=within_s)
    except subprocess.CalledProcessError as error:
        raise RuntimeError((error.stderr.strip() or str(error)).rpartition("\n")[2]) from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RuntimeError(str(error)) from error


def lines(*, quick: bool) -> Iterator[Line]:
    """The lines of this topic."""
    with TemporaryDirectory() as place:
        try:
            build(Path(place))
        except RuntimeError as error:
            yield Line(f"sampling {GPUS} GPUs", "what it may take", 1.0, None, None, str(error))
            return
        yield from _lines_of_ours(Path(place), quick=quick)
        yield from _lines_beside_peers(Path(place), quick=quick)


def _measure(library: Path, *arguments: str, gpus: int, python: str = sys.executable) -> Any:
    """What benchmarks/gpu_process.py measures beside a driver with so many GPUs."""
    path = os.pathsep.join(filter(None, (str(library), os.environ.get("LD_LIBRARY_PATH"))))
    environment = {"LD_LIBRARY_PATH": path, "FAKE_NVML_GPUS": str(gpus)}
    return in_a_process("-m", "benchmarks.gpu_process", *arguments, python=python, **environment)


def _lines_of_ours(library: Path, *, quick: bool) -> Iterator[Line]:
    most, rounds = "what it may take", "20" if quick else "100"
    try:
        sampling = _measure(library, "sampling", rounds, gpus=GPUS)
        page = _measure(library, "page", rounds, gpus=GPUS)
    except RuntimeError as error:
        yield Line(f"sampling {GPUS} GPUs", most, 1.0, None, None, f"otel_mlops: {error}")
        return
    yield Line(f"sampling {GPUS} GPUs, CPU each second", most, 1.0, sampling["fast_s"], SAMPLING_S)
    yield Line("the same with what is read less often", most, 1.0, sampling["everything_s"], EVERYTHING_S)
    yield Line(f"page with {GPUS} GPUs", most, 1.0, page["with_s"], SCRAPE_S)
    yield Line(f"page with {GPUS} GPUs", "the same page without", 10.0, page["with_s"], page["without_s"])
    yield Line(f"page with {GPUS} GPUs, calls of the driver", "none", 1.0, page["calls"], 0, unit="calls")


def _lines_beside_peers(library: Path, *, quick: bool) -> Iterator[Line]:
    found: dict[str, Any] = {}
    reasons: dict[str, str] = {}
    pythons = {"ours": sys.executable}
    try:
        pythons |= dict.fromkeys(PEERS, peers_python(quick=quick))
    except RuntimeError as error:
        reasons = dict.fromkeys(PEERS, str(error))
    for _ in range(1 if quick else 3):
        for name, python in pythons.items():
            try:
                again = _measure(library, "contender", name, "20" if quick else "50", gpus=2, python=python)
            except RuntimeError as error:
                reasons[name] = f"{name}: {error}"
            else:
                for what in ("reading", "scrape"):
                    again[what] = min(again[what], found.get(name, again)[what], key=lambda cost: cost["cpu_s"])
                found[name] = again
    for name, peer in PEERS.items():
        if name in found and "ours" in found:
            yield from _compared(found["ours"], found[name], peer)
        else:
            reason = "; ".join(reasons[each] for each in ("ours", name) if each in reasons)
            yield Line("scrape of 2 GPUs", peer, 1.0, None, None, reason)


def _compared(ours: Mapping[str, Any], theirs: Mapping[str, Any], peer: str) -> Iterator[Line]:
    """The lines beside one peer."""

    def cost(of: str, what: str, *, calls: float) -> Iterator[Line]:
        my, its = ours[of], theirs[of]
        yield Line(f"{what}, calls of the driver", peer, calls, my["calls"], its["calls"], unit="calls")
        yield Line(f"{what}, CPU", peer, 1.0, my["cpu_s"], its["cpu_s"])

    yield from cost("scrape", "scrape of 2 GPUs", calls=0.0)
    by_series, its = (each["scrape"]["cpu_s"] / each["series"] for each in (ours, theirs))
    yield Line("the same by the series that it shows", peer, 1.0, by_series, its)
    if theirs["reading"]["calls"]:  # else it reads when it is scraped
        yield from cost("reading", "reading of 2 GPUs", calls=1.0)
    yield Line("one of 2 lost: what the other loses", peer, 0.0, ours["gone"], theirs["gone"], unit="series")
    # A number that was made up, or a series that says that there is none.
    says = f"{peer}: {', '.join(theirs['power'])}" if theirs["power"] else peer
    made_up, its = len(ours["power"]), len(theirs["power"])
    yield Line("power not supported: series of it", says, 0.0, made_up, its, unit="series")
