"""Tools of MCP servers: one connection to each, opened when it is first needed and again when it was lost.

A server that ends, hangs or misbehaves costs the call that met it, whose error the model is told; the next call connects anew.
Source: https://modelcontextprotocol.io/specification/2025-06-18
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from langchain_core.tools import BaseTool
from pydantic import Field

if TYPE_CHECKING:
    from mcp import ClientSession, types

CONNECTING = 20.0
"""Seconds a server may take to start and to tell its tools."""
MAX_TOOLS = 200
MAX_TEXT = 100_000
"""Characters of a tool's result."""

Connect = Callable[[], AbstractAsyncContextManager[tuple[Any, Any]]]
"""Opens the streams (read, write) to a server."""


class McpUnavailable(Exception):
    """A server cannot be reached, ended, or did not answer in time; one line."""


class McpToolError(Exception):
    """What a tool said went wrong."""


@dataclass(slots=True)
class _Connection:
    ready: asyncio.Future[ClientSession]
    tools: Sequence[types.Tool] = ()
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    end: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None


class McpServer:
    """A client of one server; many calls may use it at once.

    Parameters
    ----------
    name: what it is called here.
    connect: opens the streams.
    timeout: seconds a call may take.
    """

    def __init__(self, name: str, connect: Connect, *, timeout: float = 60.0) -> None:
        self.name, self.timeout, self._connect = name, timeout, connect
        self._connection: _Connection | None = None
        self._lock = asyncio.Lock()
        self._known: Sequence[types.Tool] = ()

    async def tools(self) -> Sequence[types.Tool]:
        """The tools it has; those that it had where it cannot be reached now. Raises McpUnavailable where it never was."""
        try:
            self._known = (await self._open()).tools
        except McpUnavailable:
            if not self._known:
                raise
        return self._known

    async def call(self, tool: str, arguments: Mapping[str, Any]) -> str:
        """What a tool answers, as text. Raises McpToolError, McpUnavailable."""
        from mcp import McpError

        connection = await self._open()
        session = connection.ready.result()
        asking = asyncio.ensure_future(
            session.call_tool(tool, dict(arguments), read_timeout_seconds=timedelta(seconds=self.timeout))
        )
        lost = asyncio.ensure_future(connection.closed.wait())
        try:
            await asyncio.wait({asking, lost}, return_when=asyncio.FIRST_COMPLETED, timeout=self.timeout + 5)
            if not asking.done():
                why = "ended" if connection.closed.is_set() else f"did not answer within {self.timeout:g} s"
                raise McpUnavailable(f"The MCP server {self.name} {why} while it ran {tool}.")
            try:
                result = asking.result()
            except McpError as error:
                if connection.closed.is_set() or error.error.code == -32000:
                    connection.end.set()  # its streams may end a moment later: the next call opens a new one
                    raise McpUnavailable(f"The MCP server {self.name} ended while it ran {tool}.") from None
                if error.error.code == 408:
                    late = f"The MCP server {self.name} did not answer within {self.timeout:g} s while it ran {tool}."
                    raise McpUnavailable(late) from None
                raise McpToolError(error.error.message) from None
            except Exception as error:
                connection.end.set()  # of no more use, whatever it is
                raise McpUnavailable(f"The MCP server {self.name} failed: {type(error).__name__}: {error}"[:500]) from None
        finally:
            for task in (asking, lost):
                task.cancel()
            await asyncio.gather(asking, lost, return_exceptions=True)
        text = _text(result)
        if result.isError:
            raise McpToolError(text or f"{tool} failed")
        return text

    async def close(self) -> None:
        if self._connection is not None and self._connection.task is not None:
            self._connection.end.set()
            await asyncio.wait([self._connection.task], timeout=5)
            self._connection.task.cancel()

    async def _open(self) -> _Connection:
        async with self._lock:
            now = self._connection
            if now is None or now.closed.is_set() or now.end.is_set():
                now = self._connection = _Connection(asyncio.get_running_loop().create_future())
                now.task = asyncio.create_task(self._hold(now))
            try:
                await asyncio.wait_for(asyncio.shield(now.ready), CONNECTING)
            except TimeoutError:
                now.end.set()
                assert now.task is not None
                now.task.cancel()
                raise McpUnavailable(f"The MCP server {self.name} did not start within {CONNECTING:g} s.") from None
            return now

    async def _hold(self, connection: _Connection) -> None:
        """Keep a connection in a task of its own, as the protocol's library asks for."""
        from mcp import ClientSession

        try:
            async with self._connect() as (read, write), ClientSession(_Watched(read, connection.closed), write) as session:  # type: ignore[arg-type]
                await session.initialize()
                connection.tools = await _listed(session)
                connection.ready.set_result(session)
                waits = [asyncio.ensure_future(event.wait()) for event in (connection.end, connection.closed)]
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                for wait in waits:
                    wait.cancel()
        except BaseException as error:
            if not connection.ready.done():
                connection.ready.set_exception(McpUnavailable(f"The MCP server {self.name} cannot be used: {_why(error)}."))
                connection.ready.exception()  # told to whoever waits, if anyone still does
            if isinstance(error, asyncio.CancelledError):
                raise
        finally:
            connection.closed.set()


class _Watched:
    """A stream that tells when it has ended."""

    def __init__(self, stream: Any, ended: asyncio.Event) -> None:
        self._stream, self._ended = stream, ended

    async def __aenter__(self) -> _Watched:
        await self._stream.__aenter__()
        return self

    async def __aexit__(self, *exc: Any) -> Any:
        return await self._stream.__aexit__(*exc)

    async def __aiter__(self) -> AsyncIterator[Any]:
        try:
            async for message in self._stream:
                yield message
        finally:
            self._ended.set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


async def _listed(session: ClientSession) -> list[types.Tool]:
    found: list[types.Tool] = []
    cursor: str | None = None
    while len(found) < MAX_TOOLS:
        page = await session.list_tools(cursor)
        found += page.tools
        cursor = page.nextCursor
        if not cursor:
            break
    return found[:MAX_TOOLS]


def _why(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, asyncio.CancelledError):
        return "it ended while it was being connected to"
    return f"{type(error).__name__}: {error}"[:300].rstrip(".")


def _text(result: types.CallToolResult) -> str:
    """A result's content as text; what is no text is named."""
    parts = []
    for block in result.content:
        resource = getattr(block, "resource", None)
        text = getattr(block, "text", None) or getattr(resource, "text", None)
        kind = getattr(block, "mimeType", None) or getattr(resource, "mimeType", None) or block.type
        parts.append(text if text is not None else f"[{kind}]")
    text = "\n".join(parts)
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}\n[cut: the result had {len(text)} characters]"


class McpTool(BaseTool):
    """A tool of a server, called through `ask`."""

    ask: Callable[[Mapping[str, Any]], Awaitable[str]] = Field(exclude=True, repr=False)

    def _run(self, *args: Any, **given: Any) -> str:
        raise NotImplementedError("await this tool: ainvoke")

    async def _arun(self, *args: Any, **given: Any) -> str:
        return await self.ask(given)


@contextlib.asynccontextmanager
async def stdio(command: Sequence[str], env: Mapping[str, str], log: Any) -> AsyncIterator[tuple[Any, Any]]:
    """The streams of a server that is a program here; what it says on its standard error goes to `log`.

    It sees of this process's environment what a program needs to run, and `env`.
    """
    from mcp.client.stdio import StdioServerParameters, get_default_environment, stdio_client

    asked = StdioServerParameters(command=command[0], args=list(command[1:]), env={**get_default_environment(), **env})
    async with stdio_client(asked, errlog=log) as streams:
        yield streams
