"""Where the texts are: in requests, in answers, and in JSON that is itself a text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import orjson

STRUCTURE = frozenset(
    {"type", "role", "id", "call_id", "model", "status", "object", "previous_response_id", "conversation", "url"}
)
"""Keys whose values are names and addresses of the protocol's own."""


def texts_of(payload: Mapping[str, Any], *, everything: bool = False) -> list[str]:
    """What people and tools say in a request, oldest first; `everything` for the sake of its length."""
    given = payload.get("input", payload.get("query", ()))
    if isinstance(given, str):
        return [given]
    found: list[str] = []
    for item in given if isinstance(given, list) else ():
        if isinstance(item, str):
            found.append(item)
        elif isinstance(item, Mapping):
            if not everything and item.get("role", "user") != "user":
                continue
            for said in (item.get("content"), item.get("output")):
                if isinstance(said, str):
                    found.append(said)
                elif isinstance(said, list):
                    parts = [part.get("text") for part in said if isinstance(part, Mapping)]
                    found.append("".join(part for part in parts if isinstance(part, str)))
    return [text for text in found if text]


def walk(value: Any, each: Callable[[str], str], skipped: frozenset[str], depth: int = 0, key: str = "") -> Any:
    """A JSON value with `each(text)` in place of every text in it; `arguments` and `output` that are JSON are looked into."""
    if isinstance(value, str):
        if key == "image_url" and value.startswith("data:"):
            return value  # an image's bytes
        return json_text(value, each) if key in ("arguments", "output") else each(value)
    if isinstance(value, Mapping):
        if depth > 60:
            raise ValueError("nested too deeply to be looked at")
        return {name: item if name in skipped and isinstance(item, str) else walk(item, each, skipped, depth + 1, name) for name, item in value.items()}  # fmt: skip  # noqa: E501
    if isinstance(value, list | tuple):
        if len(value) > 16 and isinstance(value[0], int | float):
            return value  # a vector
        return [walk(item, each, skipped, depth + 1, key) for item in value]
    return value


def json_text(text: str, each: Callable[[str], str]) -> str:
    """JSON as text, with `each` applied to its texts, keys and numbers as they read, not as they are escaped."""
    if text[:1] in '{["':
        try:
            value = orjson.loads(text)
        except orjson.JSONDecodeError:
            return each(text)
        changed = _inside(value, each, 0)
        return text if changed == value else orjson.dumps(changed).decode()
    return each(text)


def _inside(value: Any, each: Callable[[str], str], depth: int) -> Any:
    if isinstance(value, str):
        return each(value)
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int | float):
        told = str(value)
        masked = each(told) if len(told) > 6 else told
        return value if masked == told else masked
    if isinstance(value, dict):
        return {each(name): _inside(item, each, depth + 1) for name, item in value.items()}
    return [_inside(item, each, depth + 1) for item in value]
