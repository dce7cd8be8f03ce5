"""What a Generation records of requests to a generating model, however they end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any

import pytest
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from otel_mlops import metrics as rows
from otel_mlops.model.generation import Generation
from otel_mlops.sdk.page import PageReader
from otel_mlops.sdk.provider import MeterProvider
from tests.pages import check_page

MODEL = {"model_name": "poet", "model_version": "v7"}
ATTRIBUTES = {
    "gen_ai.operation.name": "chat",
    "gen_ai.provider.name": "vllm",
    "gen_ai.request.model": "poet",
    "gen_ai.response.model": "poet:v7",
}
DURATION, FIRST, EACH, USAGE = rows.GENERATION


class Recorded:
    """A provider, a clock that goes where it is told, and what was recorded."""

    def __init__(self) -> None:
        self.reader, self.page = InMemoryMetricReader(), PageReader()
        self.provider = MeterProvider([self.reader, self.page], shutdown_on_exit=False)
        self.now = 100.0

    def generation(self, operation: Any = "chat", provider: Any = "vllm", request_model: Any = None) -> Generation:
        """A request by this clock."""
        return Generation(
            self.provider, MODEL, operation, provider=provider, request_model=request_model, clock=lambda: self.now
        )

    def points(self) -> dict[str, list[tuple[dict[str, Any], int, float]]]:
        """Attributes, count and sum of each series, by the metric's name; those about ourselves aside."""
        data = self.reader.get_metrics_data()
        metrics = [m for r in data.resource_metrics for s in r.scope_metrics for m in s.metrics] if data else []
        return {
            metric.name: [(dict(point.attributes), point.count, point.sum) for point in metric.data.data_points]
            for metric in metrics
            if metric.name.startswith("gen_ai")
        }

    def told(self) -> dict[str, float]:
        """The sum of each metric by its last word, tokens by their type; each is one observation."""
        found = {}
        for name, every in self.points().items():
            for attributes, count, total in every:
                assert count == 1
                assert ATTRIBUTES.items() <= attributes.items()
                title = attributes.get("gen_ai.token.type") or name.rpartition(".")[2]
                if "error.type" in attributes:
                    title = attributes["error.type"]
                found[title] = total
        return found

    @property
    def dropped(self) -> dict[str, float]:
        """What was dropped, by reason."""
        return {attributes["reason"]: value for attributes, value in self.provider.totals(rows.DROPPED)}

    def tokens(self, number: int, *, error: BaseException | None = None) -> Iterator[str]:
        """The first token after 2 seconds, the others every half a second."""
        for index in range(number):
            self.now += 0.5 if index else 2.0
            yield f"token {index}"
        self.now += 0.25
        if error is not None:
            raise error

    async def tokens_async(self, number: int, *, error: BaseException | None = None) -> AsyncIterator[str]:
        """The same, asynchronously."""
        for token in self.tokens(number, error=error):
            await asyncio.sleep(0)
            yield token


@pytest.fixture
def recorded() -> Recorded:
    """A provider of the test's own."""
    return Recorded()


WHOLE = {"duration": 4.25, "time_to_first_token": 2.0, "time_per_output_token": 2.25 / 4, "output": 5.0}
"""What five tokens come to."""


def test_a_block_tells_its_times_and_tokens(recorded: Recorded):
    """Duration, the time to the first token, the time of each further one and the tokens are one observation each."""
    with recorded.generation() as generation:
        recorded.now += 2.0
        generation.first_token()
        recorded.now += 3.0
        generation.first_token()  # no first one any more
        generation.tokens(input=12, output=7)
    assert recorded.told() == {
        "duration": 5.0, "time_to_first_token": 2.0, "time_per_output_token": 0.5, "input": 12.0, "output": 7.0,
    }  # fmt: skip


def test_what_was_not_told_is_not_recorded(recorded: Recorded):
    """A request of which nothing is told has a duration, and nothing else."""
    with recorded.generation():
        recorded.now += 1.0
    assert recorded.told() == {"duration": 1.0}


