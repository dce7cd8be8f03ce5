"""The demo's clients: they ask the service good and bad things at a rate that rises and falls."""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import httpx

_logger = logging.getLogger(__name__)

_CLIENTS = 8
_WAVE_S = 60.0
_DRIFT_S = 180.0
_SAMPLES = 569
"""How many samples the service has; the next one lacks a measurement."""

# The mean and the standard deviation of each measurement in the data set.
_MEASURED = {
    "radius": (14.1, 3.5),
    "texture": (19.3, 4.3),
    "smoothness": (0.096, 0.014),
    "compactness": (0.104, 0.053),
    "concavity": (0.089, 0.080),
    "symmetry": (0.181, 0.027),
}


class Question(NamedTuple):
    """A request to be made."""

    method: str
    path: str
    body: Any = None


class Traffic:
    """Clients in threads, which ask `rate` questions a second on average until they are stopped.

    Each client waits for its answer before it asks again, so a slow service is never asked more than it can
    take.
    """

    def __init__(self, url: str, rate: float, *, seed: int | None = None) -> None:
        self._url = url
        self._rate = rate
        self._seed = seed
        self._began_s = 0.0
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._answers: Counter[int] = Counter()
        self._unanswered = 0

    def start(self) -> None:
        """Begin to ask."""
        self._began_s = time.monotonic()
        for number in range(_CLIENTS):
            thread = threading.Thread(name=f"client-{number}", target=self._ask, args=(number,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def stop(self, timeout_s: float) -> None:
        """Ask no more, and wait for the answers that are due."""
        self._stopping.set()
        deadline = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    @property
    def answers(self) -> Counter[int]:
        """How many answers came with each status."""
        with self._lock:
            return Counter(self._answers)

    @property
    def unanswered(self) -> int:
        """How many questions got no answer at all."""
        return self._unanswered

    def _ask(self, number: int) -> None:
        import httpx

        chance = random.Random(None if self._seed is None else self._seed + number)  # noqa: S311 (a simulation)
        # What the environment says of proxies is not meant for this machine.
        with httpx.Client(base_url=self._url, trust_env=False, timeout=10.0) as client:
            while not self._stopping.wait(chance.expovariate(self._rate_now() / _CLIENTS)):
                self._send(client, ask(chance, self._drift_now()))

    def _send(self, client: httpx.Client, question: Question) -> None:
        import httpx

        try:
            status = client.request(question.method, question.path, json=question.body).status_code
        except httpx.HTTPError as error:
            _logger.debug("no answer to %s %s: %r", question.method, question.path, error)
            with self._lock:
                self._unanswered += 1
        else:
            with self._lock:
                self._answers[status] += 1

    def _rate_now(self) -> float:
        """The rate, which swings by 60 % around its mean within a minute."""
        return self._rate * (1 + 0.6 * math.sin(2 * math.pi * (time.monotonic() - self._began_s) / _WAVE_S))

    def _drift_now(self) -> float:
        """By how many standard deviations what is asked about has moved off; it comes back."""
        return 1 - math.cos(2 * math.pi * (time.monotonic() - self._began_s) / _DRIFT_S)


def ask(chance: random.Random, drift: float = 0.0) -> Question:
    """Choose a question: most are good, a few are not, as with people and programs everywhere."""
    questions: list[tuple[float, Callable[[], Question]]] = [
        (0.58, lambda: Question("POST", "/predict", _sample(chance, drift))),
        (0.14, lambda: Question("POST", "/predict/batch", _batch(chance, drift))),
        (0.18, lambda: Question("GET", f"/samples/{chance.randint(1, _SAMPLES)}/diagnosis")),
        # A sample that is not there, a measurement that cannot be, one that is missing, and no such route.
        (0.03, lambda: Question("GET", f"/samples/{chance.randint(10_000, 99_999)}/diagnosis")),
        (0.02, lambda: Question("POST", "/predict", _sample(chance, drift) | {"radius": -1})),
        (0.02, lambda: Question("POST", "/predict/batch", [{"radius": 14.1}])),
        (0.01, lambda: Question("GET", chance.choice(["/favicon.ico", "/wp-login.php", "/.env"]))),
        # What the service did not expect.
        (0.02, lambda: Question("GET", f"/samples/{_SAMPLES + 1}/diagnosis")),
    ]
    weights, makers = [weight for weight, _ in questions], [make for _, make in questions]
    return chance.choices(makers, weights)[0]()


def _batch(chance: random.Random, drift: float) -> list[dict[str, float]]:
    return [_sample(chance, drift) for _ in range(chance.choice([2, 4, 8, 16, 32]))]


def _sample(chance: random.Random, drift: float) -> dict[str, float]:
    """Measurements such as a microscope may give; the radius is what drifts."""
    return {
        feature: round(abs(chance.gauss(mean + (drift * deviation if feature == "radius" else 0.0), deviation)), 4)
        for feature, (mean, deviation) in _MEASURED.items()
    }
