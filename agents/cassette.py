"""Cassettes: what a provider was sent and what it answered, recorded once, and replayed byte for byte in tests.

A cassette is a JSON-lines file, an exchange a line, with the chunks of the answer as they came. No request header is recorded, of
the answer's headers only those that a client reads, and what looks like a key is blanked in what is left.
"""

from __future__ import annotations

import base64
import json
import os
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, convert_to_openai_messages
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import Field, PrivateAttr

RECORD = "SMALTI_RECORD"
"""Environment variable that makes cassettes record."""

KEPT = ("content-type", "retry-after", "x-request-id")
BLANK = "***"
_KEYS = re.compile(r"\b(?:sk|pk|rk|dapi|gsk|hf|smk)[-_]?[A-Za-z0-9_-]{16,}|Bearer\s+[A-Za-z0-9._~+/-]{8,}|AIza[\w-]{30,}")
_SECRET_FIELDS = re.compile(r"(?i)(key|token|secret|sig|password)")


class CassetteError(AssertionError):
    """A request that the cassette does not hold."""


class Cassette(httpx.AsyncBaseTransport):
    """Replays exchanges from a file; records them where `SMALTI_RECORD=1` is set.

    A request is known by its method, path and body; the same request made again gets the next answer that was recorded for it.
    For clients that take an `httpx.AsyncClient`: `ChatOpenAI(http_async_client=httpx.AsyncClient(transport=Cassette(path)))`.

    Parameters
    ----------
    path: the file.
    record: whether to ask the provider and record; by default what the environment says.
    secrets: further values to blank, such as a key of an unusual shape.
    transport: what reaches the provider.

    Raises
    ------
    CassetteError: a request that was not recorded; it says what differs.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        record: bool | None = None,
        secrets: Sequence[str] = (),
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.path = Path(path)
        self.recording = os.environ.get(RECORD, "") not in ("", "0") if record is None else record
        self._secrets = [secret for secret in secrets if secret]
        self._transport = transport
        self._played: Counter[str] = Counter()
        self._begun = False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        asked = self._asked(request, await request.aread())
        return await self._record(request, asked) if self.recording else self._replay(asked)

    def _asked(self, request: httpx.Request, body: bytes) -> dict[str, Any]:
        query = {k: BLANK if _SECRET_FIELDS.search(k) else v for k, v in request.url.params.items()}
        asked = {"method": request.method, "path": request.url.path, "body": self._blank(body.decode("utf-8", "replace"))}
        return {**asked, **({"query": query} if query else {})}

    def _blank(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, BLANK)
        return _KEYS.sub(BLANK, text)

    # ---- recording

    async def _record(self, request: httpx.Request, asked: dict[str, Any]) -> httpx.Response:
        self._transport = self._transport or httpx.AsyncHTTPTransport()
        secret = request.headers.get("authorization", "").partition(" ")[2] or request.headers.get("x-api-key", "")
        self._secrets += [secret] if len(secret) > 7 and secret not in self._secrets else []
        request.headers["accept-encoding"] = "identity"  # the text itself is what is kept
        answer = await self._transport.handle_async_request(request)
        headers = {name: self._blank(answer.headers[name]) for name in KEPT if name in answer.headers}
        told = {"status": answer.status_code, "headers": headers}
        return httpx.Response(
            answer.status_code, headers=headers, stream=_Kept(answer, lambda got: self._write(asked, told, got))
        )

    def _write(self, asked: Mapping[str, Any], told: Mapping[str, Any], got: Sequence[bytes]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps({"request": asked, "response": {**told, "chunks": [self._chunk(c) for c in got]}}, ensure_ascii=False)
        with self.path.open("a" if self._begun else "w", encoding="utf-8") as file:
            file.write(line + "\n")
        self._begun = True

    def _chunk(self, chunk: bytes) -> Any:
        try:
            return self._blank(chunk.decode())
        except UnicodeDecodeError:
            return {"base64": base64.b64encode(chunk).decode()}

    # ---- replaying

    def _replay(self, asked: Mapping[str, Any]) -> httpx.Response:
        held = self.exchanges()
        known = _name(asked)
        found = [each for each in held if _name(each["request"]) == known]
        position = self._played[known]
        if position >= len(found):
            raise CassetteError(self._missing(asked, held, len(found)))
        self._played[known] += 1
        told = found[position]["response"]
        return httpx.Response(told["status"], headers=told["headers"], stream=_Replayed(told["chunks"]))

    def exchanges(self) -> list[dict[str, Any]]:
        """What is recorded."""
        if not self.path.is_file():
            return []
        return [json.loads(line) for line in self.path.read_text("utf-8").splitlines() if line.strip()]

    def _missing(self, asked: Mapping[str, Any], held: Sequence[Mapping[str, Any]], times: int) -> str:
        if times:
            why = f"it was recorded {times} times and is asked once more"
        elif not held:
            why = "nothing is recorded"
        else:
            why = _differs(asked, held[min(sum(self._played.values()), len(held) - 1)]["request"])
        return f"{self.path} has no answer to {asked['method']} {asked['path']}: {why}. Record it anew: {RECORD}=1 and the key."

    async def aclose(self) -> None:
        if self._transport is not None:
            await self._transport.aclose()


class _Kept(httpx.AsyncByteStream):
    """A provider's answer as it comes, kept once it is whole."""

    def __init__(self, answer: httpx.Response, keep: Callable[[Sequence[bytes]], None]) -> None:
        self._answer, self._keep = answer, keep

    async def __aiter__(self) -> AsyncIterator[bytes]:
        got: list[bytes] = []
        async for chunk in self._answer.aiter_raw():
            got.append(chunk)
            yield chunk
        self._keep(got)

    async def aclose(self) -> None:
        await self._answer.aclose()


