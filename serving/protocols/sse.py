"""Server-sent events: framing what is sent, and parsing what an upstream sends.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

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


class Parser:
    """Finds the events in a byte stream that comes in pieces.

    Lines end with LF, CRLF or CR; pieces may split a line, even a character, anywhere. Comments and other fields are
    skipped. An event that the stream ends in the middle of is dropped, as the specification says.

    Parameters
    ----------
    max_line: bytes of a line, and of an event's data.
    """

    def __init__(self, *, max_line: int = 4 * 1024 * 1024) -> None:
        self._max_line = max_line
        self._rest: list[bytes] = []  # pieces of a line without its end
        self._held = 0
        self._lines: list[bytes] = []
        self._size = 0
        self._first, self._skip_lf = True, False

    def feed(self, piece: bytes) -> list[bytes]:
        """The `data` of each event that ends in this piece, as it came. Raises `TooLong`."""
        if self._skip_lf and piece:
            self._skip_lf = False
            piece = piece.removeprefix(b"\n")
        self._held += len(piece)
        if b"\n" not in piece and b"\r" not in piece:
            if self._held > self._max_line:
                raise TooLong(f"a line of more than {self._max_line} bytes")
            self._rest.append(piece)
            return []
        buffer = b"".join([*self._rest, piece]) if self._rest else piece
        if self._first:
            self._first = False
            buffer = buffer.removeprefix(b"\xef\xbb\xbf")
        if b"\r" in buffer:
            self._skip_lf = buffer.endswith(b"\r")  # its LF may follow
            buffer = buffer.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *whole, rest = buffer.split(b"\n")
        self._rest, self._held = [rest] if rest else [], len(rest)
        if len(rest) > self._max_line or len(whole[0]) > self._max_line:
            raise TooLong(f"a line of more than {self._max_line} bytes")
        found: list[bytes] = []
        for line in whole:
            if not line:
                if self._lines:
                    found.append(self._lines[0] if len(self._lines) == 1 else b"\n".join(self._lines))
                    self._lines, self._size = [], 0
            elif line.startswith(b"data:"):
                value = line[6:] if line[5:6] == b" " else line[5:]
                self._size += len(value)
                if self._size > self._max_line:
                    raise TooLong(f"an event of more than {self._max_line} bytes")
                self._lines.append(value)
        return found
