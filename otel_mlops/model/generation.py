"""One request to a generating model: how long it took, how soon it began to answer, how many tokens it read and made."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Generator, Iterable, Iterator, Mapping
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
"""Of a label's text, which may come from a client."""


class Generation(Block):
    """One request to a generating model, as a `with` block or as the stream of its answer's tokens.

    The end of the block ends it; if its stream has not begun by then, or there is no block, the end of the stream does.
    After an exception its duration counts under the exception's class, and nothing else does. One that was cancelled,
    interrupted or dropped in the middle has no duration: it would make the model look fast. How soon it began and its
    tokens count.
    """

    __slots__ = ("_began_s", "_clock", "_first_s", "_input", "_is_block", "_made", "_output", "_series", "_waiting")

    def __init__(self, series: GenerationSeries, clock: Callable[[], float] = perf_counter) -> None:
        self._series = series
        self._clock = clock
        self._is_block = False
        self._waiting = 0
        self._input: Any = None
        self._output: Any = None
        self._begin(None)

    def _begin(self, began_s: float | None) -> None:
        self._began_s = began_s
        self._first_s: float | None = None
        self._made: int | None = None

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
        """Refuse to decorate a function: its result does not say when the first token came, nor how many did.

        Errors:  TypeError.
        """
        raise TypeError(f"a generation cannot decorate {func!r:.80}; use `with model.generation(…)` in the function")

    def first_token(self) -> None:
        """Say that the first token is there; what is said again later does not count."""
        if self._first_s is None:
            self._first_s = self._clock()

    def tokens(self, *, input: Any = None, output: Any = None) -> None:  # noqa: A002 (what the conventions call it)
        """Say how many tokens were read, and made; what is said last counts, before what a stream has counted."""
        if input is not None:
            self._input = input
        if output is not None:
            self._output = output

    @overload
    def stream(self, tokens: AsyncIterable[T]) -> AsyncIterator[T]: ...

    @overload
    def stream(self, tokens: Iterable[T]) -> Iterator[T]: ...

    def stream(self, tokens: Any) -> Any:
        """Give the tokens of an iterable on, synchronous or asynchronous, marking the first and counting all.

        Without a block the request begins with this call.
        """
        if not self._is_block:
            self._begin(self._clock())
        self._waiting += 1
        return self._each_async(tokens) if hasattr(type(tokens), "__aiter__") else self._each(tokens)

    def _each(self, tokens: Iterable[T]) -> Iterator[T]:
        self._begin_stream()
        try:
            for token in tokens:
                self._count()
                yield token
        except BaseException as error:
            self._end_stream(error)
            raise
        else:
            self._end_stream(None)
        finally:
            if issubclass(type(tokens), Generator):
                tokens.close()

    async def _each_async(self, tokens: AsyncIterable[T]) -> AsyncIterator[T]:
        self._begin_stream()
        try:
            async for token in tokens:
                self._count()
                yield token
        except BaseException as error:
            self._end_stream(error)
            raise
        else:
            self._end_stream(None)
        finally:
            if issubclass(type(tokens), AsyncGenerator):
                await tokens.aclose()
