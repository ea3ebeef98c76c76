"""A model's inputs as a tool's schema; imports no agent library, so that models can be offered where there are no agents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_TYPES = {
    "integer": "integer", "long": "integer", "float": "number", "double": "number", "boolean": "boolean", "string": "string",
    "datetime": "string", "binary": "string",
}  # fmt: skip


def schema(inputs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A JSON schema of a row, from the inputs of a signature (`name`, `type`, `required`)."""
    named = [column for column in inputs if column.get("name")]
    properties = {column["name"]: {"type": _TYPES.get(str(column.get("type")), "string")} for column in named}
    required = [column["name"] for column in named if column.get("required", True)]
    return {"type": "object", "properties": properties or {"input": {"type": "string"}}, "required": required}
