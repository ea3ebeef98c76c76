"""What an MLflow agent gives, item by item, as the answer that clients read; the model's process is played by a list."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import orjson
import pytest

from governance.call import Call, Event
from serving.engines import pyfunc
from serving.protocols import chat, chat_agent, responses, ui_messages

pytestmark = pytest.mark.anyio

CALL = {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "look", "arguments": "{}"}
FOUND = {"type": "function_call_output", "call_id": "call_1", "output": "found"}
SAID = {"type": "message", "id": "msg_1", "role": "assistant", "content": [{"type": "output_text", "text": "It is here."}]}
THOUGHT = {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "hm"}]}


class Told:
    """Gives what it was told to, as a model's process does."""

    def __init__(self, *given: Any) -> None:
        self._given = given

    async def ask(self, kind: str, body: Any, again: bool = False) -> Any:
        return self._given[0]

    async def stream(self, body: Any) -> AsyncGenerator[Any]:
        for each in self._given:
            yield each


async def events_of(task: str, *given: Any, stream: bool = False) -> tuple[Call, list[Event]]:
    call = Call("agent", "agent", {"input": [{"type": "message", "role": "user", "content": "where?"}]}, stream=stream)
    model: Any = Told(*given)
    return call, [event async for event in pyfunc.engine(model, task)(call)]


def done(item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "response.output_item.done", "item": item}


def delta(text: str) -> dict[str, Any]:
    return {"type": "response.output_text.delta", "item_id": "msg_1", "delta": text}


NOTED = {**SAID, "content": [{**SAID["content"][0], "annotations": [{"type": "url_citation", "url": "http://a", "title": "A"}]}]}


@pytest.mark.parametrize("stream", [False, True])
async def test_a_responses_agent_s_own_calls_and_thoughts_stand_in_its_answer(stream: bool) -> None:
    items = [THOUGHT, CALL, FOUND, NOTED]
    streamed = [*map(done, items[:3]), delta("It is "), delta("here."), done(NOTED)]
    given = streamed if stream else [{"output": items, "custom_outputs": {"a": 1}}]
    call, events = await events_of("agent/v1/responses", *given, stream=stream)
    response = events[-1].data["response"]
    assert [item["type"] for item in response["output"]] == ["reasoning", "function_call", "function_call_output", "message"]
    assert (response["output"][0], response["output"][1]["id"]) == (THOUGHT, "fc_1")
    part = response["output"][3]["content"][0]
    assert (part["text"], part["annotations"]) == ("It is here.", NOTED["content"][0]["annotations"])
    whole = orjson.loads(chat.Encoder(call).body(response))["choices"][0]
    assert (whole["finish_reason"], whole["message"]["content"]) == ("stop", "It is here.")
    assert "tool_calls" not in whole["message"]
    encoder, ui = chat.Encoder(call), ui_messages.Encoder(call)
    assert b"tool_calls" not in b"".join(map(encoder.event, events))  # a client would call them once more
    assert b"data-question" not in b"".join(map(ui.event, events))
    numbered = responses.Encoder(call)
    assert b"found" in b"".join(map(numbered.event, events))


async def test_calls_that_nobody_has_answered_are_the_client_s() -> None:
    call, events = await events_of("agent/v1/responses", done(CALL), stream=True)
    encoder = chat.Encoder(call)
    framed = b"".join(map(encoder.event, events))
    assert b'"name":"look"' in framed
    assert b'"finish_reason":"tool_calls"' in framed


async def test_a_chat_agent_answers_with_its_messages() -> None:
    asked = {"id": "t1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    messages = [
        {"role": "assistant", "content": "", "tool_calls": [asked], "id": "m0"},
        {"role": "tool", "content": "found", "tool_call_id": "t1", "name": "look", "id": "m1"},
        {"role": "assistant", "content": "It is here.", "id": "m2"},
    ]
    usage = {"prompt_tokens": 1, "completion_tokens": 2}
    call, events = await events_of("agent/v2/chat", {"messages": messages, "usage": usage})
    body = orjson.loads(chat_agent.Encoder(call, databricks=True).body(events[-1].data["response"]))
    assert [(each["role"], each["content"]) for each in body["messages"]] == [(m["role"], m["content"]) for m in messages]
    assert body["messages"][0]["tool_calls"] == [asked]
    assert (body["choices"][0]["message"]["content"], body["usage"]["total_tokens"]) == ("It is here.", 3)

    said = [{**messages[2], "content": text} for text in ("It ", "is")]
    parts = [{"delta": message} for message in [*messages[:2], *said]]
    call, events = await events_of("agent/v2/chat", *parts, stream=True)
    encoder = chat_agent.Encoder(call, databricks=True)
    lines = b"".join(map(encoder.event, events)).decode().split("\n\n")
    chunks = [orjson.loads(line.removeprefix("data: ")) for line in lines if line not in ("", "data: [DONE]")]
    assert "".join(chunk["delta"]["content"] for chunk in chunks if chunk["delta"]["role"] == "assistant") == "It is"
    assert [chunk["delta"]["content"] for chunk in chunks if chunk["delta"]["role"] == "tool"] == ["found"]
    assert chunks[-1]["finish_reason"] == "stop"


async def test_a_graph_s_state_is_answered_by_its_last_message() -> None:
    state = {"messages": [{"role": "user", "content": "where?"}, {"type": "ai", "content": "here"}]}
    for given in (state, [state]):
        _, events = await events_of("agent/v1/chat", given)
        assert events[-1].data["response"]["output"][0]["content"][0]["text"] == "here"
