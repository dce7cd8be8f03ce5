"""The page for people in a real browser: what it shows, what it asks for, and who can use it."""

from __future__ import annotations

import math
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from otel_mlops.sdk.page import Page
from otel_mlops.sdk.text import TEXT
from tests.servers.browser import Browser, browsing
from tests.servers.service import Service, free_port, get, running, status, until
from tests.test_server import serving
from tests.test_web_config import SECRET, USERS, write

SERVICE = """
    from pathlib import Path

    from fastapi import FastAPI
    from otel_mlops import configure_telemetry
    from otel_mlops.profile import Profile

    NAMES = ("income", "age")
    trained = [[float(row % 100), float(row % 7)] for row in range(2_000)]
    answers = [row % 2 for row in range(2_000)]
    path = Path("loans.profile.json")
    Profile.fit(trained, answers, names=NAMES, type="classification", model_name="loans").save(path)

    app = FastAPI(title="loans")
    telemetry = configure_telemetry(
        app, service_name="loans", service_version="2.0", environment="test", monitoring_interval=0.2, drift_samples=200
    )
    model = telemetry.model("loans", version="v1", stage="production", type="classification", profile=path)
    model.status = "ready"
    telemetry.update_api_health_status("database", True)
    telemetry.update_api_health_status("cache", False)

    @app.post("/predict")
    def predict(right: int, wrong: int):
        rows = [[1_000.0 + row, float(row % 7)] for row in range(right + wrong)]
        with model.prediction(features=rows) as prediction:
            prediction.values = [row % 2 for row in range(right + wrong)]
        for row, receipt in enumerate(prediction.receipts):
            model.record_truth(receipt=receipt, actual=row % 2 if row < right else 1 - row % 2)

    @app.get("/broken")
    def broken():
        raise ValueError("broken")
"""

HOSTILE = (
    "<img src=x onerror=\"document.title='taken'\">",
    "</script><script>document.title='taken'</script>",
    'quo"te and back\\slash and \\n that is no new line',
    "two\nlines",
    "日本語 \u202e \u2028 👩\u200d🔬 é",
    '} 5 # {le="1"}',
    "constructor",
    "__proto__",
    "a" * 300,
    "${7*7} {{7*7}} {model}",
    " ",
)

FIGURES = """# TYPE api_requests_total counter
api_requests_total{method="GET",endpoint="/",status_code="200"} %d
prediction_duration_seconds_bucket{model_version="v1",le="0.1"} %d
prediction_duration_seconds_bucket{model_version="v1",le="+Inf"} %d
system_cpu_usage_percent 12.5
otel_mlops_workers 2.0
"""


@dataclass
class Loans:
    """The service with the model, and what was asked of it."""

    service: Service
    calls: int = 0
    rows: int = 0
    broken: int = 0

    def predict(self, rows: int) -> None:
        """Have so many rows predicted, of which a fifth is wrong."""
        assert status(f"{self.service.url}/predict?right={rows * 4 // 5}&wrong={rows // 5}", "POST") == 200
        self.calls, self.rows = self.calls + 1, self.rows + rows

    def fail(self) -> None:
        """Ask for what is broken."""
        assert status(f"{self.service.url}/broken") == 500
        self.broken += 1

    @property
    def page(self) -> str:
        """The metrics as text."""
        return get(self.service.page_url)[0]


class Shown:
    """A page of metrics that a test writes, served as ours is, and how often it was read."""

    def __init__(self) -> None:
        self.text = FIGURES % (1, 1, 1)
        self.readings = 0
        self.url = ""

    def make(self, accept: str | None) -> Page:
        """The page."""
        self.readings += 1
        return Page(self.text.encode(), TEXT)


def labelled(name: str, value: object, **labels: str) -> str:
    """A line of the text format."""
    escapes = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})
    inner = ",".join(f'{key}="{text.translate(escapes)}"' for key, text in labels.items())
    return f"{name}{{{inner}}} {value}\n"


