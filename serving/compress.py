"""Answers packed with gzip for clients that read it: whole ones of some size, never streams."""

from __future__ import annotations

import asyncio
import gzip

from starlette.types import ASGIApp, Message, Receive, Scope, Send

LEAST = 1024
"""Bytes below which packing costs more than it saves."""
OFF_LOOP = 64 * 1024
"""Bytes from which the event loop does not do it itself."""
_KINDS = (b"application/json", b"text/plain", b"application/openmetrics-text")


class Compressed:
    """Pure ASGI middleware: `Content-Encoding: gzip` where `Accept-Encoding` has it (RFC 9110, 12.5.3)."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not reads_gzip(scope):
            await self._app(scope, receive, send)
            return
        start: Message | None = None

        async def sending(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start" and _may_shrink(message):
                start = message
                return
            if start is not None:
                opening, start = start, None
                body = message.get("body", b"")
                if len(body) >= LEAST and not message.get("more_body"):
                    body = await asyncio.to_thread(_pack, body) if len(body) >= OFF_LOOP else _pack(body)
                    kept = [pair for pair in opening["headers"] if pair[0].lower() != b"content-length"]
                    length = (b"content-length", str(len(body)).encode())
                    more = [(b"content-encoding", b"gzip"), (b"vary", b"accept-encoding"), length]
                    opening, message = {**opening, "headers": [*kept, *more]}, {**message, "body": body}
                await send(opening)
            await send(message)

        await self._app(scope, receive, sending)


def reads_gzip(scope: Scope) -> bool:
    """Whether the request says that its client unpacks gzip."""
    for name, value in scope["headers"]:
        if name == b"accept-encoding":
            offered = [part.strip().partition(b";") for part in value.split(b",")]
            return any(
                kind.strip() == b"gzip" and quality.replace(b" ", b"") not in (b"q=0", b"q=0.0") for kind, _, quality in offered
            )
    return False


def _may_shrink(message: Message) -> bool:
    headers = {name.lower(): value for name, value in message.get("headers", ())}
    length = headers.get(b"content-length", b"")
    large = not length.isdigit() or int(length) >= LEAST
    return large and headers.get(b"content-type", b"").startswith(_KINDS) and b"content-encoding" not in headers


def _pack(body: bytes) -> bytes:
    return gzip.compress(body, compresslevel=1, mtime=0)
