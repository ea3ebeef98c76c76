"""An upstream that sends what no model should: the client's framing holds, and each answer has one end."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from serving.endpoint import Endpoint
from serving.engines import transport
from serving.engines.external import ExternalChat, Timeouts
from serving.engines.upstream import Upstream as Address
from tests.serving.upstream import House, house, serving

Writes = Callable[[], AsyncIterator[bytes]]
OPEN = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
PLAIN = b"HTTP/1.1 200 OK\r\ncontent-type: %s\r\nconnection: close\r\n%s\r\n"
TERMINAL = ("response.completed", "response.incomplete", "response.failed", "error")
TEXT = "Zürich 🧩 \u2028 \u0000 done"


def chunk(content: Any = None, **more: Any) -> bytes:
    body = {"choices": [{"index": 0, "delta": {"content": content}, **more}]}
    return b"data: " + json.dumps(body, ensure_ascii=False).encode() + b"\n\n"


END = chunk("", finish_reason="stop") + b"data: [DONE]\n\n"


class Hostile:
    """A raw socket server on 127.0.0.1 that answers with whatever bytes it is given, in those pieces."""

    def __init__(self) -> None:
        self.writes: Writes = lambda: pieces(OPEN)
        self._loop = asyncio.new_event_loop()
        self._tasks: set[Any] = set()
        self._server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tasks.add(asyncio.current_task())
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
            async for piece in self.writes():
                writer.write(piece)
                await writer.drain()
        writer.close()
        self._tasks.discard(asyncio.current_task())

    def close(self) -> None:
        async def end() -> None:
            self._server.close()
            for task in list(self._tasks):
                task.cancel()
            await asyncio.sleep(0)

        asyncio.run_coroutine_threadsafe(end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


async def pieces(*given: bytes) -> AsyncIterator[bytes]:
    for piece in given:
        yield piece
        await asyncio.sleep(0)


async def forever(*first: bytes, again: bytes, pause: float = 0.0) -> AsyncIterator[bytes]:
    async for piece in pieces(*first):
        yield piece
    while True:
        yield again
        await asyncio.sleep(pause)


@pytest.fixture(scope="module")
def hostile() -> Iterator[Hostile]:
    opened = Hostile()
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, hostile: Hostile) -> Iterator[House]:
    folder: Path = tmp_path_factory.mktemp("hostile")
    with house(folder) as opened:
        engine = ExternalChat(Address(hostile.url, "m"), timeouts=Timeouts(first_byte=0.6, between=0.6))
        opened.opened.append(engine)
        opened.endpoints.register(Endpoint("outside", "llm/v1/chat", engine.run))
        yield opened


@pytest.fixture(scope="module")
def client(made: House) -> Iterator[httpx.Client]:
    headers = {"authorization": f"Bearer {made.admin}"}
    with serving(made.app) as url, httpx.Client(base_url=url, headers=headers, trust_env=False, timeout=30) as opened:
        yield opened


def events(raw: bytes) -> list[tuple[str | None, Any]]:
    """Name and data of each event of a stream that keeps to the specification and to JSON; fails where it does not."""
    assert raw.endswith(b"\n\n"), raw[-200:]
    found = []
    for block in raw.decode().removesuffix("\n\n").split("\n\n"):
        name, data = None, None
        for line in block.split("\n"):
            field, _, value = line.partition(": ")
            assert field in ("event", "data"), line[:200]
            assert (name if field == "event" else data) is None, block[:200]
            name, data = (value, data) if field == "event" else (name, value)
        assert data is not None
        found.append((name, data if data == "[DONE]" else json.loads(data)))
    return found


def asked(client: httpx.Client, made: House) -> list[int]:
    """Ask in each protocol, streamed and not; the statuses. Checks framing, the one end, and the row."""
    ask, statuses = {"messages": [{"role": "user", "content": "hello"}]}, []
    ways: list[tuple[str, dict[str, Any]]] = [
        ("/v1/chat/completions", {"model": "outside", **ask, "stream": True}),
        ("/v1/responses", {"model": "outside", "input": "hello", "stream": True}),
        ("/serving-endpoints/outside/invocations", ask),
    ]
    for path, body in ways:
        answer = client.post(path, json=body)
        assert answer.status_code != 500, answer.text
        statuses.append(answer.status_code)
        (row,) = made.rows(request_id=answer.headers["x-request-id"])
        if not body.get("stream") or answer.status_code != 200:
            assert (answer.json().keys() & {"error", "error_code"} != set()) == (answer.status_code != 200)
            assert row["status_code"] == answer.status_code, answer.text
            continue
        told = events(answer.content)
        if path.endswith("completions"):
            assert [data for _, data in told].count("[DONE]") == 1
            assert told[-1][1] == "[DONE]"
            errors = [data for _, data in told if "error" in data]
            finished = [data for _, data in told[:-1] if any(each.get("finish_reason") for each in data.get("choices", ()))]
            assert len(errors) + len(finished) == 1, told
            assert (row["status_code"] == 200) == (not errors)
        else:
            assert [name for name, _ in told if name in TERMINAL] == [told[-1][0]]
            assert [data["sequence_number"] for _, data in told] == list(range(len(told)))
            assert (row["status_code"] == 200) == (told[-1][0] in TERMINAL[:2])
    return statuses


def split() -> AsyncIterator[bytes]:
    raw = b"\xef\xbb\xbf: hi\r\nid: 1\r" + chunk(TEXT).replace(b"\n", b"\r\n") + END
    return pieces(OPEN, *(raw[place : place + 1] for place in range(len(raw))))


JSON = b"application/json"
BOMB = gzip.compress(b"data: " + b"0" * 60_000_000)
HELD = b"data: " + b"x" * 100_000
WAYS: dict[str, tuple[Writes, bool]] = {  # what is sent, and whether it is an answer all the same
    "every byte alone": (split, True),
    "more after its end": (lambda: pieces(OPEN, chunk("a"), END, chunk("b"), END * 3), True),
    "lines of a frame in its text": (lambda: pieces(OPEN, chunk("a\n\ndata: [DONE]\n\nevent: error\n\n"), END), True),
    "no characters": (lambda: pieces(OPEN, b'data: {"choices": [{"delta": {"content": "\xff\xfe"}}]}\n\n', END), False),
    "half a character, then the end": (lambda: pieces(OPEN, chunk("ü")[:-20]), False),
    "nothing": (lambda: pieces(), False),
    "headers only": (lambda: pieces(OPEN), False),
    "the half": (lambda: pieces(OPEN, chunk("a")), False),
    "a truncated chunk": (
        lambda: pieces(OPEN.replace(b"connection: close", b"transfer-encoding: chunked"), b"ff\r\n" + chunk("a")),
        False,
    ),
    "a false chunk": (lambda: pieces(OPEN.replace(b"connection: close", b"transfer-encoding: chunked"), b"zz\r\n"), False),
    "a line without end": (lambda: forever(OPEN, again=HELD), False),
    "comments without end": (lambda: forever(OPEN, chunk("a"), again=b": ping\n\n", pause=0.01), False),
    "text without end": (lambda: forever(OPEN, again=chunk("and on " * 2_000)), False),
    "no words without end": (lambda: forever(OPEN, again=chunk("") * 200), False),
    "headers without end": (lambda: forever(b"HTTP/1.1 200 OK\r\n", again=b"x-a: " + b"y" * 4_000 + b"\r\n"), False),
    "a bomb": (lambda: pieces(OPEN.replace(b"\r\n\r\n", b"\r\ncontent-encoding: gzip\r\n\r\n"), BOMB), False),
    "a bomb that is JSON": (lambda: pieces(PLAIN % (JSON, b"content-encoding: gzip\r\n"), BOMB), False),
    "no gzip": (lambda: pieces(PLAIN % (JSON, b"content-encoding: gzip\r\n"), b"{}"), False),
    "a page": (lambda: pieces(PLAIN % (b"text/html", b""), b"<html>data: [DONE]</html>"), False),
    "an error with status 200": (lambda: pieces(PLAIN % (JSON, b""), b'{"error": {"message": "a\\r\\n\\r\\ndata: x"}}'), False),
    "an error in the stream": (lambda: pieces(OPEN, chunk("a"), b'event: error\ndata: {"error": "x\\n\\ndata: y"}\n\n'), False),
    "no HTTP": (lambda: pieces(b"SSH-2.0-OpenSSH_9.2\r\n\r\n"), False),
    "status 999": (lambda: pieces(b"HTTP/1.1 999 ?\r\ncontent-length: 0\r\n\r\n"), False),
    "a redirect": (lambda: pieces(b"HTTP/1.1 307 X\r\nlocation: http://169.254.169.254/\r\ncontent-length: 0\r\n\r\n"), False),
    "deep JSON": (lambda: pieces(OPEN, b"data: " + b"[" * 100_000 + b"\n\n"), False),
}


@pytest.mark.parametrize("way", WAYS)
def test_the_framing_holds_and_each_answer_has_one_end(
    client: httpx.Client, made: House, hostile: Hostile, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setattr(transport, "MAX_STREAM", 2_000_000)
    hostile.writes, answers = WAYS[way]
    statuses = asked(client, made)
    assert (statuses[-1] == 200) == answers, statuses
    if answers:
        last = made.rows(newest=True, limit=1)[0]
        assert last["total_tokens"] > 0


def test_nothing_of_an_upstreams_refusal_is_passed_on_but_its_line(client: httpx.Client, made: House, hostile: Hostile) -> None:
    """Neither headers nor body of an upstream's error reach the client; of its message one line does, without the key."""
    head = (
        b"HTTP/1.1 400 No\r\nset-cookie: a=internal\r\nx-debug: internal\r\ncontent-type: text/html\r\nconnection: close\r\n\r\n"
    )
    bodies = (b"<html>internal</html>", b'{"error": {"message": "too long\\nsecond", "internal": "internal"}}')
    for body in bodies:
        hostile.writes = lambda body=body: pieces(head, body)
        answer = client.post("/v1/chat/completions", json={"model": "outside", "messages": [{"role": "user", "content": "x"}]})
        assert answer.status_code == 400
        assert "internal" not in str(answer.headers) + answer.text
        assert answer.headers["content-type"] == "application/json"
    assert "too long second" in answer.json()["error"]["message"]


LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 5), st.just(2**63), st.floats(allow_nan=False), st.sampled_from(["", "a", "stop"])
)
FIELDS = [
    "choices", "delta", "content", "tool_calls", "function", "name", "arguments", "index", "id", "finish_reason", "usage", "text",
    "prompt_tokens", "completion_tokens", "total_tokens", "prompt_tokens_details", "cached_tokens", "logprobs", "message",
    "error", "refusal",
]  # fmt: skip
CHUNKS = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=4), max_leaves=10
)
WHOLE = st.fixed_dictionaries(
    {"choices": st.lists(st.fixed_dictionaries({"delta": CHUNKS, "finish_reason": LEAVES}) | CHUNKS, max_size=2) | CHUNKS},
    optional={"usage": CHUNKS, "error": CHUNKS},
)
LIES = {"prompt_tokens": -(10**6), "completion_tokens": 2**63, "total_tokens": 1e300}


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(sent=st.lists(WHOLE | CHUNKS, max_size=3))
@example(sent=[{"choices": [{"delta": {"content": "a"}}], "usage": LIES}])
@example(sent=[{"choices": [{"delta": {"tool_calls": [{"index": 0, "id": 5, "function": {"name": 3, "arguments": {}}}]}}]}])
@example(sent=[{"choices": [{"delta": {"content": [{"type": "text", "text": 5}]}}], "usage": "many"}])
def test_json_of_any_shape_is_an_answer_or_a_failure(
    client: httpx.Client, made: House, hostile: Hostile, sent: list[Any]
) -> None:
    raw = b"".join(b"data: " + json.dumps(each).encode() + b"\n\n" for each in sent)
    hostile.writes = lambda: pieces(OPEN, raw, END)
    asked(client, made)
    row = made.rows(newest=True, limit=1)[0]
    assert all(0 <= (row[name] or 0) < 2**53 for name in ("input_tokens", "output_tokens", "total_tokens"))
