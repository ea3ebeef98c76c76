"""Anthropic's Messages API, spoken to a real server on this machine that speaks it as documented."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from governance.call import Call, CallError, Event
from serving.engines.external import ExternalChat, Timeouts
from serving.engines.upstream import Upstream

pytestmark = pytest.mark.anyio
KEY = "sk-ant-secret"
TOOL = {"type": "function", "name": "weather", "description": "d", "parameters": {"type": "object"}, "strict": False}


class Anthropic:
    """Answers by the model's name; `requests` holds the headers and bodies it was sent."""

    def __init__(self) -> None:
        self.requests: list[tuple[dict[str, str], str, dict[str, Any]]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: Any) -> None:
                pass

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                server.requests.append(({k.lower(): v for k, v in self.headers.items()}, self.path, body))
                getattr(self, f"_{body['model'].replace('-', '_')}")()

            def _send(self, status: int, kind: str, raw: bytes) -> None:
                self.send_response(status)
                self.send_header("content-type", kind)
                self.send_header("content-length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            def _stream(self, *events: dict[str, Any]) -> None:
                start = {"id": "msg_1", "type": "message", "role": "assistant", "content": [], "usage": {"input_tokens": 9}}
                start["usage"] |= {"cache_read_input_tokens": 2, "output_tokens": 1}
                told = [{"type": "message_start", "message": start}, {"type": "ping"}, *events]
                raw = "".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in told)
                self._send(200, "text/event-stream", raw.encode())

            def _stop(self, reason: str) -> list[dict[str, Any]]:
                ending = {"stop_reason": reason, "stop_sequence": None}
                return [{"type": "message_delta", "delta": ending, "usage": {"output_tokens": 7}}, {"type": "message_stop"}]

            def _text(self, *parts: str) -> list[dict[str, Any]]:
                deltas = [{"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": p}} for p in parts]
                block = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
                return [block, *deltas, {"type": "content_block_stop", "index": 0}]

            def _says(self) -> None:
                self._stream(*self._text("Grüße ", "🧩"), *self._stop("end_turn"))

            def _long(self) -> None:
                self._stream(*self._text("cut"), *self._stop("max_tokens"))

            def _calls(self) -> None:
                tool = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {}}
                pieces = ({"type": "input_json_delta", "partial_json": part} for part in ("", '{"city": ', '"Rome"}'))
                bare = {"type": "tool_use", "id": "toolu_2", "name": "now", "input": {}}
                self._stream(
                    *self._text("Let me look."),
                    {"type": "content_block_start", "index": 1, "content_block": tool},
                    *({"type": "content_block_delta", "index": 1, "delta": piece} for piece in pieces),
                    {"type": "content_block_stop", "index": 1},
                    {"type": "content_block_start", "index": 2, "content_block": bare},
                    {"type": "content_block_stop", "index": 2},
                    *self._stop("tool_use"),
                )

            def _whole(self) -> None:
                content = [{"type": "text", "text": "all"}, {"type": "tool_use", "id": "t", "name": "f", "input": {"a": 1}}]
                usage = {"input_tokens": 3, "output_tokens": 4}
                body = {"type": "message", "content": content, "stop_reason": "tool_use", "usage": usage}
                self._send(200, "application/json", json.dumps(body).encode())

            def _overloaded_inside(self) -> None:
                error = {"type": "overloaded_error", "message": f"Overloaded {KEY}"}
                self._stream(*self._text("so far")[:2], {"type": "error", "error": error})

            def _overloaded(self) -> None:
                error = {"type": "error", "error": {"type": "overloaded_error", "message": f"Overloaded {KEY}"}}
                self._send(529, "application/json", json.dumps(error).encode())

            def _stops(self) -> None:
                self._stream(*self._text("half"))

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)


@pytest.fixture(scope="module")
def upstream() -> Iterator[Anthropic]:
    opened = Anthropic()
    yield opened
    opened.close()


async def ask(upstream: Anthropic, model: str, **payload: Any) -> list[Event]:
    headers = {"anthropic-version": "2023-06-01"}
    address = Upstream(upstream.url, model, KEY, "anthropic", header="x-api-key", headers=headers)
    engine = ExternalChat(address, timeouts=Timeouts(first_byte=60, between=60))
    given = {"input": [{"type": "message", "role": "user", "content": "hello"}], **payload}
    try:
        return [event async for event in engine.run(Call("chat", "chat", given))]
    finally:
        await engine.aclose()


