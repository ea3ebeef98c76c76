"""A real server on a free port with the real pages and the real keys, and an engine that answers slowly."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote

import httpx
import sqlalchemy
import uvicorn
from fastapi import FastAPI

from agents.runtime import ThreadNotFound
from governance.call import STEP, Call, Caller, Event, limit_exceeded, not_found
from governance.identity import Identity
from serving.ui import OneTimeCodes, Pages, Thread, ThreadMessage, UiServices
from serving.ui.api import Api
from serving.ui.mount import mount

if TYPE_CHECKING:
    from serving.ui.services import ConsoleData

ARTIFACTS = Path(__file__).parents[2] / "artifacts"
INDEX = "main.default.docs"

XSS = [
    "<script>window.__xss=1</script>",
    '<img src=x onerror="window.__xss=1">',
    "<svg/onload=window.__xss=1>",
    "<svg><script>window.__xss=1</script></svg>",
    '"><script>window.__xss=1</script>',
    "'><img src=x onerror=window.__xss=1>",
    '" autofocus onfocus="window.__xss=1" x="',
    '<iframe srcdoc="<script>parent.__xss=1</script>"></iframe>',
    '<iframe src="javascript:parent.__xss=1"></iframe>',
    "[click](javascript:window.__xss=1)",
    "[click](JaVaScRiPt:window.__xss=1)",
    "[click](java&#10;script:window.__xss=1)",
    "[click](data:text/html,<script>window.__xss=1</script>)",
    "![x](javascript:window.__xss=1)",
    '![x](x"onerror="window.__xss=1)',
    "<javascript:window.__xss=1>",
    '<a href="javascript:window.__xss=1">x</a>',
    "{{ window.__xss=1 }}{{constructor.constructor('window.__xss=1')()}}",
    "`<img src=x onerror=window.__xss=1>`",
    "```html\n<img src=x onerror=window.__xss=1>\n```",
    "```<img/src/onerror=window.__xss=1>\nx\n```",
    "| a |\n|---|\n| <img src=x onerror=window.__xss=1> |",
    "</textarea></title></style></script><script>window.__xss=1</script>",
    "<math><mtext></table><mglyph><style><img src=x onerror=window.__xss=1>",
    "<style>@import 'http://example.invalid/x.css'</style><link rel=stylesheet href=http://example.invalid/y.css>",
    "<form action=/logout method=post><input type=submit autofocus></form>",
    "<details open ontoggle=window.__xss=1>x</details>",
    "${window.__xss=1}`-window.__xss=1-`",
    "[1]<img src=x onerror=window.__xss=1>",
]

ASKED = [
    {"id": f"mcpr_{'a' * 32}_{i}", "interrupt": "x", "call_id": f"c{i}", "name": XSS[1], "arguments": {"city": "Graz"}}
    for i in range(2)
]

GUIDE = """# Installing the service

The service runs on Linux and macOS. Install it with one command and a supported Python.

## Requirements

You need Python 3.11 or later and about three gigabytes of disk space. No GPU and no account are needed.

## After the installation

Start the service with `make run`. The first start prints an admin key, which is shown once and stored hashed.
"""
QUOTE_1 = "You need Python 3.11 or later and about three gigabytes of disk space."
QUOTE_2 = "The first start prints an admin key, which is shown once and stored hashed."
HOSTILE = "Notes with markup: " + " ".join(XSS) + " end of notes."

SHOWCASE = """Three ways lead there. Which one fits depends on **how many people** ask.

| Way | People | Memory | What it needs | Where the state lives |
|---|---:|---:|---|---|
| One process | 1–50 | 2 GB | nothing but Python | one SQLite file in the state folder |
| Replicas | 50–5,000 | 2 GB each | PostgreSQL and Redis | the database server |
| Ray Serve | more | depends | a Ray cluster | the database server and an object store |

1. Start small; the data moves later without being rewritten.
2. Measure before adding a replica, for example with `make bench`.

```python
from openai import OpenAI

client = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="smk_example")
answer = client.responses.create(model="assistant", input="How do I install it?")
print(answer.output_text)  # ends with its citations
```

