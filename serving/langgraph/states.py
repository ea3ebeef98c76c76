"""LangGraph's server API: the states of threads, their history, and changing one.

Source: https://docs.langchain.com/langgraph-platform/server-api-ref
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from agents import Runtime
from agents.branches import History, State
from agents.snapshot import Snapshot, plain, told
from agents.values import Values
from governance.call import Call, Caller, CallError, bad_request
from serving.errors import request_id
from serving.langgraph.threads import Threads, credential, reply, selected
from serving.protocols.langgraph import checkpoint
from serving.protocols.request import number, take

TOLD = 20_000
"""Messages of all states that one answer tells; a page of the history ends there."""


class States:
    """The handlers; parameters as for `Threads`."""

    def __init__(self, threads: Threads, runtime: Runtime) -> None:
        self._threads, self._runtime = threads, runtime

    async def last(self, http: Request, caller: Caller, body: dict[str, Any]) -> Any:
        """The state in which a thread stands; one on which nothing was said has none, and no checkpoint."""
        found = await self._of(http, caller)
        if found.states:
            return selected(http, body, await asyncio.to_thread(found.shown, found.states[0]))
        empty = {"values": {}, "next": [], "tasks": [], "interrupts": [], "metadata": {}, "created_at": None}
        return selected(http, body, {**empty, "checkpoint": None, "parent_checkpoint": None})

    async def one(self, http: Request, caller: Caller, body: dict[str, Any]) -> Any:
        """The state that the path or the body names."""
        wanted = http.path_params.get("checkpoint_id") or checkpoint(body)
        if not wanted:
            return await self.last(http, caller, body)
        found = await self._of(http, caller)
        return selected(http, body, await asyncio.to_thread(found.shown, found.find(wanted)))

    async def history(self, http: Request, caller: Caller, body: dict[str, Any]) -> Any:
        """The states of a thread, the newest first."""
        if http.method == "GET":
            body = _queried(http)
        limit = number(body, "limit", 1, 1_000, kind=int) or 10
        before, only, tags = checkpoint(body, "before"), checkpoint(body), take(body, "metadata", dict) or {}
        found = await self._of(http, caller)
        states = found.states
        if before:
            states = states[states.index(found.find(before)) + 1 :]
        if only:
            states = [state for state in states if state is found.find(only)]
        states = [state for state in states if tags.items() <= found.metadata(state).items()]

        def write() -> bytes:  # thousands of messages take their time
            page: list[Any] = []
            left = TOLD
            for state in states[:limit]:
                if page and (left := left - state.depth) < 0:
                    break
                page.append(selected(http, body, found.shown(state)))
            return orjson.dumps(page, default=str)

        return Response(await asyncio.to_thread(write), media_type="application/json")

    async def update(self, http: Request, caller: Caller, body: dict[str, Any]) -> Any:
        """Change a state: the last, or an earlier one, from which the thread then goes on."""
        thread_id = http.path_params["thread_id"]
        values, as_node = take(body, "values", dict) or {}, take(body, "as_node", str)
        await self.change(http, caller, thread_id, values, as_node, checkpoint(body))
        found = await self._of(http, caller)
        at = found.checkpoint(found.states[0].id) if found.states else None
        return {"checkpoint": at, "configurable": at, "checkpoint_id": at and at["checkpoint_id"]}

    async def change(
        self,
        http: Request,
        caller: Caller,
        thread_id: str,
        values: Mapping[str, Any],
        as_node: str | None,
        state: str | None = None,
        request: str = "",
    ) -> None:
        """Call a thread's agent to change its state, as every call through the gateway."""
        agent = await self._threads.agent_of(thread_id, caller)
        item = {"type": "function_call_output", "call_id": "update_state", "output": orjson.dumps(values).decode()}
        on = {"state": state, "update": True, "as_node": as_node}
        call = Call(
            endpoint=agent.name,
            task="agent",
            payload={"model": agent.name, "input": [item], "conversation": {"id": thread_id}, "thread": on},
            credential=credential(http),
            request_id=request or request_id(http.scope),
            thread_id=thread_id,
        )
        await self._threads.dispatcher.invoke(call)

    async def create(self, http: Request, caller: Caller, body: dict[str, Any]) -> Any:
        """A thread, with the states that `supersteps` make, if there are any; none is left where one of them is refused."""
        steps = take(body, "supersteps", list) or []
        updates = [each for step in steps for each in _updates(step)]
        made = await self._threads.create(http, caller, body)
        try:
            for each in updates:
                values, as_node = take(each, "values", dict) or {}, take(each, "as_node", str)
                await self.change(http, caller, made["thread_id"], values, as_node, request=uuid.uuid4().hex)
        except CallError:
            await self._runtime.delete(made["thread_id"], caller.principal)
            raise
        return await self._threads.shown(made["thread_id"], caller) if updates else made

    async def copy(self, http: Request, caller: Caller, body: dict[str, Any]) -> Any:
        """Another thread with the same states."""
        return reply(await self._threads.copied(http.path_params["thread_id"], caller))

    async def begun(self, thread_id: str, caller: Caller) -> dict[str, Any] | None:
        """The values of a thread on which a run has begun, with what it was asked; None where that has ended already."""
        found = await self._runtime.snapshot(thread_id, caller.principal)
        return dict(found.values) if self._runtime.busy(thread_id) else None

    async def _of(self, http: Request, caller: Caller) -> _Told:
        thread_id = http.path_params["thread_id"]
        snapshot = await self._runtime.snapshot(thread_id, caller.principal)
        history = await self._runtime.history(thread_id, caller.principal)
        return _Told(snapshot, history, self._runtime.branches.values(await self._runtime.open(), thread_id))