def number(text: str) -> float:
    """The number that a text begins with."""
    (found,) = re.findall(r"^> ?|^(-?[\d,.]+)", text)[:1]
    return float(found.replace(",", ""))


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A browser for all tests here."""
    with browsing(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


@pytest.fixture
def browser(chromium: Browser) -> Iterator[Browser]:
    """The browser, which must have complained of nothing."""
    yield chromium
    assert chromium.complaints() == []


@pytest.fixture(scope="module")
def loans(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loans]:
    """A service with a model that has drifted, truths, and requests that failed."""
    with running(SERVICE, tmp_path_factory.mktemp("people")) as service:
        loans = Loans(service)
        for _ in range(10):
            loans.predict(50)
        for _ in range(5):
            loans.fail()
        yield loans


@pytest.fixture
def service(loans: Loans) -> Service:
    """The same once its scores are of all that was asked of it."""
    sought = rf'^model_performance_samples{{.*dataset="live".*}} {loans.rows}\.0$'
    until(lambda: re.search(sought, page := loans.page, re.MULTILINE) and "model_drift_detected{" in page)
    return loans.service


@pytest.fixture
def shown(chromium: Browser) -> Iterator[Shown]:
    """A page that a test writes, which the browser leaves before its server ends."""
    with showing() as shown:
        yield shown
        chromium.driver.get("about:blank")


@contextmanager
def showing(**options: object) -> Iterator[Shown]:
    """Serve a page that a test writes."""
    shown = Shown()
    with serving(shown.make, **options) as page_server:
        shown.url = f"http://127.0.0.1:{page_server.port}/"
        yield shown


def root(service: Service) -> str:
    """Where the page for people is."""
    return service.page_url.removesuffix("metrics")


NONE = "\u2013"
"""What stands where there is no number."""


# --- What it shows of a real service -----------------------------------------------------------------------


def test_the_numbers_are_those_of_the_traffic(browser: Browser, service: Service, loans: Loans):
    """At first reading the totals are what was sent; drift, quality, health and machine are as the metrics say."""
    metrics, requests, rows = loans.page, loans.calls + loans.broken, f"{loans.rows:,}"
    browser.open(f"{root(service)}?every=300")
    browser.until_live()
    assert (browser.text("#service"), browser.text("#about")) == ("loans", "2.0, test")
    assert browser.tile("Requests") == (str(requests), "in all")
    failed, detail = browser.tile("Failed requests")
    assert detail == f"{loans.broken} in all"
    assert math.isclose(number(failed), 100 * loans.broken / requests, rel_tol=0.01)
    assert browser.tile("Predictions") == (rows, f"{rows} today (UTC)")
    assert re.fullmatch(r"p50 [\d.]+ [mµ]?s, p99 [\d.]+ [mµ]?s", browser.tile("Latency, p95")[1])
    assert re.fullmatch(r"[\d.]+ [mµ]?s", browser.tile("Prediction latency, p95")[0])
    assert browser.tile("Quality") == ("80 %", "accuracy of loans v1, live")
    assert browser.tile("Workers")[0] == "1"
    assert browser.tile("GPU") == ("", "")
    for row in browser.rows("Features"):
        feature = {"its answers": "__prediction__"}.get(name := row[0].removeprefix("loans v1: "), name)
        (score,) = re.findall(rf'^model_drift_score{{feature="{feature}",.*}} (\S+)', metrics, re.MULTILINE)
        assert math.isclose(number(row[1]), float(score), rel_tol=0.06, abs_tol=0.001), row
    assert ["loans v1: income", "drifted"] in [[row[0], row[3]] for row in browser.rows("Features")]
    score, value, interval, samples = next(row for row in browser.rows("Scores") if row[0].startswith("accuracy of"))
    assert (score, value, samples) == ("accuracy of loans v1, live", "0.8", rows)
    lower, upper = (float(each) for each in interval.split(" to "))
    assert lower < 0.8 < upper
    assert browser.rows("Components") == [["cache", "not healthy"], ["database", "healthy"]]
    assert browser.rows("Models")[0][:2] == ["loans v1", "ready, production"]
    assert {row[0]: row[1:3] for row in browser.rows("Endpoints")} == {
        "POST /predict": [str(loans.calls), "0 %"],
        "GET /broken": [str(loans.broken), "100 %"],
    }
    assert browser.rows("Errors") == [["ValueError at /broken", NONE, str(loans.broken)]]
    assert browser.rows("Processes")[0][0] == "0"
    assert "Source host" in [row[0] for row in browser.rows("Telemetry")]
    assert browser.attention()[:2] == ["Component cache is not healthy", "Feature income of loans v1 has drifted"]
    assert browser.driver.title.endswith(" loans")


def test_it_follows_new_traffic(browser: Browser, service: Service, loans: Loans):
    """After further requests the totals grow, and rates, shares and latencies are of what is new."""
    browser.open(f"{root(service)}?every=1")
    browser.until(lambda: browser.tile("Requests")[0].endswith("/s"))
    loans.predict(25)
    browser.until(lambda: number(browser.tile("Predictions")[1]) == loans.rows)
    browser.until(lambda: number(browser.tile("Requests")[0]) > 0 and number(browser.tile("Predictions")[0]) > 0)
    assert browser.tile("Failed requests")[0] == "0 %"
    assert [row[0] for row in browser.rows("Endpoints")] == ["POST /predict"]
    assert browser.tile("Latency, p95")[0] != NONE


def test_today_gpus_and_what_the_telemetry_complains_of(browser: Browser, shown: Shown):
    """Today is since midnight, each GPU has a row, and each fault is told, the worst first, while it lasts."""
    gpu = {"gpu_id": "0", "gpu_name": "H100"}
    values = {
        "up": 1, "utilization_percent": 37.5, "memory_used_bytes": 20 * 2**30, "memory_total_bytes": 80 * 2**30,
        "temperature_celsius": 61, "power_usage_watts": 350, "power_limit_watts": 700,
    }  # fmt: skip
    quiet = labelled("predictions_total", 100, model_version="v1")
    quiet += labelled("daily_predictions_total", 40, model_version="v1")
    quiet += shown.text + "".join(labelled(f"gpu_{name}", value, **gpu) for name, value in values.items())
    failed = labelled("api_requests_total", 3, method="GET", endpoint="/", status_code="500")
    faults = [
        (failed, "100\N{NO-BREAK SPACE}% of the requests fail"),
        (labelled("api_health_status", 0, component="database"), "Component database is not healthy"),
        (labelled("model_status", 1, model_version="v1", model_status="error"), "Model v1: error"),
        (labelled("gpu_up", 0, gpu_id="1", gpu_name="H100"), "GPU 1 does not answer"),
        (labelled("gpu_xid_errors_total", 1, **gpu, xid="79"), "GPU 0 reported XID 79"),
        (labelled("model_status", 1, model_version="v2", model_status="loading"), "Model v2 is loading"),
        (labelled("otel_mlops_source_up", 0, source="host"), "Source host cannot be read: its numbers are missing"),
        (labelled("otel_mlops_ledger_up", 0, worker="3"), "Numbers of worker 3 are not in shared memory: some may be"),
        (labelled("otel_mlops_overflow_total", 9, metric="jobs"), "jobs has reached its cap of series: 9 records"),
        (labelled("otel_mlops_dropped_total", 4, reason="shape"), "4 records were dropped: shape"),
        (labelled("otel_mlops_export_failures_total", 2, signal="metrics"), "2 exports of metrics failed"),
        (labelled("otel_mlops_page_refused_total", 5, cause="busy"), "5 clients of this port were sent away: busy"),
    ]
    shown.text = quiet
    browser.open(f"{shown.url}?every=1")
    browser.until(lambda: browser.tile("Requests")[0].endswith("/s"))
    assert browser.tile("Predictions") == ("0 /s", "40 today (UTC)")
    assert browser.tile("GPU") == ("37.5 %", "mean of 1")
    assert browser.rows("GPUs") == [["0 H100", "37.5 %", "20 GiB of 80 GiB", "61 °C", "350 W of 700 W"]]
    assert [each[:8] for each in browser.attention()] == ["Nothing:"]
    script = """
        const lately = new Growth([...troubles.names], 1e6);
        lately.add(parse(arguments[0]), 1);
        lately.add(parse(arguments[1]), 2);
        return complaints(parse(arguments[1]), lately.reading()).map((each) => each.text);
    """
    told = browser.run(script, quiet, quiet + "".join(line for line, _ in faults))
    assert [text[: len(begin)] for text, (_, begin) in zip(told, faults, strict=True)] == [begin for _, begin in faults]
    shown.text += "".join(line for line, _ in faults)
    browser.until(lambda: browser.attention()[-1] == "and 4 more")
    assert browser.driver.title == "(12) Service"
    shown.text = quiet + labelled("api_health_status", 1, component="database")
    browser.until(lambda: "Component database is not healthy" not in browser.attention())


def test_it_asks_for_nothing_but_itself_and_the_metrics(browser: Browser, service: Service):
    """The browser's own log has no request but for the document, its icon within it, and the metrics."""
    browser.open(f"{root(service)}?every=1")
    browser.until(lambda: browser.tile("Requests")[0].endswith("/s"))
    asked = browser.requests()
    assert asked.count(service.page_url) >= 2
    others = {url for url in asked if url != service.page_url and not url.startswith("data:image/svg+xml,")}
    assert others == {f"{root(service)}?every=1"}


