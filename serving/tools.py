"""The tools that `smalti.yaml` gives an agent: each a call through the gateway, on behalf of whoever asks the agent."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from agents.tools.sql import SqlError, Tables, sql_tool
from governance.call import CallError, current_call
from serving.agent_settings import ToolDeclaration
from serving.dispatch import Dispatcher
from serving.endpoint import Endpoint
from serving.engines.function import function_engine
from serving.mcp_client import Listed, mcp_tools
from serving.settings import SettingsError

if TYPE_CHECKING:
    from langchain_core.tools import BaseTool

Inputs = Callable[[str], Sequence[Mapping[str, Any]]]
"""The inputs of the signature of what an endpoint serves; empty where none is known."""

MAX_DEPTH = 4
"""Agents that may call each other in a chain."""


def make_tools(
    agent: str, declared: Sequence[ToolDeclaration], dispatcher: Dispatcher, inputs: Inputs, listed: Listed | None = None
) -> list[BaseTool]:
    """The tools of an agent. Its tables become the endpoint `AGENT.sql`, which the agent's grant brings along.

    Parameters
    ----------
    listed: the tools that MCP servers told.

    Raises
    ------
    SettingsError: a table cannot be read.
    ValueError: an MCP server has no tool of a name.
    """
    made: list[BaseTool] = []
    for tool in declared:
        if tool.memory:
            made += _memory(tool)
        elif tool.mcp is not None:
            made += mcp_tools(tool, listed or {}, dispatcher)
        elif tool.connection is not None:
            made.append(_connection(tool.connection, tool, dispatcher))
        else:
            made.append(_make(agent, tool, dispatcher, inputs))
    return made


def _memory(tool: ToolDeclaration) -> list[BaseTool]:
    from agents.tools.memory import memory_tools

    made = memory_tools()
    for each in made:
        each.metadata = {"approval": True} if tool.approval else None
    return made


def _make(agent: str, tool: ToolDeclaration, dispatcher: Dispatcher, inputs: Inputs) -> BaseTool:
    metadata = {"approval": tool.approval} if tool.approval else {}
    if tool.sql is not None:
        return _sql(f"{agent}.sql", tool, dispatcher, metadata)
    if tool.index is not None:
        from agents.tools.retrieve import retrieve_tool

        name = tool.name or f"search_{tool.index.rpartition('.')[2]}"
        return retrieve_tool(dispatcher.retriever(tool.index), name=name, description=tool.description or None)
    assert tool.endpoint is not None
    return _endpoint(tool.endpoint, tool, dispatcher, inputs, metadata)


def _connection(name: str, tool: ToolDeclaration, dispatcher: Dispatcher) -> BaseTool:
    from agents.tools.mcp import McpTool

    methods = tool.only or ["GET"]

    async def ask(given: Mapping[str, Any]) -> str:
        payload = {key: value for key, value in given.items() if value is not None and key in ("path", "params", "json")}
        payload["method"] = given.get("method") or methods[0]
        if payload["method"] not in methods:
            raise ValueError(f"this tool may {', '.join(methods)} only")
        try:
            found = await dispatcher.inner(f"connection:{name}", "http", payload)
        except CallError as error:
            if error.status >= 500:
                raise
            return error.message  # what the service refuses is the model's to read
        return found.get("text") or f"HTTP {found['status_code']}, {found['headers'].get('content-type', 'no content')}"

    fields: dict[str, Any] = {
        "method": {"type": "string", "enum": methods},
        "path": {"type": "string", "description": "Below the service's address, such as /people/7."},
        "params": {"type": "object", "description": "The query."},
        "json": {"type": "object", "description": "The body."},
    }
    if len(methods) == 1:
        del fields["method"]
    if not set(methods) & {"POST", "PUT", "PATCH"}:
        del fields["json"]
    return McpTool(
        name=tool.name or name[:64],
        description=tool.description or f"Ask the HTTP service {name}.",
        args_schema={"type": "object", "properties": fields, "required": ["path"]},
        ask=ask,
        metadata={"approval": True} if tool.approval else None,
    )


def _sql(name: str, tool: ToolDeclaration, dispatcher: Dispatcher, metadata: dict[str, Any]) -> BaseTool:
    try:
        tables = Tables(tool.sql or {})
    except SqlError as error:
        raise SettingsError(str(error)) from None

    def query(sql: str) -> dict[str, Any]:
        return tables.query(sql).to_dict()

    engine = function_engine(query, raises=(SqlError,))
    dispatcher.endpoints.register(Endpoint(name, "predict", engine, description=f"SQL over {', '.join(tables.names)}."))

    async def ask(sql: str) -> Mapping[str, Any]:
        return (await dispatcher.inner(name, "predict", {"inputs": {"sql": sql}}))["predictions"][0]

    return sql_tool(ask, tables.describe(), name=tool.name or "query_tables", description=tool.description, **metadata)


def _endpoint(endpoint: str, tool: ToolDeclaration, dispatcher: Dispatcher, inputs: Inputs, metadata: dict[str, Any]) -> BaseTool:
    from agents.tools.classical import ClassicalTool

    def asks_text() -> bool:
        found = dispatcher.endpoints.find(endpoint)
        return found is not None and found.call_task in ("agent", "chat")

    def columns() -> Sequence[Mapping[str, Any]]:
        return [{"name": "question", "type": "string"}] if asks_text() else inputs(endpoint)

    async def predict(row: Mapping[str, Any]) -> Any:
        if asks_text():
            return await ask_agent(dispatcher, endpoint, str(row.get("question") or ""))
        found = await dispatcher.inner(endpoint, "predict", {"dataframe_records": [dict(row)]})
        return found.get("predictions", found)

    served = dispatcher.endpoints.find(endpoint)
    told = tool.description or (served.description if served else "") or f"Ask the model {endpoint}."
    name = tool.name or "".join(c if c.isalnum() or c in "_-" else "_" for c in endpoint)
    return ClassicalTool(name=name, description=told, predict=predict, inputs=columns, metadata=metadata or None)


async def ask_agent(dispatcher: Dispatcher, endpoint: str, question: str) -> str:
    """What another agent answers, on behalf of the same caller; raises `ValueError` where agents call each other in a circle."""
    outer = current_call.get()
    depth = int((outer.usage_context if outer else {}).get("smalti_depth", "0")) + 1
    if depth > MAX_DEPTH:
        raise ValueError(f"{MAX_DEPTH} agents have called each other already; answer without {endpoint}")
    from dataclasses import replace

    payload = {"model": endpoint, "input": [{"type": "message", "role": "user", "content": question}]}
    call = dispatcher.inner_call(endpoint, "agent", payload)
    call = replace(call, thread_id=None, usage_context={**call.usage_context, "smalti_depth": str(depth)})
    response = await dispatcher.invoke(call)
    items = response.get("output") or ()
    return "".join(part.get("text") or "" for item in items for part in item.get("content") or ())
