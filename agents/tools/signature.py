"""A model's inputs as a tool's schema; imports no agent library, so that models can be offered where there are no agents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_TYPES = {
    "integer": "integer", "long": "integer", "float": "number", "double": "number", "boolean": "boolean", "string": "string",
}  # fmt: skip


def schema(inputs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A JSON schema of a row, from the inputs of a signature (`name`, `type`, `required`)."""
    named = [column for column in inputs if column.get("name")]
    properties = {column["name"]: value(column) for column in named}
    required = [column["name"] for column in named if column.get("required", True)]
    return {"type": "object", "properties": properties or {"input": {"type": "string"}}, "required": required}


def value(kind: Any) -> dict[str, Any]:
    """A JSON schema of one value of a signature's type."""
    if not isinstance(kind, Mapping):
        return {}
    match kind.get("type"):
        case "object":
            properties = kind.get("properties") or {}
            required = [name for name, each in properties.items() if each.get("required", True)]
            return {
                "type": "object",
                "properties": {name: value(each) for name, each in properties.items()},
                "required": required,
            }
        case "array":
            return {"type": "array", "items": value(kind.get("items"))}
        case "map":
            return {"type": "object", "additionalProperties": value(kind.get("values"))}
        case "any":
            return {}
        case "datetime":
            return {"type": "string", "format": "date-time"}
        case "binary":
            return {"type": "string", "contentEncoding": "base64"}
        case other:
            return {"type": _TYPES.get(str(other), "string")}