@pytest.mark.parametrize("output", [0, 1])
def test_one_token_has_no_time_per_token(recorded: Recorded, output: int):
    """There is no time of further tokens where there are none, and no tokens are a number of tokens."""
    with recorded.generation() as generation:
        generation.first_token()
        generation.tokens(output=output)
    assert recorded.told() == {"duration": 0.0, "time_to_first_token": 0.0, "output": float(output)}


def test_a_stream_is_passed_on_marked_and_counted(recorded: Recorded):
    """All tokens come through; in a block its begin and its end are the request's."""
    with recorded.generation() as generation:
        recorded.now += 1.0
        assert list(generation.stream(recorded.tokens(5))) == [f"token {index}" for index in range(5)]
        recorded.now += 1.0
    assert recorded.told() == {
        "duration": 6.25, "time_to_first_token": 3.0, "time_per_output_token": 3.25 / 4, "output": 5.0,
    }  # fmt: skip


async def test_an_asynchronous_stream_is_as_well(recorded: Recorded):
    """An asynchronous stream in an asynchronous block is told as a synchronous one is."""
    async with recorded.generation() as generation:
        assert len([token async for token in generation.stream(recorded.tokens_async(5))]) == 5
    assert recorded.told() == WHOLE


async def test_a_stream_without_a_block_is_the_request(recorded: Recorded):
    """It begins with the call and ends with the last token; the tokens of the input may be told before."""
    for is_async in (False, True):
        each = Recorded()
        generation = each.generation()
        generation.tokens(input=3)
        tokens = generation.stream(each.tokens_async(5) if is_async else each.tokens(5))
        each.now += 1.0
        if is_async:
            assert len([token async for token in tokens]) == 5
        else:
            assert len(list(tokens)) == 5
        assert each.told() == {**WHOLE, "duration": 5.25, "time_to_first_token": 3.0, "input": 3.0}


def test_a_stream_that_outlives_its_block_ends_the_request(recorded: Recorded):
    """Where a handler returns the stream out of the block, the server's reading of it is what is timed."""

    def handler() -> Iterable[str]:
        with recorded.generation() as generation:
            return generation.stream(recorded.tokens(5))

    stream = handler()
    assert recorded.points() == {}
    assert len(list(stream)) == 5
    assert recorded.told() == WHOLE


def test_who_stops_reading_in_a_block_has_all_that_was_asked_for(recorded: Recorded):
    """A break within the block is no fault, and its end the request's, also where the stream is held on to."""
    with recorded.generation() as generation:
        stream = generation.stream(recorded.tokens(50))
        for token in stream:
            if token == "token 4":
                break
        recorded.now += 0.25
    del stream
    assert recorded.told() == WHOLE


def test_what_is_told_of_the_output_counts_before_what_was_seen(recorded: Recorded):
    """Where a piece of the stream is several tokens, their number is what is told."""
    with recorded.generation() as generation:
        for _ in generation.stream(recorded.tokens(5)):
            generation.tokens(output=9)
    assert recorded.told() == {**WHOLE, "time_per_output_token": 2.25 / 8, "output": 9.0}


def test_a_stream_of_nothing_has_no_first_token(recorded: Recorded):
    """A model that answers with nothing made 0 tokens."""
    assert list(recorded.generation().stream([])) == []
    assert recorded.told() == {"duration": 0.0, "output": 0.0}


# --- Failures ------------------------------------------------------------------------------------------------


async def test_an_error_counts_in_the_duration_alone(recorded: Recorded):
    """Whether the block or the stream raises, the exception goes its way and its class is told, with nothing else."""

    def fail(error: BaseException) -> None:
        with recorded.generation() as generation:
            generation.tokens(input=3, output=4)
            for _ in generation.stream(recorded.tokens(5)):
                raise error

    with pytest.raises(KeyError):
        fail(KeyError())
    with pytest.raises(OSError, match="gone"):
        list(recorded.generation().stream(recorded.tokens(1, error=OSError("gone"))))
    with pytest.raises(ValueError, match="gone"):
        [_ async for _ in recorded.generation().stream(recorded.tokens_async(1, error=ValueError("gone")))]
    assert recorded.told() == {"KeyError": 2.0, "OSError": 2.25, "ValueError": 2.25}