> A warm start is ready in five seconds or less.
"""


def asked(call: Call) -> str:
    """The question of a call, as our engines read it."""
    item = call.payload["input"][-1]
    return item["content"][0]["text"] if item["type"] == "message" else ""


class Engine:
    """Stands for gateway and agent: answers a few known questions as the Responses API streams them, a word at a time."""

    def __init__(self, identity: Identity) -> None:
        self.identity = identity
        self.delay = 0.012
        self.calls: list[Call] = []
        self.closed: list[str] = []
        self.finished: list[str] = []
        self.invoked: list[Call] = []
        self.documents = {
            "guide": ("Installing the service", "guide/install.md", GUIDE),
            "hostile": (f"Hostile {XSS[1]}", f"dir/{XSS[2]}.md", HOSTILE),
        }
        self.threads = Store()

    def cite(self, number: int, text: str, document: str, quoted: str) -> dict[str, Any]:
        title, source, body = self.documents[document]
        start, marker = body.index(quoted), text.index(f"[{number}]")
        return {
            "number": number,
            "index": INDEX,
            "document_id": document,
            "passage_id": f"{document}#1",
            "source": source,
            "title": title,
            "heading": ["Installing the service", body[:start].rsplit("## ", 1)[-1].split("\n")[0]],
            "start": start,
            "end": start + len(quoted),
            "quote": quoted,
            "text_start": marker,
            "text_end": marker + 3,
        }

    def answer(self, question: str) -> tuple[str, list[dict[str, Any]], str]:
        if "install" in question.lower():
            text = "You need Python 3.11 or later and about three gigabytes of disk space.[1] No GPU and no account are needed. "
            text += "After that, the first start prints an admin key, shown once and stored hashed.[2]"
            return text, [self.cite(1, text, "guide", QUOTE_1), self.cite(2, text, "guide", QUOTE_2)], "extractive"
        if "xss" in question.lower():
            text = "\n\n".join(XSS)
            return text, [self.cite(1, text, "hostile", HOSTILE)], "generative"
        if "ways" in question.lower():
            return SHOWCASE, [], "generative"
        if "approve" in question.lower():
            return "", [], "generative"
        if "slow" in question.lower():
            return "word " * 20_000, [], "generative"
        return "I could not find this in these documents.", [], "extractive"

    async def stream(self, call: Call) -> AsyncIterator[Event]:
        caller = self.identity.authenticate(call.credential)
        self.calls.append(call)
        question = asked(call)
        if "limit" in question:
            raise limit_exceeded("You have used your 10 calls of this minute for endpoint 'assistant'.", 12)
        began = time.time_ns()
        text, citations, mode = self.answer(question)
        said = ""
        done = False
        try:
            yield Event("response.created", {"response": {"id": f"resp_{call.request_id}", "status": "in_progress"}})
            yield Event(STEP, _step("route", "route", began, 1.4, label="documents", confidence=0.97))
            yield Event(
                STEP, _step("search", "retrieval", began + 1_500_000, 14.8, outputs={"passages": ["a", "b", "c", "d", "e"]})
            )
            pending = list(citations)
            for word in text.split(" ") if "ways" not in question else [text[i : i + 9] for i in range(0, len(text), 9)]:
                delta = word + ("" if "ways" in question else " ")
                said += delta
                yield Event("response.output_text.delta", {"delta": delta})
                while pending and f"[{pending[0]['number']}]" in said:
                    yield Event("response.output_text.annotation.added", {"annotation": _annotation(pending.pop(0))})
                await asyncio.sleep(self.delay)
                if "break" in question and len(said) > 20:
                    error = {
                        "code": "server_error",
                        "message": "The model server stopped in the middle of its answer. Ask again.",
                    }
                    yield Event("response.failed", {"response": {"status": "failed", "error": error}})
                    done = True
                    return
            yield Event(STEP, _step("extract answer", "answer", began + 17_000_000, 9.3, mode=mode))
            outputs = {
                "mode": mode,
                "abstained": not citations and mode == "extractive",
                "citations": citations,
                "thread_id": call.thread_id,
                "route": {"label": "documents", "confidence": 0.97},
                "passages": [],
                **({"waiting": ASKED} if "approve" in question else {}),
                "trace_id": f"tr-{call.request_id}",
            }
            message = {"type": "message", "content": [{"type": "output_text", "text": said.rstrip(" "), "annotations": []}]}
            done = True
            yield Event(
                "response.completed", {"response": {"status": "completed", "output": [message], "custom_outputs": outputs}}
            )
            self.finished.append(call.request_id)
        finally:
            if not done:
                self.closed.append(call.request_id)
            self.threads.keep(call, caller.principal, question, said, citations, mode, "completed" if done else "cancelled")

    async def invoke(self, call: Call) -> Mapping[str, Any]:
        self.identity.authenticate(call.credential)
        self.invoked.append(call)
        if call.endpoint != INDEX or call.payload["id"] not in self.documents:
            raise not_found(f"Index {call.endpoint!r} has no document {call.payload['id']!r}.")
        title, source, text = self.documents[call.payload["id"]]
        return {"document": {"id": call.payload["id"], "index": INDEX, "source": source, "title": title, "text": text}}


def _step(name: str, kind: str, start: int, ms: float, outputs: Any = None, **attributes: Any) -> dict[str, Any]:
    end = start + int(ms * 1e6)
    return {
        "name": name,
        "kind": kind,
        "start_ns": start,
        "end_ns": end,
        "outputs": outputs or {},
        "attributes": attributes,
        "status": "OK",
    }


def _annotation(citation: Mapping[str, Any]) -> dict[str, Any]:
    url = f"http://127.0.0.1/documents/{INDEX}/{quote(citation['document_id'])}?start={citation['start']}&end={citation['end']}"
    place = {"start_index": citation["text_start"], "end_index": citation["text_end"]}
    return {"type": "url_citation", "url": url, "title": citation["title"], **place}


class Store:
    """Threads in memory, with the runtime's errors."""

    def __init__(self) -> None:
        self.rows: dict[str, tuple[str, Thread]] = {}
        self.said: dict[str, list[ThreadMessage]] = {}

    def add(self, owner: str, title: str, updated: float, messages: Sequence[ThreadMessage] = ()) -> str:
        thread_id = uuid.uuid4().hex
        self.rows[thread_id] = (owner, Thread(thread_id, title, updated, "assistant"))
        self.said[thread_id] = list(messages)
        return thread_id

    def keep(self, call: Call, owner: str, question: str, text: str, citations: Any, mode: str, status: str) -> None:
        key = call.thread_id or ""
        title = self.rows[key][1].title if key in self.rows else question[:80]
        self.rows[key] = (owner, Thread(key, title, time.time(), "assistant"))
        response = {"status": status, "custom_outputs": {"mode": mode, "abstained": False, "citations": citations}}
        said = [ThreadMessage("user", question, call.request_id), ThreadMessage("assistant", text, call.request_id, response)]
        self.said.setdefault(key, []).extend(said)

    def _of(self, thread_id: str, owner: str) -> Thread:
        known, thread = self.rows.get(thread_id, ("", None))
        if thread is None or known != owner:
            raise ThreadNotFound(thread_id)
        return thread

    async def list(self, owner: str) -> Sequence[Thread]:
        return [thread for known, thread in self.rows.values() if known == owner]

    async def messages(self, thread_id: str, owner: str) -> Sequence[ThreadMessage] | None:
        known, _ = self.rows.get(thread_id, ("", None))
        return self.said[thread_id] if known == owner else None

    async def rename(self, thread_id: str, owner: str, title: str) -> None:
        old = self._of(thread_id, owner)
        self.rows[thread_id] = (owner, Thread(old.id, title, old.updated_at, old.agent))

    async def delete(self, thread_id: str, owner: str) -> None:
        self._of(thread_id, owner)
        del self.rows[thread_id], self.said[thread_id]


