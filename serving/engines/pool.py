"""Connections to one upstream, kept open between requests: made, counted, found again, closed when they rest for long."""

from __future__ import annotations

import asyncio
import base64
import socket
import ssl
from collections.abc import Callable
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

from serving.engines.http1 import Connection, Disconnected, Target, Unpacker

_RESTING = 30.0  # seconds that a connection is kept without a request
_DELAY = 0.25  # seconds before the next of several addresses is tried beside the one before (RFC 8305)


class Unconnected(Disconnected):
    """No connection could be made."""


class Unheard(Unconnected):
    """Nobody said whether one could be made, for as long as that may take."""


class Answer:
    """A response whose body is unread. `release` it.

    `headers` are by name in small letters; `status` is what it says, redirects included.
    """

    __slots__ = ("_connection", "_pool", "_unpacker", "headers", "status")

    def __init__(self, connection: Connection, pool: Pool) -> None:
        self._connection: Connection | None = connection
        self._pool = pool
        self.status, self.headers = connection.status, connection.headers
        packed = self.headers.get(b"content-encoding", b"identity").strip().lower()
        self._unpacker = Unpacker(packed) if packed not in (b"identity", b"") else None

    def header(self, name: bytes) -> str:
        return self.headers.get(name, b"").decode("latin-1")

    @property
    def complete(self) -> bool:
        """Whether all of it has come, read or not."""
        return self._connection is not None and self._connection.complete

    async def read(self, until: float) -> bytes:
        """What has come of the body, unpacked; empty at its end. Raises `Broken`, and `TimeoutError` at `until`."""
        assert self._connection is not None
        if self._unpacker is None:
            return await self._connection.read(until)
        while True:
            data = b"" if self._unpacker.more else await self._connection.read(until)
            if not data and not self._unpacker.more:
                self._unpacker.end()
                return b""
            if unpacked := self._unpacker.feed(data):
                return unpacked

    def release(self) -> None:
        """Let the connection go: for another request where the answer came to its end, and closed otherwise."""
        connection, self._connection = self._connection, None
        if connection is not None:
            self._pool._release(connection)


