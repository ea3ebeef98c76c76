"""Runs that outlive the connection that asked: in the background, followed by any number of readers, resumed, cancelled.

A run is a call through the gateway like any other, in a task of its own. Its events are committed to the log, then told.
Source: https://platform.openai.com/docs/guides/background
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Protocol

import orjson

from agents.log import KEEP, RUNNING, Entry, RunLog, RunRecord
from governance.call import STEP, Call, Caller, CallError, Event, not_found
from governance.record import failed_code
from serving.dispatch import Dispatcher
from serving.engines.answer import Answer

log = logging.getLogger("smalti")

PATIENCE = 1.0
"""Seconds to wait for a run's first event, so that a refusal has its own status; then it is told as queued."""

_KILLED = "the server stopped during this run; ask again"


@dataclass
class _Live:
    """A run that goes on here."""

    call: Call
    events: list[Event] = field(default_factory=list)
    """Committed."""
    coming: list[Event] = field(default_factory=list)
    """Not yet."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None
    noted: asyncio.Event = field(default_factory=asyncio.Event)
    """It is in the log, or was refused there."""
    begun: bool = False
    """Its task may be cancelled: the run is in the log, and is ended there however it ends."""
    admitted: bool = False
    refusal: Exception | None = None
    ended: bool = False
    """No event comes any more."""
    done: bool = False
    """And all are committed."""
    stopping: bool = False
    cut: bool = False
    """It was cancelled, or is to be as soon as it may."""

    def cancel(self) -> None:
        """End it, unless it ends already."""
        if not self.cut and not self.ended:
            self.cut = True
            if self.begun and self.task is not None:
                self.task.cancel()

    def tell(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()


class Streams(Protocol):
    """What runs calls: a dispatcher."""

    def stream(self, call: Call) -> AsyncIterator[Event]: ...


class Runs:
    """The runs of this server.

    Parameters
    ----------
    dispatcher: runs calls.
    log: where their events are kept.
    """

    def __init__(self, dispatcher: Dispatcher, log: RunLog) -> None:
        self._dispatcher, self.log = dispatcher, log
        self._live: dict[str, _Live] = {}

    async def recover(self) -> None:
        """End the runs that were going on when the server was killed, and forget old ones. Once, before any is started."""
        for record in await asyncio.to_thread(self.log.unfinished):
            rows = await asyncio.to_thread(self.log.read, record.id)
            events = [Event(kind, orjson.loads(data)) for _, kind, data in rows]
            last = _ended(record, events, "failed", {"code": "server_error", "message": _KILLED})
            await self.log.append(record.id, len(rows), [_entry(last)], status="failed")
        await asyncio.to_thread(self.log.forget, time.time() - KEEP)

    async def start(self, call: Call, caller: Caller, by: Streams | None = None) -> dict[str, Any]:
        """Begin a run, `by` the dispatcher or what stands for it; its Response as far as it has come.

        Raises `CallError` where it is refused.
        """
        live = self._live[call.request_id] = _Live(call)
        host = self._host(live, caller.principal, by or self._dispatcher)
        live.task = asyncio.create_task(host, name=f"run {call.request_id}")
        await live.noted.wait()
        changed = live.changed
        if not live.events and not live.done:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PATIENCE):
                    await changed.wait()
        if live.refusal is not None:
            raise live.refusal
        live.admitted = True
        return _response(live.events) or _queued(call)

    async def get(self, run_id: str, caller: Caller) -> dict[str, Any] | None:
        """The Response of a caller's run as far as it has come; None where there is no such run."""
        record = await asyncio.to_thread(self.log.find, run_id, caller.principal)
        if record is None:
            return None
        live = self._live.get(run_id)
        events = live.events if live else await self._read(run_id)
        return _response(events) or _queued(Call(record.agent, "agent", {"background": True}, request_id=run_id))

    async def follow(self, run_id: str, caller: Caller, after: int = -1) -> AsyncGenerator[tuple[int, Event], None]:
        """(number, event) of a caller's run after number `after`, to its end; steps are left out, and not numbered.

        Raises `CallError` (404) where there is no such run.
        """
        record = await asyncio.to_thread(self.log.find, run_id, caller.principal)
        if record is None:
            raise missing(run_id)
        live = self._live.get(run_id)
        events = live.events if live else await self._read(run_id)
        number, position = -1, 0
        while True:
            changed = live.changed if live else None
            while position < len(events):
                event = events[position]
                position += 1
                if event.type != STEP:
                    number += 1
                    if number > after:
                        yield number, event
            if live is None or live.done or changed is None:
                return
            await changed.wait()

    async def cancel(self, run_id: str, caller: Caller) -> dict[str, Any]:
        """Stop a caller's run: its model's connection is closed, its tools are cancelled. The Response as it ended.

        Raises `CallError` (404) where there is no such run. One that has ended stays as it is.
        """
        record = await asyncio.to_thread(self.log.find, run_id, caller.principal)
        if record is None:
            raise missing(run_id)
        self.stop(run_id)
        await self.wait(run_id)
        found = await self.get(run_id, caller)
        assert found is not None
        return found

    def stop(self, run_id: str) -> None:
        """Begin to stop a run that goes on here; whose it is, is the caller's to know."""
        live = self._live.get(run_id)
        if live is not None and not live.cut and not live.ended:
            live.stopping = True
            live.cancel()

    async def heard(self, run_id: str) -> None:
        """Until a run that goes on here has said something: its agent is at work, on its thread."""
        live = self._live.get(run_id)
        while live is not None and not live.events and not live.done:
            await live.changed.wait()

    async def wait(self, run_id: str, unless: Coroutine[Any, Any, None] | None = None) -> None:
        """Until a run that goes on here has ended, or `unless` has."""
        live = self._live.get(run_id)
        other = asyncio.ensure_future(unless) if unless is not None else None
        if live is not None and live.task is not None:
            await asyncio.wait([live.task, *([other] if other else [])], return_when=asyncio.FIRST_COMPLETED)
        if other is not None:
            other.cancel()

    async def close(self) -> None:
        """Stop all runs; for the end of the server."""
        for live in self._live.values():
            live.cancel()
        if tasks := [live.task for live in self._live.values() if live.task is not None]:
            await asyncio.wait(tasks)

    # --- within ---

    async def _read(self, run_id: str) -> list[Event]:
        return [Event(kind, orjson.loads(data)) for _, kind, data in await asyncio.to_thread(self.log.read, run_id)]

    async def _host(self, live: _Live, owner: str, by: Streams) -> None:
        call = live.call
        try:
            await asyncio.to_thread(self.log.begin, call.request_id, owner=owner, agent=call.endpoint, thread_id=call.thread_id)
        except Exception as error:
            del self._live[call.request_id]
            live.refusal, live.ended, live.done = error, True, True
            return
        finally:
            live.noted.set()
        written = asyncio.Event()
        writer = asyncio.create_task(self._commit(live, written))
        end: Event | None = None
        live.begun = True
        try:
            if live.cut:
                raise asyncio.CancelledError
            events: Any = by.stream(call)
            async with aclosing(events):
                async for event in events:
                    live.coming.append(event)
                    written.set()
        except asyncio.CancelledError:
            stopped = {"code": "server_error", "message": _KILLED}
            end = _ended_now(live, "cancelled" if live.stopping else "failed", None if live.stopping else stopped)
        except CallError as error:
            if not live.admitted and not live.events and not live.coming:
                live.refusal = error
            end = _ended_now(live, "failed", {"code": failed_code(error.status), "message": error.message})
        except Exception:
            log.exception("run %s failed", call.request_id)
            message = f"{call.endpoint} failed inside the server; ask again, or quote request {call.request_id}"
            end = _ended_now(live, "failed", {"code": "server_error", "message": message})
        if end is not None and not any(event.terminal for event in live.coming):
            live.coming.append(end)
        live.ended = True
        written.set()
        try:
            await asyncio.shield(writer)
        finally:
            self._live.pop(call.request_id, None)
            live.done = True
            live.tell()

    async def _commit(self, live: _Live, written: asyncio.Event) -> None:
        """Commit what has come, tell of it, and again until the run's end is committed."""
        while True:
            await written.wait()
            written.clear()
            finished = live.ended
            batch, live.coming = live.coming, []
            if batch:
                last = batch[-1] if batch[-1].terminal else None
                status = str((last.data.get("response") or {}).get("status") or "completed") if last else None
                try:
                    await self.log.append(live.call.request_id, len(live.events), [_entry(e) for e in batch], status=status)
                except Exception:
                    log.exception("the events of run %s cannot be kept; it goes on for those who follow it", live.call.request_id)
                live.events += batch
                live.tell()
            if finished and not live.coming:
                return


