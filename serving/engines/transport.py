"""HTTP to an upstream: one pool of connections, a time limit for each phase, no redirect, and errors that give nothing away."""

from __future__ import annotations

import asyncio
import contextlib
import re
import urllib.request
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

import orjson

from governance.call import CallError, limit_exceeded, misconfigured, unavailable
from governance.guardrails.pii import without_credentials
from serving.engines.addresses import NotAllowed, Place, Unreachable
from serving.engines.http1 import Broken, Disconnected, Target
from serving.engines.pool import Answer, Pool, Unconnected, Unheard
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

PASSING = {408: 504, 503: 503, 504: 504, 529: 503}
"""Failures of a model that have a status of the same meaning; all others are 502. 529 is Anthropic's for 503."""
_SPENT = "insufficient_quota"  # OpenAI's code of a 429 that no waiting helps against
_CODE = re.compile(r"[a-z][a-z0-9_]{2,63}")

BREAKS = (Broken, sse.TooLong)
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
        self._pool: Pool | None = None
        self._place = Place(upstream.base_url, upstream.reach)
        self._targets: dict[str, Target] = {}
        self._paths: dict[str, bytes] = {}
        self._headers = _headers(upstream, self._place.host_header)

    def _opened(self) -> Pool:
        if self._pool is None:
            # a proxy would look the name up again; what is checked here is connected to from here
            proxied = self.upstream.reach == "any" and not _is_own(self.upstream)
            limit, connect = self._max_connections, self.timeouts.connect
            more = {"proxy": _proxy} if proxied else {}
            self._pool = Pool(limit=limit, connect=connect, tls=_tls, **more)
        return self._pool

    async def aclose(self) -> None:
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    async def open(self, method: str, path: str, body: Any = None) -> Answer:
        """A response whose body is unread, of whatever status. Raises `CallError`. `release` it."""
        if (raw := self._paths.get(path)) is None:
            raw = self._paths[path] = _target(self.upstream, path, self.upstream.query)
        return await self._asked(method.encode(), raw, self._headers, orjson.dumps(body) if body is not None else b"", 2)

    async def request(self, method: str, path: str, query: str, headers: Mapping[str, str], content: bytes) -> Answer:
        """As `open`, with a query and headers of its own in place of those of the same name; `path` follows the base URL's.

        What may have had an effect already is not sent again. Raises `ValueError` for what cannot stand in a header's line.
        """
        lines = _headers(self.upstream, self._place.host_header, headers)
        attempts = 2 if method in ("GET", "PUT", "DELETE") else 1
        return await self._asked(method.encode(), _target(self.upstream, path, query), lines, content, attempts)

    async def _asked(self, method: bytes, raw: bytes, headers: bytes, content: bytes, attempts: int) -> Answer:
        until = asyncio.get_running_loop().time() + self.timeouts.first_byte
        for attempt in range(1, attempts + 1):
            try:
                return await self._open(method, raw, headers, content, until)
            except Unheard as error:
                what = f"The {self.upstream.what} at {self.upstream.host}"
                message = f"{what} took no connection in {self.timeouts.connect:g} s. Check that it runs, and its base URL."
                raise unavailable(message, status=504) from error  # it was waited for: that is not done again
            except Unconnected as error:
                raise unavailable(
                    f"The {self.upstream.what} at {self.upstream.host} cannot be reached. Check that it runs, and its base URL.",
                    status=502,
                ) from error
            except Disconnected as error:
                if attempt == attempts:
                    raise self.broken(error) from error  # the first may have been one that the upstream had just closed
            except Broken as error:
                raise self.broken(error) from error
            except TimeoutError as error:
                seconds = self.timeouts.first_byte
                raise unavailable(
                    f"The {self.upstream.what} at {self.upstream.host} did not answer in {seconds:g} s. Send the request again.",
                    status=504,
                ) from error
        raise AssertionError

    async def _open(self, method: bytes, raw: bytes, headers: bytes, content: bytes, until: float) -> Answer:
        try:
            base = await self._place.url()
        except NotAllowed as error:
            raise misconfigured(str(error)) from None
        except Unreachable as error:
            raise unavailable(str(error), status=502) from None
        if (target := self._targets.get(base)) is None:
            self._targets = {base: (target := Target.of(base, self._place.server_hostname))}
        return await self._opened().ask(target, method, raw, headers, content, until)

    async def chunks(self, answer: Answer) -> AsyncGenerator[list[dict[str, Any]]]:
        """The JSON of a stream's events, as many at a time as come together; a whole answer, where the upstream does not stream,
        is one.

        Raises `TimeoutError` where the upstream is silent for too long. The clock stops while events are being used, and is not
        set back by bytes that end none.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + self.timeouts.first_byte
        if not answer.header(b"content-type").startswith("text/event-stream"):
            yield [await self.json(answer, until=until)]
            return
        parser, size = sse.Parser(), 0
        while data := await answer.read(until):
            size += len(data)
            if size > MAX_STREAM:
                raise sse.TooLong("a stream that does not end")
            if not (events := parser.feed(data)):
                continue
            end = next((place for place, event in enumerate(events) if len(event) < 16 and event.strip() == b"[DONE]"), None)
            if end is not None:
                # a reason is given, for one that never gave any
                yield [*map(_json, events[:end]), {"choices": [{"finish_reason": "stop"}]}]
                break
            yield [_json(event) for event in events]
            until = loop.time() + self.timeouts.between
        if not answer.complete:
            with contextlib.suppress(TimeoutError, Broken):  # a connection is used again only when its answer was read to the end
                rest = loop.time() + _REST
                while await answer.read(rest):
                    pass

    async def json(self, answer: Answer, limit: int = MAX_BODY, *, until: float | None = None) -> dict[str, Any]:
        """A whole answer. Raises `CallError`, `TimeoutError` and what `BREAKS` lists."""
        return _json(await self.read(answer, limit, until))

    @staticmethod
    def until(seconds: float) -> float:
        """The loop's time so many seconds from now."""
        return asyncio.get_running_loop().time() + seconds

    async def read(self, answer: Answer, limit: int, until: float | None = None) -> bytes:
        """The body. Raises `TimeoutError` where it has not come by then, or else in the time that gaps may take."""
        until = until or asyncio.get_running_loop().time() + self.timeouts.between
        parts = bytearray()
        while data := await answer.read(until):
            parts += data
            if len(parts) > limit:
                raise sse.TooLong("an answer that is too long")
        return bytes(parts)

    async def error_text(self, answer: Answer) -> str:
        """A refusal's own message, in one bounded line without the key."""
        try:
            raw = await self.read(answer, 64 * 1024, asyncio.get_running_loop().time() + 5)
        except (TimeoutError, Broken, sse.TooLong):
            return ""
        finally:
            answer.release()
        return self.safe(_message(raw))

    def safe(self, text: str, most: int = 300) -> str:
        """What an upstream says, in one bounded line without the key, and without any other that it tells of."""
        if self.upstream.key:
            text = text.replace(self.upstream.key, "***")
        text = without_credentials(text[:10_000])
        text = " ".join("".join(char if char.isprintable() else " " for char in text).split())
        return text if len(text) <= most else text[: most - 3] + "..."

    def refused(self, answer: Answer, text: str, model: str | None) -> CallError:
        """What an answer of another status than 200 means to whoever called."""
        status, host = answer.status, self.upstream.host
        said = f": {text}" if text else ""
        if self.upstream.entity:
            host = f"{host} ({self.upstream.entity})"
        retry = answer.header(b"retry-after")
        wait = float(retry) if re.fullmatch(r"\d{1,4}(\.\d+)?", retry) else None
        match status:
            case 400 | 413 | 422:
                return CallError(f"The model at {host} refuses the request{said}", status=400, code="BAD_REQUEST")
            case 401 | 403:
                return misconfigured(f"The model at {host} refuses the server's key. Check {self.upstream.key_from}.")
            case 402:
                return misconfigured(f"The account at {host} has no credit{said}. Whoever runs this server must see to it.")
            case 404 | 405 | 410:
                return misconfigured(f"There is no model {model!r} at {host}. Check its name{said}.")
            case 429 if _SPENT in text:
                return misconfigured(f"The account at {host} is used up{said}. Whoever runs this server must see to it.")
            case 429:
                wait = 1.0 if wait is None else wait
                return limit_exceeded(f"The model at {host} is at its own limit{said}. Wait {wait:g} s.", wait)
        if 300 <= status < 400:
            return misconfigured(f"The model at {host} redirects, which is not followed. Correct its base URL.")
        message = f"The model at {host} failed with HTTP {status}{said}. Send the request again."
        return unavailable(message, status=PASSING.get(status, 502), retry_after=wait)

    def broken(self, error: Exception) -> CallError:
        """What a connection that broke, or an answer that cannot be read, means to whoever called."""
        reason = "sent what cannot be read" if isinstance(error, sse.TooLong) else "broke the connection"
        return unavailable(f"The {self.upstream.what} at {self.upstream.host} {reason}. Send the request again.", status=502)


