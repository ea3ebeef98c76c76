from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool

from governance.call import Call, CallError, Event
from serving.chat_model import EndpointChatModel
from serving.endpoint import Endpoint
from tests.serving.upstream import House, house

pytestmark = pytest.mark.anyio


@tool
def weather(city: str) -> str:
    """Weather of a city."""
    return "sunny"


async def within(made: House, work: Callable[[Any], Awaitable[Any]], **defaults: Any) -> Any:
    """Do `work` with a chat model of `echo`, inside a governed call."""
    model = EndpointChatModel(dispatcher=made.dispatcher, endpoint="echo", **defaults)
    kept: list[Any] = []

    async def engine(call: Call) -> AsyncIterator[Event]:
        kept.append(await work(model))
        yield Event("result", {"result": {}})

    made.endpoints.register(Endpoint("outer", "llm/v1/chat", engine))
    await made.dispatcher.invoke(Call("outer", "chat", {}, made.admin))
    return kept[0]


async def test_invoke(tmp_path: Path) -> None:
    with house(tmp_path) as made:
        answer = await within(made, lambda model: model.ainvoke("hello there"), temperature=0.5, max_tokens=9)
        assert answer.text == "hello there"
        assert answer.usage_metadata["total_tokens"] == 8
        assert answer.response_metadata["finish_reason"] == "stop"
        payload = made.ran[-1].payload
        assert (payload["temperature"], payload["max_output_tokens"]) == (0.5, 9)
        assert made.ran[-1].parent_id


async def test_stream(tmp_path: Path) -> None:
    with house(tmp_path) as made:

        async def work(model: Any) -> list[Any]:
            return [chunk async for chunk in model.astream("a b c", stop=["x"])]

        chunks = await within(made, work)
        assert [chunk.text for chunk in chunks if chunk.text] == ["a", " b", " c"]
        whole: Any = sum(chunks[1:], chunks[0])
        assert whole.usage_metadata["total_tokens"] == 8
        assert made.ran[-1].payload["stop"] == ["x"]


async def test_tools(tmp_path: Path) -> None:
    with house(tmp_path) as made:
        answer = await within(made, lambda model: model.bind_tools([weather], tool_choice="weather").ainvoke("x"))
        assert answer.tool_calls == [{"name": "weather", "args": {"city": "Rome"}, "id": "call_1", "type": "tool_call"}]
        payload = made.ran[-1].payload
        assert payload["tools"][0]["name"] == "weather"
        assert payload["tool_choice"] == {"type": "function", "name": "weather"}

        async def stream(model: Any) -> Any:
            chunks = [chunk async for chunk in model.bind_tools([weather]).astream("x")]
            return sum(chunks[1:], chunks[0])

        assert (await within(made, stream)).tool_calls[0]["args"] == {"city": "Rome"}
        answer = await within(made, lambda model: model.bind_tools([weather], tool_choice="any").ainvoke("x"))
        assert made.ran[-1].payload["tool_choice"] == "required"


async def test_a_history_with_tool_results(tmp_path: Path) -> None:
    with house(tmp_path) as made:
        call: Any = {"name": "weather", "args": {"city": "Rome"}, "id": "c", "type": "tool_call"}
        history = [
            SystemMessage("s"),
            HumanMessage("h"),
            AIMessage("a", tool_calls=[call]),
            ToolMessage("sunny", tool_call_id="c"),
            HumanMessage("bye"),
        ]
        assert (await within(made, lambda model: model.ainvoke(history))).text == "bye"
        kinds = [(item["type"], item.get("role")) for item in made.ran[-1].payload["input"]]
        assert kinds == [("message", "system"), ("message", "user"), ("message", "assistant"), ("function_call", None),
                         ("function_call_output", None), ("message", "user")]  # fmt: skip


async def test_failures_are_call_errors(tmp_path: Path) -> None:
    with house(tmp_path) as made:
        for text, status in (("!refuse", 429), ("!break", 503)):
            with pytest.raises(CallError) as caught:
                await within(made, lambda model, text=text: model.ainvoke(text))
            assert caught.value.status == status

        async def stream(model: Any) -> None:
            async for _ in model.astream("!break"):
                pass

        with pytest.raises(CallError, match="It broke"):
            await within(made, stream)
