"""The walk through of docs/monitoring.md, run as it stands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.asgi import ask, serving
from tests.test_docs import blocks, shapes, unconfigured

__all__ = ["unconfigured"]


@pytest.mark.usefixtures("unconfigured")
async def test_the_walk_through_gives_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code of the walk through runs, takes a truth by a receipt, and each line that it shows is on its page."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OTEL_MLOPS_RECEIPT_KEY", "a key of this test alone")
    namespace: dict[str, Any] = {"__name__": "walk"}
    for number, code in enumerate(blocks("docs/monitoring.md", "python")):
        exec(compile(code, f"docs/monitoring.md {number}", "exec"), namespace)
    app, telemetry = namespace["app"], namespace["telemetry"]
    headers = {"content-type": "application/json"}
    async with serving(app):
        telemetry.sample()
        tumour = json.dumps({"radius": 12.0, "texture": 17.0, "smoothness": 0.1}).encode()
        answer = json.loads((await ask(app, "POST", "/predict", body=[tumour], headers=headers)).body)
        outcome = json.dumps({"receipt": answer["receipt"], "benign": answer["benign"]}).encode()
        told = json.loads((await ask(app, "POST", "/truth", body=[outcome], headers=headers)).body)
        telemetry.sample()
        page = telemetry.page().body.decode()
    assert told == {"result": "matched"}
    wanted = {shape for block in blocks("docs/monitoring.md", "") for shape in shapes(block)}
    assert len(wanted) == 8
    assert wanted - shapes(page) == set()
