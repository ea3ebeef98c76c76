"""Between Responses items, LangChain messages and Chat messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import orjson

from governance.call import bad_request

if TYPE_CHECKING:
    from langchain_core.messages import BaseMessage

    from agents.approvals import Decision


def text_of(content: Any) -> str:
    """The text of an item's content: a string, or text parts."""
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content or ())


def items_to_langchain(payload: Mapping[str, Any], *, asks: bool = True) -> list[BaseMessage]:
    """A request's instructions and input as LangChain messages; raises `CallError` (400) for anything but text.

    What a person decided is not among them; see `decisions`.
    Function calls that follow each other belong to one AI message, with the text before them. What `asks` has to ask something.
    """
    from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage

    messages: list[Any] = []
    if instructions := payload.get("instructions"):
        messages.append(SystemMessage(instructions))
    for position, item in enumerate(payload.get("input") or ()):
        kind = item.get("type", "message")
        if kind == "function_call":
            call = {"id": item["call_id"], "name": item["name"], "args": arguments_of(item, position), "type": "tool_call"}
            if messages and messages[-1].type == "ai":
                before = messages.pop()
                messages.append(AIMessage(before.text, tool_calls=[*before.tool_calls, call]))
            else:
                messages.append(AIMessage("", tool_calls=[call]))
        elif kind == "function_call_output":
            messages.append(ToolMessage(item["output"], tool_call_id=item["call_id"]))
        elif kind == "message":
            content: Any = item["content"]
            if not isinstance(content, str) and any(part["type"] != "input_text" for part in content):
                raise bad_request(
                    f"Field 'input[{position}]' holds an image; this endpoint reads text only.", f"input[{position}]"
                )
            make = {"assistant": AIMessage, "user": HumanMessage}.get(item["role"], SystemMessage)
            messages.append(make(text_of(content)))
    if asks and not any(message.type in ("human", "tool") for message in messages) and not decisions(payload):
        raise bad_request("The request asks nothing: send a message with role 'user'.", "input")
    return messages


def decisions(payload: Mapping[str, Any]) -> dict[str, Decision]:
    """What a person decided on the questions of a run that waits, by the question's id.

    An approval is answered by an `mcp_approval_response`, whose `arguments`, if it has any, replace those of the call; a question
    of another kind by the `function_call_output` of its call. Raises `CallError` (400).
    """
    from agents.approvals import Decision, run_of

    found: dict[str, Decision] = {}
    for position, item in enumerate(payload.get("input") or ()):
        if item.get("type") == "mcp_approval_response":
            arguments = arguments_of(item, position) if item.get("arguments") is not None else None
            found[item["approval_request_id"]] = Decision(item["approve"], arguments, item.get("reason") or "")
        elif item.get("type") == "function_call_output" and run_of(item["call_id"]):
            try:
                answer = orjson.loads(item["output"])
            except orjson.JSONDecodeError:
                answer = item["output"]
            found[item["call_id"]] = (
                _approval(answer, position) if item["call_id"].startswith("mcpr_") else Decision(answer=answer)
            )
        elif item.get("type") == "message":
            found = {}  # decided, and gone on from there
    return found


def _approval(answer: Any, position: int) -> Decision:
    """What a client of Chat Completions decided, which answers a request for approval as a tool call."""
    from agents.approvals import Decision

    told = {"approve": answer} if isinstance(answer, bool) else answer
    arguments = told.get("arguments") if isinstance(told, Mapping) else None
    if not isinstance(told, Mapping) or not isinstance(told.get("approve"), bool) or not isinstance(arguments, dict | None):
        path = f"input[{position}].output"
        raise bad_request(f"Field {path!r} decides an approval: true, false, or an object with 'approve', as JSON.", path)
    return Decision(told["approve"], arguments, str(told.get("reason") or ""))


def arguments_of(item: Mapping[str, Any], position: int) -> dict[str, Any]:
    """The arguments of the item at this position of the input. Raises `CallError` (400)."""
    try:
        arguments = orjson.loads(item["arguments"] or "{}")
    except orjson.JSONDecodeError:
        arguments = None
    if not isinstance(arguments, dict):
        raise bad_request(f"Field 'input[{position}].arguments' must be a JSON object as text.", f"input[{position}].arguments")
    return arguments


def langchain_to_items(messages: Sequence[BaseMessage]) -> list[dict[str, Any]]:
    """LangChain messages as Responses items, for an inner call of a chat endpoint."""
    items: list[dict[str, Any]] = []
    for message in messages:
        match message.type:
            case "tool":
                items.append(
                    {"type": "function_call_output", "call_id": getattr(message, "tool_call_id", ""), "output": message.text}
                )
            case "ai":
                if message.text:
                    items.append({"type": "message", "role": "assistant", "content": message.text})
                for call in getattr(message, "tool_calls", None) or ():
                    arguments = orjson.dumps(call["args"]).decode()
                    items.append(
                        {"type": "function_call", "call_id": call["id"] or "", "name": call["name"], "arguments": arguments}
                    )
            case "system":
                items.append({"type": "message", "role": "system", "content": message.text})
            case _:
                items.append({"type": "message", "role": "user", "content": message.text})
    return items


def items_to_chat(payload: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A request's instructions and input as Chat Completions messages, for an upstream."""
    messages: list[dict[str, Any]] = []
    if instructions := payload.get("instructions"):
        messages.append({"role": "system", "content": instructions})
    for item in payload.get("input") or ():
        kind = item.get("type", "message")
        if kind == "function_call":
            function = {"name": item["name"], "arguments": item["arguments"]}
            call = {"id": item["call_id"], "type": "function", "function": function}
            if messages and messages[-1]["role"] == "assistant":
                messages[-1].setdefault("tool_calls", []).append(call)
            else:
                messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
        elif kind == "function_call_output":
            messages.append({"role": "tool", "tool_call_id": item["call_id"], "content": item["output"]})
        elif kind == "message":
            role = "system" if item["role"] == "developer" else item["role"]
            messages.append({"role": role, "content": _chat_content(item["content"])})
    return messages


def _chat_content(content: Any) -> Any:
    if isinstance(content, str):
        return content
    if all(part["type"] == "input_text" for part in content):
        return text_of(content)
    return [
        {"type": "text", "text": part["text"]}
        if part["type"] == "input_text"
        else {"type": "image_url", "image_url": {"url": part["image_url"], "detail": part.get("detail", "auto")}}
        for part in content
    ]
