"""LangGraph's server API: its paths, and what of it this server does not do.

Source: https://docs.langchain.com/langgraph-platform/server-api-ref
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from starlette.requests import Request

from agents import Runtime
from governance.call import Caller, CallError
from serving.langgraph.graphs import Graphs
from serving.langgraph.runs import ThreadRuns
from serving.langgraph.states import States
from serving.langgraph.store import Store
from serving.langgraph.threads import Handler, Threads
from serving.routes import Face
from serving.runs import Runs

if TYPE_CHECKING:
    from agents.memory import Memory

_AGENTS = "Assistants are the agents that this server's smalti.yaml declares: change them there."
_CRONS = "There are no crons here: have your own scheduler begin runs."
_BATCH = "Runs begin one at a time here: POST /runs, or /threads/{thread_id}/runs."
_COMMANDS = "Threads take no commands here: POST /threads/{thread_id}/runs/stream begins a run and streams it."


def router(face: Face, runtime: Runtime, runs: Runs, memory: Callable[[], Memory]) -> APIRouter:
    """The paths of LangGraph's server that `langgraph_sdk` and chat pages for it need."""
    from importlib.metadata import version

    routes = APIRouter()
    threads, store = Threads(face, runtime), Store(memory)
    states, graphs = States(threads, runtime), Graphs(threads, runtime)
    on = ThreadRuns(threads, states, runtime, runs)

    async def info(http: Request, caller: Caller, body: dict[str, Any]) -> Any:
        return {"version": version("smalti"), "flags": {"assistants": True, "crons": False, "langsmith": False}}

    for method, path, handler in (
        ("GET", "/info", info),
        ("POST", "/assistants/search", threads.assistants),
        ("POST", "/assistants/count", threads.count_assistants),
        ("GET", "/assistants/{assistant_id}", threads.assistant),
        ("POST", "/assistants/{assistant_id}/versions", threads.versions),
        ("GET", "/assistants/{assistant_id}/graph", graphs.graph),
        ("GET", "/assistants/{assistant_id}/schemas", graphs.schemas),
        ("GET", "/assistants/{assistant_id}/subgraphs", graphs.subgraphs),
        ("GET", "/assistants/{assistant_id}/subgraphs/{namespace}", graphs.subgraphs),
        ("POST", "/threads", states.create),
        ("POST", "/threads/search", threads.search),
        ("POST", "/threads/count", threads.count),
        ("POST", "/threads/prune", threads.prune),
        ("GET", "/threads/{thread_id}", threads.get),
        ("PATCH", "/threads/{thread_id}", threads.update),
        ("DELETE", "/threads/{thread_id}", threads.delete),
        ("POST", "/threads/{thread_id}/copy", states.copy),
        ("GET", "/threads/{thread_id}/state", states.last),
        ("POST", "/threads/{thread_id}/state", states.update),
        ("POST", "/threads/{thread_id}/state/checkpoint", states.one),
        ("GET", "/threads/{thread_id}/state/{checkpoint_id}", states.one),
        ("GET", "/threads/{thread_id}/history", states.history),
        ("POST", "/threads/{thread_id}/history", states.history),
        ("GET", "/threads/{thread_id}/stream", on.join_thread),
        ("POST", "/runs", on.create),
        ("POST", "/runs/stream", on.stream),
        ("POST", "/runs/wait", on.wait),
        ("POST", "/runs/cancel", on.cancel_many),
        ("GET", "/threads/{thread_id}/runs", on.list),
        ("POST", "/threads/{thread_id}/runs", on.create),
        ("POST", "/threads/{thread_id}/runs/stream", on.stream),
        ("POST", "/threads/{thread_id}/runs/wait", on.wait),
        ("GET", "/threads/{thread_id}/runs/{run_id}", on.get),
        ("DELETE", "/threads/{thread_id}/runs/{run_id}", on.delete),
        ("POST", "/threads/{thread_id}/runs/{run_id}/cancel", on.cancel),
        ("GET", "/threads/{thread_id}/runs/{run_id}/join", on.join),
        ("GET", "/threads/{thread_id}/runs/{run_id}/stream", on.join_stream),
        ("PUT", "/store/items", store.put),
        ("GET", "/store/items", store.get),
        ("DELETE", "/store/items", store.delete),
        ("POST", "/store/items/search", store.search),
        ("POST", "/store/namespaces", store.namespaces),
        ("DELETE", "/store", store.clear),
    ):
        threads.route(routes, method, path, handler)
    for method, path, why in (
        ("POST", "/assistants", _AGENTS),
        ("PATCH", "/assistants/{assistant_id}", _AGENTS),
        ("DELETE", "/assistants/{assistant_id}", _AGENTS),
        ("POST", "/assistants/{assistant_id}/latest", _AGENTS),
        ("POST", "/runs/crons", _CRONS),
        ("POST", "/runs/crons/search", _CRONS),
        ("POST", "/runs/crons/count", _CRONS),
        ("PATCH", "/runs/crons/{cron_id}", _CRONS),
        ("DELETE", "/runs/crons/{cron_id}", _CRONS),
        ("POST", "/threads/{thread_id}/runs/crons", _CRONS),
        ("POST", "/runs/batch", _BATCH),
        ("POST", "/threads/{thread_id}/commands", _COMMANDS),
        ("POST", "/threads/{thread_id}/stream", _COMMANDS),
    ):
        threads.route(routes, method, path, _refusing(why), reads=False)
    return routes


def _refusing(why: str) -> Handler:
    async def refuse(http: Request, caller: Caller, body: dict[str, Any]) -> Any:
        raise CallError(why, status=404, code="ENDPOINT_NOT_FOUND")

    return refuse
