from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import httpx
import pytest

from evals.ask import Ask


class Handler(BaseHTTPRequestHandler):
    asked: ClassVar[list[tuple[str, dict]]] = []
    answers: ClassVar[list[tuple[int, dict | str, dict]]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.asked.append((self.path, body))
        status, answer, headers = self.answers.pop(0)
        data = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
        self.send_response(status)
        for name, value in {"x-request-id": "r1", "content-length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        Handler.asked.clear()
        Handler.answers.clear()
        try:
            yield f"http://127.0.0.1:{http.server_address[1]}"
        finally:
            http.shutdown()
            thread.join()


CHAT = {
    "choices": [{"message": {"content": "Paris", "tool_calls": [{"function": {"name": "look_up"}}]}}],
    "usage": {"total_tokens": 7, "cost": 0.25},
}
RESPONSE = {
    "status": "completed",
    "output": [
        {"type": "function_call", "name": "add"},
        {"type": "message", "content": [{"type": "output_text", "text": "Par"}, {"type": "output_text", "text": "is"}]},
    ],
    "custom_outputs": {
        "abstained": True, "passages": [{"source": "a.md"}, {"source": "a.md"}], "route": {"label": "documents"}, "trace_id": "t",
    },
}  # fmt: skip


@pytest.mark.anyio
async def test_each_protocol_is_spoken_and_read(server: str) -> None:
    Handler.answers[:] = [
        (200, CHAT, {}),
        (200, RESPONSE, {}),
        (200, {"predictions": ["joy"]}, {}),
        (200, {"predictions": [{"label": "joy", "probabilities": {"joy": 0.9}}]}, {}),
        (200, CHAT, {}),
    ]
    async with httpx.AsyncClient(base_url=server + "/v1", trust_env=False) as client:
        chat = await Ask(client, "m", "chat")("Where?")
        response = await Ask(client, "m")("Where?")
        label = await Ask(client, "m", "invocations")({"text": "fine"})
        probable = await Ask(client, "m", "invocations", "/other")({"text": "fine"})
        await Ask(client, "m", "invocations")("Where?")
    assert (chat.text, chat.tools, chat.tokens, chat.cost, chat.request_id) == ("Paris", ("look_up",), 7, 0.25, "r1")
    assert (response.text, response.tools, response.sources) == ("Paris", ("add",), ("a.md",))
    assert (response.abstained, response.route, response.trace_id) == (True, "documents", "t")
    assert (label.label, probable.label, probable.probabilities) == ("joy", "joy", {"joy": 0.9})
    messages = [{"role": "user", "content": "Where?"}]
    assert Handler.asked == [
        ("/v1/chat/completions", {"model": "m", "messages": messages}),
        ("/v1/responses", {"model": "m", "input": "Where?"}),
        ("/v1/serving-endpoints/m/invocations", {"dataframe_records": [{"text": "fine"}]}),
        ("/v1/other", {"dataframe_records": [{"text": "fine"}]}),
        ("/v1/serving-endpoints/m/invocations", {"messages": messages}),
    ]


@pytest.mark.anyio
async def test_what_passes_by_itself_is_tried_again_and_the_rest_is_an_error(server: str) -> None:
    again = {"retry-after": "0"}
    Handler.answers[:] = [
        (429, {"error": {"message": "slow down"}}, again), (200, CHAT, {}),
        (400, {"error": {"message": "too long"}}, {}),
        (200, "<html>", {}),
        (200, {"choices": []}, {}),
        (200, {"status": "failed", "error": {"message": "no model"}}, {}),
        (503, "loading", again), (503, "loading", again), (503, "loading", again),
    ]  # fmt: skip
    async with httpx.AsyncClient(base_url=server, trust_env=False) as client:
        ask = Ask(client, "m", "chat")
        assert (await ask("q")).text == "Paris"
        assert (await ask("q")).error == "HTTP 400: too long"
        assert "in no known shape" in ((await ask("q")).error or "")
        assert "in no known shape" in ((await ask("q")).error or "")
        assert (await ask("q")).error == "no model"
        assert (await ask("q")).error == "HTTP 503: loading (asked 3 times)"
    async with httpx.AsyncClient(base_url="http://127.0.0.1:9", trust_env=False) as client:
        assert "ConnectError" in ((await Ask(client, "m", "chat")("q")).error or "")