class _Replayed(httpx.AsyncByteStream):
    def __init__(self, chunks: Sequence[Any]) -> None:
        self._chunks = chunks

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self._chunks:
            yield chunk.encode() if isinstance(chunk, str) else base64.b64decode(chunk["base64"])


def _name(asked: Mapping[str, Any]) -> str:
    try:
        body = json.loads(asked["body"])
    except ValueError:
        body = asked["body"]
    return json.dumps([asked["method"], asked["path"], asked.get("query"), body], sort_keys=True)


def _differs(asked: Mapping[str, Any], recorded: Mapping[str, Any]) -> str:
    new, old = json.dumps(_body(asked), indent=1).splitlines(), json.dumps(_body(recorded), indent=1).splitlines()
    pairs = zip([*new, ""], [*old, ""], strict=False)
    here, there = next(((a, b) for a, b in pairs if a != b), (asked["path"], recorded["path"]))
    return f"where {there.strip()[:160]} was recorded, {here.strip()[:160]} is asked"


def _body(asked: Mapping[str, Any]) -> Any:
    try:
        return json.loads(asked["body"])
    except ValueError:
        return asked["body"]


class CassetteModel(BaseChatModel):
    """A chat model at an OpenAI-compatible server, on a cassette: recorded once with a key, then replayed without a network.

    Parameters
    ----------
    cassette: the file.
    model: its name at the server.
    base_url: the server's, up to and including `/v1`.
    key_env: environment variable of the key, read while recording.
    settings: further fields of each request, such as `temperature`.

    Raises
    ------
    CassetteError: what is asked was not recorded.
    """

    cassette: Path
    model: str
    base_url: str = "https://api.openai.com/v1"
    key_env: str = "OPENAI_API_KEY"
    settings: dict[str, Any] = Field(default_factory=dict)
    _tools: list[dict[str, Any]] = PrivateAttr(default_factory=list)
    _tape: Cassette | None = PrivateAttr(default=None)

    @property
    def _llm_type(self) -> str:
        return "cassette"

    @property
    def tape(self) -> Cassette:
        """The cassette, the same for this model with and without tools."""
        if self._tape is None:
            self._tape = Cassette(self.cassette)
        return self._tape

    def bind_tools(
        self, tools: Sequence[dict[str, Any] | type | Callable | Any], *, tool_choice: str | None = None, **kwargs: Any
    ) -> Runnable[Any, AIMessage]:
        tape, bound = self.tape, self.model_copy()
        bound._tape, bound._tools = tape, [convert_to_openai_tool(tool) for tool in tools]
        return bound

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        raise NotImplementedError("await this model: ainvoke or astream")

    async def _agenerate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        whole: ChatGenerationChunk | None = None
        async for chunk in self._astream(messages):
            whole = chunk if whole is None else whole + chunk
        found = whole.message if whole is not None else AIMessageChunk(content="")
        assert isinstance(found, AIMessageChunk)
        reply = AIMessage(found.content, tool_calls=found.tool_calls, usage_metadata=found.usage_metadata)
        return ChatResult(generations=[ChatGeneration(message=reply)])

    async def _astream(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> AsyncIterator[ChatGenerationChunk]:
        body = {"model": self.model, "messages": convert_to_openai_messages(messages), **self.settings}
        body |= {"stream": True, "stream_options": {"include_usage": True}, **({"tools": self._tools} if self._tools else {})}
        key = os.environ.get(self.key_env, "") if self.tape.recording else ""
        headers = {"authorization": f"Bearer {key}"} if key else {}
        client = httpx.AsyncClient(transport=_Shared(self.tape), timeout=60, base_url=self.base_url, headers=headers)
        async with client, client.stream("POST", "chat/completions", json=body) as answer:
            if not answer.is_success:
                said = (await answer.aread()).decode("utf-8", "replace")
                raise RuntimeError(f"{self.model} answered with HTTP {answer.status_code}: {said[:500]}")
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    for chunk in _chunks(json.loads(line[6:])):
                        yield chunk


class _Shared(httpx.AsyncBaseTransport):
    """A transport that outlives its clients."""

    def __init__(self, tape: Cassette) -> None:
        self._tape = tape

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return await self._tape.handle_async_request(request)


def _chunks(data: Mapping[str, Any]) -> Iterator[ChatGenerationChunk]:
    """A chunk of Chat Completions as LangChain's."""
    for choice in data.get("choices") or ():
        delta = choice.get("delta") or {}
        calls = [
            tool_call_chunk(
                name=(call.get("function") or {}).get("name"),
                args=(call.get("function") or {}).get("arguments"),
                id=call.get("id"),
                index=call.get("index"),
            )
            for call in delta.get("tool_calls") or ()
        ]
        if delta.get("content") or calls:
            yield ChatGenerationChunk(message=AIMessageChunk(content=delta.get("content") or "", tool_call_chunks=calls))
    if usage := data.get("usage"):
        read, written = int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)
        told: Any = {"input_tokens": read, "output_tokens": written, "total_tokens": read + written}
        yield ChatGenerationChunk(message=AIMessageChunk(content="", usage_metadata=told))
