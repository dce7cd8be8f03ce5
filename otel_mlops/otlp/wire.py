"""One signal's way to its Collector: the requests over HTTP, and what is said when they do not arrive."""

from __future__ import annotations

import itertools
import logging
import math
import os
import random
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, cast
from urllib.parse import urlsplit

if TYPE_CHECKING:
    import requests

Signal = Literal["metrics", "traces"]
Made = TypeVar("Made")

_LONGEST_ANSWER = 65_536
_TRANSIENT = frozenset({429, 502, 503, 504})
"""After these the same request may be sent again. Source: OTLP specification, retryable response codes."""
_CREDENTIAL_PROVIDER = "OTEL_PYTHON_EXPORTER_OTLP_HTTP_{}CREDENTIAL_PROVIDER"

_logger = logging.getLogger(__name__)


class PerProcess(Generic[Made]):
    """What a forked child must not have of its parent, such as locks and connections: made anew there."""

    def __init__(self, make: Callable[[], Made]) -> None:
        self._make = make
        self._made = make()
        self._pid = os.getpid()

    def __call__(self) -> Made:
        """Return this process's own."""
        if self._pid != os.getpid():
            self._made = self._make()
            self._pid = os.getpid()
        return self._made


class Push:
    """Whether one signal reaches its Collector, and by when its exports must have ended.

    `on_failure(signal)` is called for each export that failed.
    """

    def __init__(self, signal: Signal, endpoint: str, on_failure: Callable[[str], None]) -> None:
        self.signal = signal
        self.failing = False
        self.ending = PerProcess(threading.Event)
        self.end_by = math.inf
        self._to = urlsplit(endpoint).netloc.rpartition("@")[2]
        self._on_failure = on_failure
        self._drops = itertools.count(1)  # counts in one step: many requests drop spans at a time
        self._dropped = self._dropped_told = 0

    def end(self, within_s: float) -> float:
        """Allow one more attempt for whatever is left, and return the seconds to wait for it.

        Both are a little less than the time, of which something must be left to say that it was too short.
        """
        self.end_by = min(self.end_by, time.monotonic() + 0.9 * within_s)
        self.ending().set()
        return 0.95 * within_s

    def watch(self, export: Callable[..., Any], failure: Any) -> Callable[..., Any]:
        """Return a stock exporter's `export`, with its log lines kept back and its failures told once."""

        def watched(*arguments: Any, **keywords: Any) -> Any:
            with HOLD.lines() as said:
                try:
                    result = export(*arguments, **keywords)
                except Exception as error:  # a fault of the push must not end its thread
                    said.append(type(error).__name__)
                    result = failure
            if result is failure:
                self.failed(said[-1] if said else "no reason is known")
            else:
                self._worked()
            return result

        return watched

    def failed(self, reason: str) -> None:
        """Count a failed export, and log the first of an outage."""
        before, self.failing = self.failing, True
        if not before:
            _logger.warning("%s do not reach the Collector at %s: %s", self.signal, self._to, reason)
        self._on_failure(self.signal)

    def dropped(self, most: int) -> None:
        """Count a span that was lost because `most` are waiting, and log the first."""
        if self._dropped == self._dropped_told:
            _logger.warning("%d spans wait for the Collector at %s; the oldest are dropped", most, self._to)
        self._dropped = next(self._drops)

    def _worked(self) -> None:
        if self.failing:
            _logger.info("%s reach the Collector at %s again", self.signal, self._to)
        if number := self._dropped - self._dropped_told:
            _logger.info("%d spans were dropped while too many waited", number)
            self._dropped_told += number
        self.failing = False


class _Hold(logging.Filter):
    """Keeps back what stock loggers say while our own push works in this thread; others' lines pass.

    The stock exporter and processor log each failure, each retry and each dropped span, and know no switch.
    A level on their loggers would silence the exporters that somebody else has opened, too.
    """

    def __init__(self) -> None:
        super().__init__()
        self._thread = threading.local()

    @contextmanager
    def lines(self) -> Generator[list[str], None, None]:
        """Collect this thread's lines instead of logging them."""
        before = getattr(self._thread, "said", None)
        said: list[str] = []
        self._thread.said = said
        try:
            yield said
        finally:
            self._thread.said = before

    def filter(self, record: logging.LogRecord) -> bool:
        """Pass a record, unless its thread collects."""
        said = getattr(self._thread, "said", None)
        if said is None or record.levelno < logging.WARNING:
            return True
        given = record.args if isinstance(record.args, tuple) else ()
        known = [str(each) for each in given if isinstance(each, _Undelivered)]
        # The text of other exceptions may repeat the URL, in which a token may stand.
        record.args = tuple(type(each).__name__ if isinstance(each, Exception) else each for each in given)
        said.append(known[0] if known else f"{record.getMessage():.200}")
        return False


