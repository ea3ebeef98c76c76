"""The engine of an external model: any server that speaks OpenAI's Chat Completions.

Its address and key come from settings alone, never from a request. Answers are always streamed from the upstream, so that
one that stops in the middle is noticed at once, whether or not the client streams.

Source: https://platform.openai.com/docs/api-reference/chat/create
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx
import orjson

from governance.call import Call, CallError, Event, limit_exceeded, unavailable
from serving.engines.answer import Answer
from serving.engines.chunks import Chunks, chat_body
from serving.engines.upstream import ModelSettingError, Upstream, parse_chat_model
from serving.protocols import sse
from serving.protocols.request import present

_LOOPBACK = {"127.0.0.1", "localhost", "::1"}
_MAX_BODY = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds each phase of an upstream call may take: connecting, the first byte, and each gap after it."""

    connect: float = 10.0
    first_byte: float = 60.0
    between: float = 60.0


class ExternalChat:
    """A chat model behind an OpenAI-compatible server; `run` is its engine. Close it with `aclose`."""

    def __init__(self, upstream: Upstream, *, timeouts: Timeouts | None = None, max_connections: int = 256) -> None:
        self.upstream = upstream
        self._timeouts = timeouts or Timeouts()
        self._max_connections = max_connections
        self._client: httpx.AsyncClient | None = None
        self._model = upstream.model
        self._usage_option = True

    def _pool(self) -> httpx.AsyncClient:
        if self._client is None:
            headers = {"user-agent": "smalti", "accept-encoding": "identity"}
            if self.upstream.key:
                bearer = self.upstream.header == "authorization"
                headers[self.upstream.header] = f"Bearer {self.upstream.key}" if bearer else self.upstream.key
            self._client = httpx.AsyncClient(
                headers=headers,
                follow_redirects=False,
                timeout=httpx.Timeout(None, connect=self._timeouts.connect, write=30.0, pool=self._timeouts.first_byte),
                limits=httpx.Limits(max_connections=self._max_connections, max_keepalive_connections=64, keepalive_expiry=30),
                trust_env=urlsplit(self.upstream.base_url).hostname not in _LOOPBACK,
            )
        return self._client

    async def aclose(self) -> None:
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    async def run(self, call: Call) -> AsyncIterator[Event]:
        """Answer a call; the first event comes once the upstream has accepted it. Raises `CallError`."""
        model = self._model or await self._first_model()
        request = self._request(call, model)
        response = await self._send(request)
        answer = Answer(call, model=model)
        reader = Chunks(answer, len(orjson.dumps(request["messages"])))
        finished = False
        try:
            for event in answer.start():
                yield event
            async with contextlib.aclosing(self._chunks(response)) as chunks, asyncio.timeout(None) as clock:
                loop = asyncio.get_running_loop()
                clock.reschedule(loop.time() + self._timeouts.first_byte)
                async for chunk in chunks:
                    # The clock stops while the consumer holds the event: only the upstream's silence counts.
                    clock.reschedule(None)
                    for event in reader.read(chunk):
                        yield event
                    clock.reschedule(loop.time() + self._timeouts.between)
            finished = reader.finish is not None
        except TimeoutError:
            raise unavailable(f"The model at {self.upstream.host} stopped sending. Send the request again.", status=504) from None
        except (httpx.HTTPError, httpx.StreamError, UnicodeDecodeError, sse.TooLong) as error:
            raise self._broken(error) from error
        finally:
            await response.aclose()
        if not finished:
            raise unavailable(
                f"The model at {self.upstream.host} ended its answer in the middle. Send the request again.", status=502
            )
        for event in reader.end():
            yield event

    def _request(self, call: Call, model: str) -> dict[str, Any]:
        limit = "max_completion_tokens" if self.upstream.provider == "openai" else "max_tokens"
        options = {"include_usage": True} if self._usage_option else None
        return present({**chat_body(call.payload, limit=limit), "model": model, "stream": True, "stream_options": options})

    async def _send(self, body: dict[str, Any]) -> httpx.Response:
        """The upstream's accepted response, its body unread."""
        for attempt in (1, 2):
            try:
                response = await self._open("POST", "/chat/completions", orjson.dumps(body))
            except (httpx.RemoteProtocolError, httpx.ReadError) as error:
                if attempt == 1:  # a pooled connection that the upstream had closed
                    continue
                raise self._broken(error) from error
            if response.status_code == 200:
                return response
            text = await self._error_text(response)
            if response.status_code == 400 and "stream_options" in text and body.pop("stream_options", None):
                self._usage_option = False
                continue
            raise self._refused(response, text)
        raise unavailable(f"The model at {self.upstream.host} refused the request twice. Look at its log.", status=502)

    async def _open(self, method: str, path: str, content: bytes | None = None) -> httpx.Response:
        client = self._pool()
        headers = {"content-type": "application/json"} if content else None
        request = client.build_request(method, self.upstream.base_url + path, content=content, headers=headers)
        host = self.upstream.host
        try:
            async with asyncio.timeout(self._timeouts.first_byte):
                return await client.send(request, stream=True)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise unavailable(
                f"The model at {host} cannot be reached. Check that it runs, and its base URL.", status=502
            ) from error
        except (TimeoutError, httpx.PoolTimeout, httpx.WriteTimeout) as error:
            seconds = self._timeouts.first_byte
            raise unavailable(
                f"The model at {host} did not answer in {seconds:g} s. Send the request again.", status=504
            ) from error

    async def _chunks(self, response: httpx.Response) -> AsyncGenerator[dict[str, Any]]:
        """The answer's chunks; a whole completion, where the upstream does not stream, is one chunk."""
        if not response.headers.get("content-type", "").startswith("text/event-stream"):
            body = _json(await self._read(response, _MAX_BODY))
            yield body
            return
        async with contextlib.aclosing(sse.events(response.aiter_bytes())) as events:
            async for data in events:
                if data.strip() == "[DONE]":
                    yield {"choices": [{"finish_reason": "stop"}]}  # for one that never gave a reason
                    return
                yield _json(data)

    async def _read(self, response: httpx.Response, limit: int) -> bytes:
        parts = bytearray()
        async for chunk in response.aiter_bytes():
            parts += chunk
            if len(parts) > limit:
                raise sse.TooLong("an answer that is too long")
        return bytes(parts)

    async def _error_text(self, response: httpx.Response) -> str:
        """A refusal's own message, in one bounded line without the key."""
        try:
            async with asyncio.timeout(5):
                raw = await self._read(response, 64 * 1024)
        except (TimeoutError, httpx.HTTPError, httpx.StreamError, sse.TooLong):
            return ""
        finally:
            await response.aclose()
        return self._safe(_message(raw))

    def _safe(self, text: str) -> str:
        if self.upstream.key:
            text = text.replace(self.upstream.key, "***")
        text = " ".join("".join(char if char.isprintable() else " " for char in text).split())
        return text if len(text) <= 300 else text[:297] + "..."

    def _refused(self, response: httpx.Response, text: str) -> CallError:
        status, host = response.status_code, self.upstream.host
        said = f": {text}" if text else ""
        match status:
            case 400 | 413 | 422:
                return CallError(f"The model at {host} refuses the request{said}", status=400, code="BAD_REQUEST")
            case 401 | 403:
                return CallError(f"The model at {host} refuses the server's key. Check {self.upstream.key_from}.", status=502)
            case 404:
                return CallError(f"There is no model {self._model!r} at {host}. Check its name{said}.", status=502)
            case 429:
                retry = response.headers.get("retry-after", "")
                wait = float(retry) if re.fullmatch(r"\d{1,4}(\.\d+)?", retry) else 1.0
                return limit_exceeded(f"The model at {host} is at its own limit. Wait {wait:g} s.", wait)
        if 300 <= status < 400:
            return CallError(f"The model at {host} redirects, which is not followed. Correct its base URL.", status=502)
        return unavailable(f"The model at {host} failed with HTTP {status}{said}. Send the request again.", status=502)

    def _broken(self, error: Exception) -> CallError:
        reason = "sent what cannot be read" if isinstance(error, (UnicodeDecodeError, sse.TooLong)) else "broke the connection"
        return unavailable(f"The model at {self.upstream.host} {reason}. Send the request again.", status=502)

    async def _first_model(self) -> str:
        """The first model that the upstream lists, where settings name none."""
        response = await self._open("GET", "/models")
        if response.status_code != 200:
            raise self._refused(response, await self._error_text(response))
        try:
            listed = orjson.loads(await self._read(response, _MAX_BODY))
            self._model = str(listed["data"][0]["id"])
        except (orjson.JSONDecodeError, LookupError, TypeError):
            raise CallError(f"{self.upstream.host} lists no model. Set SMALTI_CHAT_MODEL to its name.", status=502) from None
        finally:
            await response.aclose()
        return self._model


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


__all__ = ["ExternalChat", "ModelSettingError", "Timeouts", "Upstream", "parse_chat_model"]
