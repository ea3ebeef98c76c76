"""Redaction rules: which parts of requests and answers the journal never holds."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

REDACTED = "[redacted]"
PATH = re.compile(r"(request|response)(\.([^.\s\[\]]+))+")
"""`request.metadata.email`, `response.output.*.text`: keys from the body on, `*` for any key; lists are gone through."""


_OWN = frozenset(
    {"id", "object", "created_at", "completed_at", "status", "output", "output_text", "usage", "error", "incomplete_details"}
)
"""Keys of a response that are its own; all others say again what was asked (`metadata`, `instructions`, `user` …)."""


def redacted(body: Any, side: str, paths: Sequence[str]) -> Any:
    """The body without what the paths of its side lead to; what they do not touch is shared, not copied. A response says much of
    its request again: there the request's paths hold too."""
    for path in paths:
        begin, *keys = path.split(".")
        if begin == side:
            body = _without(body, keys)
        elif begin == "request" and isinstance(body, Mapping) and body.get("object") == "response":
            again = {key: item for key, item in body.items() if key not in _OWN}
            body = {**body, **_without(again, keys)}
    return body


def _without(value: Any, keys: Sequence[str]) -> Any:
    if not keys:
        return REDACTED if value is not None else None
    if isinstance(value, list | tuple):
        return [_without(item, keys) for item in value]
    if not isinstance(value, Mapping):
        return value
    first, rest = keys[0], keys[1:]
    return {key: _without(item, rest) if first in ("*", key) else item for key, item in value.items()}