def test_a_service_that_is_killed_and_comes_back(chromium: Browser, tmp_path: Path):
    """While nothing answers it says since when; of the new process, whose counters fell, no rate is negative."""
    page_port = free_port()
    with running(SERVICE, tmp_path, page_port=page_port) as service:
        for _ in range(50):
            status(f"{service.url}/openapi.json")
        chromium.open(f"{root(service)}?every=1")
        chromium.until(lambda: chromium.tile("Requests")[0].endswith("/s"))
        service.process.send_signal(signal.SIGKILL)
        service.process.wait()
        chromium.until(lambda: re.fullmatch(r"No answer since \d\d:\d\d:\d\d: .*", chromium.text("#status")))
    with running(SERVICE, tmp_path, page_port=page_port) as service:
        status(f"{service.url}/openapi.json")
        chromium.until(lambda: chromium.text("#status") == "Live")
        chromium.until(lambda: number(chromium.tile("Requests")[0]) >= 0)
        assert not re.search(r"-\d", chromium.run("return document.getElementById('now').textContent"))
        assert status(f"{service.url}/predict?right=3&wrong=0", "POST") == 200
        chromium.until(lambda: chromium.tile("Predictions")[1] == "3 today (UTC)")
    # Nothing but the requests that nobody answered.
    assert all("ERR_" in each for each in chromium.complaints())


