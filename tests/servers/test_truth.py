"""Late truth over real workers that are killed: what was acknowledged as matched is in the scores, and only once."""

from __future__ import annotations

import random
import threading
from contextlib import suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Self

import pytest

from tests.servers import fleet as fleet_module
from tests.servers.fleet import Fleet, post, runs, serve
from tests.servers.service import until

KILLS = 6
SERVICE = """
    import os, time

    from fastapi import FastAPI
    from otel_mlops import configure_telemetry

    app = FastAPI(title="truth")
    telemetry = configure_telemetry(app)
    model = telemetry.model("truth", version="v1", type="regression")

    @app.post("/pid")
    async def pid():
        time.sleep(0.02)  # the whole worker is busy for a moment, so that the next connection is another's
        return os.getpid()

    @app.post("/predict")
    def predict(value: float, id: str):
        with model.prediction(id=id) as prediction:
            prediction.values = value
        return prediction.receipt

    @app.post("/receipt")
    def receipt(receipt: str, actual: float):
        return model.record_truth(receipt=receipt, actual=actual)

    @app.post("/id")
    def id(id: str, actual: float):
        return model.record_truth(id=id, actual=actual)
"""


class Truths:
    """Threads that have predictions made and tell their truths, by receipt or by id, to whatever worker answers."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._stop = threading.Event()
        self.sent: set[str] = set()
        """What truths were told, be they answered or not: the path of each."""
        self.matched: set[str] = set()
        """Those that were acknowledged as matched."""
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(3)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, number: int) -> None:
        draw = random.Random(number)
        for turn in range(1_000_000):
            if self._stop.is_set():
                return
            with suppress(OSError, HTTPException):  # the worker was killed
                self._tell(f"{number}-{turn}", draw)

    def _tell(self, name: str, draw: random.Random) -> None:
        receipt = self._ask(f"/predict?value=3.0&id={name}")
        path = f"/receipt?receipt={receipt}&actual=1.0" if draw.random() < 0.5 else f"/id?id={name}&actual=1.0"
        self.sent.add(path)
        if self._ask(path) == "matched":
            self.matched.add(path)

    def _ask(self, path: str) -> object:
        line = HTTPConnection("127.0.0.1", self._fleet.port, timeout=20.0)
        try:
            return post(line, path)
        finally:
            line.close()

    def again(self) -> list[object]:
        """What is answered to the truths that were matched when they are told once more."""
        return [self._ask(path) for path in sorted(self.matched)]


def test_no_truth_is_lost_or_counted_twice_when_workers_are_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """After six SIGKILLs acknowledged <= counted <= told, and whoever tells a truth again is told that it was told."""
    monkeypatch.setattr(fleet_module, "SERVICE", SERVICE)
    draw = random.Random(7)
    with serve("uvicorn", tmp_path) as fleet:
        with Truths(fleet) as truths:
            for kill in range(1, KILLS + 1):
                until(lambda enough=40 * kill: len(truths.matched) >= enough)
                pid = draw.choice(sorted(fleet.worker_pids()))  # all of them: with the last one the counts would go
                fleet.kill(pid)
                until(lambda pid=pid: not runs(pid))
        again = truths.again()
        assert set(again) == {"duplicate"}

        def counted() -> float:
            return fleet.page().total("model_performance_samples", dataset="live")

        until(lambda: counted() >= len(truths.matched))
        assert len(truths.matched) <= counted() <= len(truths.sent)
        page = fleet.page()
        in_full = page.total("ground_truth_total", result="matched")
        assert len(truths.matched) <= in_full <= len(truths.sent)
        assert page.total("ground_truth_total", result="duplicate") >= len(again)
        assert page.total("ground_truth_total", result="unmatched") <= KILLS * 4, "asked before its prediction was kept"
        # Of truths that were all 2 too low the error is known whichever were counted.
        assert page.total("model_rmse_score", dataset="live") == pytest.approx(2.0, rel=1e-12)
        assert page.total("model_bias_score", dataset="live") == pytest.approx(2.0, rel=1e-12)
