from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from governance.call import Call, CallError, Event
from serving.engines.answer import Answer
from serving.protocols import chat

ASK = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def test_messages_become_items() -> None:
    body = {
        "model": "m",
        "messages": [
            {"role": "system", "content": "s"},
            {"role": "developer", "content": [{"type": "text", "text": "d"}]},
            {
                "role": "user",
                "content": [{"type": "text", "text": "u"}, {"type": "image_url", "image_url": {"url": "data:x"}}],
                "name": "n",
            },
            {
                "role": "assistant",
                "content": "a",
                "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
            },
            {"role": "tool", "tool_call_id": "c", "content": [{"type": "text", "text": "r1"}, {"type": "text", "text": "r2"}]},
            {"role": "assistant", "content": None, "tool_calls": [{"id": "d", "function": {"name": "f", "arguments": ""}}]},
        ],
    }
    assert chat.decode(body).payload["input"] == [
        {"type": "message", "role": "system", "content": "s"},
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "d"}]},
        {
            "type": "message",
            "role": "user",
            "content": [{"type": "input_text", "text": "u"}, {"type": "input_image", "image_url": "data:x", "detail": "auto"}],
        },
        {"type": "message", "role": "assistant", "content": "a"},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "r1r2"},
        {"type": "function_call", "call_id": "d", "name": "f", "arguments": ""},
    ]


def test_parameters_become_the_responses_apis() -> None:
    body = ASK | {
        "max_tokens": 5, "max_completion_tokens": 7, "temperature": 1, "top_p": 0.5, "stop": "x", "seed": 3, "user": "u",
        "metadata": {"a": "b"}, "reasoning_effort": "low", "stream": True, "stream_options": {"include_usage": True},
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}, "strict": True}}],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object"}}},
        "custom_inputs": {"thread_id": "t"}, "client_request_id": "c", "usage_context": {"x": "y"}, "an_unknown_field": [1],
    }  # fmt: skip
    request = chat.decode(body)
    assert {**request.payload, "input": None} == {
        "model": "m", "input": None, "max_output_tokens": 7, "temperature": 1, "top_p": 0.5, "stop": ["x"], "seed": 3,
        "user": "u", "metadata": {"a": "b"}, "reasoning": {"effort": "low"},
        "tools": [{"type": "function", "name": "f", "description": None, "parameters": {"type": "object"}, "strict": True}],
        "tool_choice": {"type": "function", "name": "f"},
        "text": {"format": {"type": "json_schema", "name": "s", "schema": {"type": "object"}}},
        "custom_inputs": {"thread_id": "t"},
    }  # fmt: skip
    assert (request.stream, request.thread_id, request.client_request_id) == (True, "t", "c")
    assert request.usage_context == {"x": "y"}
    assert chat.decode(ASK | {"context": {"conversation_id": "v"}}).thread_id == "v"


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"model": None}, "model"),
        ({"model": 3}, "model"),
        ({"model": ""}, "model"),
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": ["hi"]}, "messages[0]"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "assistant"}]}, "messages[0].content"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"id": "x"}]}]}, "messages[0].tool_calls[0].function"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"temperature": 3}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"n": 33}, "n"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"stop": [1]}, "stop"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
        ({"tool_choice": "sometimes"}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": 5}}}, "response_format.json_schema.name"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"custom_inputs": {"thread_id": 5}}, "custom_inputs.thread_id"),
        ({"custom_inputs": {"thread_id": "x" * 200}}, "conversation"),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, Any], param: str) -> None:
    with pytest.raises(CallError) as caught:
        chat.decode(ASK | change)
    assert (caught.value.status, caught.value.param) == (400, param)
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 300


def test_a_schema_needs_no_name() -> None:
    form = {"type": "json_schema", "json_schema": {"schema": {"type": "object"}, "strict": True}}
    asked = chat.decode(ASK | {"response_format": form}).payload["text"]["format"]
    assert (asked["name"], asked["schema"]) == ("response", {"type": "object"}), "databricks-langchain 0.3 sends no name"


def refusal(decode: Any, body: dict[str, Any]) -> int | None:
    """The status a decoder refuses a body with; None where it reads it."""
    try:
        decode(body)
    except CallError as error:
        return error.status
    return None


KEYS = ["type", "role", "content", "text", "id"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["messages", "tools", "tool_choice", "response_format", "stop", "metadata", "custom_inputs", "context"]), JSON
)
def test_no_json_breaks_the_decoder(field: str, value: Any) -> None:
    assert refusal(chat.decode, ASK | {field: value}) in (None, 400)


def encoded(**options: Any) -> tuple[list[Any], dict[str, Any]]:
    """An answer of text with a citation and a tool call: its stream's chunks, and its whole body."""
    call = Call("m", "chat", {})
    answer, encoder = Answer(call), chat.Encoder(call, **options)
    note = {"type": "url_citation", "start_index": 0, "end_index": 2, "url": "u", "title": "t"}
    events: list[Event] = [*answer.start(), *answer.write("hé"), *answer.annotate(note), *answer.call_tool("c", "f")]
    events += [*answer.arguments("{"), *answer.arguments("}"), *answer.finish(usage={"input_tokens": 1, "output_tokens": 2})]
    lines = b"".join(encoder.event(event) for event in events).decode().split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
    return chunks, json.loads(chat.Encoder(call, **options).body(events[-1].data["response"]))


def test_stream_and_body_say_the_same() -> None:
    chunks, body = encoded()
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    message = body["choices"][0]["message"]
    assert "".join(delta.get("content") or "" for delta in deltas) == message["content"] == "hé"
    assert [note for delta in deltas for note in delta.get("annotations") or ()] == message["annotations"]
    assert message["annotations"][0]["url_citation"]["end_index"] == 2
    pieces = [part for delta in deltas for part in delta.get("tool_calls") or ()]
    assert (pieces[0]["id"], pieces[0]["function"]["name"]) == ("c", "f")
    assert (
        "".join(piece["function"].get("arguments", "") for piece in pieces)
        == message["tool_calls"][0]["function"]["arguments"]
        == "{}"
    )
    assert chunks[-1]["choices"][0]["finish_reason"] == body["choices"][0]["finish_reason"] == "tool_calls"
    assert "usage" not in chunks[-1]


def test_usage_in_the_stream() -> None:
    openai, _ = encoded(include_usage=True)
    assert (openai[-1]["choices"], openai[-1]["usage"]["total_tokens"]) == ([], 3)
    for asked in (True, False):
        databricks, _ = encoded(include_usage=asked, databricks=True)
        assert all(chunk["choices"] for chunk in databricks)
        assert [chunk["usage"]["total_tokens"] for chunk in databricks if chunk.get("usage")] == [3]