HOLD = _Hold()
"""The one filter on the loggers of the stock exporters and processor."""


class _Undelivered(Exception):  # noqa: N818 - an outcome
    """Why a request did not arrive, and after what pause to send it again; None for not at all."""

    def __init__(self, reason: str, pause_s: float | None = None) -> None:
        super().__init__(reason)
        self.pause_s = pause_s


def open_session(push: Push) -> requests.Session:
    """Open the session over which the stock exporter of a signal sends.

    Errors:  ValueError for a credential provider that is not installed.
    """
    import requests

    session = _credential_session(push.signal) or requests.Session()
    for prefix in ("http://", "https://"):
        session.mount(prefix, cast("Any", _Adapter(push)))
    return session


def _credential_session(signal: Signal) -> requests.Session | None:
    # The stock exporter asks the provider only where it is given no session.
    for variable in map(_CREDENTIAL_PROVIDER.format, ("", f"{signal.upper()}_")):
        if name := os.environ.get(variable):
            for found in entry_points(group="opentelemetry_otlp_credential_provider", name=name):
                return cast("requests.Session", found.load()())
            raise ValueError(f"{variable} is {name!r}, expected the name of an installed credential provider")
    return None


class _Adapter:
    """Sends an exporter's requests: each again while there is time, and then it says why it did not arrive.

    The stock client retries as well. But it cannot be told to stop without giving up what it holds, takes a
    redirect for success, reads an answer of any length, and never looks for what the Collector rejected.
    """

    def __init__(self, push: Push) -> None:
        from requests.adapters import HTTPAdapter

        self._push = push
        self._http = PerProcess(HTTPAdapter)

    def send(self, request: requests.PreparedRequest, *, timeout: float, **options: Any) -> requests.Response:
        """Send a request until it has arrived, must not be sent again, or the time is up.

        Errors:  _Undelivered, at which the stock client gives up.
        """
        deadline = time.monotonic() + timeout
        attempt = 0
        while True:
            try:
                return self._attempt(request, attempt, self._left_s(deadline), options)
            except _Undelivered as failure:
                if failure.pause_s is None or failure.pause_s >= self._left_s(deadline):
                    raise
                if failure.pause_s and self._push.ending().is_set():
                    raise
                self._push.ending().wait(failure.pause_s)
            attempt += 1

    def close(self) -> None:
        """Close the connections."""
        self._http().close()

    def _left_s(self, deadline: float) -> float:
        return max(0.0, min(deadline, self._push.end_by) - time.monotonic())

    def _attempt(
        self, request: requests.PreparedRequest, attempt: int, left_s: float, options: dict[str, Any]
    ) -> requests.Response:
        from urllib3 import Timeout

        if not left_s:
            raise _Undelivered("the time was up")
        backoff_s = 2**attempt * random.uniform(0.8, 1.2)  # noqa: S311 - so that many workers do not retry at once
        try:
            response = self._http().send(request, timeout=cast("Any", Timeout(total=left_s)), **options)
            body = _body(response)
        except OSError as error:  # requests' own are OSErrors, too
            # The Collector may have closed a connection that was kept: the second attempt goes at once.
            raise _Undelivered(_cause(error), backoff_s if attempt else 0.0) from error
        if 200 <= response.status_code < 300:
            if rejected := _rejected(response, body):
                raise _Undelivered(rejected)
            return response
        reason = f"{response.status_code} {response.reason}"[:200]
        if response.status_code not in _TRANSIENT:
            raise _Undelivered(reason)
        asked = response.headers.get("Retry-After", "")
        raise _Undelivered(reason, max(backoff_s, float(asked) if asked.isdecimal() else 0.0))


def _body(response: requests.Response) -> bytes:
    """Return a short answer's body; of any other nothing, and its connection is closed."""
    length = response.headers.get("Content-Length", "")
    if length.isdecimal() and int(length) <= _LONGEST_ANSWER and "Content-Encoding" not in response.headers:
        return response.content or b""
    response.close()
    return b""


def _rejected(response: requests.Response, body: bytes) -> str:
    """Return what the Collector says that it did not take; empty if it took everything."""
    if not body or not response.headers.get("Content-Type", "").startswith("application/x-protobuf"):
        return ""
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse

    try:
        # On the wire the answer to traces is the same.
        partial = ExportMetricsServiceResponse.FromString(body).partial_success
    except Exception as error:  # protobuf's own, which has no types to import
        return f"it answered something else than OTLP ({type(error).__name__})"
    if not partial.rejected_data_points:
        return ""
    return f"it rejected {partial.rejected_data_points}, {partial.error_message!r:.200}"


def _cause(error: BaseException) -> str:
    """Return the innermost reason: the outer ones repeat the URL, in which a token may stand."""
    while deeper := error.__cause__ or error.__context__:
        error = deeper
    return str(error)[:200] or type(error).__name__
