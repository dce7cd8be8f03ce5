"""One request to a generating model: how long it took, how soon it began to answer, and how many tokens it took."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from math import inf, nan
from time import perf_counter
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeVar, overload

from otel_mlops.metrics import (
    GEN_AI_CLIENT_TOKEN_USAGE,
    GEN_AI_SERVER_REQUEST_DURATION,
    GEN_AI_SERVER_TIME_PER_OUTPUT_TOKEN,
    GEN_AI_SERVER_TIME_TO_FIRST_TOKEN,
)
from otel_mlops.model.blocks import Block

if TYPE_CHECKING:
    from types import TracebackType

    from otel_mlops.sdk.provider import MeterProvider

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

_LONGEST = 200
"""Of a label's text: the model that is asked for may be what a client has sent."""


class Generation(Block):
    """One request to a generating model, as a block, or as the stream of its answer's tokens.

    The end of the block ends it. If its stream has not begun by then, or there is no block, the end of the stream does.

    A request that raises counts in its duration, by the exception's class, and in nothing else. One that is cancelled,
    interrupted, or dropped in the middle of its stream has no duration, as its end was not the model's: what it has
    told of the first token and of tokens counts.

    The attributes are OpenTelemetry's: `gen_ai.request.model` is the model's name where nothing else was asked for,
    `gen_ai.response.model` its `name:version`. A text that is none becomes `_OTHER`; nothing raises.
    """

    __slots__ = (
        "_began_s", "_clock", "_first_s", "_input", "_instruments", "_is_block", "_labels", "_made", "_output",
        "_waiting",
    )  # fmt: skip

    def __init__(
        self,
        instruments: MeterProvider,
        labels: Mapping[str, str],
        operation: str = "chat",
        *,
        provider: str,
        request_model: str | None = None,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        name = labels["model_name"]
        self._instruments = instruments
        self._labels = {
            "gen_ai.operation.name": _text(operation),
            "gen_ai.provider.name": _text(provider),
            "gen_ai.request.model": _text(name if request_model is None else request_model),
            "gen_ai.response.model": f"{name}:{labels['model_version']}",
        }
        self._clock = clock
        self._is_block = False
        self._waiting = 0
        """How many streams have not begun."""
        self._input: Any = None
        self._output: Any = None
        self._begin(None)

    def _begin(self, began_s: float | None) -> None:
        self._began_s = began_s
        self._first_s: float | None = None
        self._made: int | None = None
        """How many tokens streams have given; None without one."""

    def _end(self, error: BaseException | None) -> None:
        began_s, self._began_s = self._began_s, None
        if began_s is not None:  # it may have ended before
            self._record(began_s, self._clock(), error)
            self._input = self._output = None

    def _record(self, began_s: float, ended_s: float, error: BaseException | None) -> None:
        instrument, labels, first_s = self._instruments.instrument, self._labels, self._first_s
        duration = instrument(GEN_AI_SERVER_REQUEST_DURATION)
        if isinstance(error, Exception):
            # The conventions have the rest of successful requests only.
            duration.record(ended_s - began_s, {**labels, "error.type": type(error).__name__})
            return
        made = self._made if self._output is None else self._output
        if error is None:
            duration.record(ended_s - began_s, labels)
        if first_s is not None:
            instrument(GEN_AI_SERVER_TIME_TO_FIRST_TOKEN).record(first_s - began_s, labels)
            after_first = _number(made) - 1.0
            if error is None and 0.0 < after_first < inf:
                instrument(GEN_AI_SERVER_TIME_PER_OUTPUT_TOKEN).record((ended_s - first_s) / after_first, labels)
        for kind, number in (("input", self._input), ("output", made)):
            if number is not None:
                instrument(GEN_AI_CLIENT_TOKEN_USAGE).record(number, {**labels, "gen_ai.token.type": kind})

    def __enter__(self) -> Self:
        self._is_block = True
        self._begin(self._clock())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._is_block = False
        if error is not None or not self._waiting:
            self._end(error)

    def __call__(self, func: Callable[P, R]) -> Callable[P, R]:
        """Refuse to decorate a function: its call does not say when the first token came, nor how many did.

        Errors:  TypeError.
        """
        raise TypeError(f"cannot decorate {func!r:.80}: write `with model.generation(…)` inside of the function")

    def first_token(self) -> None:
        """Say that the first token is there; only the first time counts."""
        if self._first_s is None:
            self._first_s = self._clock()

    def tokens(self, *, input: Any = None, output: Any = None) -> None:  # noqa: A002 (the convention's word)
        """Say how many tokens were read, and how many were made, where that is not what the stream has counted."""
        if input is not None:
            self._input = input
        if output is not None:
            self._output = output

    @overload
    def stream(self, tokens: AsyncIterable[T]) -> AsyncIterator[T]: ...

    @overload
    def stream(self, tokens: Iterable[T]) -> Iterator[T]: ...

    def stream(self, tokens: Any) -> Any:
        """Pass on the tokens of an iterable, synchronous or asynchronous; mark the first, and count them.

        Without a block the request begins with this call.
        """
        if not self._is_block:
            self._begin(self._clock())
        self._waiting += 1
        return self._each_async(tokens) if hasattr(type(tokens), "__aiter__") else self._each(tokens)

    def _each(self, tokens: Iterable[T]) -> Iterator[T]:
        with self._streaming():
            for token in tokens:
                self._count()
                yield token

    async def _each_async(self, tokens: AsyncIterable[T]) -> AsyncIterator[T]:
        with self._streaming():
            async for token in tokens:
                self._count()
                yield token

    def _count(self) -> None:
        self.first_token()
        self._made = (self._made or 0) + 1

    @contextmanager
    def _streaming(self) -> Iterator[None]:
        self._waiting -= 1
        self._made = self._made or 0
        try:
            yield
        except BaseException as error:
            if not self._is_block:
                self._end(error)
            raise
        if not self._is_block:
            self._end(None)


def _text(given: object) -> str:
    return given[:_LONGEST] if isinstance(given, str) and given else "_OTHER"


def _number(given: Any) -> float:
    try:
        return float(given)
    except Exception:
        return nan  # what it is, and that it is no number, is said where it is recorded
