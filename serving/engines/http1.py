"""One HTTP/1.1 connection to an upstream: a request is written, its answer read, and another one may follow.

llhttp parses what comes (httptools); this knows where an answer ends, what may be kept of it, and when it is too much.

Source: https://www.rfc-editor.org/rfc/rfc9112
"""

from __future__ import annotations

import asyncio
import zlib
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httptools

MAX_HEAD = 64 * 1024
"""Bytes of an answer's status line and headers, those of interim answers included."""
_HELD = 256 * 1024  # bytes of a body that are held before the upstream is kept from sending more
_UNPACKED = 1024 * 1024  # bytes that are unpacked at a time
_BODILESS = (204, 304)
_NEVER = float("inf")


class Broken(Exception):
    """The answer cannot be read to its end: the connection broke, or it is not HTTP."""


class Disconnected(Broken):
    """The connection ended before anything of the answer came."""


class Target(NamedTuple):
    """Where a connection leads.

    Parameters
    ----------
    secure: whether by TLS.
    host, port: a name or an address.
    server_hostname: the name that the certificate must have; the host's where None.
    """

    secure: bool
    host: str
    port: int
    server_hostname: str | None = None

    @classmethod
    def of(cls, base_url: str, server_hostname: str | None = None) -> Target:
        parts = urlsplit(base_url)
        secure = parts.scheme == "https"
        return cls(secure, parts.hostname or "", parts.port or (443 if secure else 80), server_hostname)


class Connection(asyncio.Protocol):
    """A connection, made by `loop.create_connection`; `lost` is set when it can no longer be used."""

    def __init__(self, loop: asyncio.AbstractEventLoop, target: Target) -> None:
        self.target = target
        self.origin = b""
        """What stands before the path of a request, where a proxy passes it on."""
        self.more = b""
        """Headers of each request that are the proxy's."""
        self.transport: Any = None
        self._loop = loop
        self._parser = httptools.HttpResponseParser(self)
        self._waiter: asyncio.Future[None] | None = None
        self.lost = False
        self.reusable = False
        """Whether the answer is complete and another request may follow."""
        self._awaiting = False
        self._begin()

    def _begin(self) -> None:
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.complete = False
        """Whether the answer has come to its end, which may not be read yet."""
        self._error: Broken | None = None
        self.paused = False
        """Whether the upstream is kept from sending more."""
        self._headed = self._interim = self._until_lost = self._spoiled = False
        self._head = self._held = 0
        self._body: list[bytes] = []

    # --- asking ---

    def send(self, head: bytes, body: bytes) -> None:
        """Write a request; its answer follows."""
        self._begin()
        self.reusable, self._awaiting = False, True
        if len(body) < _HELD:
            self.transport.write(head + body)
        else:
            self.transport.writelines([head, body])

    async def tunnel(self, head: bytes) -> int:
        """Ask a proxy for a tunnel; its status. What follows one of 200 is no longer the proxy's. Raises `Broken`."""
        self.send(head, b"")
        await self.answered(_NEVER)
        if self.status == 200 and (self._body or self.lost):
            raise Broken("the proxy says more than was asked")
        self._awaiting, self._parser = False, httptools.HttpResponseParser(self)
        return self.status

    async def answered(self, until: float) -> None:
        """Returns once status and headers are there. Raises `Broken`, and `TimeoutError` at `until` (the loop's time)."""
        while not self._headed:
            if self._error is not None:
                raise self._error
            await self._wait(until)

    async def read(self, until: float) -> bytes:
        """What has come of the body; empty at its end. Raises as `answered`."""
        while not self._body:
            if self._error is not None:
                raise self._error
            if self.complete:
                return b""
            await self._wait(until)
        data = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._body, self._held = [], 0
        if self.paused:
            self.paused = False
            self.transport.resume_reading()
        return data

    def close(self) -> None:
        """End the connection, and with it an answer that is not complete."""
        self.lost, self.reusable = True, False
        if self.transport is not None:
            self.transport.abort()

    async def _wait(self, until: float) -> None:
        waiter = self._waiter = self._loop.create_future()
        timer = self._loop.call_at(until, _expire, waiter) if until != _NEVER else None
        try:
            await waiter
        finally:
            if timer is not None:
                timer.cancel()
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, error: Broken) -> None:
        if self._error is None and not self.complete:
            self._error = error
        self._awaiting = False
        self.close()

    # --- asyncio.Protocol ---

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if not self._awaiting:  # nothing was asked
            self.close()
            return
        if not self._headed:
            self._head += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(Broken(f"the answer is not HTTP: {error}"))
        else:
            if not self._headed and self._head > MAX_HEAD:
                self._fail(Broken("headers without end"))
            elif self._spoiled:
                self._fail(Broken("more than one answer"))
            elif self.complete:
                self._awaiting = False
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        if self._until_lost and exc is None:
            self.complete = True
        elif not self.complete and self._error is None:
            begun = self._head or self._headed
            self._error = Broken("the connection ended in the middle") if begun else Disconnected("the connection ended")
        self.reusable = self._awaiting = False
        self._wake()

    # --- httptools ---

    def on_message_begin(self) -> None:
        self._spoiled = self.complete

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._headed:  # else a trailer
            name = name.lower()
            self.headers[name] = b"%b, %b" % (self.headers[name], value) if name in self.headers else value

    def on_headers_complete(self) -> None:
        if self._spoiled:
            return
        status = self._parser.get_status_code()
        self._interim = 100 <= status < 200
        if self._interim:
            self.headers = {}
            return
        self.status, self._headed = status, True
        chunked = self.headers.get(b"transfer-encoding", b"").lower().endswith(b"chunked")
        self._until_lost = not chunked and b"content-length" not in self.headers and status not in _BODILESS

    def on_body(self, data: bytes) -> None:
        if self._spoiled:
            return
        self._body.append(data)
        self._held += len(data)
        if self._held > _HELD and not self.paused:
            self.paused = True
            self.transport.pause_reading()

    def on_message_complete(self) -> None:
        if self._interim or self._spoiled:
            return
        self.complete, self._until_lost = True, False
        self.reusable = self._parser.should_keep_alive() and not self.lost


class Unpacker:
    """Undoes a `Content-Encoding` that came although none was asked for. Raises `Broken` for one that is not known."""

    def __init__(self, encoding: bytes) -> None:
        if encoding not in (b"gzip", b"x-gzip", b"deflate"):
            raise Broken(f"the encoding {encoding[:40]!r} is not read")
        self._inflate = zlib.decompressobj(zlib.MAX_WBITS | 32 if encoding != b"deflate" else zlib.MAX_WBITS)
        self._rest = b""

    @property
    def more(self) -> bool:
        """Whether there is more in what was given already."""
        return bool(self._rest)

    def feed(self, data: bytes) -> bytes:
        """A bounded part of what these bytes, and those given before, stand for. Raises `Broken`."""
        try:
            unpacked = self._inflate.decompress(self._rest + data, _UNPACKED)
        except zlib.error:
            raise Broken("the encoding is not what it says") from None
        self._rest = self._inflate.unconsumed_tail
        return unpacked

    def end(self) -> None:
        """Raises `Broken` where the packed bytes ended in the middle."""
        if not self._inflate.eof:
            raise Broken("the packed answer ended in the middle")


def _expire(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_exception(TimeoutError())