async def test_what_cannot_be_streamed_raises_where_it_is_read(recorded: Recorded):
    """An object that gives no tokens raises as in any loop, and that is the request's error."""
    with pytest.raises(TypeError, match="not iterable"):
        next(recorded.generation().stream(5))  # type: ignore[call-overload]
    assert recorded.told() == {"TypeError": 0.0}


def test_an_error_that_is_handled_in_the_block_is_none(recorded: Recorded):
    """The block's end decides, not the stream's."""
    with recorded.generation() as generation:
        try:
            list(generation.stream(recorded.tokens(5, error=OSError())))
        except OSError:
            generation.tokens(output=5)
    assert recorded.told() == WHOLE


DROPPED = {"time_to_first_token": 2.0, "output": 2.0}
"""What is known of a request that was dropped after two tokens."""


def test_a_stream_dropped_in_the_middle_is_no_error_and_has_no_duration(recorded: Recorded):
    """A client that goes away must not make the model look fast: the first token and the tokens are told."""
    stream = recorded.generation().stream(recorded.tokens(5))
    assert (next(stream), next(stream)) == ("token 0", "token 1")
    del stream
    assert recorded.told() == DROPPED


async def test_an_asynchronous_stream_dropped_in_the_middle_is_none_either(recorded: Recorded):
    """Let go of, it ends in one of the event loop's next turns."""
    stream = recorded.generation().stream(recorded.tokens_async(5))
    assert (await anext(stream), await anext(stream)) == ("token 0", "token 1")
    del stream
    for _ in range(1000):
        await asyncio.sleep(0)
        if recorded.points():
            break
    assert recorded.told() == DROPPED


@pytest.mark.parametrize("is_block", [True, False])
async def test_a_cancelled_task_is_no_error(recorded: Recorded, is_block: bool):
    """A cancelled request tells of what came before, in a block or without one, and stays cancelled."""
    came = asyncio.Event()

    async def tokens() -> AsyncIterator[str]:
        async for token in recorded.tokens_async(2):
            yield token
        came.set()
        await asyncio.Event().wait()

    async def request() -> None:
        generation = recorded.generation()
        if is_block:
            async with generation:
                [_ async for _ in generation.stream(tokens())]
        else:
            [_ async for _ in generation.stream(tokens())]

    task = asyncio.create_task(request())
    await asyncio.wait_for(came.wait(), 30)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert recorded.told() == DROPPED


def test_a_stream_that_nobody_reads_leaves_nothing(recorded: Recorded):
    """Without a reader there was no request to time."""
    recorded.generation().stream(recorded.tokens(5))
    assert recorded.points() == {}


def test_an_interrupted_block_is_no_error(recorded: Recorded):
    """Who presses Ctrl-C has not made the model fail."""

    def interrupt() -> None:
        with recorded.generation() as generation:
            generation.tokens(input=2)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupt()
    assert recorded.told() == {"input": 2.0}


def test_a_generation_used_again_begins_anew(recorded: Recorded):
    """Nothing of the first request is in the second."""
    generation = recorded.generation()
    with generation:
        generation.tokens(input=1)
        list(generation.stream(recorded.tokens(2)))
    generation.first_token()
    recorded.now += 1.0
    with generation:
        recorded.now += 1.0
    sums = {name: [(count, total) for _, count, total in every] for name, every in recorded.points().items()}
    assert sums == {
        DURATION.name: [(2, 3.75)],
        FIRST.name: [(1, 2.0)],
        EACH.name: [(1, 0.75)],
        USAGE.name: [(1, 1.0), (1, 2.0)],
    }


# --- Whatever is told -------------------------------------------------------------------------------------------


