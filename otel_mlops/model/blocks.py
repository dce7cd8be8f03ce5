"""What is a `with` block, an `async with` block and a decorator alike; the loading of a model."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from time import perf_counter
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeVar

if TYPE_CHECKING:
    from types import TracebackType

    from otel_mlops.model import Model

P = ParamSpec("P")
R = TypeVar("R")


class Block:
    """What the blocks of a model share."""

    __slots__ = ()

    def __enter__(self) -> Self:
        raise NotImplementedError

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, traceback)

    def __call__(self, func: Callable[P, R]) -> Callable[P, R]:
        """Decorate a function, synchronous or asynchronous: each call is a block of its own.

        Errors:  TypeError for what is no function, or one that yields.
        """
        if _is_async(func):

            @wraps(func)
            async def run_async(*args: P.args, **kwargs: P.kwargs) -> Any:
                with self._another() as block:
                    block.called(args, kwargs)
                    result = await func(*args, **kwargs)  # type: ignore[misc]
                    block.returned(result)
                return result

            return run_async  # type: ignore[return-value]

        @wraps(func)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            with self._another() as block:
                block.called(args, kwargs)
                result = func(*args, **kwargs)
                block.returned(result)
            return result

        return run

    def _another(self) -> Self:
        raise NotImplementedError

    def called(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Be told what the decorated function is called with."""

    def returned(self, result: object) -> None:
        """Be told what the decorated function returned."""


class Loading(Block):
    """The loading of a model."""

    __slots__ = ("_began_s", "_duration", "_model")

    def __init__(self, model: Model, duration: Any) -> None:
        self._model = model
        self._duration = duration
        self._began_s = 0.0

    def __enter__(self) -> Self:
        self._model.status = "loading"
        self._began_s = perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self._duration.record(perf_counter() - self._began_s)
            self._model.status = "ready"
        else:
            self._model.status = "error" if isinstance(error, Exception) else "unavailable"

    def _another(self) -> Self:
        return type(self)(self._model, self._duration)


def _is_async(func: object) -> bool:
    if not callable(func) or inspect.isgeneratorfunction(func) or inspect.isasyncgenfunction(func):
        raise TypeError(f"cannot decorate {func!r}, expected a function that returns its result")
    call = getattr(func, "__call__", None)  # noqa: B004 (an object may be called asynchronously)
    return inspect.iscoroutinefunction(func) or inspect.iscoroutinefunction(call)
