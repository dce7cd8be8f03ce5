"""The page for people, as a document and as an answer; tests/servers/test_browser.py looks at it in a browser."""

from __future__ import annotations

import base64
import gzip
import hashlib
import importlib.resources
import logging
import re

import pytest

from otel_mlops import people
from otel_mlops.metrics import CATALOGUE
from otel_mlops.people import people_page
from otel_mlops.profile import PREDICTION
from otel_mlops.sdk import scrape
from otel_mlops.sdk.families import Family
from otel_mlops.sdk.text import OPENMETRICS, TEXT, choose_format, prefers_html
from tests.test_server import LARGE, PROMETHEUS_2, PROMETHEUS_3, request, serving
from tests.test_web_config import GOOD, USERS, WRONG, write

MOST_BYTES = 40_000
FIREFOX = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
CHROMIUM = (
    "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/apng,*/*;q=0.8,"
    "application/signed-exchange;v=b3;q=0.7"
)
SAFARI = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
NOT_METRICS = {"gpu_id", "gpu_name", "model_name", "model_version", "model_status"}
"""Labels in the scripts that look like the name of a metric."""


def inside(tag: str) -> str:
    """What stands in the document's one element of this name."""
    (found,) = re.findall(rf"<{tag}>(.*?)</{tag}>", document(), re.DOTALL)
    return found


def document() -> str:
    """The document."""
    page = people_page()
    assert page is not None
    return page.body.decode()


def directives() -> dict[str, str]:
    """The Content-Security-Policy, by directive."""
    page = people_page()
    assert page is not None
    return {name: value for name, _, value in (part.partition(" ") for part in page.policy.split("; "))}


# --- Who gets it -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accept", "is_html"),
    [
        (FIREFOX, True),
        (CHROMIUM, True),
        (SAFARI, True),
        ("text/html", True),
        ("TEXT/HTML ; Q=1", True),
        ("text/html;charset=utf-8;q=0.5", True),
        ("text/html, text/plain", True),
        ("text/plain;q=0.5, text/html;q=0.9", True),
        ("text/*;q=0.3, text/html;q=0.7, */*;q=0.5", True),
        ("text/html;q=0.3, text/html", True),
        ("", False),
        ("*/*", False),
        ("text/*", False),
        ("text/plain", False),
        ("application/json", False),
        ("text/html;q=0", False),
        ("text/html;q=0.000, */*", False),
        ("text/html;q=nonsense", False),
        ("text/html;q=0.5, */*;q=0.8", False),
        ("text/html;q=0.5, text/plain", False),
        ("text/html;q=0.5, application/openmetrics-text", False),
        ("text/html-sandboxed, x-text/html", False),
        ("application/xhtml+xml", False),
        (PROMETHEUS_2, False),
        (PROMETHEUS_3, False),
    ],
)
def test_html_is_for_who_names_it_and_prefers_it(accept, is_html):
    """A browser gets HTML at /, and who takes anything or prefers a format of the metrics gets the metrics."""
    assert prefers_html(accept) is is_html
    with serving() as page_server:
        response, body = request(page_server, "/", Accept=accept)
    assert response.headers["Content-Type"] == ("text/html; charset=utf-8" if is_html else TEXT)
    assert (body == LARGE.body) is not is_html
    assert response.headers["Vary"] == "Accept, Accept-Encoding"


@pytest.mark.parametrize("path", ["/metrics", "/metrics?name[]=up", "http://example.test:8001/metrics"])
@pytest.mark.parametrize("accept", [FIREFOX, CHROMIUM, "text/html"])
def test_metrics_are_never_html(path, accept):
    """At /metrics there are metrics, whoever asks."""
    with serving() as page_server:
        response, body = request(page_server, path, Accept=accept)
    assert (response.headers["Content-Type"], body) == (TEXT, LARGE.body)


@pytest.mark.parametrize("path", ["/", "/?every=2", "http://example.test:8001/", "http://example.test:8001"])
def test_it_costs_no_reading_of_the_metrics(path):
    """The document is served without making a page of metrics."""
    made = []
    with serving(lambda accept: made.append(accept) or LARGE) as page_server:
        _, body = request(page_server, path, Accept=FIREFOX)
    assert (body, made) == (document().encode(), [])


