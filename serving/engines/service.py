"""The engine of an HTTP service: one request below an address that was declared, its answer whole.

What a client chooses is the method, a path below the declared one, the query, a JSON body and headers that say neither who asks
nor where. A redirect is not followed.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote, urlencode

import orjson

from governance.call import CallError, bad_request, limit_exceeded, misconfigured, unavailable
from serving.engines.pool import Answer
from serving.engines.transport import BREAKS, MAX_BODY, PASSING, Transport
from serving.protocols.request import choice, describe, take

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
SECONDS = 120.0
"""How long the whole of an answer may take."""
MAX_REQUEST = 1 << 20
"""Bytes of a request's JSON."""
PASSED = ("content-type", "etag", "last-modified", "link", "mcp-session-id")
"""Headers of an answer that are passed on; those about cookies, sign-in and the connection never are."""

_MAX_HEADERS, _MAX_SAID = 64, 2_000
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}")
_VALUE = re.compile(r"[\x20-\x7e\t]{0,8192}")
_NOT_YOURS = re.compile(
    r"(proxy-|x-forwarded-|sec-).*|authorization|cookie2?|host|forwarded|x-real-ip|via|connection|keep-alive|te|trailer"
    r"|transfer-encoding|upgrade|content-length|content-encoding|accept-encoding|expect|x-http-method(-override)?",
    re.IGNORECASE,
)
_CODES = {400: "BAD_REQUEST", 403: "PERMISSION_DENIED", 404: "NOT_FOUND", 409: "RESOURCE_CONFLICT"}


class CredentialRefused(CallError):
    """The service answered 401: nothing was done."""


def check(payload: Mapping[str, Any]) -> None:
    """Raises `CallError` (400) naming what of a request may not be sent, before anything is sent or recorded."""
    choice(payload, "method", METHODS, required=True)
    _path(payload)
    _headers(payload)
    _query(payload)


async def ask(http: Transport, payload: Mapping[str, Any]) -> dict[str, Any]:
    """Send `{"method", "path", "headers", "params", "json"}`; its answer as `{"status_code", "headers", "text"}`.

    An answer that is no text has `base64` instead. Raises `CallError`: what the service refuses keeps its status.
    """
    check(payload)
    path, _, query = _path(payload).partition("?")
    headers = {name.lower(): value for name, value in _headers(payload).items()}
    content = b"" if payload.get("json") is None else orjson.dumps(payload["json"])
    if len(content) > MAX_REQUEST:
        raise CallError(f"Field 'json' is larger than {MAX_REQUEST >> 20} MB.", status=413, code="REQUEST_TOO_LARGE")
    whole = "&".join(filter(None, (query, urlencode(_query(payload)))))
    answer = await http.request(payload["method"], f"/{path.lstrip('/')}" if path else "", whole, headers, content)
    host = http.upstream.host
    try:
        if 300 <= answer.status < 400:
            raise misconfigured(f"The service at {host} redirects, which is not followed. Ask for where it leads instead.")
        raw = await http.read(answer, MAX_BODY, http.until(SECONDS))
    except TimeoutError:
        raise unavailable(f"The service at {host} stopped sending. Send the request again.", status=504) from None
    except BREAKS as error:
        raise http.broken(error) from error
    finally:
        answer.release()
    if http.upstream.key:  # a service that repeats what it was sent gives it to nobody
        raw = raw.replace(http.upstream.key.encode(), b"***")
    if not 200 <= answer.status < 300:
        raise _refused(http, answer, raw)
    kept = {name: value for name in PASSED if (value := answer.header(name.encode()))}
    try:
        return {"status_code": answer.status, "headers": kept, "text": raw.decode()}
    except UnicodeDecodeError:
        return {"status_code": answer.status, "headers": kept, "base64": base64.b64encode(raw).decode()}


def body_of(result: Mapping[str, Any]) -> bytes:
    """The bytes of an answer."""
    return base64.b64decode(result["base64"]) if "base64" in result else result["text"].encode()


def _refused(http: Transport, answer: Answer, raw: bytes) -> CallError:
    status, host = answer.status, http.upstream.host
    text = http.safe(raw.decode("utf-8", "replace"), _MAX_SAID)
    said = f": {text}" if text else "."
    if status in (401, 407):
        message = f"The service at {host} refuses the server's credential. Check {http.upstream.key_from}."
        refusal = misconfigured(message)
        return CredentialRefused(message, status=refusal.status, code=refusal.code) if status == 401 else refusal
    told = f"The service at {host} answered with HTTP {status}{said}"
    if status == 429:
        retry = answer.header(b"retry-after")
        return limit_exceeded(told, float(retry) if retry.isascii() and retry.isdigit() and len(retry) < 5 else 1.0)
    if status < 500:
        return CallError(told, status=status, code=_CODES.get(status, "BAD_REQUEST"))
    return unavailable(told, status=PASSING.get(status, 502))


def _path(payload: Mapping[str, Any]) -> str:
    """The path below the declared one. Raises `CallError` (400)."""
    given = take(payload, "path", str) or ""
    inner, plain = given, given.partition("?")[0]
    while (once := unquote(plain)) != plain:  # however often it is encoded
        plain = once
    if len(given) > 8192 or any(ord(char) < 32 or ord(char) == 127 for char in plain) or "#" in given or "\\" in plain:
        raise bad_request("Field 'path' is up to 8 KB of printable characters without '#' and '\\'.", "path")
    if re.match(r"([A-Za-z][A-Za-z0-9+.-]*:|//)", plain):
        raise bad_request("Field 'path' is below the connection's own address: leave out scheme and host.", "path")
    if any(segment.partition(";")[0] in (".", "..") for segment in plain.split("/")):
        raise bad_request("Field 'path' may not have '.' and '..' in it.", "path")
    return inner


def _headers(payload: Mapping[str, Any]) -> dict[str, str]:
    given = take(payload, "headers", dict) or {}
    if len(given) > _MAX_HEADERS:
        raise bad_request(f"Field 'headers' has up to {_MAX_HEADERS}.", "headers")
    for name, value in given.items():
        if not _HEADER.fullmatch(name) or not isinstance(value, str) or not _VALUE.fullmatch(value):
            raise bad_request(
                f"Field 'headers.{name[:80]}' is no header: names and printable text without line breaks.", "headers"
            )
        if _NOT_YOURS.fullmatch(name):
            raise bad_request(f"The header {name[:80]!r} is the connection's to set, not the request's.", "headers")
    return given


def _query(payload: Mapping[str, Any]) -> list[tuple[str, str]]:
    made: list[tuple[str, str]] = []
    for name, value in (take(payload, "params", dict) or {}).items():
        for each in value if isinstance(value, list) else [value]:
            if each is None or isinstance(each, dict | list):
                raise bad_request(f"Field 'params.{name[:80]}' must be text or a number, not {describe(each)}.", "params")
            made.append((name, str(each).lower() if isinstance(each, bool) else str(each)))
    return made
