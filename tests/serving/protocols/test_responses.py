from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

from governance.call import STEP, Call, CallError, Event, unavailable
from serving.engines.answer import Answer
from serving.protocols import responses
from tests.serving.protocols.test_chat import JSON, refusal

ADAPTER: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


def decode(**body: Any) -> Any:
    return responses.decode({"model": "m", **body})


def test_a_string_is_one_user_message() -> None:
    assert decode(input="hi").payload["input"] == [{"type": "message", "role": "user", "content": "hi"}]


def test_items_as_clients_send_them_back() -> None:
    given_items = [
        {"role": "user", "content": [{"type": "input_text", "text": "q"}]},
        {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant",
         "content": [{"type": "output_text", "text": "a", "annotations": []}, {"type": "refusal", "refusal": "no"}]},
        {"type": "function_call", "id": "fc", "call_id": "c", "name": "f", "arguments": "{}", "status": "completed"},
        {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "r"}]},
        {"type": "reasoning", "id": "r", "summary": []},
    ]  # fmt: skip
    assert decode(input=given_items).payload["input"] == [
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "q"}]},
        {"type": "message", "role": "assistant", "content": "ano"},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "r"},
        {"type": "reasoning", "id": "r", "summary": []},
    ]


@pytest.mark.parametrize(
    ("body", "thread"),
    [
        ({"conversation": "c"}, "c"),
        ({"conversation": {"id": "c"}}, "c"),
        ({"custom_inputs": {"thread_id": "c"}}, "c"),
        ({"context": {"conversation_id": "c"}}, "c"),
        ({"conversation": "c", "custom_inputs": {"thread_id": "d"}}, "c"),
        ({}, None),
    ],
)
def test_threads(body: dict[str, Any], thread: str | None) -> None:
    assert decode(input="hi", **body).thread_id == thread


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"),
        ({"input": "x", "tool_choice": "required"}, "tool_choice"),
        ({"input": "x", "tool_choice": {"type": "function", "name": "f"}}, "tool_choice"),
        ({"input": []}, "input"),
        ({"input": 5}, "input"),
        ({"input": [5]}, "input[0]"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role"),
        ({"input": [{"type": "computer_call"}]}, "input[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "input[0].content[0].type"),
        ({"input": [{"type": "function_call", "call_id": "c", "name": "f"}]}, "input[0].arguments"),
        ({"input": "x", "background": True, "store": False}, "store"),
        ({"input": [{"type": "mcp_approval_response", "approval_request_id": "m"}]}, "input[0].approve"),
        ({"input": [{"type": "mcp_approval_response", "approve": True}]}, "input[0].approval_request_id"),
        ({"input": "x", "instructions": 3}, "instructions"),
        ({"input": "x", "conversation": 3}, "conversation"),
        ({"input": "x", "conversation": ""}, "conversation"),
        ({"input": "x", "conversation": "c", "previous_response_id": "r"}, "previous_response_id"),
        ({"input": "x", "tools": [{"type": "mcp"}]}, "tools[0].type"),
        ({"input": "x", "text": {"format": {"type": "json_schema"}}}, "text.format.name"),
        ({"input": "x", "max_output_tokens": "5"}, "max_output_tokens"),
        ({"input": "x", "store": "no"}, "store"),
    ],
)
def test_what_is_wrong_is_named(body: dict[str, Any], param: str) -> None:
    with pytest.raises(CallError) as caught:
        decode(**body)
    assert (caught.value.status, caught.value.param) == (400, param)


@settings(max_examples=150, deadline=None)
@given(JSON)
def test_no_json_breaks_the_decoder(value: Any) -> None:
    for field in ("input", "conversation", "text", "tools"):
        assert refusal(responses.decode, {"model": "m", "input": "x", field: value}) in (None, 400)


def stream(events: list[Event], **options: Any) -> str:
    encoder = responses.Encoder(Call("m", "chat", {}), **options)
    return b"".join(encoder.event(event) for event in events).decode()


def events() -> list[Event]:
    answer = Answer(Call("m", "chat", {"instructions": "i", "tools": [], "metadata": {"k": "v"}}))
    note = {"type": "url_citation", "start_index": 0, "end_index": 2, "url": "u", "title": "t"}
    made = [*answer.start(), Event(STEP, {"name": "hidden"}), *answer.write("a"), *answer.write("b"), *answer.annotate(note)]
    made += [*answer.call_tool("c", "f"), *answer.arguments("{}"), *answer.call_tool("d", "g"), *answer.write("after")]
    return [*made, *answer.finish(usage={"input_tokens": 1, "output_tokens": 2}, metadata={"mode": "x"}, custom_outputs={"y": 1})]


def test_every_event_is_openais() -> None:
    blocks = stream(events()).strip().split("\n\n")
    numbers = []
    for block in blocks:
        head, data = block.split("\n")
        body = json.loads(data.removeprefix("data: "))
        assert head == f"event: {body['type']}"
        parsed = ADAPTER.validate_python(body)
        assert parsed.type == body["type"]
        numbers.append(body["sequence_number"])
    assert numbers == list(range(len(blocks)))
    final = json.loads(blocks[-1].split("data: ")[1])["response"]
    assert [item["type"] for item in final["output"]] == ["message", "function_call", "function_call", "message"]
    assert final["output"][0]["content"][0]["annotations"][0]["url"] == "u"
    assert (final["metadata"], final["instructions"], final["custom_outputs"]) == ({"k": "v", "mode": "x"}, "i", {"y": 1})
    assert len({item["id"] for item in final["output"]}) == 4


def test_bare_streams_are_data_lines_and_done_once() -> None:
    lines = [line for line in stream(events(), bare=True).split("\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    assert [line for line in lines if line == "data: [DONE]"] == [lines[-1]]


def test_a_stream_that_breaks_without_a_terminal_event() -> None:
    body = responses.Encoder(Call("m", "chat", {})).failure(unavailable("Gone."))
    event = ADAPTER.validate_python(json.loads(body.decode().split("data: ")[1]))
    assert (event.type, event.message) == ("error", "Gone.")
