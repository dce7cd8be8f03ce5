"""What the page says, as lines for people: a table, one line, a summary. Text only; nothing is read here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from otel_mlops import metrics as rows
from otel_mlops.demo.readings import Labels, Reading, Window

_GIB = 2**30
_NUMBER_WIDTHS = (8, 10, 8, 8, 9, 9)


def table(window: Window, columns: int) -> Iterator[str]:
    """The lines of the live table, for a terminal of so many columns; what matters most comes first."""
    yield from _aligned([("REQUESTS", "RATE", "IN ALL", "4XX", "5XX", "P50", "P95"), *_requests(window)], columns)
    yield ""
    yield from _aligned([("PREDICTIONS", "RATE", "IN ALL", "", "FAILED", "P50", "P95"), *_predictions(window)], columns)
    yield ""
    for title, text in _facts(window):
        yield f"  {title:<12} {text}"


def line(window: Window) -> str:
    """What goes on, in one line for a log."""
    now, rate = window.now, window.rate(rows.API_REQUESTS.page_name)
    half, most = (_time(window.quantile(share, rows.API_REQUEST_DURATION)) for share in (0.5, 0.95))
    single, batch = (window.rate(rows.PREDICTIONS.page_name, prediction_type=kind) for kind in rows.PREDICTION_TYPES)
    parts = (
        f"{rate:.1f} requests/s, {_share(_answered(window, '5'), rate)} failed, p50 {half}, p95 {most}",
        f"predictions/s {single:.1f} single, {batch:.1f} batch",
        f"CPU {_percent(now.value(rows.SYSTEM_CPU_USAGE))}, memory {_memory(now)}",
        _list(f"{version} {status}" for version, status in _statuses(now)),
    )
    return " | ".join(parts)


def summary(reading: Reading, answers: Counter[int], unanswered: int) -> Iterator[str]:
    """What there was in all: what the page has counted beside what the clients have seen."""
    counted: Counter[int] = Counter()
    for labels, value in reading.samples(rows.API_REQUESTS.page_name):
        counted[int(labels["status_code"])] += int(value)
    yield f"  {'':<22}{'on the page':>12}{'at the clients':>16}"
    yield f"  {'requests':<22}{counted.total():>12,}{answers.total():>16,}"
    for status in sorted(counted.keys() | answers.keys()):
        yield f"  {f'  answered with {status}':<22}{counted[status]:>12,}{answers[status]:>16,}"
    if unanswered:
        yield f"  {'  without an answer':<22}{'':>12}{unanswered:>16,}"
    errors = reading.groups([rows.ERRORS.page_name], "error_type")
    told = [f"{_whole(reading.total(rows.ERRORS.page_name, error_type=name))} {name}" for (name,) in errors]
    yield f"  errors        {', '.join(told) or 'none'}"
    single, batch = (
        _whole(reading.total(rows.PREDICTIONS.page_name, prediction_type=kind)) for kind in rows.PREDICTION_TYPES
    )
    batches = _whole(reading.total(f"{rows.PREDICTION_BATCH_SIZE.page_name}_count"))
    failed = _whole(reading.total(rows.PREDICTION_ERRORS.page_name))
    yield f"  predictions   {single} single, {batch} in {batches} batches; {failed} failed"
    yield f"  database      {_whole(reading.total(rows.DATABASE_OPERATIONS.page_name))} operations"
    runs = rows.SCHEDULED_TASK_RUNS.page_name
    bad = _whole(reading.total(runs) - reading.total(runs, result="success"))
    yield f"  tasks         {_whole(reading.total(runs))} runs; {bad} failed or missed"


# --- The parts of the table -------------------------------------------------------------------------------


def _requests(window: Window) -> Iterator[Sequence[str]]:
    yield "  all", *_request_numbers(window)
    for method, endpoint in window.now.groups([rows.API_REQUESTS.page_name], "method", "endpoint"):
        yield f"  {method} {endpoint}", *_request_numbers(window, method=method, endpoint=endpoint)


def _request_numbers(window: Window, **labels: str) -> Iterator[str]:
    name = rows.API_REQUESTS.page_name
    rate = window.rate(name, **labels)
    yield f"{rate:.1f}/s"
    yield _whole(window.now.total(name, **labels))
    for first in ("4", "5"):
        yield _share(_answered(window, first, **labels), rate)
    for share in (0.5, 0.95):
        yield _time(window.quantile(share, rows.API_REQUEST_DURATION, **labels))


def _answered(window: Window, first_digit: str, **labels: str) -> float:
    """The rate of answers whose status begins with a digit."""
    name = rows.API_REQUESTS.page_name
    statuses = {status for (status,) in window.now.groups([name], "status_code")}
    return sum(window.rate(name, status_code=status, **labels) for status in statuses if status.startswith(first_digit))


def _predictions(window: Window) -> Iterator[Sequence[str]]:
    name = rows.PREDICTIONS.page_name
    failed = rows.PREDICTION_ERRORS.page_name
    for model, version in window.now.groups([name, failed], "model_name", "model_version"):
        labels = {"model_name": model, "model_version": version}
        for kind in rows.PREDICTION_TYPES:
            of_kind = {**labels, "prediction_type": kind}
            if window.now.samples(name, **of_kind):
                # A prediction that failed is of no type: it stands with the single ones, which come first.
                errors = _whole(window.now.total(failed, **labels)) if kind == "single" else ""
                yield (
                    f"  {model} {version} {kind}",
                    f"{window.rate(name, **of_kind):.1f}/s",
                    _whole(window.now.total(name, **of_kind)),
                    "",
                    errors,
                    *(_time(window.quantile(share, rows.PREDICTION_DURATION, **of_kind)) for share in (0.5, 0.95)),
                )


def _facts(window: Window) -> Iterator[tuple[str, str]]:
    now = window.now
    requests, predictions = rows.API_REQUESTS_IN_PROGRESS.page_name, rows.PREDICTIONS_IN_PROGRESS.page_name
    yield "models", _list(f"{version} {status}{_accuracy(now, version)}" for version, status in _statuses(now))
    yield "machine", f"CPU {_percent(now.value(rows.SYSTEM_CPU_USAGE))}, memory {_memory(now)}"
    yield "GPU", _list(_gpus(now), none="no GPU")
    yield "health", _list(_health(now))
    yield "in progress", f"requests {_whole(now.total(requests))}, predictions {_whole(now.total(predictions))}"
    yield "database", _list(_database(window))
    yield "tasks", _list(_tasks(now))
    yield "drift", _list(_drift(now))
    page_s = window.quantile(0.5, rows.PAGE_DURATION)
    yield "page", f"{_whole(now.value(rows.PAGE_SERIES) or 0)} series, made in {_time(page_s)}"


def _statuses(reading: Reading) -> Iterator[tuple[str, str]]:
    for labels, value in reading.samples(rows.MODEL_STATUS.page_name):
        if value:
            yield labels["model_version"], labels["model_status"]


def _accuracy(reading: Reading, version: str) -> str:
    score = reading.value(rows.MODEL_ACCURACY, model_version=version)
    return "" if score is None else f" (accuracy {score:.2f})"


def _health(reading: Reading) -> Iterator[str]:
    for labels, value in reading.samples(rows.API_HEALTH_STATUS.page_name):
        yield f"{labels['component']} {'healthy' if value else 'unhealthy'}"


def _drift(reading: Reading) -> Iterator[str]:
    scores = reading.samples(rows.MODEL_DRIFT_SCORE.page_name)
    if scores:
        labels, most = max(scores, key=lambda sample: sample[1])
        yield f"{labels['feature']} has moved most, by {most:.2f} standard deviations"


def _database(window: Window) -> Iterator[str]:
    name = rows.DATABASE_OPERATIONS.page_name
    for operation, on in window.now.groups([name], "operation", "table"):
        rate = window.rate(name, operation=operation, table=on)
        if rate:
            p95 = window.quantile(0.95, rows.DATABASE_OPERATION_DURATION, operation=operation, table=on)
            yield f"{operation} {on} {rate:.1f}/s p95 {_time(p95)}"


def _tasks(reading: Reading) -> Iterator[str]:
    name = rows.SCHEDULED_TASK_RUNS.page_name
    for (task,) in reading.groups([name], "task"):
        runs = reading.total(name, task=task)
        bad = runs - reading.total(name, task=task, result="success")
        yield f"{task} {_whole(runs)}" + (f" ({_whole(bad)} failed or missed)" if bad else "")


def _gpus(reading: Reading) -> Iterator[str]:
    for labels, value in reading.samples(rows.GPU_UTILIZATION.page_name):
        of_gpu: Labels = {"gpu_id": labels["gpu_id"]}
        memory = _of_gib(reading, rows.GPU_MEMORY_USED.page_name, rows.GPU_MEMORY_TOTAL.page_name, **of_gpu)
        yield f"{labels['gpu_name']} {_percent(value)}, memory {memory}"


# --- How things are written -------------------------------------------------------------------------------


def _aligned(lines: Sequence[Sequence[str]], columns: int) -> Iterator[str]:
    """Lines in columns: a title to the left, as wide as there is room for, and six numbers to the right."""
    room = min(max(columns - 2 - sum(_NUMBER_WIDTHS), 20), 44)
    for title, *cells in lines:
        numbers = (f"{cell:>{width}}" for cell, width in zip(cells, _NUMBER_WIDTHS, strict=True))
        yield f"  {_shortened(title, room):<{room}}{''.join(numbers)}"


def _shortened(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _list(texts: Iterable[str], none: str = "-") -> str:
    return ", ".join(texts) or none


def _whole(value: float) -> str:
    return f"{value:,.0f}"


def _share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f} %"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds * 1e3:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _memory(reading: Reading) -> str:
    return _of_gib(reading, rows.SYSTEM_MEMORY_USAGE.page_name, rows.SYSTEM_MEMORY_TOTAL.page_name)


def _of_gib(reading: Reading, used: str, total: str, **labels: str) -> str:
    if not reading.samples(total, **labels):
        return "-"
    return f"{reading.total(used, **labels) / _GIB:.1f} of {reading.total(total, **labels) / _GIB:.1f} GiB"