class Nothing:
    """A console of a server on which nothing was done yet."""

    def __getattr__(self, name: str) -> Any:
        async def empty(*_: Any) -> Any:
            return None if name == "call" else ((), (), (), ()) if name == "access" else ()

        return empty


class World:
    """The server and what stands behind its pages."""

    def __init__(self, folder: Path) -> None:
        database = sqlalchemy.create_engine(f"sqlite:///{folder / 'smalti.db'}")
        self.identity = Identity(database, folder / "pepper")
        self.admin_key = self.identity.create_key("admin", admin=True)[1]
        self.alice_key = self.identity.create_key("alice", groups=["team-a"], label="laptop")[1]
        self.engine = Engine(self.identity)
        self.codes = OneTimeCodes()
        self.feedback: list[tuple[str, bool, str | None, str]] = []
        services = UiServices(
            dispatcher=self.engine,
            identity=self.identity,
            codes=self.codes,
            threads=self.engine.threads,
            agents=self._agents,
            suggestions=self._titles,
            feedback=self._feedback,
            api=Api(FastAPI()),
            console=cast("ConsoleData", Nothing()),  # tests/serving/ui/test_console.py has a real one
        )

        @asynccontextmanager
        async def lifespan(app: FastAPI) -> AsyncIterator[None]:
            self.loop = asyncio.get_running_loop()
            yield
            await self.pages.stop()

        app = FastAPI(lifespan=lifespan)

        @app.get("/ready")
        def ready() -> dict[str, str]:
            return {"status": "ready"}

        self.pages: Pages = mount(app, services)
        listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        config = uvicorn.Config(app, log_level="warning", ws="websockets-sansio", timeout_graceful_shutdown=1)
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, args=([listener],), daemon=True)

    async def _agents(self, caller: Caller) -> Sequence[str]:
        return ["assistant"] if caller.name != "alice" else ["assistant", "researcher"]

    async def _titles(self, caller: Caller) -> Sequence[str]:
        return ["Installing the service", "How to scale past one process?", "Keys and grants", "A fourth"]

    async def _feedback(self, request_id: str, helpful: bool, comment: str | None, caller: Caller) -> None:
        self.feedback.append((request_id, helpful, comment, caller.name))

    def start(self) -> None:
        self.thread.start()
        until = time.monotonic() + 60
        while time.monotonic() < until:
            try:
                if httpx.get(f"{self.url}/ready").status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.02)
        raise AssertionError("the server did not start")

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(60)
        assert not self.thread.is_alive()
