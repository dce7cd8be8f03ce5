"""Prints what the GPU of this machine reads as, with what each reading costs, as Markdown for docs/gpu.md.

    python -m tests.gpu.readings               about two minutes
    python -m tests.gpu.readings --seconds 30  longer measurements

It needs an NVIDIA GPU and its driver; torch or cupy for what is measured under a load, nvidia-smi to compare with.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from otel_mlops import metrics as rows
from otel_mlops.sources.nvidia import survey
from otel_mlops.sources.nvidia.driver import FAULTS
from tests.gpu import measure
from tests.gpu.hand import HOW_TO_GET_LOADS, HOW_TO_GET_SMI, Hand, NoGpu, real_hand
from tests.gpu.loads import GIB, KINDS


def report(hand: Hand, seconds: float, turn_s: float) -> Iterator[str]:
    """The lines of the report; a measurement takes about so many seconds, a turn of the inference `turn_s`."""
    gpu, about = hand.gpu, hand.driver.about
    yield f"# {gpu.name}, driver {about.get('driver_version', 'unknown')}, CUDA {about.get('cuda_version', 'unknown')}"
    loads = hand.loads.name if hand.loads else HOW_TO_GET_LOADS
    yield f"Loads: {loads}. `nvidia-smi`: {'yes' if hand.smi else HOW_TO_GET_SMI}."
    yield from _section("What can be read", ("part", "state", "why"), _parts(hand))
    yield from _section(
        "What a call takes", ("call", "asked every", "p50", "p99", "answers"), _latencies(hand, seconds)
    )
    yield from _section(
        "What the driver samples by itself",
        ("samples", "count", "period", "longest", "go back", "stamped by"),
        (
            (
                one.kind,
                one.count,
                f"{one.period_ms:.1f} ms",
                f"{one.longest_ms:.1f} ms",
                f"{one.span_s:.2f} s",
                one.clock,
            )
            for one in measure.buffers(hand)
        ),
    )
    yield from _section("What the documents leave open", ("question", "answer"), measure.open_questions(hand).items())
    yield from _section(
        "Energy", ("while", "counter", "integral of the power", "ratio", "steps"), _energy(hand, seconds)
    )
    titles = ("load", "utilization", "busy", "memory busy", "SM", "occupancy", "tensor", "DRAM", "power", "peak")
    yield from _section("Under a load", titles, _under_loads(hand, seconds))
    yield from _section("Beside nvidia-smi", ("field", "ours", "nvidia-smi", "agrees"), _smi(hand))
    yield from _section("What it costs the inference", ("source", "p50", "p99"), _inference(hand, turn_s))


def _section(title: str, titles: tuple[str, ...], lines: Iterable[tuple[Any, ...]]) -> Iterator[str]:
    """A table; where nothing could be measured, why."""
    yield f"\n## {title}\n"
    try:
        found = list(lines)
    except (*FAULTS, ValueError) as absence:
        yield f"Not measured: {absence}."
        return
    yield f"| {' | '.join(titles)} |"
    yield f"|{'---|' * len(titles)}"
    for line in found:
        yield f"| {' | '.join(map(_text, line))} |"


def _text(value: object) -> str:
    return "-" if value is None else str(value).replace("|", "\\|")


def _parts(hand: Hand) -> Iterator[tuple[Any, ...]]:
    for finding in survey(hand.driver.nvml):
        if finding.gpu == hand.gpu.index:
            yield finding.part, finding.state, finding.why


def _latencies(hand: Hand, seconds: float) -> Iterator[tuple[Any, ...]]:
    for one in measure.latencies(hand, repeats=max(10, round(20 * seconds))):
        every = None if one.call.every_s is None else f"{one.call.every_s or 1:g} s"
        yield f"`{one.call.title}`", every, f"{one.p50_us:.1f} µs", f"{one.p99_us:.1f} µs", one.answer


def _energy(hand: Hand, seconds: float) -> Iterator[tuple[Any, ...]]:
    for kind in ("idle", *(("matmul",) if hand.loads else ())):
        with hand.running(kind):
            hand.wait(min(2.0, seconds))
            seen = measure.energy(hand, seconds)
        steps = None if seen.period_ms is None else f"{seen.period_ms:.0f} ms"
        ratio = seen.counter_joules / seen.integral_joules if seen.integral_joules else None
        yield (
            kind,
            f"{seen.counter_joules:.2f} J",
            f"{seen.integral_joules:.2f} J",
            None if ratio is None else f"{ratio:.3f}",
            steps,
        )


def _under_loads(hand: Hand, seconds: float) -> Iterator[tuple[Any, ...]]:
    for kind in ("idle", *(KINDS if hand.loads else ())):
        seen = measure.under_load(hand, kind, seconds)
        ratios = [
            seen.busy_ratio,
            None if seen.memory_busy_s is None else seen.memory_busy_s / seen.seconds,
            *(
                seen.activity.get(row)
                for row in (
                    rows.GPU_SM_ACTIVITY,
                    rows.GPU_SM_OCCUPANCY,
                    rows.GPU_TENSOR_ACTIVITY,
                    rows.GPU_DRAM_ACTIVITY,
                )
            ),
        ]
        yield (
            kind,
            _mean(seen.utilization_percent, "%"),
            *(None if ratio is None else f"{ratio:.1%}" for ratio in ratios),
            _mean(seen.power_watts, " W"),
            None if seen.peak_watts is None else f"{seen.peak_watts:.0f} W",
        )
    if hand.loads:
        risen = measure.memory_rise(hand, GIB)
        yield (f"1 GiB taken: {risen / GIB:.3f} GiB more in use", *[None] * 9)


def _mean(values: list[float], unit: str) -> str | None:
    return f"{sum(values) / len(values):.0f}{unit}" if values else None


def _smi(hand: Hand) -> Iterator[tuple[Any, ...]]:
    for one in measure.against_smi(hand):
        labels = [None if value is None else f"{value:g}" for value in (one.ours, one.smi)]
        yield f"`{one.field}`", *labels, "yes" if one.agrees else "**no**"


def _inference(hand: Hand, turn_s: float) -> Iterator[tuple[Any, ...]]:
    seen = measure.effect_on_inference(hand, turn_s)
    yield "not read", f"{seen.without_p50_ms:.3f} ms", f"{seen.without_p99_ms:.3f} ms"
    yield f"read {seen.readings} times", f"{seen.with_p50_ms:.3f} ms", f"{seen.with_p99_ms:.3f} ms"


def main(arguments: list[str] | None = None) -> int:
    """Print the report of this machine's GPU; 1 if there is none."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.readings", description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=10.0, help="how long each measurement takes (10)")
    chosen = parser.parse_args(arguments)
    try:
        with real_hand() as hand:
            for line in report(hand, chosen.seconds, chosen.seconds):
                print(line, flush=True)
    except NoGpu as absence:
        print(absence, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
