"""LangGraph's server API: runs. Each is one of this server's durable runs, so a call through the gateway like any other.

Source: https://docs.langchain.com/langgraph-platform/server-api-ref
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any
from urllib.parse import quote
from weakref import WeakValueDictionary

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from agents import Runtime
from agents.log import RUNNING, RunRecord
from agents.tables import Thread, shorten
from governance.call import Call, Caller, CallError, bad_request, not_found
from serving.endpoint import Endpoint
from serving.engines.messages import langchain_to_items
from serving.errors import request_id
from serving.langgraph.states import States
from serving.langgraph.threads import Threads, credential, iso, own_name, reply, selected
from serving.protocols import langgraph, sse
from serving.protocols.request import choice, take
from serving.runs import Runs

STRATEGIES = ("reject", "interrupt", "rollback", "enqueue")
"""What becomes of a run on a thread that has one: refused, in the place of that (which `rollback` undoes), or begun after it."""

_UNREAD = {
    "interrupt_before": "a graph asks by itself",
    "interrupt_after": "a graph asks by itself",
    "after_seconds": "a run begins at once",
    "webhook": "follow the run, or join it",
}


class ThreadRuns:
    """The handlers; parameters as for `Threads`, and the runs of this server."""

    def __init__(self, threads: Threads, states: States, runtime: Runtime, runs: Runs) -> None:
        self._threads, self._states, self._runtime, self._runs = threads, states, runtime, runs
        self._queues: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

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
        begun = await self._states.begun(call.thread_id, caller) if call.thread_id and "values" in wanted else None
        return self._followed(
            call.request_id, call.thread_id, call.endpoint, caller, wanted, cancel=leaves == "cancel", begun=begun
        )

    async def wait(self, http: Request, caller: Caller, body: dict[str, Any]) -> Any:
        leaves = choice(body, "on_disconnect", ("cancel", "continue"))
        call = await self._begin(http, caller, body)
        if leaves == "cancel":
            await self._runs.wait(call.request_id, unless=_gone(http))
            self._runs.stop(call.request_id)
        return await self._ended(call.request_id, call.thread_id, caller)

    async def _begin(self, http: Request, caller: Caller, body: dict[str, Any]) -> Call:
        assistant = take(body, "assistant_id", str, required=True)
        agent = await self._threads.agent(assistant, caller)
        for unread, why in _UNREAD.items():
            if body.get(unread):
                raise bad_request(f"Field {unread!r} is not read: {why}.", unread)
        strategy = choice(body, "multitask_strategy", STRATEGIES) or "reject"
        thread = await self._thread(http, caller, body)
        if thread is not None and strategy == "enqueue":
            async with self._queues.setdefault(thread.id, asyncio.Lock()):
                return await self._start(http, caller, body, agent, thread, strategy)
        return await self._start(http, caller, body, agent, thread, strategy)

    async def _start(
        self, http: Request, caller: Caller, body: dict[str, Any], agent: Endpoint, thread: Thread | None, strategy: str
    ) -> Call:
        if thread is not None:
            await self._make_room(thread.id, caller, strategy)
        waiting = (await self._runtime.snapshot(thread.id, caller.principal)).waiting if thread else None
        asked = langgraph.asked(body, waiting)
        items, on = asked.items, {"state": asked.state, "again": asked.again, "update": asked.end, "as_node": None}
        if thread is None and (asked.state or asked.again or asked.end):
            raise bad_request(
                "Field 'input.messages' must hold at least one message; without a thread there is nothing else.", "input"
            )
        plain = asked.state is None and not asked.again and not asked.end
        if not plain and agent.name not in self._runtime.agents:
            raise bad_request(
                f"Agent {agent.name!r} is no graph of this server: its threads have no states to go on from.", "checkpoint"
            )
        if asked.end:
            items, on["as_node"] = [{"type": "function_call_output", "call_id": "update_state", "output": "{}"}], "__end__"
        elif asked.again and thread is not None:
            items = await self._standing(thread.id, caller, asked.state)
        if thread is not None:
            await self._noted(thread, agent, items, caller)
        more = {"conversation": {"id": thread.id}, **({} if plain else {"thread": on})} if thread else {}
        call = Call(
            endpoint=agent.name,
            task="agent",
            payload={"model": agent.name, "input": items, "background": True, **more},
            credential=credential(http),
            request_id=request_id(http.scope),
            thread_id=thread.id if thread else None,
            stream=True,
        )
        await self._runs.start(call, caller)
        return call

    async def _noted(self, thread: Thread, agent: Endpoint, items: list[dict[str, Any]], caller: Caller) -> None:
        """Note on a thread whose it is, by which clients list threads; one without a name gets that of its first message."""
        if thread.agent != agent.name:
            tags = {"graph_id": agent.name, "assistant_id": agent.name}
            await asyncio.to_thread(self._runtime.table.tag, thread.id, tags)
        first = next((str(item.get("content") or "") for item in items if item.get("role") == "user"), "")
        if first and thread.title == shorten(""):
            await self._runtime.rename(thread.id, caller.principal, first)

    async def _standing(self, thread_id: str, caller: Caller, state: str | None) -> list[dict[str, Any]]:
        """What stands in a state since a person last said something, as it is told to the gateway when it is asked again."""
        history = await self._runtime.history(thread_id, caller.principal)
        at = history.find(state) if state else history.head
        if at is None or not at.open:
            raise bad_request(
                "Field 'input' is null, and in this state there is nothing to answer: name an earlier one.", "input"
            )
        said = list(history.asked(at).messages)
        last = max((position for position, message in enumerate(said) if message.type == "human"), default=0)
        return langchain_to_items(said[last:])

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
        if strategy == "enqueue":
            return await self._runtime.rested(thread_id)
        for run in await self._of(thread_id, caller):
            if run.status == RUNNING:
                await self._stopped(run, caller, rollback=strategy == "rollback")
        await self._runtime.halt(thread_id)  # one of another face

    async def _stopped(self, run: RunRecord, caller: Caller, *, rollback: bool) -> None:
        """Stop a run; one that is rolled back leaves nothing behind. Raises `CallError` (409) where it cannot be."""
        if rollback:
            await self._runs.heard(run.id)  # before it is on its thread there is nothing to undo, and it would come there later
        undone = rollback and run.thread_id is not None and self._runtime.undo(run.thread_id, run.id)
        if rollback and not undone and run.thread_id is not None:
            raise CallError(
                "This run has ended, or goes on with one that asked: it cannot be rolled back.", status=409, code="CONFLICT"
            )
        await self._runs.cancel(run.id, caller)
        if rollback:
            await self._runtime.rested(run.thread_id or "")
            await asyncio.to_thread(self._runs.log.delete, run.id)

    # ---- following

    async def list(self, http: Request, caller: Caller, body: dict[str, Any]) -> Any:
        await self._runtime.thread(http.path_params["thread_id"], caller.principal)
        wanted, page = http.query_params.get("status"), {}
        for name, most in (("limit", 1_000), ("offset", 1_000_000)):
            value = http.query_params.get(name, "10" if name == "limit" else "0")
            if not value.isdecimal() or len(value) > 7 or int(value) > most:
                raise bad_request(f"Query parameter {name!r} must be a number up to {most}.", name)
            page[name] = int(value)
        found = [_run(each) for each in await self._of(http.path_params["thread_id"], caller)]
        found = [selected(http, {}, each) for each in found if wanted in (None, each["status"])]
        return found[page["offset"] : page["offset"] + page["limit"]]

    async def get(self, http: Request, caller: Caller, body: dict[str, Any]) -> Any:
        return _run(await self._record(http, caller))

    async def cancel(self, http: Request, caller: Caller, body: dict[str, Any]) -> Any:
        record = await self._record(http, caller)
        await self._stopped(record, caller, rollback=_action(http) == "rollback")
        return Response(status_code=204)

    async def cancel_many(self, http: Request, caller: Caller, body: dict[str, Any]) -> Any:
        """Stop the caller's runs that are named, or all that go on; those of others are not there."""
        thread_id, ids = take(body, "thread_id", str), take(body, "run_ids", list)
        status = choice(body, "status", ("pending", "running", "all"))
        if bool(status) == bool(thread_id and ids):
            raise bad_request("Send 'status', or 'thread_id' and 'run_ids'.", "run_ids")
        if thread_id and ids:
            found = [run for run in await self._of(thread_id, caller) if run.id in ids]
        else:
            found = await asyncio.to_thread(self._runs.log.unfinished)
        for run in found:
            if run.owner == caller.principal and run.status == RUNNING:
                await self._stopped(run, caller, rollback=_action(http) == "rollback")
        return Response(status_code=204)

    async def delete(self, http: Request, caller: Caller, body: dict[str, Any]) -> Any:
        """Forget a run that has ended; what was said stays on its thread."""
        record = await self._record(http, caller)
        if record.status == RUNNING:
            raise CallError("This run goes on: cancel it first.", status=409, code="RESOURCE_CONFLICT")
        await asyncio.to_thread(self._runs.log.delete, record.id)
        return Response(status_code=204)

    async def join(self, http: Request, caller: Caller, body: dict[str, Any]) -> Any:
        record = await self._record(http, caller)
        return await self._ended(record.id, record.thread_id, caller)

    async def join_thread(self, http: Request, caller: Caller, body: dict[str, Any]) -> Any:
        """Follow the run that goes on, on a thread; an empty stream where none does."""
        thread_id = http.path_params["thread_id"]
        await self._runtime.thread(thread_id, caller.principal)
        going = next((run for run in await self._of(thread_id, caller) if run.status == RUNNING), None)
        if going is None:
            return Response(langgraph.frame("end", None), media_type="text/event-stream")
        wanted = frozenset(("values", "messages-tuple", "updates", "custom"))
        return self._followed(going.id, thread_id, going.agent, caller, wanted)

    async def join_stream(self, http: Request, caller: Caller, body: dict[str, Any]) -> Any:
        record = await self._record(http, caller)
        named = [mode for mode in http.query_params.getlist("stream_mode") if mode]  # the Python client sends none as ''
        wanted = langgraph.modes(named or ["values", "messages-tuple"])
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
        begun: Mapping[str, Any] | None = None,
    ) -> Response:
        async def values(response: Mapping[str, Any]) -> Mapping[str, Any]:
            return await self._values(response, thread_id, caller)

        encoder = langgraph.Encoder(run_id, thread_id, agent, wanted, values, begun)

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


def _action(http: Request) -> str:
    found = http.query_params.get("action", "interrupt")
    if found not in ("interrupt", "rollback"):
        raise bad_request("Query parameter 'action' must be interrupt or rollback.", "action")
    return found


async def _gone(http: Request) -> None:
    """Until the client has left."""
    while (await http.receive())["type"] != "http.disconnect":
        pass
