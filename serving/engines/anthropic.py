"""Anthropic's Messages API: a Responses request in its words, and its events turned into an answer's.

What it has no field for (penalties, seed, reasoning effort) is left out; a response format, which would change what the client
reads, is refused.

Source: https://docs.anthropic.com/en/api/messages, https://docs.anthropic.com/en/api/messages-streaming
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from governance.call import Event, bad_request
from serving.engines.answer import Answer
from serving.engines.messages import arguments_of, text_of
from serving.protocols.request import present

VERSION = "2023-06-01"
_MOST = 4096  # `max_tokens` is required
_DATA = re.compile(r"data:([\w/+.-]+);base64,(.*)", re.DOTALL)
_INCOMPLETE = {
    "max_tokens": "max_output_tokens",
    "model_context_window_exceeded": "max_output_tokens",
    "refusal": "content_filter",
}


def body(payload: Mapping[str, Any]) -> dict[str, Any]:
    """A Messages request without `model` and `stream`. Raises `CallError` (400)."""
    if ((payload.get("text") or {}).get("format") or {}).get("type", "text") != "text":
        message = "This model takes no response format: describe a tool whose parameters are the schema."
        raise bad_request(message, "response_format")
    system, messages = _messages(payload)
    temperature, stop = payload.get("temperature"), payload.get("stop")
    return present(
        {
            "max_tokens": payload.get("max_output_tokens") or _MOST,
            "system": system or None,
            "messages": messages,
            "temperature": min(temperature, 1.0) if temperature is not None else None,
            "top_p": payload.get("top_p") if temperature is None else None,  # it takes one of the two
            "stop_sequences": [stop] if isinstance(stop, str) else stop,
            "tools": [_tool(tool) for tool in payload.get("tools") or ()] or None,
            "tool_choice": _tool_choice(payload) if payload.get("tools") else None,
        }
    )


def _messages(payload: Mapping[str, Any]) -> tuple[str, list[dict[str, Any]]]:
    """System text, and messages whose roles take turns."""
    system = [payload["instructions"]] if payload.get("instructions") else []
    messages: list[dict[str, Any]] = []

    def add(role: str, blocks: list[dict[str, Any]]) -> None:
        if messages and messages[-1]["role"] == role:
            messages[-1]["content"] += blocks
        elif blocks:
            messages.append({"role": role, "content": blocks})

    for position, item in enumerate(payload.get("input") or ()):
        match item.get("type", "message"):
            case "function_call":
                block = {"type": "tool_use", "id": item["call_id"], "name": item["name"], "input": arguments_of(item, position)}
                add("assistant", [block])
            case "function_call_output":
                add("user", [{"type": "tool_result", "tool_use_id": item["call_id"], "content": item["output"]}])
            case "message" if item["role"] in ("system", "developer"):
                system.append(text_of(item["content"]))
            case "message":
                add("assistant" if item["role"] == "assistant" else "user", _blocks(item["content"]))
    return "\n\n".join(system), messages


def _blocks(content: Any) -> list[dict[str, Any]]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if content else []
    blocks: list[dict[str, Any]] = []
    for part in content:
        if part["type"] != "input_image":
            blocks += [{"type": "text", "text": part["text"]}] if part.get("text") else []
        elif data := _DATA.fullmatch(part["image_url"]):
            source = {"type": "base64", "media_type": data[1], "data": data[2]}
            blocks.append({"type": "image", "source": source})
        else:
            blocks.append({"type": "image", "source": {"type": "url", "url": part["image_url"]}})
    return blocks


def _tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    schema = tool.get("parameters") or {"type": "object", "properties": {}}
    return present({"name": tool.get("name"), "description": tool.get("description"), "input_schema": schema})


def _tool_choice(payload: Mapping[str, Any]) -> dict[str, Any] | None:
    value = payload.get("tool_choice")
    if value == "none":
        return {"type": "none"}
    one = payload.get("parallel_tool_calls") is False or None
    if isinstance(value, Mapping):
        return present({"type": "tool", "name": value["name"], "disable_parallel_tool_use": one})
    if value == "required":
        return present({"type": "any", "disable_parallel_tool_use": one})
    return {"type": "auto", "disable_parallel_tool_use": True} if one else None


class Messages:
    """Turns a Messages stream (or one whole message) into events; parameters as for `chunks.Chunks`."""

    def __init__(self, answer: Answer, asked: Callable[[], int]) -> None:
        self._answer, self._asked = answer, asked
        self._usage: dict[str, int] = {}
        self._arguments = ""
        self._input: Any = None
        self._stopped = False
        self._reason: str | None = None

    @property
    def finish(self) -> str | None:
        return (self._reason or "end_turn") if self._stopped else None

    def read(self, chunk: Mapping[str, Any]) -> list[Event]:
        match chunk.get("type"):
            case "message_start":
                self._count(chunk["message"].get("usage") or {})
            case "content_block_start":
                return self._begin(chunk["content_block"])
            case "content_block_delta":
                return self._delta(chunk["delta"])
            case "content_block_stop":
                whole, self._input = self._input, None
                return self._written(orjson.dumps(whole).decode()) if whole is not None else []
            case "message_delta":
                self._reason = (chunk.get("delta") or {}).get("stop_reason") or self._reason
                self._count(chunk.get("usage") or {})
            case "message_stop":
                self._stopped = True
            case "message":
                return self._whole(chunk)
        return []

    def _begin(self, block: Mapping[str, Any]) -> list[Event]:
        if block.get("type") == "text":
            return self._answer.write(block.get("text") or "")
        if block.get("type") == "tool_use":
            self._input = block.get("input") or {}  # whole here, where its pieces do not follow
            return self._answer.call_tool(block["id"], block["name"])
        return []

    def _delta(self, delta: Mapping[str, Any]) -> list[Event]:
        if delta.get("type") == "text_delta":
            return self._answer.write(delta["text"])
        if delta.get("type") == "input_json_delta" and delta["partial_json"]:
            self._input = None
            return self._written(delta["partial_json"])
        return []  # thinking and signatures are the model's own

    def _written(self, part: str) -> list[Event]:
        self._arguments += part
        return self._answer.arguments(part)

    def _whole(self, message: Mapping[str, Any]) -> list[Event]:
        events: list[Event] = []
        self._count(message.get("usage") or {})
        for block in message["content"]:
            events += [*self._begin(block), *self.read({"type": "content_block_stop"})]
        self._reason, self._stopped = message.get("stop_reason"), True
        return events

    def _count(self, usage: Mapping[str, Any]) -> None:
        cached = usage.get("cache_read_input_tokens") or 0
        if usage.get("input_tokens") is not None:
            read = usage["input_tokens"] + cached + (usage.get("cache_creation_input_tokens") or 0)
            self._usage |= {"input_tokens": read, "cached_tokens": cached}
        if usage.get("output_tokens") is not None:
            self._usage["output_tokens"] = usage["output_tokens"]

    def end(self) -> list[Event]:
        incomplete = _INCOMPLETE.get(self._reason or "")
        if self._usage:
            return self._answer.finish(usage=self._usage, incomplete=incomplete)
        written = self._answer.written + self._arguments
        usage = {"input_tokens": -(-self._asked() // 4), "output_tokens": -(-len(written) // 4)}
        return self._answer.finish(usage=usage, metadata={"usage": "estimated"}, incomplete=incomplete)
