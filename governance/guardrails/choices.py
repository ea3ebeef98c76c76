"""Guardrails around an answer of several choices: each is guarded as an answer of its own, streamed or not."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any

from governance import choices
from governance.call import TERMINAL, Call, Event


class _Lane:
    """The events of one choice that have come; it ends where the next has not come yet, and goes on when it has."""

    def __init__(self) -> None:
        self.events = deque[Event]()

    def __aiter__(self) -> _Lane:
        return self

    async def __anext__(self) -> Event:
        if not self.events:
            raise StopAsyncIteration
        return self.events.popleft()

    async def aclose(self) -> None:
        pass


async def guarded(answer: Any, call: Call, guard: Callable[[Any], Any], *, whole: bool) -> AsyncIterator[Event]:
    """The answer's events that may leave. A choice that a guardrail stops ends there; the others go on.

    Parameters
    ----------
    guard: puts the guardrails around the events of one choice.
    whole: whether they are to see all of a choice before any of it.
    """
    lanes = [_Lane() for _ in range(choices.asked(call))]
    guards = [guard(lane) for lane in lanes]
    ended: dict[int, Any] = {}
    try:
        async for event in answer:
            usage = None
            if event.type in TERMINAL:
                response = event.data.get("response") or {}
                usage, rest = response.get("usage"), choices.parts(response)
                for lane, part in zip(lanes, rest, strict=False):
                    kind = event.type if event.type == "response.failed" else f"response.{part.get('status', 'completed')}"
                    lane.events.append(Event(kind, {**event.data, "response": part}))
                turns = range(len(rest))
            else:
                lanes[choices.of(event)].events.append(event)
                turns = () if whole else (choices.of(event),)
            for place in turns:
                async for told in guards[place]:
                    if told.type == "response.failed":
                        yield told
                        return
                    if told.type in TERMINAL:
                        ended[place] = told.data["response"]
                    else:
                        yield told
            if event.type in TERMINAL or len(ended) == len(lanes):
                made = choices.together([ended[place] for place in sorted(ended)], usage)
                yield Event(made.type, {**event.data, **made.data}) if event.type in TERMINAL else made
                return
    finally:
        await answer.aclose()
