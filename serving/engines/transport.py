"""HTTP to an upstream: one pool of connections, a time limit for each phase, no redirect, and errors that give nothing away."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import aiohttp
import orjson
from yarl import URL

from governance.call import CallError, limit_exceeded, unavailable
from serving.engines.addresses import Place, Unreachable
from serving.engines.upstream import Upstream
from serving.protocols import sse

if TYPE_CHECKING:
    import ssl

MAX_BODY = 8 * 1024 * 1024
MAX_VECTORS = 128 * 1024 * 1024
"""Bytes of an answer that is not streamed, of text and of embeddings."""
MAX_STREAM = 128 * 1024 * 1024
"""The same of a stream: one that goes on past it has no end."""

_REST = 0.05  # seconds that the end of the connection's answer is waited for after the end of the text

BREAKS = (aiohttp.ClientError, UnicodeDecodeError, sse.TooLong)
"""What reading an answer fails with, where the upstream is at fault."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds each phase of an upstream call may take: connecting, the first byte, and each gap after it."""

    connect: float = 10.0
    first_byte: float = 60.0
    between: float = 60.0


class Transport:
    """Requests to one upstream. Close it with `aclose`."""

    def __init__(self, upstream: Upstream, *, timeouts: Timeouts | None = None, max_connections: int = 256) -> None:
        self.upstream = upstream
        self.timeouts = timeouts or Timeouts()
        self._max_connections = max_connections
        self._session: aiohttp.ClientSession | None = None
        self._place = Place(upstream.base_url, upstream.reach)

    def _pool(self) -> aiohttp.ClientSession:
        if self._session is None:
            upstream = self.upstream
            headers = {"user-agent": "smalti", "accept-encoding": "identity", **upstream.headers}
            if upstream.key:
                headers[upstream.header] = f"Bearer {upstream.key}" if upstream.header == "authorization" else upstream.key
            tls = _tls() if upstream.base_url.startswith("https:") else True
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=self._max_connections, keepalive_timeout=30, ssl=tls),
                headers=headers,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=self.timeouts.connect),
                cookie_jar=aiohttp.DummyCookieJar(),  # what one caller's answer sets is not sent with another's request
                # a proxy would look the name up again; what is checked here is connected to from here
                trust_env=upstream.reach == "any" and not _is_own(upstream),
            )
        return self._session

    async def aclose(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def open(self, method: str, path: str, body: Any = None) -> aiohttp.ClientResponse:
        """A response whose body is unread, of whatever status. Raises `CallError`. `release` it."""
        content = orjson.dumps(body) if body is not None else None
        for attempt in (1, 2):
            try:
                return await self._open(method, path, content)
            except aiohttp.ClientError as error:
                if attempt == 2:
                    raise self.broken(error) from error  # the first was a pooled connection that the upstream had closed
        raise AssertionError

    async def _open(self, method: str, path: str, content: bytes | None) -> aiohttp.ClientResponse:
        session, upstream = self._pool(), self.upstream
        try:
            base = await self._place.url()
        except Unreachable as error:
            raise unavailable(str(error), status=502) from None
        headers = {"content-type": "application/json"} if content else {}
        if self._place.host_header:
            headers["host"] = self._place.host_header
        url = URL(f"{base}{path}?{upstream.query}" if upstream.query else base + path, encoded=True)
        try:
            async with asyncio.timeout(self.timeouts.first_byte):
                return await session.request(
                    method,
                    url,
                    data=content,
                    headers=headers,
                    allow_redirects=False,
                    server_hostname=self._place.server_hostname,
                )
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise unavailable(
                f"The model at {upstream.host} cannot be reached. Check that it runs, and its base URL.", status=502
            ) from error
        except TimeoutError as error:
            seconds = self.timeouts.first_byte
            raise unavailable(
                f"The model at {upstream.host} did not answer in {seconds:g} s. Send the request again.", status=504
            ) from error

    async def chunks(self, response: aiohttp.ClientResponse) -> AsyncGenerator[dict[str, Any]]:
        """The JSON of each event of a stream; a whole answer, where the upstream does not stream, is one.

        Raises `TimeoutError` where the upstream is silent for too long. The clock stops while an event is being used, and is not
        set back by bytes that end none.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + self.timeouts.first_byte
        if not response.headers.get("content-type", "").startswith("text/event-stream"):
            async with asyncio.timeout_at(until):
                whole = await self.json(response)
            yield whole
            return

        async def read() -> AsyncGenerator[bytes]:
            nonlocal until
            while True:
                until = until or loop.time() + self.timeouts.between
                async with asyncio.timeout_at(until):
                    data = await response.content.readany()
                if not data:
                    return
                yield data

        raw = read()
        async with contextlib.aclosing(raw), contextlib.aclosing(sse.events(raw)) as events:
            size = 0
            async for data in events:
                until = 0.0
                size += len(data) + 8
                if size > MAX_STREAM:
                    raise sse.TooLong("a stream that does not end")
                if data.strip() == "[DONE]":
                    yield {"choices": [{"finish_reason": "stop"}]}  # for one that never gave a reason
                    break
                yield _json(data)
            with contextlib.suppress(TimeoutError, aiohttp.ClientError):
                async with asyncio.timeout(_REST):  # a connection is used again only when its answer was read to the end
                    async for _ in raw:
                        pass

    async def json(self, response: aiohttp.ClientResponse, limit: int = MAX_BODY) -> dict[str, Any]:
        """A whole answer. Raises `CallError` and what `BREAKS` lists."""
        return _json(await self._read(response, limit))

    async def _read(self, response: aiohttp.ClientResponse, limit: int) -> bytes:
        parts = bytearray()
        async for chunk in response.content.iter_any():
            parts += chunk
            if len(parts) > limit:
                raise sse.TooLong("an answer that is too long")
        return bytes(parts)

    async def error_text(self, response: aiohttp.ClientResponse) -> str:
        """A refusal's own message, in one bounded line without the key."""
        try:
            async with asyncio.timeout(5):
                raw = await self._read(response, 64 * 1024)
        except (TimeoutError, aiohttp.ClientError, sse.TooLong):
            return ""
        finally:
            response.release()
        return self.safe(_message(raw))

    def safe(self, text: str) -> str:
        """What an upstream says, in one bounded line without the key."""
        if self.upstream.key:
            text = text.replace(self.upstream.key, "***")
        text = " ".join("".join(char if char.isprintable() else " " for char in text).split())
        return text if len(text) <= 300 else text[:297] + "..."

    def refused(self, response: aiohttp.ClientResponse, text: str, model: str | None) -> CallError:
        """What an answer of another status than 200 means to whoever called."""
        status, host = response.status, self.upstream.host
        said = f": {text}" if text else ""
        retry = response.headers.get("retry-after", "")
        wait = float(retry) if re.fullmatch(r"\d{1,4}(\.\d+)?", retry) else None
        match status:
            case 400 | 413 | 422:
                return CallError(f"The model at {host} refuses the request{said}", status=400, code="BAD_REQUEST")
            case 401 | 403:
                return CallError(f"The model at {host} refuses the server's key. Check {self.upstream.key_from}.", status=502)
            case 404:
                return CallError(f"There is no model {model!r} at {host}. Check its name{said}.", status=502)
            case 429:
                wait = 1.0 if wait is None else wait
                return limit_exceeded(f"The model at {host} is at its own limit. Wait {wait:g} s.", wait)
        if 300 <= status < 400:
            return CallError(f"The model at {host} redirects, which is not followed. Correct its base URL.", status=502)
        message = f"The model at {host} failed with HTTP {status}{said}. Send the request again."
        return unavailable(message, status=502, retry_after=wait)

    def broken(self, error: Exception) -> CallError:
        """What a connection that broke, or an answer that cannot be read, means to whoever called."""
        reason = "sent what cannot be read" if isinstance(error, (UnicodeDecodeError, sse.TooLong)) else "broke the connection"
        return unavailable(f"The model at {self.upstream.host} {reason}. Send the request again.", status=502)


def _is_own(upstream: Upstream) -> bool:
    return upstream.host.rpartition(":")[0] in ("127.0.0.1", "localhost", "[::1]") or upstream.host in ("127.0.0.1", "localhost")


def _tls() -> ssl.SSLContext:
    """The authorities that come with the installation, or those that `SSL_CERT_FILE` and `SSL_CERT_DIR` name."""
    import httpx

    return httpx.create_ssl_context()


def _json(raw: str | bytes) -> dict[str, Any]:
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError:
        body = None
    if not isinstance(body, dict):
        raise unavailable("The model sent an answer that is not JSON. Look at its log.", status=502)
    return body


def _message(raw: bytes) -> str:
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return ""
    error = body.get("error", body) if isinstance(body, dict) else body
    message = error.get("message") if isinstance(error, dict) else error
    return message if isinstance(message, str) else ""
