"""Server-sent events: framing what is sent, and parsing what an upstream sends.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import orjson

DONE = b"data: [DONE]\n\n"

HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
]
"""Headers of a stream; the last two keep proxies from holding events back."""


def data(body: Any) -> bytes:
    """One event as a `data:` line only."""
    return b"data: " + orjson.dumps(body) + b"\n\n"


def named(event: str, body: Any) -> bytes:
    """One event with an `event:` line, as OpenAI's Responses API sends it."""
    return b"event: " + event.encode() + b"\ndata: " + orjson.dumps(body) + b"\n\n"


class TooLong(ValueError):
    """A line of an event stream exceeds the limit."""


async def events(chunks: AsyncIterator[bytes], *, max_line: int = 4 * 1024 * 1024) -> AsyncGenerator[str]:
    """The `data` of each event in a byte stream.

    Lines end with LF, CRLF or CR; chunks may split a line, even a character, anywhere. Comments and other fields are
    skipped. An event that the stream ends in the middle of is dropped, as the specification says.

    Raises
    ------
    TooLong: when a line or an event's data exceeds `max_line` bytes.
    UnicodeDecodeError: when data is not UTF-8.
    """
    buffer = bytearray()
    lines: list[bytes] = []
    size = 0
    first, skip_lf = True, False
    async for chunk in chunks:
        buffer += chunk
        if first and len(buffer) >= 3:
            first = False
            if buffer.startswith(b"\xef\xbb\xbf"):
                del buffer[:3]
        while True:
            if skip_lf and buffer:
                skip_lf = False
                if buffer[0] == 10:
                    del buffer[:1]
            end = _line_end(buffer)
            if end < 0:
                break
            line = bytes(buffer[:end])
            skip_lf = buffer[end] == 13
            del buffer[: end + 1]
            if not line:
                if lines:
                    yield b"\n".join(lines).decode("utf-8")
                lines, size = [], 0
            elif line.startswith(b"data:"):
                value = line[6:] if line[5:6] == b" " else line[5:]
                size += len(value)
                if size > max_line:
                    raise TooLong(f"an event of more than {max_line} bytes")
                lines.append(value)
        if len(buffer) > max_line:
            raise TooLong(f"a line of more than {max_line} bytes")


def _line_end(buffer: bytearray) -> int:
    lf = buffer.find(b"\n")
    cr = buffer.find(b"\r", 0, lf if lf >= 0 else len(buffer))
    return cr if cr >= 0 else lf