class _Told:
    """A thread's states as LangGraph's clients read them. `shown` blocks."""

    def __init__(self, snapshot: Snapshot, history: History, values: Values) -> None:
        self._snapshot, self._history, self._values = snapshot, history, values
        self.states: Sequence[State] = (
            [history.head, *(s for s in history.states if s is not history.head)] if history.head else []
        )
        self.find = history.find
        self._messages: dict[int, Any] = {}

    def checkpoint(self, state_id: str | None) -> dict[str, Any] | None:
        if state_id is None:
            return None
        return {"thread_id": self._snapshot.thread.id, "checkpoint_ns": "", "checkpoint_id": state_id}

    def metadata(self, state: State) -> dict[str, Any]:
        asked = next((m.id for m in reversed(state.messages) if m.type == "human" and m.id), "")
        run = {"run_id": asked.partition(":")[0]} if ":" in asked else {}
        named = {"thread_id": self._snapshot.thread.id, "graph_id": self._snapshot.thread.agent}
        return {"source": "loop" if state.depth else "input", "step": state.depth - 1, **named, **run}

    def shown(self, state: State) -> dict[str, Any]:
        agent, interrupts, values = self._snapshot.thread.agent, [], {"messages": [self._plain(m) for m in state.messages]}
        leads = [agent] if state.open else []
        if state is self._history.head:
            values, interrupts = dict(self._snapshot.values) or values, self._snapshot.interrupts()
            leads = list(self._snapshot.next) or leads if state.open or interrupts else []
        elif state.whole:
            values = told(state.held.values)
        else:
            values = {**told(self._values.at(state.keys) or {}), **values}
        task = {"id": state.id, "error": None, "checkpoint": None, "state": None, "result": None}
        return {
            "values": values,
            "next": leads,
            "checkpoint": self.checkpoint(state.id),
            "metadata": self.metadata(state),
            "created_at": state.held.created if state.whole else None,
            "parent_checkpoint": self.checkpoint(state.parent),
            "tasks": [{**task, "name": name, "interrupts": interrupts} for name in leads[:1]],
            "interrupts": interrupts,
        }

    def _plain(self, message: Any) -> Any:
        """Each message is made plain once, however many states hold it."""
        if (found := self._messages.get(id(message))) is None:
            found = self._messages[id(message)] = plain(message)
        return found


def _updates(step: Any) -> list[dict[str, Any]]:
    found = take(step, "updates", list, path="supersteps[].") if isinstance(step, dict) else None
    if not found or not all(isinstance(each, dict) and not each.get("command") for each in found):
        raise bad_request("Field 'supersteps' must hold objects with 'updates', each with 'values' and 'as_node'.", "supersteps")
    return found


def _queried(http: Request) -> dict[str, Any]:
    """What a history is asked for by a query. Raises `CallError` (400)."""
    asked: dict[str, Any] = {key: value for key, value in http.query_params.items() if key in ("before", "checkpoint_id")}
    if (limit := http.query_params.get("limit")) is not None:
        if not limit.isdecimal() or len(limit) > 6:
            raise bad_request("Query parameter 'limit' must be a number.", "limit")
        asked["limit"] = int(limit)
    return asked