# --- Labels and numbers of all sorts -----------------------------------------------------------------------


def test_hostile_labels_stay_text(browser: Browser, shown: Shown):
    """Whatever stands in a label is shown as text: no element comes of it, no script runs, nothing is asked for."""
    shown.text += "".join(
        labelled("api_requests_total", 5, method="GET", endpoint=text, status_code="500")
        + labelled("errors_total", 5, error_type="E", endpoint=text)
        + labelled("api_health_status", 0, component=text)
        + labelled("model_drift_score", 0.5, feature=text, model_name="m", model_version="v")
        + labelled("model_status", 1, model_status=text, model_name=text, model_version="v")
        + labelled("otel_mlops_source_up", 0, source=text)
        + labelled("process_threads", 1, worker=text)
        + labelled("gpu_up", 0, gpu_id=text, gpu_name=text)
        + labelled("target_info", 1, service_name=text)
        for text in HOSTILE
    )
    browser.open(f"{shown.url}?every=300")
    browser.until_live()
    browser.driver.find_element(By.CSS_SELECTOR, "summary").click()
    browser.until(lambda: browser.text("#all-rows"))
    assert [row[0] for row in browser.rows("Components")] == list(HOSTILE)
    assert {row[0] for row in browser.rows("Errors")} <= {f"E at {text}" for text in HOSTILE}
    assert {row[0] for row in browser.rows("Features")} <= {f"m v: {text}" for text in HOSTILE}
    assert [row[0] for row in browser.rows("Processes")] == list(HOSTILE)
    assert browser.text("#service") == HOSTILE[0]
    counts = "return ['img', 'script', 'style', 'iframe'].map((tag) => document.getElementsByTagName(tag).length)"
    assert browser.run(counts) == [0, 1, 1, 0]
    assert "taken" not in browser.driver.title.replace(HOSTILE[0], "")
    assert {urlsplit(url).path for url in browser.requests() if url.startswith("http")} == {"/", "/metrics"}


def test_html_cannot_be_made_of_text_at_all(chromium: Browser, shown: Shown):
    """The browser itself refuses to make HTML or code of a text in this document, or to send anything elsewhere."""
    chromium.open(shown.url)
    chromium.until_live()
    tries = {
        "document.body.innerHTML = '<b>'": "TrustedHTML",
        "await fetch('http://127.0.0.1:9/')": "Failed to fetch",
        "setTimeout('1')": "TrustedScript",
    }
    script = """
        const end = arguments[arguments.length - 1];
        (async () => { %s })().then(() => end("done"), (error) => end(String(error)));
    """
    for attempt, refusal in tries.items():
        assert refusal in chromium.driver.execute_async_script(script % attempt), attempt
    assert chromium.text("#status") == "Live"
    chromium.complaints()


