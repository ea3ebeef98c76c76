"""Tools of MCP servers: real ones, as programs and over HTTP, that work, refuse, hang, and die in the middle of a call."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage
from pydantic import ValidationError
from sqlalchemy import create_engine

from agents.agent import Agent
from agents.graphs import react
from agents.models import ScriptedModel
from agents.runtime import Runtime
from agents.tools.mcp import McpServer, McpUnavailable, _Connection
from governance.call import Call, CallError
from serving.agent_settings import McpDeclaration, ToolDeclaration
from serving.endpoint import Endpoint
from serving.engines.agent import agent_engine
from serving.engines.ports import free_port
from serving.mcp_client import McpServers, late_engine
from serving.settings import Settings
from serving.tools import make_tools
from tests.serving.upstream import House, house

pytestmark = pytest.mark.anyio

SERVER = """
import os, sys, time
import anyio
from mcp.server.fastmcp import Context, FastMCP

server = FastMCP("numbers", port=int(os.environ.get("PORT", "0")), log_level="ERROR")

@server.tool()
def add(a: int, b: int) -> int:
    "Add two numbers."
    return a + b

@server.tool()
def fails() -> str:
    raise ValueError("this cannot be done")

@server.tool()
async def hangs() -> str:
    await anyio.sleep(60)

@server.tool()
def dies() -> str:
    os._exit(3)

@server.tool()
def large() -> str:
    return "x" * 5_000_000

@server.tool()
def who(context: Context) -> str:
    request = context.request_context.request
    return os.environ.get("TOKEN") or (request.headers.get("authorization", "") if request else "")

server.run(sys.argv[1])
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    (tmp_path / "server.py").write_text(SERVER)
    return tmp_path / "server.py"


def secret(value: str) -> str:
    return "s3cret" if value.startswith("{{") else value


class Site:
    def __init__(self, made: House, folder: Path, runtime: Runtime, declared: list[dict[str, Any]]) -> None:
        self.made, self.runtime = made, runtime
        declarations = [McpDeclaration.model_validate(each) for each in declared]
        self.servers = McpServers(declarations, made.dispatcher, secret, logs=folder / "mcp")

    def serve(self, *replies: Any, server: str = "numbers", **tool: Any) -> None:
        given = [ToolDeclaration.model_validate({"mcp": server, **tool})]

        def make(listed: Any) -> Any:
            tools = make_tools("helper", given, self.made.dispatcher, lambda name: (), listed)
            return agent_engine(
                self.runtime, Agent("helper", react.build, ScriptedModel(replies=list(replies)), None, tools=tools)
            )

        engine = late_engine(self.servers, [server], make)
        self.made.endpoints.register(Endpoint("helper", "agent/v1/responses", engine))

    async def ask(self, key: str, thread: str | None = None) -> Any:
        payload = {"input": [{"type": "message", "role": "user", "content": "go on"}]}
        return await self.made.dispatcher.invoke(Call("helper", "agent", payload, credential=key, thread_id=thread))

    async def results(self, key: str, tool: str, **given: Any) -> str:
        """What the model is told a tool said."""
        call = AIMessage("", tool_calls=[{"name": f"numbers__{tool}", "args": given, "id": "c1"}])
        self.serve(call, "Done.")
        thread = f"t-{tool}-{time.monotonic_ns()}"
        await self.ask(key, thread)
        snapshot = await self.runtime.snapshot(thread, "user:admin")
        return next(m["content"] for m in snapshot.values["messages"] if m["type"] == "tool")


@asynccontextmanager
async def site(folder: Path, *declared: dict[str, Any]) -> AsyncIterator[Site]:
    engine = create_engine(f"sqlite:///{folder}/threads.db")
    with house(folder) as made:
        runtime = Runtime(engine, folder / "checkpoints.db")
        opened = Site(made, folder, runtime, list(declared))
        yield opened
        await runtime.close()
        await opened.servers.close()
    engine.dispose()


def program(script: Path, **more: Any) -> dict[str, Any]:
    return {"name": "numbers", "command": [sys.executable, str(script), "stdio"], **more}


async def test_a_program_gives_its_tools_and_each_use_is_governed(tmp_path: Path, script: Path) -> None:
    declared = program(script, env={"TOKEN": "{{secrets/mine/token}}"}, timeout=3)
    async with site(tmp_path, declared) as here:
        assert await here.results(here.made.admin, "add", a=2, b=3) == "5"
        row = here.made.rows()[-1] if here.made.rows()[-1]["endpoint_name"] == "mcp.numbers" else here.made.rows()[-2]
        assert (row["endpoint_name"], row["requester"], row["status_code"]) == ("mcp.numbers", "admin", 200)
        assert await here.results(here.made.admin, "who") == "s3cret"
        assert "this cannot be done" in await here.results(here.made.admin, "fails")
        assert "validation error" in (await here.results(here.made.admin, "add", a="x", b=1)).lower()
        assert len(await here.results(here.made.admin, "large")) < 41_000
        assert "did not answer within 3 s" in await here.results(here.made.admin, "hangs")
        assert await here.results(here.made.admin, "add", a=1, b=1) == "2", "the connection is good after that"
        assert "ended while it ran dies" in await here.results(here.made.admin, "dies")
        assert await here.results(here.made.admin, "add", a=1, b=2) == "3", "a new one was started"
        ann = here.made.key("ann", "endpoint:helper")
        here.serve(AIMessage("", tool_calls=[{"name": "numbers__add", "args": {"a": 1, "b": 1}, "id": "c"}]), "No.")
        await here.ask(ann, "t-ann")
        told = (await here.runtime.snapshot("t-ann", "user:ann")).values["messages"]
        assert "endpoint:mcp.numbers" in next(m["content"] for m in told if m["type"] == "tool"), "a grant is needed"


