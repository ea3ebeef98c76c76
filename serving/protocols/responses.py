"""OpenAI Responses. The inner event stream is this protocol's own, so encoding only numbers and frames events.

Source: https://platform.openai.com/docs/api-reference/responses and …/responses-streaming
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import orjson

from governance.call import STEP, Call, CallError, Event, bad_request
from serving.protocols import sse
from serving.protocols.request import (
    MAX_ITEMS,
    Request,
    choice,
    chosen,
    describe,
    named,
    number,
    present,
    stops,
    strings,
    tagged,
    take,
    thread_name,
)

ROLES = ("user", "assistant", "system", "developer")
_TEXT_PARTS = ("input_text", "output_text", "text", "summary_text", "reasoning_text")


def decode(body: Mapping[str, Any], *, model: str | None = None) -> Request:
    """A Responses request; `model` names the endpoint where the path does. Raises `CallError` (400)."""
    name = model or named(body)
    background = take(body, "background", bool)
    if background and body.get("store") is False:
        raise bad_request("Field 'store' must not be false for an answer in the background: it is kept to be fetched.", "store")
    previous = take(body, "previous_response_id", str)
    tags = tagged(body)
    tags["thread_id"] = _conversation(body) or tags["thread_id"]
    if previous and tags["thread_id"]:
        raise bad_request("Send either 'previous_response_id' or 'conversation', not both.", "previous_response_id")
    text, offered = take(body, "text", dict), tools(body)
    payload = {
        "model": name,
        "input": items(body),
        "instructions": take(body, "instructions", str),
        "previous_response_id": previous,
        "conversation": {"id": tags["thread_id"]} if tags["thread_id"] else None,
        "tools": offered,
        "tool_choice": chosen(_tool_choice(body), offered),
        "parallel_tool_calls": take(body, "parallel_tool_calls", bool),
        "text": {**text, "format": _format(text)} if text else None,
        "max_output_tokens": number(body, "max_output_tokens", 1, 10_000_000, kind=int),
        "temperature": number(body, "temperature", 0, 2),
        "top_p": number(body, "top_p", 0, 1),
        "stop": stops(body),
        "top_k": number(body, "top_k", 0, 1_000_000, kind=int),
        "top_logprobs": number(body, "top_logprobs", 0, 20, kind=int),
        "include": take(body, "include", list),
        "store": take(body, "store", bool),
        "background": background or None,
        "user": take(body, "user", str),
        "metadata": strings(body, "metadata") or None,
        "reasoning": take(body, "reasoning", dict),
        "truncation": choice(body, "truncation", ("auto", "disabled")),
        "custom_inputs": take(body, "custom_inputs", dict),
        "context": take(body, "context", dict),
    }
    return Request(name, present(payload), stream=bool(take(body, "stream", bool)), previous=previous, **tags)


def _conversation(body: Mapping[str, Any]) -> str | None:
    value = body.get("conversation")
    if isinstance(value, dict):
        value = take(value, "id", str, path="conversation.", required=True)
    elif value is not None and not isinstance(value, str):
        raise bad_request(f"Field 'conversation' must be a string or an object with 'id', not {describe(value)}.", "conversation")
    return None if value is None else thread_name(value)


def items(body: Mapping[str, Any], field: str = "input") -> list[dict[str, Any]]:
    """`input` as a list of checked items; a string becomes one user message. `field` is what errors call it."""
    value = body.get("input")
    if value is None:
        raise bad_request(f"Missing field {field!r}: send a string or an array of items.", field)
    if isinstance(value, str):
        return [{"type": "message", "role": "user", "content": value}]
    if not isinstance(value, list):
        raise bad_request(f"Field {field!r} must be a string or an array, not {describe(value)}.", field)
    if not value:
        raise bad_request(f"Field {field!r} is empty: send at least one item.", field)
    if len(value) > MAX_ITEMS:
        raise bad_request(f"Field {field!r} has {len(value)} items; at most {MAX_ITEMS} are read.", field)
    return [_item(item, f"{field}[{position}]") for position, item in enumerate(value)]


def _item(item: Any, path: str) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise bad_request(f"Field {path!r} must be an object, not {describe(item)}.", path)
    kind = take(item, "type", str, path=f"{path}.") or "message"
    match kind:
        case "message":
            role = choice(item, "role", ROLES, path=f"{path}.", required=True)
            return {"type": "message", "role": role, "content": _content(item, path)}
        case "function_call":
            fields = {key: take(item, key, str, path=f"{path}.", required=True) for key in ("call_id", "name", "arguments")}
            return {"type": kind, **fields}
        case "function_call_output":
            call_id = take(item, "call_id", str, path=f"{path}.", required=True)
            output = item.get("output")
            if not isinstance(output, str):
                parts = _parts(output, f"{path}.output")
                output = "".join(part.get("text", "") for part in parts)
            return {"type": kind, "call_id": call_id, "output": output}
        case "reasoning" | "mcp_approval_request":
            return dict(item)
        case "mcp_approval_response":
            asked = take(item, "approval_request_id", str, path=f"{path}.", required=True)
            fields = {key: take(item, key, str, path=f"{path}.") for key in ("reason", "arguments")}
            approve = take(item, "approve", bool, path=f"{path}.", required=True)
            return {"type": kind, "approval_request_id": asked, "approve": approve, **present(fields)}
        case _:
            accepted = "message, function_call, function_call_output, reasoning, mcp_approval_request and mcp_approval_response"
            raise bad_request(f"Field '{path}.type' is {kind[:40]!r}; {accepted} items are read.", f"{path}.type")


def _content(item: Mapping[str, Any], path: str) -> str | list[dict[str, Any]]:
    content = item.get("content")
    if isinstance(content, str):
        return content
    parts = _parts(content, f"{path}.content")
    if item["role"] == "assistant":
        return "".join(part.get("text", "") for part in parts)
    return parts


def _parts(content: Any, path: str) -> list[dict[str, Any]]:
    if not isinstance(content, list):
        raise bad_request(f"Field {path!r} must be a string or an array of parts, not {describe(content)}.", path)
    parts: list[dict[str, Any]] = []
    for position, part in enumerate(content):
        where = f"{path}[{position}]"
        if not isinstance(part, dict):
            raise bad_request(f"Field {where!r} must be an object, not {describe(part)}.", where)
        kind = take(part, "type", str, path=f"{where}.", required=True)
        if kind in _TEXT_PARTS:
            parts.append({"type": "input_text", "text": take(part, "text", str, path=f"{where}.", required=True)})
        elif kind == "refusal":
            parts.append({"type": "input_text", "text": take(part, "refusal", str, path=f"{where}.", required=True)})
        elif kind == "input_image":
            url = take(part, "image_url", str, path=f"{where}.", required=True)
            parts.append({"type": kind, "image_url": url, "detail": take(part, "detail", str, path=f"{where}.") or "auto"})
        else:
            raise bad_request(
                f"Field '{where}.type' is {kind[:40]!r}; input_text and input_image parts are read.", f"{where}.type"
            )
    if not parts:
        raise bad_request(f"Field {path!r} is empty: send text or at least one part.", path)
    return parts


def tools(body: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """`tools`, function tools only."""
    decoded = []
    for position, tool in enumerate(take(body, "tools", list) or ()):
        path = f"tools[{position}]"
        if not isinstance(tool, dict):
            raise bad_request(f"Field {path!r} must be an object, not {describe(tool)}.", path)
        choice(tool, "type", ("function",), path=f"{path}.", required=True)
        decoded.append(
            {
                "type": "function",
                "name": take(tool, "name", str, path=f"{path}.", required=True),
                "description": take(tool, "description", str, path=f"{path}."),
                "parameters": take(tool, "parameters", dict, path=f"{path}.") or {"type": "object", "properties": {}},
                "strict": bool(take(tool, "strict", bool, path=f"{path}.")),
            }
        )
    return decoded or None


def _tool_choice(body: Mapping[str, Any]) -> Any:
    value = body.get("tool_choice")
    if isinstance(value, dict):
        choice(value, "type", ("function",), path="tool_choice.", required=True)
        return {"type": "function", "name": take(value, "name", str, path="tool_choice.", required=True)}
    return choice(body, "tool_choice", ("none", "auto", "required"))


def _format(text: Mapping[str, Any]) -> dict[str, Any]:
    value = take(text, "format", dict, path="text.")
    if value is None:
        return {"type": "text"}
    kind = choice(value, "type", ("text", "json_object", "json_schema"), path="text.format.", required=True)
    if kind == "json_schema":
        take(value, "name", str, path="text.format.", required=True)
        take(value, "schema", dict, path="text.format.", required=True)
    return value


class Encoder:
    """The Responses API's answer.

    Parameters
    ----------
    call: the call being answered.
    bare: `data:` lines only and `[DONE]` last, as Databricks' invocations stream.
    first: number of the first event, for a stream that is gone on with.
    """

    def __init__(self, call: Call, *, bare: bool = False, first: int = 0) -> None:
        self._call = call
        self._sequence = first
        self._bare = bare
        self._frame: Callable[[str, Any], bytes] = (lambda _, body: sse.data(body)) if bare else sse.named

    def event(self, event: Event) -> bytes:
        if event.type == STEP:
            return b""
        body = {"type": event.type, "sequence_number": self._sequence, **event.data}
        body.pop("served_entity_name", None)  # for the journal
        framed = self._frame(event.type, body)
        self._sequence += 1
        return framed + sse.DONE if self._bare and event.terminal else framed

    def failure(self, error: CallError) -> bytes:
        body = {"type": "error", "code": error.code.lower(), "message": error.message, "param": error.param}
        framed = self._frame("error", {**body, "sequence_number": self._sequence})
        return framed + sse.DONE if self._bare else framed

    def body(self, result: Mapping[str, Any]) -> bytes:
        return orjson.dumps(result)