def test_ten_thousand_series_are_bounded(browser: Browser, shown: Shown):
    """Of very many endpoints, features and series the first are shown, and how many more there are."""
    shown.text += "".join(
        labelled("api_requests_total", number, method="GET", endpoint=f"/{number}", status_code="200")
        + labelled("model_drift_score", number, feature=f"f{number}", model_name="m", model_version="v")
        + labelled("api_health_status", 0, component=f"c{number}")
        + labelled("model_accuracy_score", 0.5, model_version=f"v{number}", dataset="live")
        for number in range(2_500)
    )
    shown.text += labelled("model_drift_detected", 1, feature="f7", model_name="m", model_version="v")
    browser.open(f"{shown.url}?every=1")
    browser.until(lambda: browser.tile("Requests")[0].endswith("/s"))
    browser.driver.find_element(By.CSS_SELECTOR, "summary").click()
    browser.until(lambda: browser.text("#all-more") == "and 9,906 more")
    assert len(browser.rows("Features")) == 10
    assert [row[0] for row in browser.rows("Features")[:2]] == ["m v: f7", "m v: f2499"]
    assert browser.attention()[-1] == "and 2,493 more"
    assert browser.run("return document.querySelectorAll('*').length") < 2_000
    assert {"and 2,490 more", "and 2,480 more"} <= {
        each.text for each in browser.driver.find_elements(By.CSS_SELECTOR, ".more") if each.text
    }
    took_ms = browser.run(
        "const began = performance.now(); show(parse(arguments[0]), Date.now()); return performance.now() - began",
        shown.text,
    )
    assert took_ms < 2_000


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("up 1", ["up", {}, 1]),
        ("up 1.5e-05", ["up", {}, 1.5e-05]),
        ("up -2.5E+3", ["up", {}, -2500]),
        ("up .5 1700000000000", ["up", {}, 0.5]),
        ("up\t7 ", ["up", {}, 7]),
        ("up +Inf", ["up", {}, "Infinity"]),
        ("up -Inf", ["up", {}, "-Infinity"]),
        ("up NaN", ["up", {}, "NaN"]),
        ("up{} 3", ["up", {}, 3]),
        ('up{a="b",} 3', ["up", {"a": "b"}, 3]),
        ('up{ a = "b" , c="" } 3', ["up", {"a": "b", "c": ""}, 3]),
        (r'up{a="x\\y\"z\nw\\n"} 3', ["up", {"a": 'x\\y"z\nw\\n'}, 3]),
        (r'up{a="} 5 # {b=\"c\"} 6"} 7', ["up", {"a": '} 5 # {b="c"} 6'}, 7]),
        ('up{a="日本 \u2028 é"} 7', ["up", {"a": "日本 \u2028 é"}, 7]),
        ("# HELP up 1", None),
        ("", None),
        ("up", None),
        ("up one", None),
        ("up constructor", None),
        ("up 0x1p-2", None),
        ("1up 1", None),
    ],
)
def test_a_line_of_the_text_format_is_read(browser: Browser, shown: Shown, line: str, expected: list[object] | None):
    """Names, labels with escapes, exponents, infinities and NaN are read; a line that is no series is left out."""
    if not browser.driver.current_url.startswith("http"):
        browser.open(f"{shown.url}?every=300")
    script = """
        const [found] = [...parse(arguments[0])];
        if (!found) return null;
        const [name, [{ labels, value }]] = found;
        return [name, { ...labels }, Number.isFinite(value) ? value : String(value)];
    """
    assert browser.run(script, line) == expected


