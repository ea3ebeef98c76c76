"""LangGraph's server API: runs. Each is one of this server's durable runs, so a call through the gateway like any other.

Source: https://docs.langchain.com/langgraph-platform/server-api-ref
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from agents import Runtime
from agents.log import RUNNING, RunRecord
from agents.tables import Thread
from governance.call import Call, Caller, bad_request, not_found
from serving.endpoint import Endpoint
from serving.errors import request_id
from serving.langgraph_store import Store
from serving.langgraph_threads import Threads, credential, iso, own_name, reply
from serving.protocols import langgraph, sse
from serving.protocols.request import choice, take
from serving.routes import Face
from serving.runs import Runs

if TYPE_CHECKING:
    from agents.memory import Memory

STRATEGIES = ("reject", "interrupt", "enqueue")
"""What is done with a run on a thread that has one: refused, put in its place, or begun after it."""


class ThreadRuns:
    """The handlers; parameters as for `Threads`, and the runs of this server."""

    def __init__(self, threads: Threads, runtime: Runtime, runs: Runs) -> None:
        self._threads, self._runtime, self._runs = threads, runtime, runs

    # ---- beginning

    async def create(self, http: Request, caller: Caller, body: dict[str, Any]) -> Any:
        call = await self._begin(http, caller, body)
        record = await asyncio.to_thread(self._runs.log.find, call.request_id, caller.principal)
        assert record is not None
        return reply(_run(record), headers=_located(record.id, record.thread_id))

    async def stream(self, http: Request, caller: Caller, body: dict[str, Any]) -> Any:
        wanted = langgraph.modes(body.get("stream_mode"))
        leaves = choice(body, "on_disconnect", ("cancel", "continue"))
        call = await self._begin(http, caller, body)
        return self._followed(call.request_id, call.thread_id, call.endpoint, caller, wanted, cancel=leaves == "cancel")

    async def wait(self, http: Request, caller: Caller, body: dict[str, Any]) -> Any:
        call = await self._begin(http, caller, body)
        return await self._ended(call.request_id, call.thread_id, caller)

    async def _begin(self, http: Request, caller: Caller, body: dict[str, Any]) -> Call:
        assistant = take(body, "assistant_id", str, required=True)
        agent = await self._agent(assistant, caller)
        for unread in ("interrupt_before", "interrupt_after", "checkpoint", "checkpoint_id", "after_seconds", "webhook"):
            if body.get(unread):
                raise bad_request(f"Field {unread!r} is not read: a run begins at once, where its thread is.", unread)
        strategy = choice(body, "multitask_strategy", STRATEGIES) or "reject"
        thread = await self._thread(http, caller, body)
        waiting = (await self._runtime.snapshot(thread.id, caller.principal)).waiting if thread else None
        items = langgraph.said(body, waiting)
        if thread is not None:
            await self._make_room(thread.id, caller, strategy)
            if not thread.agent:
                first = next((str(item.get("content") or "") for item in items if item.get("role") == "user"), "")
                await self._runtime.rename(thread.id, caller.principal, first)
        conversation = {"conversation": {"id": thread.id}} if thread else {}
        call = Call(
            endpoint=agent.name,
            task="agent",
            payload={"model": agent.name, "input": items, "background": True, **conversation},
            credential=credential(http),
            request_id=request_id(http.scope),
            thread_id=thread.id if thread else None,
            stream=True,
        )
        await self._runs.start(call, caller)
        return call

    async def _agent(self, name: str, caller: Caller) -> Endpoint:
        agents = await self._threads.agents(caller)
        if name not in agents:
            raise not_found(f"There is no assistant {name[:80]!r}; there are: {', '.join(agents) or 'none'}.")
        return agents[name]

    async def _thread(self, http: Request, caller: Caller, body: Mapping[str, Any]) -> Thread | None:
        thread_id = http.path_params.get("thread_id")
        if thread_id is None:
            return None
        if choice(body, "if_not_exists", ("create", "reject")) == "create":
            return await self._runtime.create(own_name(thread_id), caller.principal)
        return await self._runtime.thread(thread_id, caller.principal)

    async def _make_room(self, thread_id: str, caller: Caller, strategy: str) -> None:
        if strategy == "reject":
            return  # the runtime refuses it
        going = [run.id for run in await self._of(thread_id, caller) if run.status == RUNNING]
        for run_id in going:
            await (self._runs.cancel(run_id, caller) if strategy == "interrupt" else self._runs.wait(run_id))

    # ---- following

    async def list(self, http: Request, caller: Caller, body: dict[str, Any]) -> Any:
        await self._runtime.thread(http.path_params["thread_id"], caller.principal)
        wanted = http.query_params.get("status")
        found = [_run(each) for each in await self._of(http.path_params["thread_id"], caller)]
        return [each for each in found if wanted in (None, each["status"])]

    async def get(self, http: Request, caller: Caller, body: dict[str, Any]) -> Any:
        return _run(await self._record(http, caller))

    async def cancel(self, http: Request, caller: Caller, body: dict[str, Any]) -> Any:
        record = await self._record(http, caller)
        if http.query_params.get("action", "interrupt") != "interrupt":
            raise bad_request("Query parameter 'action' must be interrupt: what was said is kept.", "action")
        await self._runs.cancel(record.id, caller)
        return Response(status_code=204)

    async def join(self, http: Request, caller: Caller, body: dict[str, Any]) -> Any:
        record = await self._record(http, caller)
        return await self._ended(record.id, record.thread_id, caller)

    async def join_stream(self, http: Request, caller: Caller, body: dict[str, Any]) -> Any:
        record = await self._record(http, caller)
        wanted = langgraph.modes(http.query_params.getlist("stream_mode") or ["values", "messages-tuple"])
        after = http.headers.get("last-event-id", "-1")
        if not re.fullmatch(r"-1|\d{1,9}", after):
            raise bad_request("Header 'Last-Event-ID' must be the id of an event.", "last-event-id")
        leaves = http.query_params.get("cancel_on_disconnect", "").lower() in ("1", "true")
        return self._followed(record.id, record.thread_id, record.agent, caller, wanted, after=int(after), cancel=leaves)

    # ---- within

    async def _of(self, thread_id: str, caller: Caller) -> Any:
        return await asyncio.to_thread(self._runs.log.of_thread, thread_id, caller.principal)

    async def _record(self, http: Request, caller: Caller) -> RunRecord:
        found = await asyncio.to_thread(self._runs.log.find, http.path_params["run_id"], caller.principal)
        if found is None or found.thread_id != http.path_params["thread_id"]:
            raise not_found(f"There is no run {http.path_params['run_id'][:80]!r} of yours on this thread.")
        return found

    def _followed(
        self,
        run_id: str,
        thread_id: str | None,
        agent: str,
        caller: Caller,
        wanted: frozenset[str],
        *,
        after: int = -1,
        cancel: bool = False,
    ) -> Response:
        async def values(response: Mapping[str, Any]) -> Mapping[str, Any]:
            return await self._values(response, thread_id, caller)

        encoder = langgraph.Encoder(run_id, thread_id, agent, wanted, values)

        async def frames() -> AsyncIterator[bytes]:
            whole = False
            try:
                async with aclosing(self._runs.follow(run_id, caller)) as follow:
                    async for position, event in follow:
                        for framed in await encoder.event(event, position):
                            if position > after:
                                yield framed
                whole = True
            finally:
                if cancel and not whole:
                    self._runs.stop(run_id)

        headers = {key.decode(): value.decode() for key, value in sse.HEADERS} | _located(run_id, thread_id)
        if thread_id is not None:
            headers["location"] = f"{headers['content-location']}/stream"  # where a dropped stream is gone on with
        return StreamingResponse(frames(), headers=headers, media_type="text/event-stream")

    async def _ended(self, run_id: str, thread_id: str | None, caller: Caller) -> Response:
        """The state after a run, or its error as LangGraph's clients read it."""
        await self._runs.wait(run_id)
        response = await self._runs.get(run_id, caller) or {}
        if error := response.get("error"):
            found: Mapping[str, Any] = {"__error__": {"error": error.get("code"), "message": error.get("message")}}
        else:
            found = await self._values(response, thread_id, caller)
        return reply(found, headers=_located(run_id, thread_id))

    async def _values(self, response: Mapping[str, Any], thread_id: str | None, caller: Caller) -> dict[str, Any]:
        if thread_id is None:
            parts = [part for item in response.get("output") or () for part in item.get("content") or ()]
            text = "".join(part.get("text") or "" for part in parts)
            outputs = response.get("custom_outputs") or {}
            said = {"type": "ai", "id": f"msg_{response.get('id')}", "content": text, "tool_calls": []}
            return {"messages": [said], "citations": outputs.get("citations") or []}
        found = await self._runtime.snapshot(thread_id, caller.principal)
        interrupts = found.interrupts()
        return {**found.values, **({"__interrupt__": interrupts} if interrupts else {})}