def _is_own(upstream: Upstream) -> bool:
    return upstream.host.rpartition(":")[0] in ("127.0.0.1", "localhost", "[::1]") or upstream.host in ("127.0.0.1", "localhost")


def _target(upstream: Upstream, path: str, query: str) -> bytes:
    """Path and query of a request, percent-encoded."""
    whole = urlsplit(upstream.base_url).path + path + (f"?{query}" if query else "")
    return quote(whole, safe="%/:=&?~#+!$,;'@()*[]").encode()


def _headers(upstream: Upstream, host: str | None, own: Mapping[str, str] | None = None) -> bytes:
    """What every request says, as lines, a request's own over it. Raises `ValueError` for what cannot stand in a line."""
    fields = {"host": host or urlsplit(upstream.base_url).netloc, "user-agent": "smalti", "accept": "*/*"}
    fields |= {"accept-encoding": "identity", "content-type": "application/json", **upstream.headers, **(own or {})}
    if upstream.key:
        fields[upstream.header] = f"Bearer {upstream.key}" if upstream.header == "authorization" else upstream.key
    if any(control in text for pair in fields.items() for text in pair for control in "\r\n\0"):
        raise ValueError(f"a header or a key of the {upstream.what} has a line break in it")
    return "".join(f"{name}: {value}\r\n" for name, value in fields.items()).encode()


def _proxy(secure: bool, host: str) -> str | None:
    """The proxy that the environment names for a host (`HTTP_PROXY`, `HTTPS_PROXY`, `NO_PROXY`)."""
    if urllib.request.proxy_bypass(host):
        return None
    return urllib.request.getproxies().get("https" if secure else "http")


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
    if not isinstance(message, str):
        return ""
    code = error.get("code") if isinstance(error, dict) else None  # as clients look for, e.g. context_length_exceeded
    return f"{code}: {message}" if isinstance(code, str) and _CODE.fullmatch(code) and code not in message else message