def missing(run_id: str) -> CallError:
    error = not_found(f"There is no run 'resp_{run_id[:70]}' of yours in the background. Send 'background': true to begin one.")
    error.param = "response_id"
    return error


def _entry(event: Event) -> Entry:
    return event.type, orjson.dumps(event.data, default=str)


def _response(events: Sequence[Event]) -> dict[str, Any] | None:
    """The last Response object among the events."""
    for event in reversed(events):
        if isinstance(found := event.data.get("response"), Mapping):
            return dict(found)
    return None


def _queued(call: Call) -> dict[str, Any]:
    event = Answer(call).start()[0]
    return {**event.data["response"], "status": "queued"}


def _ended_now(live: _Live, status: str, error: Mapping[str, str] | None) -> Event:
    return _end_of(live.call, [*live.events, *live.coming], status, error)


def _ended(record: RunRecord, events: Sequence[Event], status: str, error: Mapping[str, str] | None) -> Event:
    return _end_of(Call(record.agent, "agent", {"background": True}, request_id=record.id), events, status, error)


def _end_of(call: Call, events: Sequence[Event], status: str, error: Mapping[str, str] | None) -> Event:
    """The terminal event of a run that did not come to its end: the Response as begun, with what was written by then."""
    begun = _response(events)
    answer = Answer(call)
    text = "".join(str(event.data.get("delta", "")) for event in events if event.type == "response.output_text.delta")
    list(answer.write(text))
    ended = answer.ended(status, error)
    if begun is None:
        return ended
    fresh = ended.data["response"]
    return Event(ended.type, {"response": {**begun, **{key: fresh[key] for key in ("status", "output", "error")}}})


__all__ = ["RUNNING", "Runs", "missing"]
