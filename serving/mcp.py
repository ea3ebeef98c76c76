"""The Model Context Protocol: indexes, functions and agents as tools, at the addresses of Databricks' managed servers.

`/api/2.0/mcp/vector-search/{catalog}/{schema}[/{index}]`, `/api/2.0/mcp/functions/{catalog}/{schema}[/{function}]` and
`/api/2.0/mcp/agents[/{endpoint}]`. Each address is a server without sessions that answers a POST with JSON, as streamable HTTP
allows. A caller is offered what it may query; each use of a tool is a call through the gateway.

Sources: https://modelcontextprotocol.io/specification/2025-06-18/basic/transports and
https://docs.databricks.com/aws/en/generative-ai/mcp/managed-mcp
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from agents.tools.signature import schema
from governance.call import Call, Caller, CallError, Task, not_found
from serving.dispatch import Dispatcher
from serving.errors import request_id
from serving.routes import bearer, read_body

VERSIONS = ("2025-06-18", "2025-03-26", "2024-11-05")
"""Protocol versions that are spoken, the newest first."""

MAX_TEXT = 100_000
"""Characters of a tool's result."""

Inputs = Callable[[str], Sequence[Mapping[str, Any]]]


@dataclass(frozen=True, slots=True)
class Offer:
    """A tool, and the call that its use makes."""

    name: str
    description: str
    parameters: Mapping[str, Any]
    endpoint: str
    task: Task

    def listed(self) -> dict[str, Any]:
        return {"name": self.name, "description": self.description, "inputSchema": self.parameters}

    def payload(self, given: Mapping[str, Any]) -> dict[str, Any]:
        if self.task == "search":
            return {"query": given.get("query"), "k": given.get("num_results", 5)}
        if self.task == "agent":
            question = [{"type": "message", "role": "user", "content": str(given.get("question") or "")}]
            return {"model": self.endpoint, "input": question}
        return {"inputs": dict(given)}

    def text(self, result: Mapping[str, Any]) -> str:
        if self.task == "agent":
            items = result.get("output") or ()
            return "".join(part.get("text") or "" for item in items for part in item.get("content") or ())
        found = result.get("passages") if self.task == "search" else result.get("predictions", result)
        if self.task == "search":
            keys = ("id", "document_id", "source", "title", "text", "score")
            found = [{key: passage[key] for key in keys} for passage in found or ()]
        elif isinstance(found, list) and len(found) == 1:
            found = found[0]
        return found if isinstance(found, str) else orjson.dumps(found, default=str).decode()


