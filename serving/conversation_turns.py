"""Conversations with models that are no agents: what was said goes before each request, and what is said is kept after it.

What is kept is what guardrails let pass, of the request and of the answer; of a request that fails, or whose client goes before
its end, nothing is.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, Protocol

from agents import Runtime, ThreadNotFound
from governance.call import Call, Caller, CallError, Engine, Event, bad_request, not_found
from serving.conversation_items import BeginningItems
from serving.dispatch import Policy
from serving.engines.messages import text_of
from serving.protocols.previous import as_input
from serving.protocols.request import Request

_KEPT = ("message", "function_call", "function_call_output")
_ENDS = ("response.completed", "response.incomplete")


class Dispatching(Protocol):
    """What is needed of `serving.dispatch.Dispatcher`."""

    gateway: Policy

    def engine(self, call: Call) -> Engine | None: ...


class Turns:
    """Begins turns.

    Parameters
    ----------
    items: what was said in conversations.
    runtime: knows whose they are, and which are an agent's.
    dispatcher: runs calls.
    """

    def __init__(self, items: BeginningItems, runtime: Runtime, dispatcher: Dispatching) -> None:
        self._items, self._runtime, self._dispatcher = items, runtime, dispatcher

    async def begin(self, request: Request, caller: Caller) -> tuple[Request, Turn]:
        """The request with what was said before it, and what runs and keeps it.

        Raises `CallError`: 404 for a conversation that is another's, 409 for one that an agent answers, 400 for images.
        """
        identifier, keeps = request.payload["conversation"]["id"], request.payload.get("store") is not False
        given = list(request.payload["input"])
        if keeps and any(_has_image(item) for item in given):
            raise bad_request("Conversations keep text: send an image without 'conversation', or with 'store': false.", "input")
        try:
            if keeps:
                await self._runtime.create(identifier, caller.principal)
            thread = await self._runtime.thread(identifier, caller.principal)
        except ThreadNotFound:
            if keeps:
                raise not_found(f"There is no conversation {identifier!r} of yours.") from None
            return request, Turn(self, self._dispatcher, caller, None, 0)  # none that would be remembered
        if thread.agent:
            message = f"The agent {thread.agent} answers in this conversation: name it as 'model', or begin another conversation."
            raise CallError(message, status=409, code="RESOURCE_CONFLICT")
        held = [
            {key: value for key, value in item.items() if key != "id"}
            for item in await asyncio.to_thread(self._items.of, identifier)
        ]
        continued = replace(request, payload={**request.payload, "input": [*held, *given]})
        return continued, Turn(self, self._dispatcher, caller, identifier if keeps else None, len(held))

    async def keep(self, conversation: str, caller: Caller, asked: Sequence[Any], answered: Sequence[Any]) -> None:
        """Add a turn to a conversation, unless it was deleted meanwhile."""
        made = [_text(item) for item in asked if item.get("type", "message") in _KEPT]
        made += [item for each in answered if (item := as_input(each))]
        try:
            await self._runtime.thread(conversation, caller.principal)
        except ThreadNotFound:
            return
        if made:
            await asyncio.to_thread(self._items.add, conversation, made)


@dataclass(frozen=True)
class Turn:
    """Runs the call of one turn as a dispatcher does. `conversation` is None where nothing is kept."""

    turns: Turns
    dispatcher: Dispatching
    caller: Caller
    conversation: str | None
    held: int

    async def stream(self, call: Call) -> AsyncIterator[Event]:
        """The call's events; the turn is kept before the last of them is given."""
        engine, asked = self._noting(call)
        events: Any = self.dispatcher.gateway.call(call, engine)
        async with aclosing(events):
            async for event in events:
                if event.type in _ENDS:
                    await self._keep(asked, event.data["response"])
                yield event

    async def invoke(self, call: Call) -> Mapping[str, Any]:
        """The call's response. Raises `CallError` where it failed."""
        engine, asked = self._noting(call)
        response = await self.dispatcher.gateway.invoke(call, engine)
        await self._keep(asked, response)
        return response

    def _noting(self, call: Call) -> tuple[Engine | None, list[Any]]:
        """The call's engine, and what it is asked in this turn, as guardrails let it pass."""
        engine, asked = self.dispatcher.engine(call), list[Any]()
        if engine is None:
            return None, asked

        def noting(guarded: Call) -> AsyncIterator[Event]:
            asked[:] = guarded.payload["input"][self.held :]
            return engine(guarded)

        return noting, asked

    async def _keep(self, asked: Sequence[Any], response: Mapping[str, Any]) -> None:
        if self.conversation is not None:
            await self.turns.keep(self.conversation, self.caller, asked, response.get("output") or ())


def _has_image(item: Mapping[str, Any]) -> bool:
    content = item.get("content")
    return isinstance(content, list) and any(part.get("type") != "input_text" for part in content)


def _text(item: Mapping[str, Any]) -> dict[str, Any]:
    """An item as conversations keep it."""
    return {**item, "content": text_of(item["content"])} if "content" in item else dict(item)
