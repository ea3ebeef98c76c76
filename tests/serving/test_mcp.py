"""MCP servers at Databricks' addresses, used by the official client over HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from mcp import ClientSession
from mcp.client.streamable_http import streamable_http_client

from governance.call import Caller
from retrieval.types import Passage
from serving import mcp, routes
from serving.endpoint import Endpoint
from serving.engines.function import arguments, function_engine
from tests.serving.upstream import House, house, serving

pytestmark = pytest.mark.anyio

INDEX = "main.default.docs"


def add(a: int, b: int = 1) -> int:
    if a > 1_000:
        raise ValueError("a is too large")
    return a + b


class Shelf:
    async def asearch(self, name: str, query: str, *, k: int = 5, **more: Any) -> list[Passage]:
        return [Passage("p1", "d1", name, "s.md", "Smalti", (), "Smalti are glass tiles.", 0, 23, 0.9, 0.8, 1.0)]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[House, str]]:
    with house(tmp_path, indexes=Shelf()) as made:
        for name in ("main.default.add", "main.other.add"):
            made.endpoints.register(Endpoint(name, "predict", function_engine(add), description="Add numbers."))

        async def caller(request: Any) -> Caller:
            return made.identity.authenticate(routes.bearer(request.headers))

        offers = mcp.Offers(made.dispatcher, lambda: [INDEX], lambda name: arguments(add), made.grants.allowed)
        router = mcp.router(offers, caller)
        made.app.router.routes[:0] = router.routes
        with serving(made.app) as url:
            yield made, f"{url}/api/2.0/mcp"


async def use(url: str, key: str, tool: str | None = None, **given: Any) -> Any:
    async with (
        httpx.AsyncClient(headers={"Authorization": f"Bearer {key}"}, trust_env=False, timeout=30) as http,
        streamable_http_client(url, http_client=http) as (read, write, _),
        ClientSession(read, write) as session,
    ):
        await session.initialize()
        await session.send_ping()
        return await (session.call_tool(tool, given) if tool else session.list_tools())


async def test_functions_by_schema_and_by_grant(site: tuple[House, str]) -> None:
    made, url = site
    key = made.key("ann", "endpoint:main.default.add")
    (tool,) = (await use(f"{url}/functions/main/default", key)).tools
    assert tool.name == "main__default__add"
    assert tool.inputSchema["properties"] == {"a": {"type": "integer"}, "b": {"type": "integer"}}
    assert (await use(f"{url}/functions/main/default/add", key, tool.name, a=2, b=3)).content[0].text == "5"
    row = made.rows()[-1]
    assert (row["endpoint_name"], row["requester"], row["status_code"]) == ("main.default.add", "ann", 200)
    refused = await use(f"{url}/functions/main/default", key, tool.name, a=2_000)
    assert refused.isError
    assert refused.content[0].text == "a is too large"
    assert (await use(f"{url}/functions/main/other", key)).tools == [], "nothing is offered that may not be called"
    assert (await use(f"{url}/functions/main/default", made.key("bob"))).tools == []


async def test_indexes_and_agents(site: tuple[House, str]) -> None:
    made, url = site
    found = await use(f"{url}/vector-search/main/default/docs", made.admin, "main__default__docs", query="tiles", num_results=1)
    assert json.loads(found.content[0].text)[0]["text"] == "Smalti are glass tiles."
    assert made.rows()[-1]["task"] == "search"
    assert [tool.name for tool in (await use(f"{url}/agents", made.admin)).tools] == ["agent"]
    said = await use(f"{url}/agents/agent", made.admin, "agent", question="one two")
    assert said.content[0].text == "one two"


def test_what_is_wrong_is_said(site: tuple[House, str]) -> None:
    made, url = site
    with httpx.Client(headers={"Authorization": f"Bearer {made.admin}"}, trust_env=False) as client:

        def post(body: Any, path: str = "agents") -> httpx.Response:
            return client.post(f"{url}/{path}", content=body if isinstance(body, str) else json.dumps(body))

        assert post("{").json()["error"]["code"] == -32700
        assert post([1]).json()["error"]["code"] == -32600
        assert post({"jsonrpc": "2.0", "id": 1, "method": "resources/list"}).json()["error"]["code"] == -32601
        unknown = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "nothing"}}
        assert "there are: agent" in post(unknown).json()["error"]["message"]
        assert post({"jsonrpc": "2.0", "method": "notifications/initialized"}).status_code == 202
        assert post({}, "genie/x").status_code == 404
        assert client.get(f"{url}/agents").status_code == 405
        assert client.post(f"{url}/agents", headers={"Authorization": "Bearer smk_wrong"}, json={}).status_code in (401, 403)