def _located(run_id: str, thread_id: str | None) -> dict[str, str]:
    """Where clients read a run's ids."""
    thread = f"/threads/{quote(thread_id, safe='')}" if thread_id else ""  # its client's choice: any characters
    return {"content-location": f"{thread}/runs/{quote(run_id, safe='')}"}


def _run(record: RunRecord) -> dict[str, Any]:
    return {
        "run_id": record.id,
        "thread_id": record.thread_id,
        "assistant_id": record.agent,
        "created_at": iso(record.created),
        "updated_at": iso(record.updated),
        "status": langgraph.STATUS.get(record.status, "error"),
        "metadata": {},
        "multitask_strategy": "reject",
    }


def router(face: Face, runtime: Runtime, runs: Runs, memory: Callable[[], Memory]) -> APIRouter:
    """The paths of LangGraph's server that `langgraph_sdk` and chat pages for it need."""
    from importlib.metadata import version

    routes = APIRouter()
    threads = Threads(face, runtime)
    on = ThreadRuns(threads, runtime, runs)
    store = Store(memory)

    async def info(http: Request, caller: Caller, body: dict[str, Any]) -> Any:
        return {"version": version("smalti"), "flags": {"assistants": True, "crons": False, "langsmith": False}}

    for method, path, handler in (
        ("GET", "/info", info),
        ("POST", "/assistants/search", threads.assistants),
        ("GET", "/assistants/{assistant_id}", threads.assistant),
        ("POST", "/threads", threads.create),
        ("POST", "/threads/search", threads.search),
        ("GET", "/threads/{thread_id}", threads.get),
        ("PATCH", "/threads/{thread_id}", threads.update),
        ("DELETE", "/threads/{thread_id}", threads.delete),
        ("GET", "/threads/{thread_id}/state", threads.state),
        ("GET", "/threads/{thread_id}/history", threads.history),
        ("POST", "/threads/{thread_id}/history", threads.history),
        ("POST", "/runs", on.create),
        ("POST", "/runs/stream", on.stream),
        ("POST", "/runs/wait", on.wait),
        ("GET", "/threads/{thread_id}/runs", on.list),
        ("POST", "/threads/{thread_id}/runs", on.create),
        ("POST", "/threads/{thread_id}/runs/stream", on.stream),
        ("POST", "/threads/{thread_id}/runs/wait", on.wait),
        ("GET", "/threads/{thread_id}/runs/{run_id}", on.get),
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
    return routes
