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

from agents import Runtime, ThreadNotFound
from agents.snapshot import Snapshot
from agents.tables import ONCE
from governance.call import Caller, CallError, bad_request, not_found
from serving.endpoint import Endpoint
from serving.protocols.request import number, parse, take, thread_name
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

    def route(self, routes: APIRouter, method: str, path: str, handler: Handler) -> None:
        """Add a path: the caller is known, and the body read, before its handler is asked."""

        async def answer(http: Request) -> Response:
            caller = await self._face.authenticate(credential(http))
            raw = await read_body(http, MAX_BODY) if method != "GET" else b""
            try:
                found = await handler(http, caller, parse(raw) if raw.strip() not in (b"", b"null") else {})
            except ThreadNotFound as error:
                raise not_found(str(error)) from None
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
        return _page(body, wanted)

    async def assistant(self, http: Request, caller: Caller, body: dict[str, Any]) -> Any:
        name, found = http.path_params["assistant_id"], await self.agents(caller)
        if name not in found:
            raise not_found(f"There is no assistant {name[:80]!r}; there are: {', '.join(found) or 'none'}.")
        return _assistant(found[name])

    # ---- threads

    async def create(self, http: Request, caller: Caller, body: dict[str, Any]) -> Any:
        given = take(body, "thread_id", str)
        thread_id = own_name(given) if given else str(uuid.uuid4())
        if body.get("supersteps"):
            raise bad_request("Field 'supersteps' is not read: a thread begins empty.", "supersteps")
        known = await asyncio.to_thread(self._runtime.table.find, thread_id, caller.principal)
        if known is not None and body.get("if_exists", "raise") == "raise":
            raise CallError(f"Thread {thread_id!r} is there already.", status=409, code="RESOURCE_ALREADY_EXISTS")
        await self._runtime.create(thread_id, caller.principal, take(body, "metadata", dict))
        return await self.shown(thread_id, caller)

    async def get(self, http: Request, caller: Caller, body: dict[str, Any]) -> Any:
        return await self.shown(http.path_params["thread_id"], caller)

    async def update(self, http: Request, caller: Caller, body: dict[str, Any]) -> Any:
        thread_id = http.path_params["thread_id"]
        await self._runtime.thread(thread_id, caller.principal)
        await asyncio.to_thread(self._runtime.table.tag, thread_id, take(body, "metadata", dict) or {})
        return await self.shown(thread_id, caller)

    async def delete(self, http: Request, caller: Caller, body: dict[str, Any]) -> Any:
        await self._runtime.delete(http.path_params["thread_id"], caller.principal)
        return Response(status_code=204)

    async def search(self, http: Request, caller: Caller, body: dict[str, Any]) -> Any:
        tags, ids, status = take(body, "metadata", dict) or {}, take(body, "ids", list), take(body, "status", str)
        threads = await self._runtime.threads(caller.principal, limit=SEARCHED)
        tagged = await asyncio.to_thread(self._runtime.table.tags, [each.id for each in threads])
        wanted = [
            each
            for each in threads
            if (ids is None or each.id in ids)
            and all(tagged.get(each.id, {}).get(key) == value for key, value in tags.items())
            and status in (None, self._status(each))
        ]
        return [await self.shown(each.id, caller) for each in _page(body, wanted)]

    async def state(self, http: Request, caller: Caller, body: dict[str, Any]) -> Any:
        return _state(await self._runtime.snapshot(http.path_params["thread_id"], caller.principal))

    async def history(self, http: Request, caller: Caller, body: dict[str, Any]) -> Any:
        """The last state alone: it holds all that was said, and those before it are not kept."""
        found = await self._runtime.snapshot(http.path_params["thread_id"], caller.principal)
        return [_state(found)] if found.checkpoint_id and not body.get("before") else []

    async def shown(self, thread_id: str, caller: Caller) -> dict[str, Any]:
        """A thread with what it holds; raises ThreadNotFound."""
        found = await self._runtime.snapshot(thread_id, caller.principal)
        tags = await asyncio.to_thread(self._runtime.table.tags, [thread_id])
        interrupts = found.interrupts()
        return {
            "thread_id": thread_id,
            "created_at": iso(found.thread.created),
            "updated_at": iso(found.thread.updated),
            "metadata": {"title": found.thread.title, **tags.get(thread_id, {})},
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


def _state(found: Snapshot) -> dict[str, Any]:
    interrupts = found.interrupts()
    task = {"id": found.checkpoint_id, "name": found.thread.agent, "error": None, "interrupts": interrupts}
    return {
        "values": found.values,
        "next": [found.thread.agent] if interrupts else [],
        "checkpoint": {"thread_id": found.thread.id, "checkpoint_ns": "", "checkpoint_id": found.checkpoint_id or None},
        "metadata": {},
        "created_at": found.created,
        "parent_checkpoint": None,
        "tasks": [{**task, "checkpoint": None, "state": None, "result": None}] if interrupts else [],
        "interrupts": interrupts,
    }
