from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any

import pytest

from governance.call import Call, CallError, Event
from governance.resilience import resilient
from serving.engines.external import ExternalChat, Timeouts
from serving.engines.upstream import Upstream as Address
from tests.serving.upstream import KEY, TEXT, Upstream

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    opened = Upstream()
    yield opened
    opened.close()


@pytest.fixture
async def engine(upstream: Upstream) -> AsyncIterator[Any]:
    opened: list[ExternalChat] = []

    def make(
        model: str | None, *, key: str = KEY, provider: str = "custom", base: str | None = None, **seconds: float
    ) -> ExternalChat:
        address = Address(base or upstream.url, model, key, provider)
        opened.append(ExternalChat(address, timeouts=Timeouts(**{"first_byte": 60.0, "between": 60.0, **seconds})))
        return opened[-1]

    yield make
    for each in opened:
        await each.aclose()


def ask(text: str = "hello", **more: Any) -> Call:
    return Call("chat", "chat", {"input": [{"type": "message", "role": "user", "content": text}], **more})


async def run(engine: ExternalChat, call: Call | None = None) -> list[Event]:
    return [event async for event in engine.run(call or ask())]


def said(events: list[Event]) -> str:
    return "".join(event.data["delta"] for event in events if event.type == "response.output_text.delta")


@pytest.mark.parametrize("model", ["echo", "split", "whole", "no-usage-option"])
async def test_text_and_usage_however_it_is_sent(engine: Any, model: str) -> None:
    events = await run(engine(model))
    assert said(events) == TEXT
    assert [event.terminal for event in events] == [False] * (len(events) - 1) + [True]
    response = events[-1].data["response"]
    assert response["output"][0]["content"][0]["text"] == TEXT
    assert response["metadata"] == ({"usage": "estimated"} if model == "split" else {})
    total = response["usage"]["total_tokens"]
    assert total == 18 or (model == "split" and 10 < total < 30)


async def test_requests_are_translated(engine: Any, upstream: Upstream) -> None:
    items = [
        {"type": "message", "role": "developer", "content": "be brief"},
        {
            "type": "message",
            "role": "user",
            "content": [{"type": "input_text", "text": "look"}, {"type": "input_image", "image_url": "data:x"}],
        },
        {"type": "message", "role": "assistant", "content": "I call"},
        {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"},
        {"type": "function_call", "call_id": "b", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "a", "output": "1"},
    ]
    schema = {"type": "json_schema", "name": "s", "schema": {"type": "object"}, "strict": True}
    payload = {
        "input": items,
        "instructions": "be kind",
        "max_output_tokens": 9,
        "stop": ["x"],
        "temperature": 0.5,
        "text": {"format": schema},
    }
    await run(engine("echo", provider="openai"), Call("chat", "chat", payload))
    body = upstream.requests[-1]
    assert [message["role"] for message in body["messages"]] == ["system", "system", "user", "assistant", "tool"]
    assert body["messages"][2]["content"][1] == {"type": "image_url", "image_url": {"url": "data:x", "detail": "auto"}}
    assert [call["id"] for call in body["messages"][3]["tool_calls"]] == ["a", "b"]
    assert (body["max_completion_tokens"], body["stop"], body["temperature"]) == (9, ["x"], 0.5)
    assert body["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "s", "schema": {"type": "object"}, "strict": True},
    }
    await run(engine("echo"), ask(max_output_tokens=3))
    assert upstream.requests[-1]["max_tokens"] == 3


async def test_parallel_tool_calls(engine: Any, upstream: Upstream) -> None:
    tool = {"type": "function", "name": "weather", "description": "d", "parameters": {"type": "object"}, "strict": False}
    events = await run(engine("tools"), ask(tools=[tool], tool_choice={"type": "function", "name": "weather"}))
    output = events[-1].data["response"]["output"]
    assert [(item["call_id"], item["name"], item["arguments"]) for item in output] == [
        ("c0", "weather", '{"city": "Rome"}'),
        ("c1", "weather", '{"city": "Oslo"}'),
    ]
    assert upstream.requests[-1]["tool_choice"] == {"type": "function", "function": {"name": "weather"}}
    assert upstream.requests[-1]["tools"][0]["function"]["description"] == "d"


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("model", "calls"),
    [
        ("by-turns", [("c0", '{"mail": "ann@example.org"}'), ("c1", '{"card": "4111 1111 1111 1111"}')]),
        ("same-index", [("a", '{"city": "Rome"}'), ("b", '{"city": "Oslo"}')]),
    ],
)
async def test_tool_calls_however_their_pieces_come(engine: Any, model: str, calls: list[tuple[str, str]], stream: bool) -> None:
    events = await run(engine(model), replace(ask(), stream=stream))
    output = events[-1].data["response"]["output"]
    assert [(item["call_id"], item["arguments"]) for item in output] == calls
    done = [event.data["arguments"] for event in events if event.type == "response.function_call_arguments.done"]
    assert done == ([arguments for _, arguments in calls] if stream else [])