def test_what_the_script_asks_for_is_the_text_format():
    """The Accept header of the script's request chooses the format that it can read."""
    (accept,) = re.findall(r'Accept: "(.*?)"', inside("script"))
    assert choose_format(accept) == TEXT
    assert choose_format(accept) != OPENMETRICS
    assert not prefers_html(accept)


def test_head_says_what_get_says():
    """HEAD on / has the headers of GET and no body."""
    with serving() as page_server:
        got, _ = request(page_server, "/", Accept=FIREFOX)
        head, body = request(page_server, "/", "HEAD", Accept=FIREFOX)
    assert body == b""
    assert [pair for pair in head.getheaders() if pair[0] != "Date"] == [
        pair for pair in got.getheaders() if pair[0] != "Date"
    ]


def test_it_is_compressed_for_who_takes_it_so():
    """With gzip it unpacks to the same document."""
    with serving() as page_server:
        response, body = request(page_server, "/", Accept=FIREFOX, Accept_Encoding="gzip, br")
    assert response.headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(body).decode() == document()
    assert len(body) < MOST_BYTES / 2


# --- What a browser may do for it --------------------------------------------------------------------------


def test_the_policy_allows_this_style_and_script_alone():
    """The hashes in the policy are those of the one style and the one script, and nothing else may run or load."""
    allowed = directives()
    for tag in ("script", "style"):
        digest = base64.b64encode(hashlib.sha256(inside(tag).encode()).digest()).decode()
        assert allowed.pop(f"{tag}-src") == f"'sha256-{digest}'"
    assert allowed == {
        "default-src": "'none'",
        "img-src": "data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }


def test_the_headers_keep_it_to_itself():
    """The answer has the policy, sends no referrer, is never guessed at and never kept."""
    page = people_page()
    with serving() as page_server:
        response, _ = request(page_server, "/", Accept=FIREFOX)
    assert page is not None
    assert response.headers.get_all("Content-Security-Policy") == [page.policy]
    assert response.headers["Referrer-Policy"] == "no-referrer"
    assert response.headers.get_all("X-Content-Type-Options") == ["nosniff"]
    assert response.headers["Cache-Control"] == "no-store"


def test_it_is_one_document():
    """It names no other file, no other site and no handler in an attribute: its one request is for the metrics."""
    outside = document().replace(inside("script"), "").replace(inside("style"), "")
    assert re.findall(r"https?://[^'\"]*", document()) == ["http://www.w3.org/2000/svg"] * 2
    assert set(re.findall(r'(?:href|src)="([^"]*)"', outside)) - {"metrics", "#numbers"} == {
        next(iter(re.findall(r'href="(data:[^"]*)"', outside)))
    }
    assert not re.search(r"\son\w+=|\sstyle=|@import|url\(", document())
    assert re.findall(r"fetch\((.*?),", inside("script")) == ["METRICS"]
    assert 'METRICS = new URL("metrics", location.origin + location.pathname)' in inside("script")


@pytest.mark.parametrize(
    "dangerous",
    ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function(", "srcdoc", "Storage"],
)
def test_no_text_becomes_html_or_code(dangerous):
    """The script uses nothing that makes HTML or code of a text, and stores nothing."""
    assert dangerous not in inside("script")


def test_it_is_small():
    """The document stays below its budget."""
    assert len(document().encode()) < MOST_BYTES


def test_what_is_left_out_is_no_part_of_the_script():
    """Of the files all but indentation, empty lines and lines of comment arrives."""
    files = importlib.resources.files(people)
    for name in people._SCRIPTS:
        for line in files.joinpath(name).read_text(encoding="utf-8").splitlines():
            if line.strip() and not line.lstrip().startswith(("//", "/**")):
                assert f"\n{line.strip()}" in inside("script"), (name, line)
    assert not re.search(r"^\s*(//|/\*)", inside("script"), re.MULTILINE)


def test_each_metric_that_it_shows_is_in_the_catalogue():
    """A name in the scripts that looks like a metric's is one that the page of metrics can have."""
    families = [Family(row.name, row.kind, row.unit, row.help) for row in CATALOGUE]
    known = {name for family in families for name in (*family.names(), family.name)} | {"target_info"}
    starts = "|".join(sorted({name.partition("_")[0] for name in known}))
    text = re.sub(r"`model_\$\{score\}_score`", "", inside("script"))
    named = set(re.findall(rf'[\s"\[{{(]((?:{starts})_\w+)', text)) - NOT_METRICS
    assert len(named) > 40
    assert {name for name in named if name not in known and name.removesuffix("_bucket") not in known} == set()


def test_the_parts_of_a_name_are_those_of_the_catalogue():
    """Names that the scripts put together from a start and an end exist as well."""
    families = [Family(row.name, row.kind, row.unit, row.help) for row in CATALOGUE]
    known = {name for family in families for name in family.names()}
    script = inside("script")
    (scores,) = re.findall(r"SCORES = (\[.*?\])", script)
    assert {f"model_{score}_score" for score in re.findall(r'"(\w+)"', scores)} <= known
    for start, names in (
        ("gpu_", r"= (\[[^]]*\])\.map\(\(name\) => value\(now, `gpu_"),
        ("process_", r"= (\[[^]]*\])\s*\.map\(\(name\) => value\(now, `process_"),
    ):
        (parts,) = re.findall(names, script)
        assert {start + part for part in re.findall(r'"(\w+)"', parts)} <= known
    assert {f"prediction_latency_{which}_seconds" for which in ("p50", "p95", "p99")} <= known
    assert {f"system_cpu_load_{minutes}m" for minutes in (1, 5, 15)} <= known
    assert f'["{PREDICTION}", ' in script


# --- What the web.config.yml says holds for it -------------------------------------------------------------


def test_passwords_hold_for_it(tmp_path):
    """Without the right password there is no page for people; a browser is asked for one, as a token it cannot send."""
    with serving(web_config_file=write(tmp_path, USERS)) as page_server:
        asked, body = request(page_server, "/", Accept=FIREFOX)
        wrong, _ = request(page_server, "/", Accept=FIREFOX, Authorization=WRONG)
        right, html = request(page_server, "/", Accept=FIREFOX, Authorization=GOOD)
    assert (asked.status, wrong.status, right.status) == (401, 401, 200)
    assert asked.headers["WWW-Authenticate"].startswith("Basic ")
    assert b"<" not in body
    assert html.startswith(b"<!doctype html>")


def test_headers_of_the_web_config_are_added_to_it(tmp_path):
    """What the web.config.yml adds is there, and a policy of its own holds beside ours, which it cannot weaken."""
    text = """
http_server_config:
  headers:
    Content-Security-Policy: default-src *
    Strict-Transport-Security: max-age=5
    X-Frame-Options: deny
"""
    page = people_page()
    with serving(web_config_file=write(tmp_path, text)) as page_server:
        response, _ = request(page_server, "/", Accept=FIREFOX)
        metrics, _ = request(page_server, "/metrics", Accept=FIREFOX)
    assert page is not None
    assert response.headers["Content-Security-Policy"] == f"{page.policy}, default-src *"
    assert (response.headers["Strict-Transport-Security"], response.headers["X-Frame-Options"]) == ("max-age=5", "deny")
    assert metrics.headers["Content-Security-Policy"] == "default-src *"


def test_the_rate_limit_counts_it(tmp_path):
    """A page for people is a request like another for the rate limit."""
    with serving(web_config_file=write(tmp_path, "rate_limit: {interval: 1h, burst: 2}\n")) as page_server:
        statuses = [request(page_server, "/", Accept=FIREFOX)[0].status for _ in range(3)]
        metrics, _ = request(page_server, "/metrics")
    assert statuses == [200, 200, 429]
    assert metrics.status == 429


# --- Where it is missing -----------------------------------------------------------------------------------


def test_its_files_lie_in_the_package():
    """Every file that it is made of is a file of the installed package."""
    files = importlib.resources.files(people)
    for name in ("page.html", "page.css", *people._SCRIPTS):
        assert files.joinpath(name).is_file(), name


def test_a_program_without_its_files_serves_the_metrics_instead(monkeypatch, caplog):
    """While the files are missing a browser gets the metrics at /, and one warning says why."""
    caplog.set_level(logging.WARNING)
    monkeypatch.setattr(people, "_SCRIPTS", ("missing.js",))
    people._put_together.cache_clear()
    with serving() as page_server:
        answers = [request(page_server, "/", Accept=FIREFOX) for _ in range(2)]
    monkeypatch.undo()
    assert [(response.headers["Content-Type"], body) for response, body in answers] == [(TEXT, LARGE.body)] * 2
    assert [record.name for record in caplog.records] == [people.__name__]
    assert scrape.people_page() is not None
