"""Draws the pictures of the dashboards: a shop with life in it, Prometheus, Grafana's own UI library, Chromium.

    make pictures                   # 12 minutes
    make pictures PICTURES=--again  # the last recording once more, after a change of the dashboards
    make pictures PICTURES=--open   # likewise with all rows open, into the cache folder, for who makes the dashboards

The recording and what npm installs lie in the cache folder of the home folder. No Grafana server has a part in it.
"""

# ruff: noqa: S101, S311, S603, S607, T201

from __future__ import annotations

import base64
import json
import math
import random
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple, TextIO
from urllib.parse import urlencode

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[2]))  # the tests' programs are run from here

from otel_mlops.metrics import DAILY_PREDICTIONS  # noqa: E402
from otel_mlops.profile import Profile  # noqa: E402
from tests import grafana  # noqa: E402
from tests.nvml.driver import Control, FakeDriver, build  # noqa: E402
from tests.servers.browser import browsing  # noqa: E402
from tests.servers.programs import BUILT, Prometheus, program, prometheus, scraping  # noqa: E402
from tests.servers.service import Service, get, running, status  # noqa: E402

CACHE = BUILT.parents[1] / "pictures"
WIDTH = 1600
IS_OPEN = "--open" in sys.argv

SCRAPE_S = 2
STEP_S = 5
"""What Grafana is told of the scrapes: as often as the slowest of what the live graphs show is read."""
RUN_S = 600.0
SHOWN_S = 300
RATE = 30.0
"""Requests a second, in the mean."""
CLIENTS = 8

DAY_S = 86400
DAYS = 9
"""The dashboard of the business shows days: for it the run is stretched to so many of them."""
STRETCH = DAYS * DAY_S / RUN_S
PAGE_S = 0.5
LONG_STEP_S = 900


class Times(NamedTuple):
    """When the recording began and ended."""

    began: float
    ended: float

    def day(self, now: float) -> float:
        """Which day of the stretched run it is, since 1970; its fraction is the time of the day."""
        return (self.ended - (self.ended - now) * STRETCH) / DAY_S


# --- The clients ----------------------------------------------------------------------------------------------


def rate(day: float) -> float:
    """How much is asked: little at night, and less on two days of the week."""
    return RATE * (1 + 0.75 * math.sin(2 * math.pi * (day - 0.3))) * (0.6 if int(day + 4) % 7 in (0, 6) else 1.1)


def is_incident(times: Times, now: float) -> bool:
    """Whether the database is locked just now: a while before the end."""
    return 100 < times.ended - now < 130


def ask(service: Service, chance: random.Random, times: Times, now: float) -> None:
    """Ask for something, most of it good."""
    # Late in the recording orders become larger than they were in training.
    drift = 35 * min(max((now - times.ended + 170) / 80, 0), 1)
    kind = chance.random()
    if kind < 0.45:
        rows = [order(chance, drift) for _ in range(chance.choice((1, 1, 1, 4, 16)))]
        status(f"{service.url}/orders", "POST", json.dumps(rows).encode())
    elif kind < 0.85:
        product = chance.randint(1, 9000) if chance.random() < 0.97 else 9999
        status(f"{service.url}/products/{product}/price")
    elif kind < 0.93:
        status(f"{service.url}/texts?{urlencode({'words': chance.randint(10, 60)})}", "POST")
    elif kind < 0.99:
        amount = 500 if is_incident(times, now) or chance.random() < 0.01 else 50
        status(f"{service.url}/refunds?{urlencode({'amount': amount})}", "POST")
    else:
        status(f"{service.url}{chance.choice(('/favicon.ico', '/wp-login.php'))}")


def order(chance: random.Random, drift: float = 0.0) -> list[float]:
    """An order: its amount, how many items, the hour."""
    return [max(chance.gauss(60 + drift, 25), 1), chance.randint(1, 9), chance.gauss(14, 4)]


