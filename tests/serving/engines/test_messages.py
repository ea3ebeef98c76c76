from __future__ import annotations

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage

from governance.call import CallError
from serving.engines.messages import items_to_chat, items_to_langchain, langchain_to_items

ITEMS = [
    {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "q"}]},
    {"type": "message", "role": "assistant", "content": "I look"},
    {"type": "function_call", "call_id": "a", "name": "f", "arguments": '{"x": 1}'},
    {"type": "function_call", "call_id": "b", "name": "f", "arguments": ""},
    {"type": "function_call_output", "call_id": "a", "output": "1"},
    {"type": "function_call_output", "call_id": "b", "output": "2"},
    {"type": "function_call", "call_id": "c", "name": "g", "arguments": "{}"},
]


def test_items_become_langchain_messages_and_back() -> None:
    messages = items_to_langchain({"instructions": "be kind", "input": ITEMS})
    assert [type(message) for message in messages] == [
        SystemMessage,
        HumanMessage,
        AIMessage,
        ToolMessage,
        ToolMessage,
        AIMessage,
    ]
    asking = messages[2]
    assert isinstance(asking, AIMessage)
    assert asking.text == "I look"
    assert [call["args"] for call in asking.tool_calls] == [{"x": 1}, {}]
    again = langchain_to_items(messages)
    assert again[0] == {"type": "message", "role": "system", "content": "be kind"}
    assert [item.get("call_id") for item in again[3:]] == ["a", "b", "a", "b", "c"]


def test_items_become_chat_messages() -> None:
    messages = items_to_chat({"input": ITEMS})
    assert [message["role"] for message in messages] == ["user", "assistant", "tool", "tool", "assistant"]
    assert messages[0]["content"] == "q"
    assert [call["id"] for call in messages[1]["tool_calls"]] == ["a", "b"]


@pytest.mark.parametrize("arguments", ["{", "[1]", "3"])
def test_arguments_that_are_no_object(arguments: str) -> None:
    items = [ITEMS[0], {"type": "function_call", "call_id": "a", "name": "f", "arguments": arguments}]
    with pytest.raises(CallError) as caught:
        items_to_langchain({"input": items})
    assert caught.value.param == "input[1].arguments"
