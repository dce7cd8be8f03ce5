"""Late truth: what became of predictions, by the prediction itself, its receipt or its id; counted in cells."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any
from uuid import UUID

from otel_mlops.metrics import DROPPED, GROUND_TRUTH, GROUND_TRUTH_DELAY, TRUTH_RESULTS
from otel_mlops.model.answers import Positive, ScoresReader, is_numeric, kind_of_model, label_of, number_of, rows_of
from otel_mlops.model.estimates import Estimates
from otel_mlops.model.matches import Matches

if TYPE_CHECKING:
    from otel_mlops.model.receipts import Answer, Receipts
    from otel_mlops.model.store import Store
    from otel_mlops.profile import Profile
    from otel_mlops.sdk.provider import MeterProvider

_logger = logging.getLogger(__name__)

_AT_ONCE = 1_000
"""So many are remembered in one go, as others wait meanwhile."""
_REFUSALS = {"forged": "forged", "expired": "expired", "other_model": "unmatched"}


class Truth:
    """What becomes of one model's answers.

    Of which kind they are says the `type` of the model, else its profile. Where neither does, each answer with its
    truth does: with scores, and as two labels (texts, true and false), they are of a classifier, as two numbers of a
    regression; a number and a label are of neither, and invalid. A classifier's numbers are labels. Texts, true and
    false are nothing to a regression.
    """

    def __init__(
        self,
        instruments: MeterProvider,
        labels: Mapping[str, str],
        *,
        type: str | None,  # noqa: A002 (the label's name)
        positive: str | None,
        profile: Profile | None,
        receipts: Callable[[], Receipts],
        store: Callable[[], Store | None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._instruments = instruments
        self._told: set[str] = set()
        self._kind = kind_of_model(type, profile)
        self._open_receipts = receipts
        self._receipts: Receipts | None = None
        self._store = store
        self._clock = clock
        self._id_prefix = json.dumps([labels["model_name"], labels["model_version"]])
        is_positive = Positive(positive, profile)
        self._scores = ScoresReader(is_positive, profile, self._drop)
        self._estimates = Estimates(instruments, labels, self._kind, is_positive, self._scores, profile, self._tell)
        reference = 0.0 if profile is None else float(profile.training.get("truth_mean", 0.0))
        self._matches = Matches(instruments, labels, self._kind, is_positive, self._scores, reference, self._tell)
        results = instruments.instrument(GROUND_TRUTH)
        self._results = {result: results.bind({**labels, "result": result}) for result in TRUTH_RESULTS}
        self._delay = instruments.instrument(GROUND_TRUTH_DELAY).bind(labels)
        self._asked = instruments.cells("quality/asked", 1, labels)
        self._matched = instruments.cells("quality/matched", 2, labels)

    @property
    def classifies(self) -> bool:
        """Whether the answers are known to be classes before any has come."""
        return self._kind == "classification"

    # --- What was true ---------------------------------------------------------------------------------------

    def record(
        self,
        *,
        actual: Any,
        prediction: Any = None,
        score: Any = None,
        scores: Any = None,
        receipt: Any = None,
        id: Any = None,  # noqa: A002 (the caller's word)
    ) -> str:
        """Say what was true, and return what became of it, one of TRUTH_RESULTS.

        Batches, of predictions alone, have one value a row; the result is `matched` if all rows are, and `invalid` if
        any is. What is `matched` is in the cells. A receipt or id whose truth is `invalid` by itself, or that is
        `busy`, is not spent.

        Errors:  TypeError if not exactly one of `prediction`, `receipt` and `id` is given; ValueError for scores
                 beside a receipt or id, which have theirs, and for batches of different lengths.
        """
        given = {"prediction": prediction, "receipt": receipt, "id": id}
        named = [name for name, each in given.items() if each is not None]
        if len(named) != 1:
            raise TypeError(f"expected exactly one of prediction, receipt and id, got {' and '.join(named) or 'none'}")
        if score is not None and scores is not None:
            raise ValueError("score and scores are both given, expected one of them")
        scores = score if scores is None else scores
        if scores is not None and prediction is None:
            raise ValueError(f"score and scores go with prediction; the {named[0]} has those of its prediction")
        try:
            rows = tuple(map(rows_of, (prediction, actual, scores)))
            lengths = [None if each is None else len(each) for each in rows]
        except Exception as error:
            self._tell("values that cannot be read", error)
            return self._count("invalid")
        if prediction is not None:
            _check_lengths(lengths, scores)
        try:
            if prediction is None:
                return self._count(self._by_receipt(receipt, actual) if id is None else self._by_id(id, actual))
            if rows[0] is None:
                return self._count("matched" if self._matches.add(prediction, actual, scores) else "invalid")
            good = self._matches.add_rows(*rows)
            if good:
                self._count("matched", good)
            return self._count("invalid", len(rows[0]) - good) if good < len(rows[0]) else "matched"
        except Exception as error:
            # The values are somebody else's objects, and the world has its faults: neither is the caller's affair.
            self._tell("a truth that cannot be recorded", error)
            return self._count("invalid")

    def _by_receipt(self, receipt: Any, actual: Any) -> str:
        from otel_mlops.model.database import StoreError
        from otel_mlops.model.receipts import ReceiptError

        try:
            answer = self._opened_receipts().read(receipt)
        except ReceiptError as error:
            return _REFUSALS.get(error.reason, "invalid")
        if not self._matches.can_add(answer.value, actual, _score_of(answer)):
            return "invalid"
        store = self._store()
        try:
            if store is not None and not store.redeem(answer.id):
                return "duplicate"
        except StoreError:
            return "busy"  # the store has told why
        return self._match_late(answer, actual)

    def _by_id(self, id: Any, actual: Any) -> str:  # noqa: A002 (the caller's word)
        from otel_mlops.model.database import StoreError
        from otel_mlops.model.store import DUPLICATE

        key, truth, store = self._key(id), self._told_truth(actual), self._store()
        if key is None or truth is None:
            return "invalid"
        try:
            found = None if store is None else store.wait(key, truth)
        except StoreError:
            return "busy"
        if found is None:
            return "unmatched"
        return "duplicate" if found is DUPLICATE else self._match_late(found, actual)

    def _match_late(self, answer: Answer, actual: Any, since_s: float | None = None) -> str:
        """Count a prediction that was taken from where it waited."""
        if not self._matches.add(answer.value, actual, _score_of(answer)):
            return "invalid"
        delay_s = max(0.0, (self._clock() if since_s is None else since_s) - answer.time_s)
        self._matched.record(0, delay_s)
        self._delay.record(delay_s)
        return "matched"

    def _told_truth(self, actual: Any) -> float | str | None:
        """A truth as the store keeps it: a classifier's as a label, another's as the number or label that it is."""
        if self._kind == "regression" or (self._kind is None and is_numeric(actual)):
            return number_of(actual)
        return label_of(actual)

    # --- What waits for its truth ----------------------------------------------------------------------------

    def issue(self, values: Any, scores: Any) -> list[str]:
        """Return a receipt for each answer of a call, "" for what is none; raises nothing."""
        try:
            answers = self._answers_of(values, scores)
        except Exception as error:
            self._tell("answers that cannot be read", error)
            return []
        issued = []
        for answer in answers:
            try:
                issued.append("" if answer is None else self._opened_receipts().issue(*answer))
            except Exception as error:  # a label that is too long; and whatever befalls the key
                self._tell("an answer that gets no receipt", error)
                issued.append("")
        self._ask(len([each for each in issued if each]), len([each for each in issued if not each]))
        return issued

    def remember(self, ids: Any, values: Any, scores: Any) -> None:
        """Keep the answers of a call until their truth comes by their ids; raises nothing."""
        try:
            self._remember(ids, values, scores)
        except Exception as error:
            self._tell("answers that cannot be kept for their truth", error)
            self._drop("truth", 1)

    def _remember(self, ids: Any, values: Any, scores: Any) -> None:
        from otel_mlops.model.database import StoreError
        from otel_mlops.model.receipts import Answer

        answers, store, now = self._answers_of(values, scores), self._store(), self._clock()
        rows = rows_of(ids)
        names = [ids] if rows is None else rows
        if len(names) != len(answers):
            self._tell("ids that are not as many as the answers")
            self._drop("shape", len(answers))
            return
        waiting = [
            (key, Answer(*answer, now, ""))
            for key, answer in zip(map(self._key, names), answers, strict=True)
            if key is not None and answer is not None
        ]
        self._ask(0, len(answers) - len(waiting))
        for start in range(0, len(waiting) if store else 0, _AT_ONCE):
            piece = waiting[start : start + _AT_ONCE]
            try:
                truths = store.remember_many(piece)  # type: ignore[union-attr]
            except StoreError:
                # The store has told why. The rest would wait as long, each piece.
                self._drop("truth", len(waiting) - start)
                return
            self._ask(len(piece), 0)
            for (_, answer), truth in zip(piece, truths, strict=True):
                if truth is not None:
                    self._count(self._match_late(answer, truth.value, since_s=now))

    def estimate(self, values: Any, scores: Any) -> None:
        """Count the answers of a classifier by class, and what their scores say of them; raises nothing."""
        try:
            self._estimates.count(values, scores)
        except Exception as error:
            self._tell("answers that cannot be counted", error)

    def _answers_of(self, values: Any, scores: Any) -> list[tuple[float | str, float | None, Any] | None]:
        """The answers of a call with what is known of how sure they are, None for what is none."""
        if values is None:
            return []
        rows = rows_of(values)
        rows, given = ([values], [scores]) if rows is None else (rows, rows_of(scores))
        if given is None or len(given) != len(rows):
            if scores is not None:
                self._tell("scores that are not as many as the answers")
                self._drop("shape", len(rows))
            given = [None] * len(rows)
        return [self._answer_of(value, score) for value, score in zip(rows, given, strict=True)]

    def _answer_of(self, value: Any, score: Any) -> tuple[float | str, float | None, Any] | None:
        if self._kind == "regression" or (self._kind is None and score is None and is_numeric(value)):
            number = number_of(value)
            return None if number is None else (number, None, None)
        label = label_of(value)
        found = None if label is None else self._scores.read(score, label)
        if label is None or found is None:
            return None if label is None else (label, None, None)
        return (label, None, {label: found.p}) if found.of == "answer" else (label, found.p, None)

    def _key(self, id: Any) -> str | None:  # noqa: A002 (the caller's word)
        """An id as the store has it, apart from those of other models; None for what is no id. Raises nothing."""
        try:
            if isinstance(id, (str, int, UUID)) and not isinstance(id, bool):
                return self._id_prefix + str(id)
            item = getattr(id, "item", None)  # a number of numpy's
            return None if item is None or getattr(id, "ndim", None) != 0 else self._key(item())
        except Exception as error:
            self._tell("ids that cannot be read", error)
            return None

    def _opened_receipts(self) -> Receipts:
        if self._receipts is None:
            self._receipts = self._open_receipts()
        return self._receipts

    # --- Counting --------------------------------------------------------------------------------------------

    def _ask(self, asked: int, lost: int) -> None:
        if asked:
            self._asked.add([(0, float(asked))])
        if lost:
            self._drop("type", lost)

    def _count(self, result: str, number: int = 1) -> str:
        self._results[result].add(number)
        return result

    def _drop(self, reason: str, number: int) -> None:
        self._instruments.instrument(DROPPED).add(number, {"reason": reason})

    def _tell(self, what: str, error: Exception | None = None) -> None:
        """Log once that this model has met something."""
        if what not in self._told:
            self._told.add(what)
            _logger.warning("%s has met %s", self._id_prefix, what, exc_info=error)


def _score_of(answer: Answer) -> Any:
    return answer.scores if answer.score is None else answer.score


def _check_lengths(lengths: list[int | None], scores: Any) -> None:
    """Refuse batches of different lengths.

    Errors:  ValueError.
    """
    if lengths[0] is None and lengths[1] is None:
        return
    given = dict(zip(("prediction", "actual", "score"), lengths if scores is not None else lengths[:2], strict=False))
    told = {name: "one value" if each is None else f"{each} rows" for name, each in given.items()}
    if len({*told.values()}) > 1:
        raise ValueError(f"expected as many rows of each, got {', '.join(f'{k}: {n}' for k, n in told.items())}")