class Bomb:
    """A number that cannot be read."""

    def __float__(self) -> float:
        raise RuntimeError


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (-1, "negative"), (float("nan"), "not_finite"), (float("inf"), "not_finite"), ("many", "type"),
        (Bomb(), "type"), (10**400, "type"), ([1], "type"),
    ],
)  # fmt: skip
def test_odd_numbers_of_tokens_are_dropped_and_counted(recorded: Recorded, number: Any, reason: str):
    """No number of tokens raises, spoils the times, or stands on the page where it is none."""
    with recorded.generation() as generation:
        generation.first_token()
        recorded.now += 1.0
        generation.tokens(input=number, output=number)
    assert recorded.told() == {"duration": 1.0, "time_to_first_token": 0.0}
    assert recorded.dropped == {reason: 2}


@pytest.mark.parametrize("given", [None, "", 5, Bomb(), ["chat"]])
def test_a_name_that_is_no_text_becomes_other(recorded: Recorded, given: Any):
    """Required attributes are there, whatever was given for them."""
    with recorded.generation(given, given, given):
        pass
    ((attributes, _, _),) = recorded.points()[DURATION.name]
    other = "poet" if given is None else "_OTHER"
    assert [*attributes.values()] == ["_OTHER", "_OTHER", other, "poet:v7"]


def test_what_a_client_asks_for_is_cut(recorded: Recorded):
    """The name of a model that a client has sent takes up so much of a label and no more."""
    with recorded.generation(request_model="x" * 100_000):
        pass
    ((attributes, _, _),) = recorded.points()[DURATION.name]
    assert attributes["gen_ai.request.model"] == "x" * 200


def test_a_generation_is_no_decorator(recorded: Recorded):
    """It says so at once, and what to write instead."""
    with pytest.raises(TypeError, match=r"with model\.generation"):
        recorded.generation()(lambda: None)


def test_nothing_is_recorded_by_a_provider_that_is_disabled():
    """A generation without telemetry passes the tokens on."""
    provider = MeterProvider(shutdown_on_exit=False, disabled=True)
    assert list(Generation(provider, MODEL, provider="vllm").stream([1, 2])) == [1, 2]


# --- Names -----------------------------------------------------------------------------------------------------------


def test_the_rows_are_those_of_the_conventions():
    """Names, units, attributes and buckets are OpenTelemetry's for generative AI, as of its repository in 2026."""
    every = ("gen_ai.operation.name", "gen_ai.provider.name", "gen_ai.request.model", "gen_ai.response.model")
    found = {row.name: (row.kind, row.unit, row.attributes, row.optional_attributes) for row in rows.GENERATION}
    assert found == {
        "gen_ai.server.request.duration": ("histogram", "s", every, ("error.type",)),
        "gen_ai.server.time_to_first_token": ("histogram", "s", every, ()),
        "gen_ai.server.time_per_output_token": ("histogram", "s", every, ()),
        "gen_ai.client.token.usage": ("histogram", "{token}", (*every, "gen_ai.token.type"), ()),
    }
    assert DURATION.buckets == tuple(0.01 * 2**power for power in range(14))
    assert FIRST.buckets == (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
    assert EACH.buckets == (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
    assert USAGE.buckets == (
        1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, 67108864,
    )  # fmt: skip


def test_the_page_has_the_conventions_names_with_underscores(recorded: Recorded):
    """The page's names have the unit, and both of its formats parse."""
    generation = recorded.generation()
    generation.tokens(input=3)
    list(generation.stream(recorded.tokens(5)))
    with pytest.raises(OSError), recorded.generation():  # noqa: PT011 (it is the class that counts)
        raise OSError
    page = check_page(recorded.page)
    labels = {title.replace(".", "_"): text for title, text in ATTRIBUTES.items()}
    assert page.value("gen_ai_server_request_duration_seconds_sum", **labels) == 4.25
    assert page.value("gen_ai_server_request_duration_seconds_count", **labels, error_type="OSError") == 1.0
    assert page.value("gen_ai_server_time_to_first_token_seconds_sum", **labels) == 2.0
    assert page.value("gen_ai_server_time_per_output_token_seconds_sum", **labels) == 2.25 / 4
    assert page.value("gen_ai_client_token_usage_sum", **labels, gen_ai_token_type="input") == 3.0
    assert page.value("gen_ai_client_token_usage_sum", **labels, gen_ai_token_type="output") == 5.0