async def test_a_tool_call_that_goes_on_after_its_end_is_no_answer(engine: Any) -> None:
    with pytest.raises(CallError, match="cannot be read"):
        await run(engine("goes-on"))


async def test_an_answer_cut_short_is_incomplete(engine: Any) -> None:
    last = (await run(engine("long")))[-1]
    assert (last.type, last.data["response"]["incomplete_details"]) == ("response.incomplete", {"reason": "max_output_tokens"})


@pytest.mark.parametrize(
    ("model", "status", "says"),
    [
        ("fails", 502, "HTTP 500"),
        ("busy", 429, "limit"),
        ("too-much", 400, "context_length_exceeded: This model's maximum context length is 10 tokens"),
        ("overloaded", 503, "HTTP 503"),
        ("redirects", 424, "redirects"),
        ("missing", 424, "There is no model 'missing'"),
        ("broke", 424, "no credit"),
        ("spent", 424, "insufficient_quota: You exceeded"),
        ("silent", 504, "did not answer in 0.3 s"),
    ],
)
async def test_refusals_come_before_the_first_event(engine: Any, model: str, status: int, says: str) -> None:
    with pytest.raises(CallError, match=says) as caught:
        await anext(engine(model, first_byte=0.3 if model == "silent" else 60).run(ask()))
    assert caught.value.status == status
    assert KEY not in caught.value.message
    assert len(caught.value.message) < 500
    assert "\n" not in caught.value.message
    if model == "busy":
        assert caught.value.retry_after == 7


async def test_a_wrong_key_is_the_servers_own_trouble(engine: Any) -> None:
    with pytest.raises(CallError, match="Check SMALTI_CHAT_API_KEY") as caught:
        await run(engine("echo", key="wrong-key-of-ours"))
    assert (caught.value.status, caught.value.code) == (424, "INVALID_STATE")
    assert "wrong-key-of-ours" not in caught.value.message


async def test_a_connection_that_was_closed_meanwhile_is_tried_once_more(engine: Any, upstream: Upstream) -> None:
    assert said(await run(engine("drops-once"))) == TEXT
    with pytest.raises(CallError, match="broke the connection") as caught:
        await run(engine("drops"))
    assert caught.value.status == 502
    assert sum(each["model"] == "drops" for each in upstream.requests) == 2


async def test_nobody_there(engine: Any) -> None:
    with pytest.raises(CallError, match=r"127\.0\.0\.1:9 cannot be reached"):
        await run(engine("echo", base="http://127.0.0.1:9/v1"))