def test_growth_is_never_negative_and_of_the_window(browser: Browser, shown: Shown):
    """What a counter grew by is over the window alone; one that fell has begun anew; a new one began at 0."""
    browser.open(f"{shown.url}?every=300")
    script = """
        const growth = new Growth(["a_total"], 30_000);
        const seen = [];
        for (const [at, text] of arguments[0]) {
            growth.add(parse(text), at);
            seen.push([growth.seconds, total(growth.reading(), "a_total") ?? 0]);
        }
        return seen;
    """
    readings = [
        [0, "a_total 100"],
        [10_000, "a_total 130"],
        [20_000, 'a_total 5\na_total{b="c"} 2'],
        [30_000, 'a_total 5\na_total{b="c"} 2'],
        [45_000, "a_total NaN"],
        [3_600_000, "a_total 6"],
        [3_599_000, "a_total 9"],
        [3_600_000, "a_total 11"],
    ]
    expected = [[0, 0], [10, 30], [20, 37], [30, 37], [25, 0], [3555, 6], [0, 0], [1, 2]]
    assert browser.run(script, readings) == expected


@pytest.mark.parametrize(
    ("q", "counts", "expected"),
    [
        (0.5, {"1": 10, "2": 20, "+Inf": 20}, "1 s"),
        (0.95, {"1": 10, "2": 20, "+Inf": 20}, "1.9 s"),
        (0.5, {"1.0": 5, "+Inf": 5, "2.0": 5}, "500 ms"),
        (0.99, {"1": 10, "2": 20, "+Inf": 30}, "> 2 s"),
        (0.5, {"1": 0, "2": 0, "+Inf": 0}, NONE),
        (0.5, {}, NONE),
        (0.5, {"0.001": 0, "0.0025": 4, "+Inf": 4}, "1.75 ms"),
        (0.5, {"nonsense": 3, "1": 2, "+Inf": 2}, "500 ms"),
    ],
)
def test_quantiles_are_those_of_promql(browser: Browser, shown: Shown, q: float, counts: dict[str, int], expected: str):
    """Quantiles are interpolated as histogram_quantile() does it, whatever the order and the spelling of `le`."""
    browser.open(f"{shown.url}?every=300")
    script = """
        const [q, counts] = arguments;
        return latency(quantile(q, Object.entries(counts).map(([le, value]) => ({ labels: { le }, value }))));
    """
    assert browser.run(script, q, counts).replace("\xa0", " ") == expected


def test_numbers_are_written_for_people(browser: Browser, shown: Shown):
    """Numbers have a unit of their size and no more figures than tell something."""
    browser.open(f"{shown.url}?every=300")
    script = """
        return [plain(1234567.8), plain(0), plain(12.345), plain(0.12345), plain(0.000012345), plain(NaN),
          plain(), duration(0.00042), duration(0.0123), duration(59.5), duration(3600), duration(86400 * 30),
          bytes(1023), bytes(5e9), percent(0.00012), percent(1), percent(0 / 0),
          rate(0.05), rate(0), rate(1234.5), rate()];
    """
    assert [each.replace("\xa0", " ") for each in browser.run(script)] == [
        "1,234,568", "0", "12.3", "0.123", "0.000012", NONE, NONE,
        "420 µs", "12.3 ms", "59.5 s", "60 min", "30 d", "1,023 B", "4.66 GiB",
        "0.012 %", "100 %", NONE, "3 /min", "0 /s", "1,235 /s", NONE,
    ]  # fmt: skip


# --- When it reads -----------------------------------------------------------------------------------------


def test_a_tab_that_nobody_sees_reads_nothing(browser: Browser, shown: Shown):
    """A hidden tab stops reading, and reads at once when it is seen again."""
    browser.open(f"{shown.url}?every=1")
    browser.until(lambda: shown.readings >= 2)
    browser.run("""
        window.seen = [];
        const look = () => seen.push([document.hidden, document.getElementById("status").textContent]);
        document.addEventListener("visibilitychange", look);
    """)
    driver, tab = browser.driver, browser.driver.current_window_handle
    driver.switch_to.new_window("tab")
    readings = shown.readings
    # Two seconds by the browser's own clock, in which it would have read twice.
    driver.execute_async_script("setTimeout(arguments[0], 2000)")
    assert shown.readings <= readings + 1  # one may have been on its way
    readings = shown.readings
    driver.close()
    driver.switch_to.window(tab)
    browser.until(lambda: shown.readings > readings and browser.text("#status") == "Live")
    assert browser.run("return seen[0]") == [True, "Paused"]


