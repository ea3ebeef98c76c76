"""OpenAI Chat Completions: the request; the answer is in `serving.protocols.chat_answer`.

Source: https://platform.openai.com/docs/api-reference/chat
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from governance.call import bad_request
from serving.protocols.chat_answer import Encoder, called, finish_reason, usage
from serving.protocols.request import (
    LOGPROBS,
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
)

__all__ = ["MAX_CHOICES", "Encoder", "called", "decode", "finish_reason", "usage"]

MAX_CHOICES = 32
"""Choices that one request may ask for (`n`)."""
ROLES = ("system", "developer", "user", "assistant", "tool", "function")


def decode(body: Mapping[str, Any], *, model: str | None = None) -> Request:
    """A Chat Completions request; `model` names the endpoint where the path does. Raises `CallError` (400)."""
    name = model or named(body)
    messages = take(body, "messages", list, required=True)
    if not messages:
        raise bad_request("Field 'messages' is empty: send at least one message.", "messages")
    if len(messages) > MAX_ITEMS:
        raise bad_request(f"Field 'messages' has {len(messages)} messages; at most {MAX_ITEMS} are read.", "messages")
    options = take(body, "stream_options", dict) or {}
    include_usage = take(options, "include_usage", bool, path="stream_options.")
    limit = number(body, "max_completion_tokens", 1, 10_000_000, kind=int)
    limit = limit if limit is not None else number(body, "max_tokens", 1, 10_000_000, kind=int)
    payload = {
        "model": name,
        "input": [item for position, message in enumerate(messages) for item in _items(message, f"messages[{position}]")],
        "max_output_tokens": limit,
        "temperature": number(body, "temperature", 0, 2),
        "metadata": strings(body, "metadata") or None,
        **({} if body.keys() <= _USUAL else _unusual(body)),
    }
    stream = bool(take(body, "stream", bool))
    return Request(name, present(payload), stream=stream, options={"include_usage": bool(include_usage)}, **tagged(body))


_USUAL = frozenset(
    ("model", "messages", "max_tokens", "max_completion_tokens", "temperature", "metadata", "stream", "stream_options")
)
"""Fields that most requests make do with."""


def _unusual(body: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a request that are not usual."""
    count = number(body, "n", 1, MAX_CHOICES, kind=int)
    effort = take(body, "reasoning_effort", str)
    text_format, offered = response_format(body), tools(body)
    return {
        "n": count if count != 1 else None,
        "tools": offered,
        "tool_choice": chosen(tool_choice(body), offered),
        "parallel_tool_calls": take(body, "parallel_tool_calls", bool),
        "text": {"format": text_format} if text_format else None,
        "top_p": number(body, "top_p", 0, 1),
        "frequency_penalty": number(body, "frequency_penalty", -2, 2),
        "presence_penalty": number(body, "presence_penalty", -2, 2),
        "seed": take(body, "seed", int),
        "logit_bias": _logit_bias(body),
        "stop": stops(body),
        "user": take(body, "user", str),
        "reasoning": {"effort": effort} if effort else None,
        "top_k": number(body, "top_k", 0, 1_000_000, kind=int),
        **logprobs(body),
        "custom_inputs": take(body, "custom_inputs", dict),
        "context": take(body, "context", dict),
    }


def _logit_bias(body: Mapping[str, Any]) -> dict[str, float] | None:
    """What is added to the scores of tokens, by their numbers in the model's vocabulary."""
    given = take(body, "logit_bias", dict) or {}
    if len(given) > 1024:
        raise bad_request(f"Field 'logit_bias' has {len(given)} tokens; at most 1024 are read.", "logit_bias")
    for token, added in given.items():
        if not (token.isascii() and token.isdecimal() and len(token) < 10):
            raise bad_request(f"Field 'logit_bias' has {token[:20]!r}, which is no token's number.", "logit_bias")
        if type(added) not in (int, float) or not -100 <= added <= 100:
            raise bad_request(f"Field 'logit_bias.{token}' must be a number between -100 and 100.", "logit_bias")
    return given or None


def _items(message: Any, path: str) -> list[dict[str, Any]]:
    if not isinstance(message, dict):
        raise bad_request(f"Field {path!r} must be an object, not {describe(message)}.", path)
    role = choice(message, "role", ROLES, path=f"{path}.", required=True)
    if role in ("tool", "function"):
        call_id = take(message, "tool_call_id" if role == "tool" else "name", str, path=f"{path}.", required=True)
        return [{"type": "function_call_output", "call_id": call_id, "output": _text(message, path)}]
    items: list[dict[str, Any]] = []
    content = message.get("content")
    if role == "assistant":
        calls = take(message, "tool_calls", list, path=f"{path}.") or []
        refusal = take(message, "refusal", str, path=f"{path}.")
        if content is None and not calls and refusal is None and not message.get("function_call"):
            raise bad_request(
                f"Field '{path}.content' is missing: an assistant message needs content or tool_calls.", f"{path}.content"
            )
        text = _text(message, path) if content is not None else refusal or ""
        if text:
            items.append({"type": "message", "role": "assistant", "content": text})
        items += [_function_call(call, f"{path}.tool_calls[{position}]") for position, call in enumerate(calls)]
        return items or [{"type": "message", "role": "assistant", "content": ""}]
    parts = _parts(message, path) if isinstance(content, list) else _text(message, path)
    return [present({"type": "message", "role": role, "content": parts})]


