"""LangGraph's server API: assistants and threads. An assistant is an agent's endpoint; threads are those of every face.

Source: https://docs.langchain.com/langgraph-platform/server-api-ref
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from agents import Runtime, ThreadBusy, ThreadNotFound
from agents.branches import StateNotFound
from agents.tables import ONCE, Thread
from governance.call import Caller, CallError, bad_request, not_found
from serving.endpoint import Endpoint
from serving.protocols.request import choice, number, parse, take, thread_name
from serving.routes import MAX_BODY, Face, bearer, read_body

SEARCHED = 1_000
"""A caller's last threads, among which is searched."""

Handler = Callable[[Request, Caller, dict[str, Any]], Awaitable[Any]]


def credential(http: Request) -> str | None:
    """The key as LangGraph's clients present it: `x-api-key`, or a bearer token."""
    return bearer(http.headers) or http.headers.get("x-api-key")


def iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()


def reply(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(orjson.dumps(body, default=str), status, dict(headers or {}), "application/json")


class Threads:
    """The handlers.

    Parameters
    ----------
    face: knows who asks, and which endpoints they may query.
    runtime: holds the threads.
    """

    def __init__(self, face: Face, runtime: Runtime) -> None:
        self._face, self._runtime = face, runtime
        self.dispatcher = face.dispatcher

    def route(self, routes: APIRouter, method: str, path: str, handler: Handler, *, reads: bool = True) -> None:
        """Add a path: the caller is known, and the body read if `reads`, before its handler is asked."""

        async def answer(http: Request) -> Response:
            caller = await self._face.authenticate(credential(http))
            raw = await read_body(http, MAX_BODY) if reads and method != "GET" else b""
            try:
                found = await handler(http, caller, parse(raw) if raw.strip() not in (b"", b"null") else {})
            except (ThreadNotFound, StateNotFound) as error:
                raise not_found(str(error)) from None
            except ThreadBusy as error:
                raise CallError(str(error), status=409, code="RESOURCE_CONFLICT", retry_after=1) from None
            except CallError as error:
                if error.code == "BAD_REQUEST" and error.status == 400:  # as LangGraph's server refuses what it cannot read
                    error.status = 422
                raise
            return found if isinstance(found, Response) else reply(found)

        routes.add_route(path, answer, methods=[method], include_in_schema=False)

    # ---- assistants

    async def agents(self, caller: Caller) -> dict[str, Endpoint]:
        """The agents that a caller may query."""
        found = await asyncio.to_thread(self._face.visible, caller)
        return {each.name: each for each in found if each.call_task == "agent"}

    async def assistants(self, http: Request, caller: Caller, body: dict[str, Any]) -> Any:
        graph, name = take(body, "graph_id", str), take(body, "name", str)
        found = [_assistant(each) for each in (await self.agents(caller)).values()]
        wanted = [each for each in found if graph in (None, each["graph_id"]) and (name or "").lower() in each["name"].lower()]
        return [selected(http, body, each) for each in _page(body, wanted)]

    async def count_assistants(self, http: Request, caller: Caller, body: dict[str, Any]) -> Any:
        return reply(len(await self.assistants(http, caller, {**body, "limit": 1_000, "offset": 0, "select": None})))

    async def assistant(self, http: Request, caller: Caller, body: dict[str, Any]) -> Any:
        return _assistant(await self.agent(http.path_params["assistant_id"], caller))

    async def versions(self, http: Request, caller: Caller, body: dict[str, Any]) -> Any:
        return _page(body, [await self.assistant(http, caller, body)])

    async def agent(self, name: str, caller: Caller) -> Endpoint:
        """An agent that the caller may query. Raises `CallError` (404)."""
        found = await self.agents(caller)
        if name not in found:
            raise not_found(f"There is no assistant {name[:80]!r}; there are: {', '.join(found) or 'none'}.")
        return found[name]

    async def agent_of(self, thread_id: str, caller: Caller) -> Endpoint:
        """The agent that a thread belongs to, whose state can be changed. Raises ThreadNotFound, `CallError` (404, 400)."""
        thread = await self._runtime.thread(thread_id, caller.principal)
        tags = (await asyncio.to_thread(self._runtime.table.tags, [thread_id])).get(thread_id, {})
        named = tags.get("graph_id") or tags.get("assistant_id") or thread.agent
        if not isinstance(named, str) or not named:
            raise bad_request("This thread has no agent yet: make it with 'graph_id', or begin a run.", "thread_id")
        agent = await self.agent(named, caller)
        if agent.name not in self._runtime.agents:
            raise bad_request(f"Agent {named!r} is no graph of this server; its threads have no state to change.", "thread_id")
        return agent

    # ---- threads

    async def create(self, http: Request, caller: Caller, body: dict[str, Any]) -> Any:
        given = take(body, "thread_id", str)
        thread_id = own_name(given) if given else str(uuid.uuid4())
        if body.get("ttl") is not None:
            raise bad_request("Field 'ttl' is not read: a thread stays until it is deleted.", "ttl")
        if choice(body, "if_exists", ("raise", "do_nothing")) is None:
            body = {**body, "if_exists": "raise"}
        known = await asyncio.to_thread(self._runtime.table.find, thread_id, caller.principal)
        if known is not None and body["if_exists"] == "raise":
            raise CallError(f"Thread {thread_id!r} is there already.", status=409, code="RESOURCE_ALREADY_EXISTS")
        await self._runtime.create(thread_id, caller.principal, take(body, "metadata", dict))
        return await self.shown(thread_id, caller)

    async def get(self, http: Request, caller: Caller, body: dict[str, Any]) -> Any:
        return selected(http, body, await self.shown(http.path_params["thread_id"], caller))

    async def update(self, http: Request, caller: Caller, body: dict[str, Any]) -> Any:
        thread_id = http.path_params["thread_id"]
        await self._runtime.thread(thread_id, caller.principal)
        await asyncio.to_thread(self._runtime.table.tag, thread_id, take(body, "metadata", dict) or {})
        if http.headers.get("prefer") == "return=minimal":
            return Response(status_code=204)
        return await self.shown(thread_id, caller)

    async def delete(self, http: Request, caller: Caller, body: dict[str, Any]) -> Any:
        await self._runtime.delete(http.path_params["thread_id"], caller.principal)
        return Response(status_code=204)

    async def search(self, http: Request, caller: Caller, body: dict[str, Any]) -> Any:
        if take(body, "extract", dict):
            raise bad_request("Field 'extract' is not read: threads come with their values.", "extract")
        found = await self._found(caller, body)
        asked = take(body, "values", dict)
        return [selected(http, body, each if asked else await self.shown(each.id, caller)) for each in _page(body, found)]

    async def count(self, http: Request, caller: Caller, body: dict[str, Any]) -> Any:
        return reply(len(await self._found(caller, body)))

    async def _found(self, caller: Caller, body: dict[str, Any]) -> list[Any]:
        """The caller's threads that a request describes; those described by their values as they are shown."""
        wanted, ids, status = take(body, "metadata", dict) or {}, take(body, "ids", list), take(body, "status", str)
        field = choice(body, "sort_by", ("thread_id", "status", "created_at", "updated_at", "state_updated_at")) or "updated_at"
        order = choice(body, "sort_order", ("asc", "desc")) or "desc"
        threads = await self._runtime.threads(caller.principal, limit=SEARCHED)
        tags = await asyncio.to_thread(self._runtime.table.tags, [each.id for each in threads])
        found = [
            each
            for each in threads
            if (ids is None or each.id in ids)
            and all(_metadata(each, tags).get(key) == value for key, value in wanted.items())
            and status in (None, self._status(each))
        ]
        keys = {"thread_id": lambda t: t.id, "status": self._status, "created_at": lambda t: t.created}
        found.sort(key=keys.get(field, lambda t: t.updated), reverse=order == "desc")
        if not (values := take(body, "values", dict)):
            return found
        shown = [await self.shown(each.id, caller) for each in found]
        return [each for each in shown if all((each["values"] or {}).get(key) == value for key, value in values.items())]

    async def prune(self, http: Request, caller: Caller, body: dict[str, Any]) -> Any:
        """Delete threads, or of each all but its last state; those that are not the caller's are not there."""
        ids = take(body, "thread_ids", list, required=True)
        latest = choice(body, "strategy", ("delete", "keep_latest")) == "keep_latest"
        mine = {each.id for each in await self._runtime.threads(caller.principal, limit=SEARCHED)}
        known = [name for name in dict.fromkeys(map(str, ids)) if name in mine]
        for name in known:
            await (self._runtime.forget_branches if latest else self._runtime.delete)(name, caller.principal)
        return {"pruned_count": len(known)}

    async def copied(self, thread_id: str, caller: Caller) -> dict[str, Any]:
        """A copy of a thread; raises ThreadNotFound, ThreadBusy."""
        made = await self._runtime.copy(thread_id, caller.principal, str(uuid.uuid4()))
        return await self.shown(made.id, caller)

    async def shown(self, thread_id: str, caller: Caller) -> dict[str, Any]:
        """A thread with what it holds; raises ThreadNotFound."""
        found = await self._runtime.snapshot(thread_id, caller.principal)
        tags = await asyncio.to_thread(self._runtime.table.tags, [thread_id])
        interrupts = found.interrupts()
        return {
            "thread_id": thread_id,
            "created_at": iso(found.thread.created),
            "updated_at": iso(found.thread.updated),
            "metadata": _metadata(found.thread, tags),
            "status": self._status(found.thread),
            "config": {},
            "values": found.values or None,
            "interrupts": {thread_id: interrupts} if interrupts else {},
        }

    def _status(self, thread: Any) -> str:
        return "busy" if self._runtime.busy(thread.id) else "interrupted" if thread.waiting else "idle"


def own_name(value: str) -> str:
    """A thread id as a client may choose it. Raises `CallError` (400)."""
    if value.startswith(ONCE):
        raise bad_request(f"Field 'thread_id' must not begin with {ONCE!r}.", "thread_id")
    return thread_name(value)


def _page(body: Mapping[str, Any], found: list[Any]) -> list[Any]:
    offset = number(body, "offset", 0, 1_000_000, kind=int) or 0
    return found[offset : offset + (number(body, "limit", 1, 1_000, kind=int) or 10)]


def _assistant(endpoint: Endpoint) -> dict[str, Any]:
    made = iso(endpoint.created_ms / 1000)
    about = {"name": endpoint.name, "description": endpoint.description or None, "version": 1, "metadata": {}}
    times = {"created_at": made, "updated_at": made}
    return {"assistant_id": endpoint.name, "graph_id": endpoint.name, "config": {}, "context": {}, **times, **about}


def _metadata(thread: Thread, tags: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """A thread's tags; who answered last is told as LangGraph's server notes it."""
    answered = {"graph_id": thread.agent, "assistant_id": thread.agent} if thread.agent else {}
    return {"title": thread.title, **answered, **tags.get(thread.id, {})}


def selected(http: Request, body: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that a request selects; all where it does not say."""
    names = body.get("select") or http.query_params.getlist("select")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise bad_request("Field 'select' must be an array of fields' names.", "select")
    return {name: found[name] for name in names if name in found} if names else dict(found)
