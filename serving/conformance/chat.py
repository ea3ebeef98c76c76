"""A scripted chat model: repeats what it is told, calls a tool when it must, writes JSON when it is asked for it.

Registered as code: this file is all there is to the model.
"""

from __future__ import annotations

import json
import re
from typing import Any

from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel

_SAMPLES = {"string": "text", "integer": 1, "number": 1.5, "boolean": True, "null": None}
_TYPES = {"int": "integer", "integer": "integer", "float": "number", "number": "number", "bool": "boolean", "boolean": "boolean"}
_KEY = re.compile(r"(\w+) \((string|str|int|integer|float|number|bool|boolean)\)")


class Scripted(PythonModel):
    """Reads and gives Chat Completions."""

    def predict(self, context: Any, model_input: Any, params: Any = None) -> Any:
        message, finish = _message(model_input)
        return {
            "object": "chat.completion",
            "choices": [{"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish}],
            "usage": _usage(model_input, message),
        }

    def predict_stream(self, context: Any, model_input: Any, params: Any = None) -> Any:
        message, finish = _message(model_input)
        pieces = re.findall(r"\S+\s*", message.pop("content", None) or "")
        deltas = [
            {"role": "assistant", "content": ""},
            *({"content": piece} for piece in pieces),
            *([message] if message else []),
        ]
        for delta in [{"role": "assistant", "content": ""}, *deltas]:
            yield {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
        usage = _usage(model_input, {**message, "content": "".join(pieces)})
        yield {"choices": [{"index": 0, "delta": {}, "finish_reason": finish}], "usage": usage}


def _message(request: dict[str, Any]) -> tuple[dict[str, Any], str]:
    choice, tools = request.get("tool_choice"), [tool["function"] for tool in request.get("tools") or ()]
    if tools and choice not in (None, "auto", "none"):
        wanted = choice["function"]["name"] if isinstance(choice, dict) else tools[0]["name"]
        tool = next((tool for tool in tools if tool["name"] == wanted), tools[0])
        arguments = json.dumps(sample(tool.get("parameters") or {}))
        call = {"index": 0, "id": "call_0", "type": "function", "function": {"name": tool["name"], "arguments": arguments}}
        return {"tool_calls": [call]}, "tool_calls"
    said = [message for message in request.get("messages") or () if message.get("role") in ("user", "tool")]
    text = _text(said[-1].get("content")) if said else ""
    form = request.get("response_format") or {}
    if form.get("type") == "json_schema":
        return {"content": json.dumps(sample(form["json_schema"].get("schema") or {}))}, "stop"
    if form.get("type") == "json_object":
        keys = {name: _SAMPLES[_TYPES.get(kind, "string")] for name, kind in _KEY.findall(text)}
        return {"content": json.dumps(keys or {"text": text})}, "stop"
    words = text.split() or ["Hello."]
    limit = request.get("max_tokens")
    short = isinstance(limit, int) and len(words) > limit
    return {"content": " ".join(words[:limit] if short else words)}, "length" if short else "stop"


def _text(content: Any) -> str:
    if isinstance(content, list):
        return " ".join(part.get("text", "") for part in content)
    return content or ""


def _usage(request: dict[str, Any], message: dict[str, Any]) -> dict[str, int]:
    read = sum(len(_text(each.get("content")).split()) for each in request.get("messages") or ()) + 1
    written = len((message.get("content") or json.dumps(message.get("tool_calls") or "")).split()) or 1
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def sample(schema: dict[str, Any], definitions: dict[str, Any] | None = None) -> Any:
    """A value that a JSON schema accepts."""
    if not isinstance(schema, dict) or not isinstance(schema.get("properties") or {}, dict):
        return {}  # it is none
    known: dict[str, Any] = definitions or schema.get("$defs") or schema.get("definitions") or {}
    if reference := schema.get("$ref"):
        return sample(known.get(reference.rpartition("/")[2], {}), known)
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][0]
    for several in ("anyOf", "oneOf", "allOf"):
        if schema.get(several):
            return sample(schema[several][0], known)
    kind = schema.get("type", "object" if "properties" in schema else "string")
    kind = kind[0] if isinstance(kind, list) else kind
    if kind == "object":
        return {name: sample(inner, known) for name, inner in (schema.get("properties") or {}).items()}
    if kind == "array":
        return [sample(schema.get("items") or {}, known)] * max(1, schema.get("minItems", 1))
    return schema.get("minimum", _SAMPLES.get(kind)) if kind in ("integer", "number") else _SAMPLES.get(kind)


set_model(Scripted())
