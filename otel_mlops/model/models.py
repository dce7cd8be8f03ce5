"""The models of a service: each name and version is one, whoever asks for it."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from otel_mlops.facts import check_text
from otel_mlops.model import Model, describe_model, load_profile

if TYPE_CHECKING:
    from otel_mlops.model.ways import Ways
    from otel_mlops.sdk.provider import MeterProvider


class Models:
    """The models, by name and version."""

    def __init__(self, instruments: MeterProvider, ways: Ways) -> None:
        self._instruments = instruments
        self._ways = ways
        self._found: dict[tuple[str, str], Model] = {}
        self.after_fork()

    def after_fork(self) -> None:
        """In a forked child: locks that nobody holds."""
        self._lock = threading.RLock()
        self._ways.after_fork()

    def find(self, name: str, version: str, **facts: Any) -> Model:
        """The model of a name and version, made if there is none.

        Errors:  those of Model; ValueError if there is one that was described otherwise.
        """
        key = check_text("name", name), check_text("version", version)
        with self._lock:
            model = self._found.get(key)
            if model is None:
                model = Model(self._instruments, name=name, version=version, ways=self._ways, **facts)
                self._found[key] = model
                return model
            facts["profile"] = load_profile(facts.get("profile"))
            described = describe_model(**facts)
            if model.description != described:
                raise ValueError(
                    f"model {name!r} version {version!r} is there with {model.description}; this call says {described}"
                )
            return model

    def forget(self, labels: Mapping[str, str]) -> None:
        """Let go of the models that carry all of these labels."""
        with self._lock:
            for name, version in list(self._found):
                if labels.items() <= {"model_name": name, "model_version": version}.items():
                    del self._found[name, version]

    def close(self) -> None:
        """Let go of what late truths are found by."""
        self._ways.close()
