"""No route reaches an engine or an index but through the gateway: every route of the application is listed and tried."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.routing import Route

from app import build_app
from governance.call import Caller, current_call
from serving.settings import Settings
from serving.state import Home, owned
from tests.live import KEY

BODY = {  # what chat, Responses, completions and embeddings take
    "model": "assistant",
    "input": "How long is the bridge?",
    "messages": [{"role": "user", "content": "How long is the bridge?"}],
    "prompt": "How long is the bridge?",
}
QUERY = {"query_text": "bridge", "columns": ["id"], "num_results": 1}
INDEX = "main.default.docs"


class Watch:
    """Notes each time an engine or an index is reached, and whether the gateway was around it."""

    def __init__(self) -> None:
        self.governed: list[str] = []
        self.ungoverned: list[str] = []

    def note(self, what: str) -> None:
        (self.governed if current_call.get() is not None else self.ungoverned).append(what)

    def method(self, owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def watched(*arguments: Any, **named: Any) -> Any:
            self.note(name)
            return real(*arguments, **named)

        setattr(owner, name, watched)


@pytest.fixture
async def watched(tmp_path: Path) -> AsyncIterator[tuple[Any, Watch]]:
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "bridge.md").write_text("# Bridge\n\nThe bridge is 314 metres long.\n")
    home = Home(tmp_path / "home")
    with owned(home):
        app = build_app(Settings(home=home.path, docs=docs, admin_key=KEY, mlflow=False), home)
        platform, watch = app.state.platform, Watch()
        async with app.router.lifespan_context(app):
            for _ in range(400):
                if app.state.ready:
                    break
                await asyncio.sleep(0.05)
            assert app.state.ready, app.state.failure
            for name in ("search", "asearch", "document", "passage"):
                watch.method(platform.indexes, name)
            platform.connections.create(Caller("admin", admin=True), "closed", {"host": "http://127.0.0.1", "port": "1"})
            watch.method(platform.connections, "_transport")
            for endpoint in platform.endpoints.list():

                async def engine(call: Any, real: Any = endpoint.engine, name: str = endpoint.name) -> AsyncIterator[Any]:
                    watch.note(name)
                    async for event in real(call):
                        yield event

                platform.endpoints.register(replace(endpoint, engine=engine))
            yield app, watch


def every_route(router: Any) -> list[tuple[str, str]]:
    """Method and path of each route; an included router keeps its own."""
    found = []
    for route in router.routes:
        if included := getattr(route, "original_router", None):
            found += every_route(included)
        elif isinstance(route, Route) or hasattr(route, "methods"):  # a Mount serves the pages' files
            found += [(method, route.path) for method in sorted(route.methods or ()) if method != "HEAD"]
    return found


def body(path: str) -> dict[str, Any]:
    if path.endswith("/query"):
        return QUERY
    if path.endswith("/external-function"):
        return {"connection_name": "closed", "method": "GET", "path": "/"}
    if "/runs" in path:
        return {"assistant_id": "assistant", "input": {"messages": BODY["messages"]}, "if_not_exists": "create"}
    return BODY | {"model": "all-minilm-l6-v2"} if path.endswith("/embeddings") else BODY


def filled(path: str, document: str) -> str:
    values = {"document_id": document, "index": INDEX, "key_id": "none", "response_id": "resp_none"}
    if "indexes" in path:
        values["name"] = INDEX
    return re.sub(r"\{(\w+)(?::\w+)?\}", lambda found: values.get(found[1], "assistant"), path)


@pytest.mark.anyio
async def test_every_route_that_reaches_an_engine_or_an_index_is_governed(watched: tuple[Any, Watch]) -> None:
    app, watch = watched
    platform = app.state.platform
    _, stranger = platform.identity.create_key("stranger")
    document = platform.indexes.rows(INDEX).__next__()["document_id"]
    routes = every_route(app.router)
    assert {"/v1/responses", "/v1/chat/completions"} <= {path for _, path in routes}
    assert any(path.startswith("/documents/") for _, path in routes)

    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://smalti") as client:

        async def try_all(key: str | None) -> None:
            headers = {"Authorization": f"Bearer {key}"} if key else {}
            for method, path in routes:
                if path.startswith(("/_nicegui", "/console")) or path == "/" or "keys" in path or method == "DELETE":
                    continue  # the pages draw what the same dispatcher gives; administration ends what is tried here
                json = body(path) if method in ("POST", "PUT", "PATCH") else None
                answer = await client.request(method, filled(path, document), json=json, headers=headers)
                assert answer.status_code != 500, (method, path, answer.text)

        await try_all(None)
        await try_all("smk_wrong")
        await try_all(stranger)
        assert watch.governed == watch.ungoverned == []
        await try_all(KEY)
    assert watch.ungoverned == []
    assert watch.governed.count("assistant") > 20, "LangGraph's and the AI SDK's paths among them"
    assert {"assistant", "all-minilm-l6-v2", "asearch", "document", "_transport"} <= set(watch.governed)