async def test_only_some_tools_and_with_approval(tmp_path: Path, script: Path) -> None:
    async with site(tmp_path, program(script)) as here:
        model = ScriptedModel(replies=[AIMessage("", tool_calls=[{"name": "numbers__add", "args": {"a": 1, "b": 1}, "id": "c"}])])
        listed = await here.servers.listed(["numbers"])
        given = [ToolDeclaration(mcp="numbers", only=["add"], approval=True)]
        (tool,) = make_tools("helper", given, here.made.dispatcher, lambda name: (), listed)
        assert tool.args_schema["properties"].keys() == {"a", "b"}
        assert model.bind_tools([tool]) is model
        here.serve(model.replies[0], only=["add"], approval=True)
        (asked,) = [item for item in (await here.ask(here.made.admin, "t1"))["output"] if item["type"] == "mcp_approval_request"]
        assert (asked["name"], json.loads(asked["arguments"])) == ("numbers__add", {"a": 1, "b": 1})
        here.serve("x", only=["nothing"])
        with pytest.raises(CallError, match="has no tool 'nothing'; there are: add"):
            await here.ask(here.made.admin)


async def test_a_server_that_does_not_start_is_named_and_tried_again(tmp_path: Path, script: Path) -> None:
    late = tmp_path / "late.py"
    async with site(tmp_path, program(late)) as here:
        here.serve("Done.")
        with pytest.raises(CallError, match="waits for its tools: The MCP server numbers cannot be used") as caught:
            await here.ask(here.made.admin)
        assert caught.value.status == 503
        late.write_text(SERVER)
        assert (await here.ask(here.made.admin))["status"] == "completed"


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agents.tools.mcp.CONNECTING", 100)  # a program's imports take their time on a loaded machine


@pytest.fixture
def address(script: Path) -> Iterator[tuple[str, Any]]:
    port = free_port()
    started: list[subprocess.Popen[bytes]] = []

    def start() -> None:
        environment = os.environ | {"PORT": str(port)}
        started.append(subprocess.Popen([sys.executable, str(script), "streamable-http"], env=environment))
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                return
            except OSError:
                time.sleep(0.05)
        raise AssertionError("the MCP server did not start")

    start()
    yield f"http://127.0.0.1:{port}/mcp", start
    for process in started:
        process.kill()
        process.wait(10)


async def test_over_http_with_a_secret(tmp_path: Path, address: tuple[str, Any]) -> None:
    url, again = address
    declared = {"name": "numbers", "url": url, "bearer_token": "{{secrets/mine/token}}", "private_network": True, "timeout": 5}
    async with site(tmp_path, declared) as here:
        assert await here.results(here.made.admin, "add", a=2, b=3) == "5"
        assert await here.results(here.made.admin, "who") == "Bearer s3cret"
        told = await here.results(here.made.admin, "dies")
        assert "The MCP server numbers" in told
        told = await here.results(here.made.admin, "add", a=1, b=1)
        assert "numbers" in told, "it is not there, and the run goes on"
        await asyncio.to_thread(again)
        assert await here.results(here.made.admin, "add", a=1, b=1) == "2"


async def test_an_address_on_this_machine_must_be_declared(tmp_path: Path, address: tuple[str, Any]) -> None:
    async with site(tmp_path, {"name": "numbers", "url": address[0]}) as here:
        here.serve("Done.")
        with pytest.raises(CallError, match="private network"):
            await here.ask(here.made.admin)


def test_declarations_that_are_refused() -> None:
    for given, why in (
        ({"name": "x"}, "either a command or a url"),
        ({"name": "x", "url": "https://a/", "bearer_token": "plain"}, "bearer_token"),
        ({"name": "x", "url": "https://me:pw@a/"}, "url"),
        ({"name": "x", "command": ["a"], "private_network": True}, "for a url"),
    ):
        with pytest.raises(ValidationError, match=why):
            McpDeclaration.model_validate(given)
    entity = {"agent": {"builder": "react", "tools": [{"mcp": "nowhere"}]}}
    with pytest.raises(ValidationError, match="no MCP server 'nowhere'"):
        Settings(endpoints=[{"name": "a", "config": {"served_entities": [entity]}}])  # type: ignore[list-item]


async def test_after_a_call_that_the_server_s_end_cut_off_a_new_connection_is_made() -> None:
    """The call learns of it before the connection's own task does."""
    from mcp import McpError
    from mcp.types import ErrorData

    class Cut:
        async def call_tool(self, tool: str, arguments: Any, **more: Any) -> Any:
            raise McpError(ErrorData(code=-32000, message="Connection closed"))

    ready = asyncio.get_running_loop().create_future()
    ready.set_result(Cut())
    server = McpServer("numbers", lambda: None)  # type: ignore[arg-type,return-value]
    server._connection = dying = _Connection(ready)
    with pytest.raises(McpUnavailable, match="ended while it ran add"):
        await server.call("add", {})
    assert not dying.closed.is_set()
    with pytest.raises(McpUnavailable, match="cannot be used"):
        await server.call("add", {})
    assert server._connection is not dying