def _function_call(call: Any, path: str) -> dict[str, Any]:
    if not isinstance(call, dict):
        raise bad_request(f"Field {path!r} must be an object, not {describe(call)}.", path)
    function = take(call, "function", dict, path=f"{path}.", required=True)
    return {
        "type": "function_call",
        "call_id": take(call, "id", str, path=f"{path}.", required=True),
        "name": take(function, "name", str, path=f"{path}.function.", required=True),
        "arguments": take(function, "arguments", str, path=f"{path}.function.", required=True),
    }


def _text(message: Mapping[str, Any], path: str) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = _parts(message, path)
        if any(part["type"] != "input_text" for part in parts):
            raise bad_request(f"Field '{path}.content' may hold text only in a message of this role.", f"{path}.content")
        return "".join(part["text"] for part in parts)
    raise bad_request(
        f"Field '{path}.content' must be a string or an array of parts, not {describe(content)}.", f"{path}.content"
    )


def _parts(message: Mapping[str, Any], path: str) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = []
    for position, part in enumerate(message["content"]):
        where = f"{path}.content[{position}]"
        if not isinstance(part, dict):
            raise bad_request(f"Field {where!r} must be an object, not {describe(part)}.", where)
        match take(part, "type", str, path=f"{where}.", required=True):
            case "text":
                parts.append({"type": "input_text", "text": take(part, "text", str, path=f"{where}.", required=True)})
            case "refusal":
                parts.append({"type": "input_text", "text": take(part, "refusal", str, path=f"{where}.", required=True)})
            case "image_url":
                image = take(part, "image_url", dict, path=f"{where}.", required=True)
                url = take(image, "url", str, path=f"{where}.image_url.", required=True)
                detail = take(image, "detail", str, path=f"{where}.image_url.") or "auto"
                parts.append({"type": "input_image", "image_url": url, "detail": detail})
            case kind:
                raise bad_request(f"Field '{where}.type' is {kind[:40]!r}; text and image_url parts are read.", f"{where}.type")
    if not parts:
        raise bad_request(f"Field '{path}.content' is empty: send text or at least one part.", f"{path}.content")
    return parts


def tools(body: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """Chat's `tools` (or the older `functions`) as Responses tools."""
    given = take(body, "tools", list)
    if given is None:
        given = [{"type": "function", "function": function} for function in take(body, "functions", list) or []]
    decoded = []
    for position, tool in enumerate(given):
        path = f"tools[{position}]"
        if not isinstance(tool, dict):
            raise bad_request(f"Field {path!r} must be an object, not {describe(tool)}.", path)
        choice(tool, "type", ("function",), path=f"{path}.", required=True)
        function = take(tool, "function", dict, path=f"{path}.", required=True)
        decoded.append(
            {
                "type": "function",
                "name": take(function, "name", str, path=f"{path}.function.", required=True),
                "description": take(function, "description", str, path=f"{path}.function."),
                "parameters": take(function, "parameters", dict, path=f"{path}.function.")
                or {"type": "object", "properties": {}},
                "strict": bool(take(function, "strict", bool, path=f"{path}.function.")),
            }
        )
    return decoded or None


def tool_choice(body: Mapping[str, Any]) -> Any:
    """Chat's `tool_choice` as the Responses API writes it."""
    value = body.get("tool_choice")
    if isinstance(value, dict):
        choice(value, "type", ("function",), path="tool_choice.", required=True)
        function = take(value, "function", dict, path="tool_choice.", required=True)
        return {"type": "function", "name": take(function, "name", str, path="tool_choice.function.", required=True)}
    return choice(body, "tool_choice", ("none", "auto", "required"))


def response_format(body: Mapping[str, Any]) -> dict[str, Any] | None:
    """Chat's `response_format` as the Responses API's `text.format`."""
    value = take(body, "response_format", dict)
    if value is None:
        return None
    kind = choice(value, "type", ("text", "json_object", "json_schema"), path="response_format.", required=True)
    if kind != "json_schema":
        return {"type": kind}
    path = "response_format.json_schema."
    schema = take(value, "json_schema", dict, path="response_format.", required=True)
    return present(
        {
            "type": "json_schema",
            "name": take(schema, "name", str, path=path) or "response",  # databricks-langchain 0.3 sends none
            "description": take(schema, "description", str, path=path),
            "schema": take(schema, "schema", dict, path=path) or {},
            "strict": take(schema, "strict", bool, path=path),
        }
    )


def logprobs(body: Mapping[str, Any]) -> dict[str, Any]:
    """Chat's `logprobs` and `top_logprobs` as the Responses API writes them."""
    top = number(body, "top_logprobs", 0, 20, kind=int)
    if take(body, "logprobs", bool):
        return {"include": [LOGPROBS], "top_logprobs": top}
    if top:
        raise bad_request("Field 'top_logprobs' needs 'logprobs' to be true.", "top_logprobs")
    return {}
