"""How an endpoint is called, as OpenAPI 3.1: what `get_open_api` answers. Rows are described by the model's signature.

Sources: https://spec.openapis.org/oas/v3.1.1 and https://docs.databricks.com/api/workspace/servingendpoints/getopenapi
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agents.tools.signature import schema, value
from serving.endpoint import Endpoint
from serving.signature import Signature

_MESSAGE = {"type": "object", "properties": {"role": {"type": "string"}, "content": {"type": "string"}}}
_MESSAGES = {"messages": {"type": "array", "items": _MESSAGE}, "stream": {"type": "boolean"}}
_AGENT = {
    "custom_inputs": {"type": "object"},
    "context": {"type": "object", "properties": {"conversation_id": {"type": "string"}, "user_id": {"type": "string"}}},
}
_BODIES: Mapping[str, dict[str, Any]] = {
    "agent/v1/responses": {
        "input": {"oneOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}}]},
        **_MESSAGES,
        **_AGENT,
    },
    "agent/v1/chat": {**_MESSAGES, **_AGENT},
    "agent/v2/chat": {**_MESSAGES, **_AGENT},
    "llm/v1/embeddings": {"input": {"oneOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}},
    "llm/v1/completions": {"prompt": {"type": "string"}, "max_tokens": {"type": "integer"}, "temperature": {"type": "number"}},
}
_CHAT = {**_MESSAGES, "max_tokens": {"type": "integer"}, "temperature": {"type": "number"}}


def described(endpoint: Endpoint, host: str, signature: Signature) -> dict[str, Any]:
    """An OpenAPI 3.1 description of how the endpoint is called."""
    given: dict[str, Any] = {"type": "object", "properties": _BODIES.get(endpoint.task, _CHAT)}
    answer: dict[str, Any] = {"type": "object"}
    if endpoint.task == "predict":
        given, answer = _rows(signature), _predictions(signature)
    call = {
        "operationId": "query",
        "requestBody": {"required": True, "content": {"application/json": {"schema": given}}},
        "responses": {"200": {"description": "The answer.", "content": {"application/json": {"schema": answer}}}},
        "security": [{"bearer": []}],
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": endpoint.name, "version": str(endpoint.config_version), "description": endpoint.description},
        "servers": [{"url": f"{host}/serving-endpoints/{endpoint.name}"}],
        "paths": {"/invocations": {"post": call}},
        "components": {"securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}}},
    }


def _rows(signature: Signature) -> dict[str, Any]:
    """Rows in one of the formats, with what the model's parameters may be."""
    params = {
        each["name"]: {**_whole(value(each), each.get("shape")), "default": each.get("default")} for each in signature.params
    }
    formats = _tensors(signature) if _of_tensors(signature) else _columns(signature)
    properties: dict[str, Any] = {
        **formats,
        "params": {"type": "object", "properties": params},
        "stream": {"type": "boolean"},
        "client_request_id": {"type": "string"},
        "usage_context": {"type": "object", "additionalProperties": {"type": "string"}},
    }
    return {"type": "object", "properties": properties, "oneOf": [{"required": [name]} for name in formats]}


def _columns(signature: Signature) -> dict[str, Any]:
    names = [each["name"] for each in signature.inputs if each.get("name")]
    if not names:
        row: dict[str, Any] = _whole({}, None) if not signature.inputs else value(signature.inputs[0])
        listed: dict[str, Any] = {"type": "array", "items": row}
        return {
            "dataframe_split": _split({"type": "string"}),
            "dataframe_records": {"type": "array"},
            "instances": listed,
            "inputs": {},
        }
    row = schema(signature.inputs)
    records = {"type": "array", "items": row}
    cells = {name: {"type": "array", "items": each} for name, each in row["properties"].items()}
    lists = {"type": "array", "items": {"type": "array", "minItems": len(names), "maxItems": len(names)}}
    rows = {"anyOf": [records, lists, *([{"type": "array", "items": row["properties"][names[0]]}] if len(names) == 1 else [])]}
    columns = {"type": "object", "properties": cells, "required": row["required"]}
    split = _split({"type": "string", "examples": names})
    return {"dataframe_split": split, "dataframe_records": records, "instances": rows, "inputs": {"anyOf": [columns, rows, row]}}


def _split(column: Mapping[str, Any]) -> dict[str, Any]:
    data = {"type": "array", "items": {"type": "array"}}
    columns = {"type": "array", "items": column, "uniqueItems": True}
    return {"type": "object", "properties": {"columns": columns, "data": data, "index": {"type": "array"}}, "required": ["data"]}


def _of_tensors(signature: Signature) -> bool:
    return any("tensor-spec" in each for each in signature.inputs)


def _tensors(signature: Signature) -> dict[str, Any]:
    named = {each.get("name"): _tensor(each) for each in signature.inputs}
    if list(named) == [None]:
        return {"instances": named[None], "inputs": named[None]}
    columns = {"type": "object", "properties": named, "required": list(named)}
    return {"instances": {"type": "array", "items": {"type": "object", "required": list(named)}}, "inputs": columns}


def _tensor(spec: Mapping[str, Any]) -> dict[str, Any]:
    about = spec.get("tensor-spec") or {}
    kind = str(about.get("dtype"))
    number = "integer" if "int" in kind else "number" if "float" in kind else "boolean" if kind == "bool" else "string"
    made: dict[str, Any] = {"type": number}
    for size in reversed(about.get("shape") or [-1]):
        made = {"type": "array", "items": made, **({"minItems": size, "maxItems": size} if size >= 0 else {})}
    return made


def _whole(kind: dict[str, Any], shape: Any) -> dict[str, Any]:
    """A parameter's value, or a list of them where its shape says so."""
    return {"type": "array", "items": kind} if shape else kind


def _predictions(signature: Signature) -> dict[str, Any]:
    """What is answered: one prediction a row, as the signature describes it."""
    outputs = signature.outputs
    each: dict[str, Any] = {}
    if len(outputs) == 1 and "tensor-spec" in outputs[0] and not outputs[0].get("name"):
        return {"type": "object", "properties": {"predictions": _tensor(outputs[0])}, "required": ["predictions"]}
    if outputs and all(column.get("name") for column in outputs) and not any("tensor-spec" in column for column in outputs):
        each = schema(outputs)
    elif len(outputs) == 1 and "tensor-spec" not in outputs[0]:
        each = value(outputs[0])
    predictions = {"type": "array", "items": each} if each else {}
    return {"type": "object", "properties": {"predictions": predictions}, "required": ["predictions"]}
