"""The server's end of the socket to a model's process: frames out, and each answer to the call that waits for it.

The frames are described in `serving.engines.worker`.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from typing import Any

import orjson

_LENGTH = struct.Struct(">I")
QUICK = 0.002
"""Seconds of a batch below which a model is not kept waiting for the rest of the loop's turn, which may take as long."""
FEW = 2
"""Requests that such a model is sent at once when it has nothing to do; one alone leaves with what comes in the same turn."""

Sink = Callable[[tuple[str, Any]], None]


class Wire(asyncio.Protocol):
    """One connection. `waiting` has the calls that are not answered yet, `control` what concerns the process itself."""

    def __init__(self) -> None:
        self.control: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
        self.waiting: dict[int, Sink] = {}
        self.gone = asyncio.Event()
        self.on_lost: Callable[[], None] | None = None
        """Called before anyone who waits for an answer learns that none comes."""
        self._buffer = bytearray()
        self._last = 0
        self._transport: Any = None
        self.loop = asyncio.get_running_loop()
        self._leaving: list[bytes] = []
        self._took = QUICK  # seconds of the model's last batch

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        position, end = 0, len(buffer)
        frames: list[Any] = []
        with memoryview(buffer) as view:
            while end - position >= 4:
                (size,) = _LENGTH.unpack_from(buffer, position)
                if end - position - 4 < size:
                    break
                frames.append(orjson.loads(view[position + 4 : position + 4 + size]))
                position += 4 + size
        del buffer[:position]
        for identifier, kind, body in frames:
            sink = self.waiting.get(identifier)
            if sink is not None:
                sink((kind, body))
            elif kind == "took":
                self._took = body if isinstance(body, float) else QUICK
            elif identifier == 0:
                self.control.put_nowait((kind, body))

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone.set()
        if self.on_lost is not None:
            self.on_lost()
        self.control.put_nowait(("gone", None))
        for sink in list(self.waiting.values()):
            sink(("gone", None))

    def ask(self, kind: str, body: Any) -> tuple[int, asyncio.Future[tuple[str, Any]]]:
        """Send a request that has one answer; gives its number for `close`, and the answer."""
        answer: asyncio.Future[tuple[str, Any]] = self.loop.create_future()
        return self._send(kind, body, lambda given: None if answer.done() else answer.set_result(given)), answer

    def open(self, kind: str, body: Any) -> tuple[int, asyncio.Queue[tuple[str, Any]]]:
        """Send a request that has several answers; gives its number for `close`, and where they come in."""
        mailbox: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
        return self._send(kind, body, mailbox.put_nowait), mailbox

    def _send(self, kind: str, body: Any, sink: Sink) -> int:
        self._last = identifier = self._last + 1
        self.waiting[identifier] = sink
        if self.gone.is_set():
            sink(("gone", None))
            return identifier
        try:
            self.write([identifier, kind, body])
        except TypeError:  # what no JSON is: nobody waits for an answer
            del self.waiting[identifier]
            raise
        return identifier

    def close(self, identifier: int, *, cancel: bool = False) -> None:
        self.waiting.pop(identifier, None)
        if cancel and not self.gone.is_set():
            self.write([identifier, "cancel", None])

    def write(self, frame: Any) -> None:
        """Send a frame, together with the others of this turn of the loop: one system call, and one batch for the model. A quick
        model that has nothing to do begins with the first few, so that it works while the server reads the rest."""
        raw = orjson.dumps(frame)
        leaving = self._leaving
        if not leaving:
            self.loop.call_soon(self._flush)
        leaving.append(_LENGTH.pack(len(raw)) + raw)
        if self._took < QUICK and FEW <= len(leaving) >= len(self.waiting):
            self._flush()

    def _flush(self) -> None:
        if self._leaving and not self.gone.is_set():
            self._transport.write(b"".join(self._leaving))
        self._leaving = []
