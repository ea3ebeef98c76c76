"""Redaction rules: which parts of requests and answers the journal never holds."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

REDACTED = "[redacted]"
PATH = re.compile(r"(request|response)(\.([^.\s\[\]]+))+")
"""`request.metadata.email`, `response.output.*.text`: keys from the body on, `*` for any key; lists are gone through."""


def redacted(body: Any, side: str, paths: Sequence[str]) -> Any:
    """The body without what the paths of its side lead to; what they do not touch is shared, not copied."""
    for path in paths:
        begin, *keys = path.split(".")
        if begin == side:
            body = _without(body, keys)
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
