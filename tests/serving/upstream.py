"""Real loopback servers for tests: an OpenAI-compatible upstream that behaves and misbehaves, and our app under uvicorn."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from sqlalchemy import create_engine

from agents import Runtime
from agents.log import RunLog
from governance.call import STEP, Call, Caller, Event, limit_exceeded, unavailable
from governance.gateway import Gateway
from governance.grants import Grants
from governance.identity import Identity
from governance.journal import Journal
from governance.limits import Limits, Policies
from serving import conversations, databricks, errors, routes
from serving.conversation_items import BeginningItems
from serving.conversation_turns import Turns
from serving.dispatch import Dispatcher
from serving.endpoint import Endpoint, Endpoints
from serving.engines.answer import Answer
from serving.engines.external import ExternalChat
from serving.engines.messages import text_of
from serving.runs import Runs
from serving.stored import StoredResponses

KEY = "sk-upstream-secret"
TEXT = "Grüße aus Zürich 🧩 with mosaics."


class Upstream:
    """A fake LLM server. The model's name says how it answers; `requests` holds the bodies it was sent."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.gone = threading.Event()
        upstream = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: Any) -> None:
                pass

            def do_GET(self) -> None:
                self._json(200, {"object": "list", "data": [{"id": "echo", "object": "model"}]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                upstream.requests.append(body)
                upstream.paths.append(self.path)
                model = body["model"]
                if self.headers.get("authorization") != f"Bearer {KEY}" and self.headers.get("api-key") != KEY:
                    self._json(401, {"error": {"message": "Incorrect API key provided", "type": "auth"}})
                    return
                if self.path.partition("?")[0].endswith("/embeddings"):
                    self._vectors(body)
                    return
                if "prompt" in body:
                    self._prompt(body)
                    return
                getattr(self, f"_{model.replace('-', '_')}", self._echo)(body)

            # --- answers ---

            def _json(self, status: int, body: Any, **headers: str) -> None:
                raw = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(raw)))
                self.send_header("connection", "close")
                for key, value in headers.items():
                    self.send_header(key.replace("_", "-"), value)
                self.end_headers()
                self.wfile.write(raw)

            def _vectors(self, body: Any) -> None:
                """The last one first; one too few for the model `short`."""
                rows = [{"index": place, "embedding": [len(text), 0.5]} for place, text in enumerate(body["input"])][::-1]
                if body["model"] == "short":
                    rows.pop()
                self._json(200, {"data": rows, "model": body["model"], "usage": {"prompt_tokens": 3, "total_tokens": 3}})

            def _prompt(self, body: Any) -> None:
                self._open()
                for text, finish in ((body["prompt"], None), (" once", None), ("", "stop")):
                    self._send({"object": "text_completion", "choices": [{"index": 0, "text": text, "finish_reason": finish}]})
                self._send({"choices": [], "usage": {"prompt_tokens": 2, "completion_tokens": 1}})
                self.wfile.write(b"data: [DONE]\n\n")

            def _open(self) -> None:
                self.send_response(200)
                self.send_header("content-type", "text/event-stream")
                self.send_header("x-secret-header", "internal")
                self.send_header("connection", "close")
                self.end_headers()
                self.close_connection = True

            def _delta(self, delta: dict[str, Any], finish: str | None = None) -> None:
                choice = {"index": 0, "delta": delta, "finish_reason": finish}
                self._send({"id": "x", "object": "chat.completion.chunk", "choices": [choice]})

            def _send(self, body: Any) -> None:
                self.wfile.write(b"data: " + json.dumps(body, ensure_ascii=False).encode() + b"\n\n")

            def _end(self, finish: str = "stop") -> None:
                self._delta({}, finish)
                usage = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
                self._send({"id": "x", "choices": [], "usage": usage})
                self.wfile.write(b"data: [DONE]\n\n")

            def _echo(self, body: Any) -> None:
                if body.get("tools"):
                    self._tools(body)
                    return
                self._open()
                self._delta({"role": "assistant", "content": ""})
                for word in TEXT.split(" "):
                    self._delta({"content": word + ("" if word == "mosaics." else " ")})
                self._end()

            def _tools(self, body: Any) -> None:
                self._open()
                for index, city in enumerate(("Rome", "Oslo")):
                    name = body["tools"][0]["function"]["name"]
                    self._delta(
                        {
                            "tool_calls": [
                                {
                                    "index": index,
                                    "id": f"c{index}",
                                    "type": "function",
                                    "function": {"name": name, "arguments": ""},
                                }
                            ]
                        }
                    )
                    for part in ('{"ci', f'ty": "{city}"}}'):
                        self._delta({"tool_calls": [{"index": index, "function": {"arguments": part}}]})
                self._end("tool_calls")

            def _by_turns(self, body: Any) -> None:
                """Two calls of a tool, a few characters of the one and then of the other."""
                self._open()
                calls = ['{"mail": "ann@example.org"}', '{"card": "4111 1111 1111 1111"}']
                for index in (0, 1):
                    function = {"name": "send", "arguments": ""}
                    self._delta({"tool_calls": [{"index": index, "id": f"c{index}", "type": "function", "function": function}]})
                for start in range(0, 32, 4):
                    pieces = [{"index": n, "function": {"arguments": text[start : start + 4]}} for n, text in enumerate(calls)]
                    self._delta({"tool_calls": pieces})
                self._end("tool_calls")

            def _same_index(self, body: Any) -> None:
                self._open()
                for name, city in (("a", "Rome"), ("b", "Oslo")):
                    function = {"name": "weather", "arguments": f'{{"city": "{city}"}}'}
                    self._delta({"tool_calls": [{"index": 0, "id": name, "type": "function", "function": function}]})
                self._end("tool_calls")

            def _goes_on(self, body: Any) -> None:
                self._open()
                self._delta({"tool_calls": [{"index": 0, "id": "a", "function": {"name": "f", "arguments": '{"x": '}}]})
                self._delta({"content": "meanwhile"})
                self._delta({"tool_calls": [{"index": 0, "function": {"arguments": "1}"}}]})
                self._end("tool_calls")

            def _split(self, body: Any) -> None:
                """Every byte alone, CRLF line ends, a comment and an unknown field between."""
                self._open()
                chunk = {"choices": [{"index": 0, "delta": {"content": TEXT}, "finish_reason": "stop"}]}
                raw = (
                    b": hello\r\nid: 1\r\ndata: "
                    + json.dumps(chunk, ensure_ascii=False).encode()
                    + b"\r\n\r\ndata: [DONE]\r\n\r\n"
                )
                self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for position in range(len(raw)):
                    self.wfile.write(raw[position : position + 1])
                    self.wfile.flush()

            def _whole(self, body: Any) -> None:
                message = {"role": "assistant", "content": TEXT}
                usage = {"prompt_tokens": 11, "completion_tokens": 7}
                self._json(200, {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": usage})

            def _cites(self, body: Any) -> None:
                self._open()
                for part in ("Smalti are glass ", "tiles [1]", "."):
                    self._delta({"content": part})
                self._end()

            def _long(self, body: Any) -> None:
                self._open()
                self._delta({"content": "cut"})
                self._end("length")

            def _fails(self, body: Any) -> None:
                trace = "Traceback: " + "x" * 5000
                self._json(500, {"error": {"message": f"boom {KEY}\n{trace}"}}, x_internal="secret")

            def _busy(self, body: Any) -> None:
                self._json(429, {"error": {"message": "slow down"}}, retry_after="7")

            def _too_much(self, body: Any) -> None:
                message = "This model's maximum context length is 10 tokens."
                self._json(400, {"error": {"message": message, "code": "context_length_exceeded"}})

            def _overloaded(self, body: Any) -> None:
                self._json(503, {"error": {"message": "later"}})

            def _missing(self, body: Any) -> None:
                self._json(404, {"error": {"message": "no such model"}})

            def _broke(self, body: Any) -> None:
                self._json(402, {"error": {"message": "pay"}})

            def _spent(self, body: Any) -> None:
                self._json(429, {"error": {"message": "You exceeded your quota", "code": "insufficient_quota"}})

            def _redirects(self, body: Any) -> None:
                self._json(307, {}, location="http://169.254.169.254/")

            def _no_usage_option(self, body: Any) -> None:
                if "stream_options" in body:
                    self._json(400, {"error": {"message": "Unknown parameter: stream_options"}})
                else:
                    self._echo(body)

            def _stops(self, body: Any) -> None:
                self._open()
                self._delta({"content": "The half of"})

            def _error_inside(self, body: Any) -> None:
                self._open()
                self._delta({"content": "so far"})
                self._send({"error": {"message": "CUDA out of memory", "code": 500}})

            def _garbage(self, body: Any) -> None:
                self._open()
                self.wfile.write(b"data: {not json\n\n")

            def _huge(self, body: Any) -> None:
                self._open()
                with contextlib.suppress(OSError):
                    for _ in range(12):
                        self.wfile.write(b"data: " + b"x" * 1_000_000)

            def _drops_once(self, body: Any) -> None:
                """As a pooled connection does that the server closed meanwhile."""
                if sum(each["model"] == "drops-once" for each in upstream.requests) == 1:
                    self.close_connection = True
                else:
                    self._echo(body)

            def _drops(self, body: Any) -> None:
                self.close_connection = True

            def _silent(self, body: Any) -> None:
                upstream.gone.wait(60)
                self.close_connection = True

            def _stalls(self, body: Any) -> None:
                self._open()
                self._delta({"content": "Wait"})
                self.wfile.flush()
                upstream.gone.wait(60)

            def _endless(self, body: Any) -> None:
                self._open()
                try:
                    while not upstream.gone.wait(0.01):
                        self._delta({"content": "on and "})
                except OSError:
                    upstream.gone.set()

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.gone.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)


@dataclass
class House:
    """The rooms joined as the application joins them, over a state of their own."""

    identity: Identity
    grants: Grants
    journal: Journal
    gateway: Gateway
    endpoints: Endpoints
    dispatcher: Dispatcher
    app: FastAPI
    admin: str
    ran: list[Call] = field(default_factory=list)
    """Calls that reached `echo`."""
    opened: list[ExternalChat] = field(default_factory=list)
    """Engines of a test's own that are closed with the application, on its loop."""

    def key(self, name: str, *grants: str, **more: Any) -> str:
        """A new key of `name`, who may query `grants`."""
        for securable in grants:
            self.grants.grant(f"user:{name}", securable, "CAN_QUERY")
        return self.identity.create_key(name, **more)[1]

    def rows(self, **more: Any) -> list[dict[str, Any]]:
        return list(self.journal.rows(**more))

    async def echo(self, call: Call) -> AsyncIterator[Event]:
        """A chat engine: says the last message's text word by word; `!…` makes it misbehave."""
        self.ran.append(call)
        text = text_of(call.payload["input"][-1].get("content", ""))
        if text == "!refuse":
            raise limit_exceeded("Too many; wait.", 3)
        answer = Answer(call)
        for event in answer.start():
            yield event
        if call.payload.get("tools"):
            for event in (
                *answer.call_tool("call_1", call.payload["tools"][0]["name"]),
                *answer.arguments('{"city":'),
                *answer.arguments('"Rome"}'),
            ):
                yield event
        else:
            yield Event(STEP, {"name": "think", "kind": "model", "start_ns": 1, "end_ns": 2})
            for position, word in enumerate(text.split(" ")):
                for event in answer.write(f" {word}" if position else word):
                    yield event
                if text == "!endless":
                    await asyncio.sleep(0.01)
            while text == "!endless":
                for event in answer.write("…"):
                    yield event
                await asyncio.sleep(0.01)
            if text == "!break":
                raise unavailable("It broke. Ask again.")
            if text == "!crash":
                raise ZeroDivisionError("secret detail")
            note = {
                "type": "url_citation",
                "start_index": 0,
                "end_index": len(text),
                "url": "http://x/documents/i/d?start=0&end=3",
                "title": "T",
            }
            for event in answer.annotate(note):
                yield event
        incomplete = "max_output_tokens" if text == "!long" else None
        custom = {"mode": "echo", "thread_id": call.thread_id}
        for event in answer.finish(usage={"input_tokens": 5, "output_tokens": 3}, custom_outputs=custom, incomplete=incomplete):
            yield event


async def vectors(call: Call) -> AsyncIterator[Event]:
    """An embeddings engine of three dimensions."""
    usage = {"input_tokens": 4, "output_tokens": 0, "total_tokens": 4}
    rows = [[float(len(text)), 0.5, -1.0] for text in call.payload["input"]]
    yield Event("result", {"result": {"embeddings": rows, "model": call.endpoint, "usage": usage}})


@contextlib.contextmanager
def house(folder: Path, *, indexes: Any = None, **options: Any) -> Iterator[House]:
    """Governance for real, with a chat endpoint `echo`, an agent endpoint `agent` and an embeddings endpoint `vectors`."""
    engine = create_engine(f"sqlite:///{folder}/smalti.db")
    identity, grants = Identity(engine, folder / "pepper"), Grants(engine)
    journal = Journal(engine, folder / "journal", interval=None)
    gateway = Gateway(identity, grants, Limits(Policies(engine)), journal)
    endpoints = Endpoints()
    dispatcher = Dispatcher(gateway, endpoints, indexes)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        for model in made.opened:
            await model.aclose()

    app = FastAPI(openapi_url=None, lifespan=lifespan)
    made = House(identity, grants, journal, gateway, endpoints, dispatcher, app, identity.ensure_admin() or "")
    endpoints.register(Endpoint("echo", "llm/v1/chat", made.echo))
    endpoints.register(Endpoint("agent", "agent/v1/responses", made.echo))
    endpoints.register(Endpoint("vectors", "llm/v1/embeddings", vectors))
    runs = Runs(dispatcher, RunLog(engine))
    kept = StoredResponses(journal, engine)
    runtime, begun = Runtime(engine, folder / "threads.db"), BeginningItems(engine)
    runtime.on_delete.append(begun.forget)
    turns = Turns(begun, runtime, dispatcher)

    async def caller(http: Request) -> Caller:
        return identity.authenticate(routes.bearer(http.headers))

    app.include_router(routes.router(routes.Face(dispatcher, identity, grants, journal=kept, runs=runs, turns=turns, **options)))
    app.include_router(conversations.router(runtime, begun, dispatcher, caller))
    app.include_router(databricks.router(dispatcher, identity, grants))
    app.include_router(databricks.fallback())
    errors.install(app)
    try:
        yield made
    finally:
        journal.close()
        engine.dispose()


@contextlib.contextmanager
def serving(app: Any) -> Iterator[str]:
    """An ASGI app under a real uvicorn on a free port of 127.0.0.1, in a thread; gives its base URL."""
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning", lifespan="on", timeout_graceful_shutdown=2)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()), daemon=True)
    thread.start()
    deadline = time.monotonic() + 60
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.01)
    assert server.started, "the server did not start"
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