def test_pause_stops_and_goes_on(browser: Browser, shown: Shown):
    """The button stops the reading, which a screen reader is told, and starts it again."""
    browser.open(f"{shown.url}?every=1")
    browser.until_live()
    button = browser.driver.find_element(By.ID, "pause")
    button.click()
    browser.until(lambda: browser.text("#status") == "Paused")
    assert button.get_attribute("aria-pressed") == "true"
    readings = shown.readings
    browser.driver.execute_async_script("setTimeout(arguments[0], 1500)")
    assert shown.readings <= readings + 1
    shown.text = FIGURES % (70, 1, 1)
    button.click()
    browser.until(lambda: number(browser.tile("Requests")[0]) > 0)
    assert button.get_attribute("aria-pressed") == "false"


def test_a_password_in_the_browser_is_enough(chromium: Browser, tmp_path: Path):
    """With basic auth the browser sends the password with the document and with each reading."""
    with showing(web_config_file=write(tmp_path, USERS)) as shown:
        chromium.open(shown.url.replace("//", f"//alice:{SECRET.replace(' ', '%20')}@"))
        chromium.until_live()
        assert chromium.tile("Workers")[0] == "2"
    assert all("401" in each for each in chromium.complaints())


def test_a_rate_limit_is_waited_for(chromium: Browser, tmp_path: Path):
    """A reading that is refused is said with its status, and tried again when the server says."""
    refused: list[str] = []
    config = write(tmp_path, "rate_limit: {interval: 4s, burst: 2}\n")
    with showing(web_config_file=config, on_refused=refused.append) as shown:
        chromium.open(f"{shown.url}?every=1")
        chromium.until(lambda: "the answer is 429" in chromium.text("#status"))
        readings = shown.readings
        chromium.until(lambda: shown.readings > readings)
        chromium.driver.get("about:blank")
    assert len(refused) <= 2  # each second it would have been three times
    chromium.complaints()


# --- Who can use it ----------------------------------------------------------------------------------------