async def test_nobody_who_would_take_a_connection_is_waited_for_once(engine: Any, upstream: Upstream) -> None:
    """An address that says nothing: another that follows is asked after one connection's time, not after three."""
    tried: list[str] = []

    def noted(name: str, to: Any) -> Any:
        def ask_it(call: Call) -> Any:
            tried.append(name)
            return to.run(call)

        return ask_it

    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, contextlib.ExitStack() as waiting:
        for _ in range(4):  # the one that fits, and more than may wait
            client = waiting.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(full.getsockname())
        hole = engine("echo", base=f"http://127.0.0.1:{full.getsockname()[1]}/v1", connect=0.3)
        alone = resilient([("hole", noted("hole", hole))])
        with pytest.raises(CallError, match=r"took no connection in 0\.3 s") as caught:
            _ = [event async for event in alone(ask())]
        assert (caught.value.status, tried) == (504, ["hole"])
        both = resilient([("hole", noted("hole", hole)), ("echo", noted("echo", engine("echo")))], fallback=lambda: True)
        assert [event async for event in both(ask())][-1].type == "response.completed"
    assert tried == ["hole", "hole", "echo"]


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("stops", "in the middle"),
        ("error-inside", "CUDA out of memory"),
        ("garbage", "not JSON"),
        ("huge", "cannot be read"),
        ("stalls", "stopped sending"),
    ],
)
async def test_failures_in_the_middle(engine: Any, model: str, says: str) -> None:
    events: list[Event] = []

    async def read() -> None:
        async for event in engine(model, between=0.3 if model == "stalls" else 60).run(ask()):
            events.append(event)

    with pytest.raises(CallError, match=says) as caught:
        await read()
    assert caught.value.status in (502, 504)
    assert events[0].type == "response.created"
    assert not any(event.terminal for event in events)


async def test_what_was_said_before_a_failure_is_told_though_nobody_follows(engine: Any) -> None:
    for stream in (False, True):
        call = Call("chat", "chat", {"input": [{"type": "message", "role": "user", "content": "x"}]}, stream=stream)
        events: list[Event] = []

        async def read(call: Call = call, events: list[Event] = events) -> None:
            async for event in engine("stops").run(call):
                events.append(event)

        with pytest.raises(CallError, match="in the middle"):
            await read()
        assert said(events) == "The half of"


async def test_a_slow_reader_is_no_silent_upstream(engine: Any) -> None:
    events = []
    async for event in engine("echo", between=2).run(ask()):
        events.append(event)
        if len(events) == 5:
            await asyncio.sleep(2.5)
    assert events[-1].type == "response.completed"


async def test_closing_the_generator_ends_the_upstreams_answer() -> None:
    upstream = Upstream()
    engine = ExternalChat(Address(upstream.url, "endless", KEY))
    try:
        events: Any = engine.run(ask())
        async for event in events:
            if event.type == "response.output_text.delta":
                break
        await events.aclose()
        assert await asyncio.to_thread(upstream.gone.wait, 60)
    finally:
        await engine.aclose()
        upstream.close()


async def test_the_first_model_listed_is_used_where_none_is_named(engine: Any, upstream: Upstream) -> None:
    assert said(await run(engine(None))) == TEXT
    assert upstream.requests[-1]["model"] == "echo"


async def test_a_connection_is_used_again_after_a_stream() -> None:
    """The upstream ends its answer after `[DONE]`; reading up to there only would cost a new connection for every call."""
    connections, answered = [], 0
    chunk = b'data: {"choices":[{"index":0,"delta":{"content":"x"},"finish_reason":"stop"}]}\n\n'

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal answered
        connections.append(writer)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
                for part in (chunk, b"data: [DONE]\n\n"):
                    writer.write(b"%x\r\n%s\r\n" % (len(part), part))
                    await writer.drain()
                    await asyncio.sleep(0)
                writer.write(b"0\r\n\r\n")
                answered += 1

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    engine = ExternalChat(Address(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", "m"))
    try:
        for _ in range(5):
            assert said(await run(engine)) == "x"
        assert (len(connections), answered) == (1, 5)
    finally:
        await engine.aclose()
        server.close()
        for writer in connections:
            writer.close()
