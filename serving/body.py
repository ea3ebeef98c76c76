"""What a request says of who sends it, and its body."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import re
import zlib
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest

from governance.call import CallError, bad_request

MAX_BODY = 16 * 1024 * 1024
"""Bytes of a request body, unpacked."""

BODY_SECONDS = 300.0
"""How long a request's body may take to come."""

_MEMBERS = 64  # of gzip in one body

_BEARER = re.compile(r"bearer\s+(\S+)\s*", re.IGNORECASE)
_BASIC = re.compile(r"basic\s+(\S+)\s*", re.IGNORECASE)


def token_of(header: str) -> str | None:
    """A bearer token, or the password of the user `token`, as `curl -u token:KEY` sends it.

    Source: https://docs.databricks.com/aws/en/machine-learning/model-serving/score-custom-model-endpoints
    """
    if match := _BEARER.fullmatch(header):
        return match[1]
    if match := _BASIC.fullmatch(header):
        with contextlib.suppress(ValueError):
            user, _, password = base64.b64decode(match[1], validate=True).decode().partition(":")
            return password or None if user == "token" else None
    return None


def bearer(headers: Any) -> str | None:
    """The key of an `Authorization` header, None where there is none."""
    return token_of(headers.get("authorization", ""))


def _unpacked(packed: bytes, most: int) -> bytes:
    """What gzip packed, in one member or several (RFC 1952), or the first `most` bytes of it. Raises `zlib.error`."""
    parts: list[bytes] = []
    while packed and most > 0:
        if len(parts) == _MEMBERS:
            raise zlib.error("too many members")
        unpacker = zlib.decompressobj(31)
        parts.append(unpacker.decompress(packed, most))
        most -= len(parts[-1])
        if not unpacker.eof and most > 0:
            raise zlib.error("cut short")
        packed = unpacker.unused_data.lstrip(b"\0")  # as padding
    return b"".join(parts)


async def read_body(request: HttpRequest, limit: int = MAX_BODY) -> bytes:
    """The whole body; raises `CallError` (413) past `limit` bytes and (415) for an encoding that is not read."""

    def too_large() -> CallError:
        message = f"The body is larger than {limit / 1024 / 1024:g} MB. Send less at a time: fewer rows, or less text."
        return CallError(message, status=413, code="REQUEST_TOO_LARGE")

    length, encoding = b"", "identity"
    for name, value in request.scope["headers"]:
        if name == b"content-length":
            length = value
        elif name == b"content-encoding":
            encoding = value.decode("latin-1").lower()
    if length.isdigit() and int(length) > limit:
        raise too_large()
    chunks, size, more = [], 0, True
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while more:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                chunks.append(message.get("body", b""))
                size += len(chunks[-1])
                if size > limit:
                    raise too_large()
                more = message.get("more_body", False)
    except TimeoutError:
        message = f"The body did not come whole within {BODY_SECONDS:g} s. Send it again."
        raise CallError(message, status=408, code="REQUEST_TIMEOUT") from None
    body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
    if encoding == "gzip":
        try:
            body = _unpacked(body, limit + 1)
        except zlib.error:
            raise bad_request("The body is not valid gzip, or is cut short.") from None
        if len(body) > limit:
            raise too_large()
    elif encoding != "identity":
        raise CallError(f"Content-Encoding {encoding[:40]!r} is not read; send gzip or none.", status=415, code="BAD_REQUEST")
    return body