def test_the_keyboard_is_enough(browser: Browser, shown: Shown):
    """Tab goes through everything in the order of the page, visibly; Enter and Space do what a click does."""
    browser.open(f"{shown.url}?every=300")
    browser.until_live()
    order = []
    for _ in range(4):
        browser.driver.switch_to.active_element.send_keys(Keys.TAB)
        order.append(browser.focused().strip()[:10])
        outline = browser.run("return getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid", order[-1]
    assert order == ["To the num", "pause", "All series", "metrics"]
    browser.open(f"{shown.url}?every=300")
    browser.until_live()
    browser.driver.switch_to.active_element.send_keys(Keys.TAB)
    browser.driver.switch_to.active_element.send_keys(Keys.ENTER)
    assert browser.focused() == "numbers"
    browser.driver.switch_to.active_element.send_keys(Keys.TAB)
    browser.driver.switch_to.active_element.send_keys(Keys.ENTER)
    browser.until(lambda: browser.text("#all-rows"))
    browser.driver.switch_to.active_element.send_keys(Keys.TAB)
    assert browser.focused() == "filter"
    browser.driver.switch_to.active_element.send_keys("workers")
    browser.until(lambda: browser.text("#all-rows") == "otel_mlops_workers2")


def test_its_parts_have_names(browser: Browser, service: Service):
    """A screen reader finds landmarks, headings in order, tables with captions and headers, and one live region."""
    browser.open(f"{root(service)}?every=300")
    browser.until_live()
    assert browser.run(
        "return ['header', 'main', 'footer', 'h1'].map((tag) => document.querySelectorAll(tag).length)"
    ) == [1, 1, 1, 1]
    levels = browser.run("return [...document.querySelectorAll('h1, h2, h3')].map((each) => Number(each.tagName[1]))")
    assert all(after - before <= 1 for before, after in pairwise(levels))
    unnamed = """
        const lacks = (tag, has) => [...document.querySelectorAll(tag)].filter((each) => !has(each)).length;
        return [
          lacks("section", (each) => document.getElementById(each.getAttribute("aria-labelledby"))?.textContent),
          lacks("table", (each) => each.caption?.textContent),
          lacks("th", (each) => each.scope),
          lacks("input", (each) => each.labels.length),
          lacks("svg", (each) => each.getAttribute("aria-hidden") === "true"),
        ];
    """
    assert browser.run(unnamed) == [0, 0, 0, 0, 0]
    assert browser.run(
        "return [...document.querySelectorAll('[role=status], [aria-live]')].map((each) => each.id)"
    ) == ["status"]
    assert browser.run("return document.documentElement.lang") == "en"


@pytest.mark.parametrize("width", [320, 360, 768, 1280])
def test_it_fits_the_screen(browser: Browser, shown: Shown, width: int):
    """Nothing reaches beyond the screen, down to 320 pixels, with labels as long as they come."""
    shown.text += "".join(
        labelled("api_requests_total", 10**15, method="GET", endpoint=text, status_code="500")
        + labelled("api_health_status", 0, component=text)
        + labelled("model_drift_score", 123456.789, feature=text, model_name="m" * 60, model_version="v")
        + labelled("model_accuracy_score", 0.123456, model_name="n" * 60, model_version="v", dataset=text)
        + labelled("gpu_utilization_percent", 100, gpu_id="0", gpu_name=text)
        + labelled("gpu_memory_used_bytes", 8e10, gpu_id="0", gpu_name=text)
        + labelled("gpu_memory_total_bytes", 8.1e10, gpu_id="0", gpu_name=text)
        + labelled("system_disk_usage_bytes", 8e12, mount_point=text)
        + labelled("system_disk_total_bytes", 9e12, mount_point=text)
        for text in ("/" + "a" * 120, "/short")
    )
    browser.open(f"{shown.url}?every=300", width=width)
    browser.until_live()
    browser.driver.find_element(By.CSS_SELECTOR, "summary").click()
    browser.until(lambda: browser.text("#all-rows"))
    beyond = """
        return [...document.querySelectorAll("body *:not(.skip):not(.unseen):not(svg *)")]
          .filter((each) => each.getBoundingClientRect().right > document.documentElement.clientWidth + 0.5)
          .map((each) => each.outerHTML.slice(0, 100));
    """
    assert browser.run(beyond) == []
    assert browser.run("return document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_its_colours_can_be_read(browser: Browser, shown: Shown, scheme: str):
    """In light and in dark each text has a contrast of 4.5 to 1 at least to what it stands on."""
    shown.text += labelled("api_health_status", 0, component="a") + labelled("api_health_status", 1, component="b")
    shown.text += labelled("otel_mlops_source_up", 0, source="host")
    browser.open(f"{shown.url}?every=300", prefers_color_scheme=scheme)
    browser.until_live()
    script = """
        const light = (color) => color.match(/[\\d.]+/g).slice(0, 3).map((each) => each / 255)
          .map((each) => (each <= 0.04045 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4))
          .reduce((sum, each, i) => sum + each * [0.2126, 0.7152, 0.0722][i], 0);
        const ground = (each) => {
          const color = getComputedStyle(each).backgroundColor;
          return color === "rgba(0, 0, 0, 0)" && each.parentElement ? ground(each.parentElement) : color;
        };
        return [...document.querySelectorAll("body *:not(svg *):not(script)")]
          .filter((each) => [...each.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim()))
          .map((each) => {
            const [one, other] = [light(getComputedStyle(each).color), light(ground(each))].sort((a, b) => b - a);
            return [each.textContent.slice(0, 30), (one + 0.05) / (other + 0.05)];
          });
    """
    contrasts = browser.run(script)
    assert len(contrasts) > 30
    assert [(text, round(ratio, 2)) for text, ratio in contrasts if ratio < 4.5] == []
    background = browser.run("return getComputedStyle(document.body).backgroundColor")
    assert (number(background.removeprefix("rgb(")) > 128) is (scheme == "light")


def test_nothing_moves_for_who_wants_it_still(browser: Browser, shown: Shown):
    """With reduced motion no element has a transition or an animation."""
    browser.open(shown.url, prefers_reduced_motion="reduce")
    browser.until_live()
    script = """
        return [...document.querySelectorAll("*")].map((each) => getComputedStyle(each))
          .filter((style) => parseFloat(style.transitionDuration) || style.animationName !== "none").length
    """
    assert browser.run(script) == 0


def test_without_a_script_it_says_where_the_numbers_are(chromium: Browser, shown: Shown):
    """Where scripts are switched off the page links to the metrics."""
    chromium.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        chromium.open(shown.url)
        notice = chromium.driver.find_element(By.CSS_SELECTOR, "noscript a")
        assert notice.get_attribute("href") == f"{shown.url}metrics"
    finally:
        chromium.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
