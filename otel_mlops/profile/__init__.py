"""Profile: what a model saw in training, kept beside it, so that what it sees in service can be compared."""

from __future__ import annotations

import json
import os
import stat
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from .feature import PREDICTION, Categorical, Feature, Numeric
from .reference import ReferenceFeature, read_reference, reference_of, size_of

if TYPE_CHECKING:
    from .blocks import Blocks
    from .fitting import Fit, Options

MOST_BYTES = 64_000_000
"""How large a profile's file may be."""


@dataclass(frozen=True, slots=True)
class Profile:
    """What a model saw in training: its features, its predictions, and what its scores were worth."""

    features: tuple[Feature, ...]
    """Those of the model, without its predictions."""
    prediction: Feature | None = None
    """The predictions as one more feature, named PREDICTION."""
    rows: int = 0
    calibration: tuple[float, ...] | None = None
    """How likely an answer with a score in each bin of SCORE_BOUNDS is to be positive, rising."""
    positive: str | None = None
    """The label whose probability the scores are; None where they are those of the answer, which is right or not."""
    training: Mapping[str, float] = field(default_factory=dict)
    """Scores of training by name: accuracy, auc, brier and log_loss, or rmse, mae, r2 and truth_mean."""
    model_name: str | None = None
    model_version: str | None = None
    created_at: datetime | None = None

    @classmethod
    def fit(
        cls,
        features: Any,
        predictions: Any = None,
        truth: Any = None,
        scores: Any = None,
        timestamps: Any = None,
        *,
        block: str | float = "day",
        **options: Unpack[Options],
    ) -> Profile:
        """Return the profile of what a model was trained with.

        Features are an array, a pandas or polars frame, a mapping of columns, or a list of rows or of mappings.
        Timestamps, one a row, tell how much one day differs from another without any drift.

        Errors:  ValueError for what does not fit together, TypeError for an unknown option.

        >>> Profile.fit({"rooms": [1, 2, 3, 4], "kind": ["a", "b", "a", None]}, bins=2).features[1].counts
        (2.0, 1.0, 0.0, 1.0)
        """
        from .columns import columns_of

        columns, _ = columns_of(features, options.pop("names", None))
        fitting = cls.begin(**options)
        fitting.update(columns, predictions, truth, scores)
        profile = fitting.finish()
        if timestamps is None:
            return profile
        blocks = profile.blocks(block)
        blocks.update(columns, timestamps, predictions)
        return blocks.finish()

    @classmethod
    def begin(cls, **options: Unpack[Options]) -> Fit:
        """Begin a profile of data that comes in pieces: `update(...)` for each, then `finish()`.

        Errors:  ValueError for an option that cannot be, TypeError for an unknown one.
        """
        from .fitting import Fit

        return Fit(**options)

    def blocks(self, block: str | float = "day") -> Blocks:
        """Begin to go over the same data once more, by time: `update(...)` for each piece, then `finish()`."""
        from .blocks import Blocks

        return Blocks(self, block)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Profile:
        """Return the profile in a file, which SageMaker Model Monitor's statistics.json may be as well.

        Errors:  ValueError for what is none, naming the field; OSError where the file cannot be read.
        """
        with open(path, "rb", opener=_without_waiting) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ValueError(f"{os.fspath(path)}: expected a file")
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise ValueError(f"{os.fspath(path)}: expected at most {MOST_BYTES} bytes")
        try:
            return cls.from_json(content.decode())
        except ValueError as error:
            raise ValueError(f"{os.fspath(path)}: {error}") from None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the profile into a file, whole or not at all.

        Errors:  OSError where it cannot be written, ValueError where it would be too large to be read.
        """
        content = self.to_json().encode("ascii")
        if len(content) > MOST_BYTES:
            raise ValueError(
                f"the profile has {len(content)} bytes, more than {MOST_BYTES}: fewer features or categories"
            )
        path = Path(path)
        try:
            number, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        except OSError as error:
            raise OSError(error.errno, error.strerror, os.fspath(path)) from None  # by the name that was given
        try:
            with os.fdopen(number, "wb") as file:
                file.write(content)
            Path(name).chmod(0o644)  # who trains and who serves are mostly not the same user
            Path(name).replace(path)
        except BaseException:
            with suppress(FileNotFoundError):  # it has its name already
                Path(name).unlink()
            raise

    @classmethod
    def from_json(cls, text: str) -> Profile:
        """Return the profile of a text that `to_json` gave.

        Errors:  ValueError for what is none, naming the field.
        """
        from .document import read

        return read(text)

    def to_json(self) -> str:
        """Return the profile as JSON in ASCII, whose schema is profile.schema.json beside this file."""
        from .document import document_of

        return json.dumps(document_of(self), indent=1, allow_nan=False) + "\n"

    @property
    def every_feature(self) -> tuple[Feature, ...]:
        """The features, then the prediction if there is one: the order of the reference."""
        return (*self.features, *([self.prediction] if self.prediction else []))

    @property
    def digest(self) -> str:
        """What tells profiles apart: the same for those with the same bins, counts and blocks."""
        canonical = [
            [
                each.name,
                each.edges if isinstance(each, Numeric) else each.values,
                [count + 0.0 for count in each.counts],  # of -0.0 a file has 0
                each.block,
            ]
            for each in self.every_feature
        ]
        return blake2b(json.dumps(canonical).encode("ascii"), digest_size=8).hexdigest()

    def reference(self) -> str:
        """Return what who compares must know, as one compact JSON text; the prediction is the last feature."""
        return reference_of(self.every_feature)


def _without_waiting(path: str, flags: int) -> int:
    """Open a file; of a pipe, without waiting for somebody who writes."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


__all__ = [
    "PREDICTION",
    "Categorical",
    "Feature",
    "Numeric",
    "Profile",
    "ReferenceFeature",
    "read_reference",
    "size_of",
]
