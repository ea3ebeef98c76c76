"""LangGraph's server API: how an assistant's graph looks, and what it takes and gives.

Source: https://docs.langchain.com/langgraph-platform/server-api-ref
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from starlette.requests import Request

from agents import Runtime
from governance.call import Caller, bad_request
from serving.langgraph.threads import Threads

if TYPE_CHECKING:
    from langgraph.graph.state import CompiledStateGraph

_MESSAGES = {
    "type": "object",
    "properties": {"messages": {"type": "array", "items": {"type": "object"}}},
    "required": ["messages"],
}
"""The state of an agent that is no graph of this server, or not made yet."""


class Graphs:
    """The handlers; parameters as for `Threads`."""

    def __init__(self, threads: Threads, runtime: Runtime) -> None:
        self._threads, self._runtime = threads, runtime

    async def _of(self, http: Request, caller: Caller) -> tuple[str, CompiledStateGraph | None]:
        name = (await self._threads.agent(http.path_params["assistant_id"], caller)).name
        agent = self._runtime.agents.get(name)
        return name, agent.graph if agent is not None else None

    async def graph(self, http: Request, caller: Caller, body: dict[str, Any]) -> Any:
        """Nodes and edges; with `xray` those of subgraphs, to a depth or all."""
        xray = http.query_params.get("xray", "false").lower()
        if xray not in ("true", "false") and not (xray.isdecimal() and len(xray) < 3):
            raise bad_request("Query parameter 'xray' must be true, false or a depth.", "xray")
        name, graph = await self._of(http, caller)
        if graph is None:
            ends = [{"id": "__start__", "type": "schema"}, {"id": name, "type": "runnable"}, {"id": "__end__", "type": "schema"}]
            return {"nodes": ends, "edges": [{"source": "__start__", "target": name}, {"source": name, "target": "__end__"}]}
        deep: bool | int = int(xray) if xray.isdecimal() else xray == "true"
        return await asyncio.to_thread(lambda: graph.get_graph(xray=deep).to_json())

    async def schemas(self, http: Request, caller: Caller, body: dict[str, Any]) -> Any:
        """JSON Schemas of a graph's input, output and state; null where its types have none."""
        name, graph = await self._of(http, caller)
        if graph is None:
            return {"graph_id": name, "input_schema": _MESSAGES, "output_schema": _MESSAGES, "state_schema": _MESSAGES, **_NONE}

        def made(what: str) -> Any:
            try:
                return getattr(graph, what)()
            except Exception:  # types of a graph's own that pydantic knows no schema of
                return _MESSAGES if "messages" in graph.channels else None

        taken, given = await asyncio.to_thread(lambda: (made("get_input_jsonschema"), made("get_output_jsonschema")))
        return {"graph_id": name, "input_schema": taken, "output_schema": given, "state_schema": given, **_NONE}

    async def subgraphs(self, http: Request, caller: Caller, body: dict[str, Any]) -> Any:
        """The schemas of the graphs that are nodes, by their names."""
        _, graph = await self._of(http, caller)
        wanted = http.path_params.get("namespace")
        found: dict[str, Any] = {}
        for namespace, inner in await asyncio.to_thread(lambda: list(graph.get_subgraphs()) if graph is not None else []):
            if wanted in (None, namespace):
                found[namespace] = {"graph_id": getattr(inner, "name", namespace), "input_schema": None, "output_schema": None}
        return found


_NONE = {"config_schema": None, "context_schema": None}