class Offers:
    """What a caller is offered.

    Parameters
    ----------
    dispatcher: knows the endpoints, and makes the calls.
    indexes: names of the indexes. Blocking.
    inputs: the columns that an endpoint takes. Blocking.
    visible: whether a caller may query a securable.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        indexes: Callable[[], Sequence[str]],
        inputs: Inputs,
        visible: Callable[[Caller, str], bool],
    ) -> None:
        self.dispatcher = dispatcher
        self._indexes, self._inputs, self._visible = indexes, inputs, visible

    def at(self, path: str, who: Caller) -> list[Offer]:
        """The tools at an address below `/api/2.0/mcp/`; raises `CallError` (404) where there is no server."""
        kind, *names = path.strip("/").split("/")
        if kind == "agents" and len(names) <= 1:
            return self._agents(who, names)
        if kind not in ("vector-search", "functions") or not 2 <= len(names) <= 3:
            raise not_found(
                f"No MCP server is at {path[:200]!r}: try vector-search/CATALOG/SCHEMA, functions/CATALOG/SCHEMA or agents."
            )
        within = ".".join(names)
        return self._searches(who, within) if kind == "vector-search" else self._functions(who, within)

    def _agents(self, who: Caller, names: Sequence[str]) -> list[Offer]:
        parameters = {"type": "object", "properties": {"question": {"type": "string"}}, "required": ["question"]}
        found = [each for each in self.dispatcher.endpoints if each.call_task == "agent" and each.name in (names or [each.name])]
        return [
            Offer(_tool(each.name), each.description or f"Ask the agent {each.name}.", parameters, each.name, "agent")
            for each in found
            if self._visible(who, f"endpoint:{each.name}")
        ]

    def _searches(self, who: Caller, within: str) -> list[Offer]:
        properties = {"query": {"type": "string"}, "num_results": {"type": "integer", "minimum": 1, "maximum": 100}}
        parameters = {"type": "object", "properties": properties, "required": ["query"]}
        return [
            Offer(_tool(name), f"Search the index {name} for passages about a query.", parameters, name, "search")
            for name in self._indexes()
            if _within(name, within) and self._visible(who, f"index:{name}")
        ]

    def _functions(self, who: Caller, within: str) -> list[Offer]:
        return [
            Offer(
                _tool(each.name), each.description or f"Call {each.name}.", schema(self._inputs(each.name)), each.name, "predict"
            )
            for each in self.dispatcher.endpoints
            if each.call_task == "predict" and _within(each.name, within) and self._visible(who, f"endpoint:{each.name}")
        ]


def _tool(name: str) -> str:
    return name.replace(".", "__")


def _within(name: str, within: str) -> bool:
    return name.count(".") == 2 and (name == within or name.startswith(f"{within}."))


def router(offers: Offers, caller: Callable[[Request], Awaitable[Caller]]) -> APIRouter:
    """The MCP servers. `caller` tells who asks, or raises `CallError` (401)."""
    routes = APIRouter()

    async def post(request: Request) -> Response:
        who = await caller(request)
        path = request.path_params["path"]
        found = await asyncio.to_thread(offers.at, path, who)
        try:
            message = orjson.loads(await read_body(request))
        except orjson.JSONDecodeError:
            return _json(_failed(None, -32700, "The body is not valid JSON."), 400)
        if not isinstance(message, dict) or message.get("jsonrpc") != "2.0":
            return _json(_failed(None, -32600, "Send one JSON-RPC 2.0 message."), 400)
        if "id" not in message or "method" not in message:
            return Response(status_code=202)  # a notification, or an answer to nothing that was asked
        return _json(await _answer(offers, found, message, request))

    async def get(request: Request) -> Response:
        await caller(request)
        return Response(status_code=405, headers={"allow": "POST"})  # nothing is ever sent unasked

    routes.add_route("/api/2.0/mcp/{path:path}", post, methods=["POST"], include_in_schema=False)
    routes.add_route("/api/2.0/mcp/{path:path}", get, methods=["GET", "DELETE"], include_in_schema=False)
    return routes


async def _answer(offers: Offers, found: Sequence[Offer], message: Mapping[str, Any], request: Request) -> dict[str, Any]:
    number, method = message["id"], message["method"]
    params = message.get("params")
    given: Mapping[str, Any] = params if isinstance(params, dict) else {}
    match method:
        case "initialize":
            asked = given.get("protocolVersion")
            about = {"name": "smalti", "version": version("smalti")}
            spoken = asked if asked in VERSIONS else VERSIONS[0]
            return _result(number, {"protocolVersion": spoken, "capabilities": {"tools": {}}, "serverInfo": about})
        case "ping":
            return _result(number, {})
        case "tools/list":
            return _result(number, {"tools": [offer.listed() for offer in found]})
        case "tools/call":
            offer = next((each for each in found if each.name == given.get("name")), None)
            if offer is None:
                known = ", ".join(each.name for each in found[:20]) or "none"
                return _failed(
                    number, -32602, f"There is no tool {str(given.get('name'))[:80]!r} of yours here; there are: {known}."
                )
            return _result(number, await _use(offers.dispatcher, offer, given.get("arguments") or {}, request))
        case _:
            return _failed(number, -32601, f"Method {str(method)[:80]!r} is not served; tools/list and tools/call are.")


async def _use(dispatcher: Dispatcher, offer: Offer, given: Any, request: Request) -> dict[str, Any]:
    """A tool's result; what is refused or fails is a result too, so that the model hears of it."""
    arguments = given if isinstance(given, dict) else {}
    identifier = request_id(request.scope)
    call = Call(offer.endpoint, offer.task, offer.payload(arguments), credential=bearer(request.headers), request_id=identifier)
    try:
        text, failed = offer.text(await dispatcher.invoke(call)), False
    except CallError as error:
        text, failed = error.message, True
    if len(text) > MAX_TEXT:
        text = f"{text[:MAX_TEXT]}\n[cut: the result had {len(text)} characters]"
    return {"content": [{"type": "text", "text": text}], "isError": failed}


def _result(number: Any, result: Mapping[str, Any]) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": number, "result": result}


def _failed(number: Any, code: int, message: str) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": number, "error": {"code": code, "message": message}}


def _json(body: Mapping[str, Any], status: int = 200) -> Response:
    return Response(orjson.dumps(body), status, media_type="application/json")