async def test_text_is_streamed_with_its_usage(upstream: Anthropic) -> None:
    events = await ask(upstream, "says", temperature=1.7, stop="END", user="u")
    assert [e.data["delta"] for e in events if e.type == "response.output_text.delta"] == ["Grüße ", "🧩"]
    usage = events[-1].data["response"]["usage"]
    assert (usage["input_tokens"], usage["output_tokens"], usage["input_tokens_details"]["cached_tokens"]) == (11, 7, 2)
    headers, path, body = upstream.requests[-1]
    assert path == "/v1/messages"
    assert (headers["x-api-key"], headers["anthropic-version"], headers.get("authorization")) == (KEY, "2023-06-01", None)
    assert body == {
        "model": "says",
        "stream": True,
        "max_tokens": 4096,
        "messages": [{"role": "user", "content": [{"type": "text", "text": "hello"}]}],
        "temperature": 1.0,
        "stop_sequences": ["END"],
    }
    events = await ask(upstream, "long", max_output_tokens=1)
    assert events[-1].type == "response.incomplete"
    assert events[-1].data["response"]["incomplete_details"] == {"reason": "max_output_tokens"}


async def test_a_conversation_with_tools_and_images_is_translated(upstream: Anthropic) -> None:
    items = [
        {"type": "message", "role": "developer", "content": "be brief"},
        {
            "type": "message",
            "role": "user",
            "content": [
                {"type": "input_text", "text": "look"},
                {"type": "input_image", "image_url": "data:image/png;base64,AAAA"},
                {"type": "input_image", "image_url": "https://example.org/a.png"},
            ],
        },
        {"type": "message", "role": "assistant", "content": "I call"},
        {"type": "function_call", "call_id": "a", "name": "weather", "arguments": '{"city": "Oslo"}'},
        {"type": "function_call_output", "call_id": "a", "output": "rain"},
        {"type": "message", "role": "user", "content": "and?"},
    ]
    given = {"instructions": "be kind", "tools": [TOOL], "tool_choice": {"type": "function", "name": "weather"}}
    events = await ask(upstream, "calls", input=items, parallel_tool_calls=False, **given)
    body = upstream.requests[-1][2]
    assert body["system"] == "be kind\n\nbe brief"
    assert [message["role"] for message in body["messages"]] == ["user", "assistant", "user"]
    assert body["messages"][0]["content"][1:] == [
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}},
        {"type": "image", "source": {"type": "url", "url": "https://example.org/a.png"}},
    ]
    assert body["messages"][1]["content"][1] == {"type": "tool_use", "id": "a", "name": "weather", "input": {"city": "Oslo"}}
    assert [block["type"] for block in body["messages"][2]["content"]] == ["tool_result", "text"]
    assert body["tools"] == [{"name": "weather", "description": "d", "input_schema": {"type": "object"}}]
    assert body["tool_choice"] == {"type": "tool", "name": "weather", "disable_parallel_tool_use": True}
    output = events[-1].data["response"]["output"]
    assert output[0]["content"][0]["text"] == "Let me look."
    assert [(item["call_id"], item["name"], json.loads(item["arguments"])) for item in output[1:]] == [
        ("toolu_1", "weather", {"city": "Rome"}),
        ("toolu_2", "now", {}),
    ]


async def test_a_whole_message_is_read_too(upstream: Anthropic) -> None:
    response = (await ask(upstream, "whole"))[-1].data["response"]
    assert response["output"][0]["content"][0]["text"] == "all"
    assert json.loads(response["output"][1]["arguments"]) == {"a": 1}
    assert response["usage"]["total_tokens"] == 7


@pytest.mark.parametrize(
    ("model", "status", "message"),
    [("overloaded", 503, "HTTP 529"), ("overloaded-inside", 502, "Overloaded"), ("stops", 502, "in the middle")],
)
async def test_failures_are_told_without_the_key(upstream: Anthropic, model: str, status: int, message: str) -> None:
    with pytest.raises(CallError, match=message) as caught:
        await ask(upstream, model)
    assert caught.value.status == status
    assert KEY not in caught.value.message


async def test_what_it_cannot_do_is_refused_before_it_is_asked(upstream: Anthropic) -> None:
    before = len(upstream.requests)
    with pytest.raises(CallError, match="response format"):
        await ask(upstream, "says", text={"format": {"type": "json_schema", "name": "s", "schema": {}}})
    assert len(upstream.requests) == before