class Pool:
    """Connections to one upstream. For one event loop.

    Parameters
    ----------
    limit: connections at a time; who needs one more waits.
    connect: seconds that making one may take.
    tls: makes the context for TLS; it is made once.
    proxy: gives the URL of the proxy through which a host is reached, or None.
    """

    def __init__(
        self,
        *,
        limit: int,
        connect: float,
        tls: Callable[[], ssl.SSLContext],
        proxy: Callable[[bool, str], str | None] = lambda secure, host: None,
    ) -> None:
        self._connect, self._tls, self._proxy = connect, tls, proxy
        self._turns = asyncio.Semaphore(limit)
        self._context: ssl.SSLContext | None = None
        self._resting: list[tuple[float, Connection]] = []  # the one that was used last is used next
        self._used: set[Connection] = set()
        self._sweeper: asyncio.TimerHandle | None = None

    async def ask(self, target: Target, method: bytes, path: bytes, headers: bytes, body: bytes, until: float) -> Answer:
        """Send a request, give its answer once status and headers are there.

        Parameters
        ----------
        path: with the query; percent-encoded.
        headers: lines that end with CRLF; those of the body's length are added.
        until: when to give up, in the loop's time.

        Raises
        ------
        Unconnected: there is nobody. Unheard: nor anybody to say so. Disconnected: the connection ended before an
        answer began. Broken: what came is no answer.
        TimeoutError: at `until`.
        """
        connection = await self._take(target, until)
        try:
            length = b"content-length: %d\r\n" % len(body) if body or method != b"GET" else b""
            head = b"%b %b%b HTTP/1.1\r\n%b%b%b\r\n" % (method, connection.origin, path, connection.more, headers, length)
            connection.send(head, body)
            await connection.answered(until)
            return Answer(connection, self)
        except BaseException:
            connection.close()
            self._release(connection)
            raise

    def close(self) -> None:
        """Close every connection, those in use too."""
        for connection in [*self._used, *(resting for _, resting in self._resting)]:
            connection.close()
        self._resting.clear()
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None

    # --- within ---

    async def _take(self, target: Target, until: float) -> Connection:
        if self._turns.locked():
            async with asyncio.timeout_at(until):
                await self._turns.acquire()
        else:
            await self._turns.acquire()  # at once
        try:
            connection = self._rested(target) or await self._made(target, until)
        except BaseException:
            self._turns.release()
            raise
        self._used.add(connection)
        return connection

    def _rested(self, target: Target) -> Connection | None:
        while self._resting:
            _, connection = self._resting.pop()
            if connection.reusable and connection.target == target:
                return connection
            connection.close()
        return None

    def _release(self, connection: Connection) -> None:
        self._used.discard(connection)
        self._turns.release()
        if not connection.reusable or connection.paused:
            connection.close()
            return
        loop = asyncio.get_running_loop()
        self._resting.append((loop.time(), connection))
        if self._sweeper is None:
            self._sweeper = loop.call_later(_RESTING, self._sweep)

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time() - _RESTING + 0.1
        for since, connection in self._resting:
            if since <= due:
                connection.close()
        self._resting = [(since, connection) for since, connection in self._resting if since > due and not connection.lost]
        first = self._resting[0][0] if self._resting else None
        self._sweeper = loop.call_at(first + _RESTING, self._sweep) if first is not None else None

    async def _made(self, target: Target, until: float) -> Connection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout_at(min(until, loop.time() + self._connect)):
                return await self._dialled(loop, target)
        except TimeoutError:
            if loop.time() >= until:
                raise
            raise Unheard("it does not answer") from None
        except (OSError, ssl.CertificateError, UnicodeError) as error:
            raise Unconnected(str(error)) from error

    async def _dialled(self, loop: asyncio.AbstractEventLoop, target: Target) -> Connection:
        proxy = self._proxy(target.secure, target.host)
        via = urlsplit(proxy if "://" in proxy else f"http://{proxy}") if proxy else None
        if via is not None and (via.scheme != "http" or not via.hostname):
            raise OSError("the proxy that the environment names is not one of http://")
        host, port = (via.hostname or "", via.port or 80) if via else (target.host, target.port)
        sock = await _socket(loop, host, port)
        if self._context is None and target.secure:
            self._context = self._tls()
        name = target.server_hostname or target.host
        try:
            if via is None:
                tls: dict[str, Any] = {"ssl": self._context, "server_hostname": name} if target.secure else {}
                _, connection = await loop.create_connection(lambda: Connection(loop, target), sock=sock, **tls)
                return connection
            _, connection = await loop.create_connection(lambda: Connection(loop, target), sock=sock)
        except BaseException:
            sock.close()
            raise
        try:
            await self._through(loop, connection, via, name)
        except BaseException:
            connection.close()
            raise
        return connection

    async def _through(self, loop: asyncio.AbstractEventLoop, connection: Connection, via: SplitResult, name: str) -> None:
        """Have a proxy pass requests on: each by its whole URL, or all by a tunnel where they are encrypted."""
        target, more = connection.target, b""
        if via.username:
            credentials = f"{unquote(via.username)}:{unquote(via.password or '')}".encode()
            more = b"proxy-authorization: Basic " + base64.b64encode(credentials) + b"\r\n"
        host = f"[{target.host}]" if ":" in target.host else target.host
        authority = f"{host}:{target.port}".encode("idna" if not host.isascii() else "ascii")
        if not target.secure:
            connection.origin, connection.more = b"http://" + authority, more
            return
        status = await connection.tunnel(b"CONNECT %b HTTP/1.1\r\nhost: %b\r\n%b\r\n" % (authority, authority, more))
        if status != 200:
            raise OSError(f"the proxy refuses with HTTP {status}")
        assert self._context is not None
        connection.transport = await loop.start_tls(connection.transport, connection, self._context, server_hostname=name)


async def _socket(loop: asyncio.AbstractEventLoop, host: str, port: int) -> socket.socket:
    import aiohappyeyeballs

    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    made = await aiohappyeyeballs.start_connection(found, happy_eyeballs_delay=_DELAY, loop=loop)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    return made
