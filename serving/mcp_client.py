"""MCP servers that `smalti.yaml` declares: each an endpoint `mcp.NAME`, so that a use of a tool has grants, limits and a record.

An address is checked when it is connected to; one in a private network, or on this machine, must be declared. Secrets are read
from their scopes when a server is connected to.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO
from urllib.parse import urlsplit

import httpx

from agents.tools.mcp import McpServer, McpTool, McpToolError, McpUnavailable, stdio
from governance.call import Call, CallError, Engine, Event, unavailable
from serving.agent_settings import McpDeclaration, ToolDeclaration
from serving.dispatch import Dispatcher
from serving.endpoint import Endpoint
from serving.engines.addresses import Place, Unreachable
from serving.engines.function import function_engine

if TYPE_CHECKING:
    from langchain_core.tools import BaseTool
    from mcp import types

Listed = Mapping[str, Sequence["types.Tool"]]
"""The tools of each server, by its name."""


def endpoint_of(server: str) -> str:
    return f"mcp.{server}"


class McpServers:
    """The declared servers.

    Parameters
    ----------
    declared: what the settings say.
    dispatcher: where their endpoints are registered, and by which they are called.
    secret: what a reference to a secret stands for; any other value as it is. Blocking; raises `CallError`.
    hosts: hosts in private networks that the settings allow.
    logs: folder for what programs say on their standard error.
    """

    def __init__(
        self,
        declared: Sequence[McpDeclaration],
        dispatcher: Dispatcher,
        secret: Callable[[str], str],
        *,
        hosts: Sequence[str] = (),
        logs: Path,
    ) -> None:
        self._dispatcher, self._secret, self._hosts, self._logs = dispatcher, secret, hosts, logs
        self._servers = {each.name: McpServer(each.name, self._connect(each), timeout=each.timeout) for each in declared}
        for each in declared:
            engine = function_engine(self._call(self._servers[each.name]), raises=(McpToolError,))
            told = each.description or f"Tools of the MCP server {each.name}."
            dispatcher.endpoints.register(Endpoint(endpoint_of(each.name), "predict", engine, description=told))

    async def listed(self, names: Sequence[str]) -> Listed:
        """The tools of these servers. Raises McpUnavailable."""
        return {name: await self._servers[name].tools() for name in names}

    async def close(self) -> None:
        for server in self._servers.values():
            await server.close()

    def _call(self, server: McpServer) -> Callable[..., Awaitable[str]]:
        async def call(tool: str, arguments: dict[str, Any]) -> str:
            try:
                return await server.call(tool, arguments)
            except McpUnavailable as error:
                raise unavailable(str(error), status=502) from None

        return call

    def _connect(self, declared: McpDeclaration) -> Callable[[], AbstractAsyncContextManager[tuple[Any, Any]]]:
        @contextlib.asynccontextmanager
        async def program() -> AsyncIterator[tuple[Any, Any]]:
            env, log = await asyncio.to_thread(self._prepared, declared)
            with log:
                async with stdio(declared.command or (), env, log) as streams:
                    yield streams

        @contextlib.asynccontextmanager
        async def address() -> AsyncIterator[tuple[Any, Any]]:
            from mcp.client.streamable_http import streamable_http_client

            url = declared.url or ""
            token = await asyncio.to_thread(self._secret, declared.bearer_token or "")
            headers = {"authorization": f"Bearer {token}"} if token else {}
            private = declared.private_network or urlsplit(url).hostname in self._hosts
            timeout = httpx.Timeout(30, read=declared.timeout + 5)
            transport = _Checked(url, private)
            async with (
                httpx.AsyncClient(transport=transport, headers=headers, timeout=timeout, trust_env=False) as client,
                streamable_http_client(url, http_client=client) as (read, write, _),
            ):
                yield read, write

        return program if declared.command else address

    def _prepared(self, declared: McpDeclaration) -> tuple[dict[str, str], TextIO]:
        self._logs.mkdir(parents=True, exist_ok=True)
        env = {name: self._secret(value) for name, value in declared.env.items()}
        return env, open(self._logs / f"{declared.name}.log", "a", encoding="utf-8")


class _Checked(httpx.AsyncBaseTransport):
    """Connects to addresses that were checked, under the name that was asked for."""

    def __init__(self, url: str, private: bool) -> None:
        self._inner = httpx.AsyncHTTPTransport()
        self._place = Place(url, "private" if private else "public")
        self._host = urlsplit(url).hostname

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if request.url.host != self._host:
            raise httpx.ConnectError(f"the server leads to {request.url.host}, which is not declared")
        try:
            found = httpx.URL(await self._place.url())
        except Unreachable:
            told = f"{self._host} lies in a private network or is not known here; `private_network: true` declares the former"
            raise httpx.ConnectError(told) from None
        if request.url.scheme == "https":
            request.extensions["sni_hostname"] = self._host
        request.url = request.url.copy_with(host=found.host, port=found.port)  # the header `host` stays
        return await self._inner.handle_async_request(request)

    async def aclose(self) -> None:
        await self._inner.aclose()


def mcp_tools(tool: ToolDeclaration, listed: Listed, dispatcher: Dispatcher) -> list[BaseTool]:
    """The tools of the server that a declaration names, `SERVER__TOOL` each; all, or those of `only`."""
    server = tool.mcp or ""
    found = [each for each in listed[server] if tool.only is None or each.name in tool.only]
    if missing := sorted(set(tool.only or ()) - {each.name for each in found}):
        there = ", ".join(each.name for each in listed[server]) or "none"
        raise ValueError(f"the MCP server {server} has no tool {missing[0]!r}; there are: {there}")
    return [_tool(server, each, tool, dispatcher) for each in found]


def _tool(server: str, found: types.Tool, declared: ToolDeclaration, dispatcher: Dispatcher) -> BaseTool:
    async def ask(given: Mapping[str, Any]) -> str:
        inputs = {"tool": found.name, "arguments": dict(given)}
        return (await dispatcher.inner(endpoint_of(server), "predict", {"inputs": inputs}))["predictions"][0]

    return McpTool(
        name=re.sub(r"[^A-Za-z0-9_-]", "_", f"{server}__{found.name}")[:64],
        description=(found.description or found.title or f"{found.name} of {server}.")[:2_000],
        args_schema=found.inputSchema,
        ask=ask,
        metadata={"approval": True} if declared.approval else None,
    )


def late_engine(servers: McpServers, names: Sequence[str], make: Callable[[Listed], Engine]) -> Engine:
    """The engine of an agent whose tools are known once its MCP servers have told them; made anew when they tell others."""
    made: list[tuple[Listed, Engine]] = []

    async def run(call: Call) -> AsyncIterator[Event]:
        try:
            listed = await servers.listed(names)
            if not made or made[-1][0] != listed:
                made[:] = [(listed, make(listed))]
        except McpUnavailable as error:
            raise unavailable(f"Endpoint {call.endpoint!r} waits for its tools: {error}", retry_after=5) from None
        except Exception as error:
            reason = error.message if isinstance(error, CallError) else f"{type(error).__name__}: {error}"
            raise unavailable(f"Endpoint {call.endpoint!r} is not available: {reason}") from None
        engine = made[-1][1]
        async for event in engine(call):
            yield event

    return run
