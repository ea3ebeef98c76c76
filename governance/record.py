"""What of a call is recorded: its answer and usage, without vectors and without credentials."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from governance.call import Call, Event, is_failure

_MANY_NUMBERS = 16  # a longer row of numbers is a vector
_MOST_TOKENS = 10**9  # a model that says it used more, or less than none, says nothing
_COUNTS = (("input_tokens", "prompt_tokens"), ("output_tokens", "completion_tokens"), ("total_tokens", "total_tokens"))
_HANDED_ON = {"authorization", "headers", "api_key", "token"}


def body_of(event: Event) -> Mapping[str, Any]:
    """The `response` or `result` that a terminal event carries."""
    body = event.data.get("result" if event.type == "result" else "response", event.data)
    return body if isinstance(body, (dict, Mapping)) else {"value": body}


def failed_status(response: Mapping[str, Any]) -> int:
    code = (response.get("error") or {}).get("code")
    return {"rate_limit_exceeded": 429, "invalid_prompt": 400}.get(code or "", 500)


def failed_code(status: int) -> str:
    """The code of a Response that failed with a call's status; `failed_status` reads it back."""
    return "rate_limit_exceeded" if status == 429 else "server_error" if is_failure(status) else "invalid_prompt"


def usage_of(response: Mapping[str, Any]) -> dict[str, int]:
    """Token counts, by the Responses API's names or Chat Completions'."""
    usage = response.get("usage")
    if not isinstance(usage, (dict, Mapping)):
        return {}
    found: dict[str, int] = {}
    for name, also in _COUNTS:
        value = usage.get(name, usage.get(also))
        if type(value) is int and 0 <= value <= _MOST_TOKENS:
            found[name] = value
    return found


def short(value: Any) -> str | None:
    return value[:256] if isinstance(value, str) else None


def request_of(call: Call) -> Mapping[str, Any]:
    """The payload as it is recorded: without the credentials a client hands on, to its tools' servers or in headers."""
    if call.task == "http" and isinstance(headers := call.payload.get("headers"), Mapping):
        return {**call.payload, "headers": dict.fromkeys(headers, "[redacted]")}
    tools = call.payload.get("tools")
    if not isinstance(tools, list) or not any(isinstance(tool, Mapping) and _HANDED_ON & tool.keys() for tool in tools):
        return lean(call.payload, call.task)
    cleaned = [
        {name: "[redacted]" if name in _HANDED_ON else value for name, value in tool.items()}
        if isinstance(tool, Mapping)
        else tool
        for tool in tools
    ]
    return lean({**call.payload, "tools": cleaned}, call.task)


def lean(value: Any, task: str, depth: int = 0) -> Any:
    """Without vectors, where a task deals in them: their length is kept."""
    if task not in ("embeddings", "search", "classify") or depth > 6:
        return value
    if isinstance(value, Mapping):
        return {name: lean(item, task, depth + 1) for name, item in value.items()}
    if isinstance(value, list | tuple):
        if len(value) > _MANY_NUMBERS and isinstance(value[0], int | float):
            return f"<{len(value)} numbers>"
        return [lean(item, task, depth + 1) for item in value]
    return value