@contextmanager
def clients(service: Service, times: Times) -> Iterator[None]:
    """Ask until the block ends."""
    ends = threading.Event()

    def go(number: int) -> None:
        chance = random.Random(number)
        while not ends.wait(chance.expovariate(rate(times.day(time.time())) / CLIENTS)):
            ask(service, chance, times, time.time())

    threads = [threading.Thread(target=go, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ends.set()
        for thread in threads:
            thread.join()


# --- The recording --------------------------------------------------------------------------------------------


def record() -> None:
    """Run the shop for some minutes; keep what Prometheus scraped, and the days that it is stretched to."""
    folder = CACHE / "recording"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    profile().save(folder / "profile.json")
    driver, control = FakeDriver(build(CACHE)), Control(folder / "orders")
    control.write()
    environ = driver.environment(gpus=2, realtime=True, control=control)
    environ = {name: text for name, text in environ.items() if name.startswith(("FAKE_NVML", "LD_LIBRARY"))}
    environ |= {f"OTEL_MLOPS_{name}": "60" for name in ("LATENCY_WINDOW", "DRIFT_WINDOW", "QUALITY_WINDOW")}
    environ |= {"OTEL_MLOPS_MODEL_COUNTS": "true", "OTEL_MLOPS_RECEIPT_KEY": "a key for the pictures"}
    code = (HERE / "service.py").read_text()
    with (
        running(code, folder, arguments=("--workers", "2"), **environ) as service,
        prometheus(folder / "live", config({"shop": service.page_port})) as live,
    ):
        times = Times(time.time(), time.time() + RUN_S)
        print(f"The shop runs for {RUN_S / 60:g} minutes.")
        with clients(service, times), (folder / "long.txt").open("w") as long:
            watch(service, times, control, Stretched(long, times))
            long.write("# EOF\n")
        (folder / "times.json").write_text(json.dumps(times))
        assert live.value('up{job="shop"}') == 1
    command = [program("promtool"), "tsdb", "create-blocks-from", "openmetrics", "--quiet"]
    subprocess.run([*command, "--max-block-duration=7d", folder / "long.txt", folder / "long" / "data"], check=True)


def profile() -> Profile:
    """What the model saw in training."""
    chance = random.Random(1)
    rows = [order(chance) for _ in range(5000)]
    scores = [min(max((amount - 40) / 90, 0.02), 0.98) for amount, *_ in rows]
    answers, truths = [int(score > 0.5) for score in scores], [int(chance.random() < score) for score in scores]
    return Profile.fit(
        rows, names=("amount", "items", "hour"), predictions=answers, scores=scores, truth=truths, type="classification"
    )


def config(ports: Mapping[str, int]) -> dict[str, Any]:
    """A configuration whose instances have names, as in a cluster."""
    made = scraping(ports)
    made["global"] = {"scrape_interval": f"{SCRAPE_S}s", "scrape_timeout": f"{SCRAPE_S}s"}
    for job in made["scrape_configs"]:
        job["static_configs"][0]["labels"] = {"instance": f"{job['job_name']}-1"}
    return made


def watch(service: Service, times: Times, control: Control, stretched: Stretched) -> None:
    """Until the end let the GPUs do what is asked of them, and write down the pages."""
    throttled_ns = 0.0
    while (now := time.time()) < times.ended:
        load = min(rate(times.day(now)) / (2 * RATE), 1) * random.uniform(0.9, 1)
        throttled_ns += 1e9 * PAGE_S * max(load - 0.8, 0)
        control.write(
            f"set:0:utilization:{95 * load:.0f}", f"set:0:temperature:{38 + 40 * load:.0f}",
            f"set:0:power_mw:{1000 * (90 + 560 * load):.0f}", f"set:0:memory_used:{(22 + 30 * load) * 2**30:.0f}",
            f"set:0:throttle_power_ns:{throttled_ns:.0f}",
            f"set:1:utilization:{70 * load:.0f}", f"set:1:temperature:{45 + 38 * load:.0f}",
            f"set:1:power_mw:{1000 * (25 + 170 * load):.0f}", f"set:1:memory_used:{(1 + 4 * load) * 2**30:.0f}",
        )  # fmt: skip
        stretched.add(get(service.page_url)[0], now)
        time.sleep(max(PAGE_S - (time.time() - now), 0))


class Stretched:
    """Writes pages as if their run had taken days: a counter counts so much more, the rest is as it is."""

    _SAMPLE = re.compile(r"(?P<name>\w+)(?:\{(?P<labels>.*)\})? (?P<value>\S+)")

    def __init__(self, to: TextIO, times: Times) -> None:
        self._to = to
        self._times = times
        expressions = " ".join(target["expr"] for panel in business() for target in panel["targets"])
        self._wanted = set(re.findall(r"\w+", expressions))
        self._midnight: dict[str, tuple[int, float]] = {}

    def add(self, page: str, now: float) -> None:
        """Write the samples that the dashboard of the business asks for."""
        day = self._times.day(now)
        kinds = dict(re.findall(r"^# TYPE (\w+) (\w+)", page, re.MULTILINE))
        for found in map(self._SAMPLE.match, page.splitlines()):
            if found and found["name"] in self._wanted:
                family = re.sub("_(bucket|sum|count)$", "", found["name"])
                value = float(found["value"])
                if found["name"] == DAILY_PREDICTIONS.page_name:
                    value = self._of_today(found[0].rpartition(" ")[0], value, int(day)) * STRETCH
                elif {kinds.get(family), kinds.get(found["name"])} & {"counter", "histogram"}:
                    value *= STRETCH
                labels = ",".join(filter(None, ('job="shop",instance="shop-1"', found["labels"])))
                self._to.write(f"{found['name']}{{{labels}}} {value} {day * DAY_S:.3f}\n")

    def _of_today(self, series: str, value: float, day: int) -> float:
        """What a series has counted since the midnight of the stretched days."""
        if self._midnight.get(series, (0, 0.0))[0] != day:
            self._midnight[series] = day, value
        return value - self._midnight[series][1]


def business() -> Iterator[dict[str, Any]]:
    """The panels of the dashboard that shows days."""
    return grafana.panels(grafana.dashboard("business"))


# --- The questions --------------------------------------------------------------------------------------------


def answered() -> dict[str, Any]:
    """Each dashboard, and what Prometheus answers to its panels."""
    recording = CACHE / "recording"
    times = Times(*json.loads((recording / "times.json").read_text()))
    found: dict[str, Any] = {}
    with prometheus(recording / "live", config({})) as live:
        end = times.ended - (times.ended - 15) % 30  # between two labels of the axis, so that none is cut off
        for name in ("api", "models", "system"):
            found[name] = asked(name, live, end, SHOWN_S, STEP_S, f"Last {SHOWN_S // 60} minutes")
    # Its samples are far apart: the last one holds until the next.
    patience = f"--query.lookback-delta={4 * LONG_STEP_S}s"
    with prometheus(recording / "long", config({}), arguments=[patience, "--storage.tsdb.retention.time=10y"]) as long:
        found["business"] = asked("business", long, times.ended, 7 * DAY_S, LONG_STEP_S, "Last 7 days")
    return found


def asked(name: str, of: Prometheus, end: float, shown_s: int, step: int, title: str) -> dict[str, Any]:
    """A dashboard as it opens, and the answers to the panels of its rows that are open."""
    dashboard = grafana.dashboard(name)
    if IS_OPEN:
        dashboard["panels"] = list(opened(dashboard["panels"]))
    answers = {}
    for panel in dashboard["panels"]:
        if panel["type"] != "row":
            # A panel may ask for longer steps, and a rate must span some scrapes: the same as Grafana does.
            interval = max(seconds(panel.get("interval", "0s")), step)
            window = max(interval + step, 4 * step)
            chosen = grafana.everywhere(dashboard, window=f"{window}s", shown=f"{shown_s}s")
            answers[panel["id"]] = answer(panel, chosen, of, end, shown_s, interval)
    timezone = "utc" if shown_s > DAY_S else "browser"
    about = {"from": end - shown_s, "to": end, "shown": title, "timezone": timezone, "answers": answers}
    return {"dashboard": dashboard, "asked": about}


def seconds(text: str) -> int:
    """A time as Grafana writes it, such as `1d`."""
    return int(text[:-1]) * {"s": 1, "m": 60, "h": 3600, "d": DAY_S}[text[-1]]


def opened(panels: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The panels once somebody has opened all rows: what is below a row moves down."""
    lower = 0
    for panel in panels:
        panel["gridPos"]["y"] += lower
        yield panel
        for inner in panel.get("panels", ()):
            inner["gridPos"]["y"] += lower
            yield inner
        if panel.get("panels"):
            lower += max(bottom(inner) for inner in panel["panels"]) - bottom(panel)
            panel |= {"collapsed": False, "panels": []}


def bottom(panel: Mapping[str, Any]) -> int:
    """The line below a panel."""
    return int(panel["gridPos"]["y"] + panel["gridPos"]["h"])


def answer(
    panel: Mapping[str, Any], chosen: Mapping[str, str], of: Prometheus, end: float, shown_s: int, step: int
) -> dict[str, Any]:
    """What Prometheus says to the queries of a panel."""
    first, last = math.floor((end - shown_s) / step) * step, math.floor(end / step) * step
    found: dict[str, Any] = {"step": step, "times": [1000 * each for each in range(first, last + 1, step)]}
    for target in panel["targets"]:
        query = grafana.interpolated(target["expr"], chosen)
        if target["instant"]:
            result = of.ask("query", query=query, time=end)["result"]
        else:
            result = of.ask("query_range", query=query, start=first, end=last, step=step)["result"]
        if not result:
            print(f"  no answer: {panel['title']}, {target['refId']}")
        found[target["refId"]] = result
    return found


# --- The pictures ---------------------------------------------------------------------------------------------

PAGE = """<!doctype html>
<meta charset="utf-8">
<title>Pictures</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="panels.css">
<style>html { overflow: hidden }</style>
<div id="root"></div>
<script type="module" src="panels.js"></script>
"""
HEIGHT = "return document.getElementById('dashboard')?.offsetHeight"
SETTLED = """
    const done = arguments[0];
    let waits;
    const again = () => { clearTimeout(waits); waits = setTimeout(done, 1500); };
    new MutationObserver(again).observe(document, {attributes: true, childList: true, subtree: true});
    again();
"""
"""Waits until nothing changes any more: icons come late."""
SMALLER = "import sharp from 'sharp'; await sharp(process.argv[1]).png({palette: true, colours: 256, dither: 0, effort: 10}).toFile(process.argv[2])"  # noqa: E501


def bundled() -> Path:
    """Get the library, and make the folder of the site that draws with it."""
    if shutil.which("npm") is None:
        sys.exit("npm is missing: install Node.js 20 or newer")
    site = CACHE / "site"
    site.mkdir(parents=True, exist_ok=True)
    for name in ("package.json", "panels.jsx"):
        shutil.copy(HERE / name, CACHE)
    npm("install", "--ignore-scripts", "--legacy-peer-deps", "--no-audit", "--no-fund", "--no-package-lock")
    npm("run", "bundle")
    (site / "index.html").write_text(PAGE)
    # Where the library looks for icons and fonts.
    modules, fonts = CACHE / "node_modules", site / "public/fonts/inter"
    shutil.copytree(modules / "@grafana/ui/dist/public", site / "public/build", dirs_exist_ok=True)
    fonts.mkdir(parents=True, exist_ok=True)
    for weight, called in ((400, "Regular"), (500, "Medium")):
        shutil.copy(
            modules / f"@fontsource/inter/files/inter-latin-{weight}-normal.woff2", fonts / f"Inter-{called}.woff2"
        )
    return site


def draw(data: Mapping[str, Any], site: Path) -> None:
    """Draw the dashboards, and write the pictures beside this folder."""
    (site / "data.json").write_text(json.dumps(data))
    with served(site) as site_url, browsing(CACHE / "browser") as browser:
        for name in data:
            url = f"{site_url}/?{urlencode({'dashboard': name})}"
            browser.open(url, WIDTH)
            browser.until(lambda: browser.run(HEIGHT))
            # What is below the window is not drawn, so the window is as high as the dashboard.
            browser.open(url, WIDTH, browser.run(HEIGHT))
            browser.until(lambda: browser.run(HEIGHT))
            browser.driver.execute_async_script(SETTLED)
            for complaint in browser.complaints():
                if "i18n" not in complaint:  # nothing is translated
                    print(f"  {name}: {complaint[:300]}")
            full = CACHE / f"{name}.png"
            full.write_bytes(base64.b64decode(browser.driver.execute_cdp_cmd("Page.captureScreenshot", {})["data"]))
            made = (CACHE / "open" if IS_OPEN else HERE.parent) / full.name
            made.parent.mkdir(exist_ok=True)
            node = ["node", "--input-type=module", "--eval", SMALLER, full, made]
            subprocess.run(node, cwd=CACHE, check=True)
            print(f"{made}: {made.stat().st_size / 1000:.0f} kB")


def npm(*arguments: str) -> None:
    """Run npm in the cache folder."""
    subprocess.run(["npm", *arguments, "--silent"], cwd=CACHE, check=True)


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder to the browser of this machine."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            serving.join()


if __name__ == "__main__":
    made = bundled()
    if "--again" not in sys.argv and not IS_OPEN:
        record()
    draw(answered(), made)
