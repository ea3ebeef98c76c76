"""Answers of several choices, as OpenAI's chat and text completions give them for `n`.

Each event of such an answer tells by `choice` to which it belongs; the one terminal event has the first choice as its response,
the others as `more_choices` in it, and the usage of all.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from governance.call import Call, Engine, Event

MORE = "more_choices"


def asked(call: Call) -> int:
    """How many choices a call asks for."""
    count = call.payload.get("n") if call.task in ("chat", "agent") else None
    return count if type(count) is int and count > 1 else 1


def of(event: Event) -> int:
    """Which choice an event belongs to."""
    return event.data.get("choice", 0)


def parts(response: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The choices of a response, each a response."""
    if MORE not in response:
        return [response]
    return [{key: value for key, value in response.items() if key != MORE}, *response[MORE]]


def together(responses: Sequence[Mapping[str, Any]], usage: Any) -> Event:
    """The terminal event of choices that have all come."""
    first = {**responses[0], "usage": usage, MORE: list(responses[1:])}
    return Event("response.incomplete" if first.get("status") == "incomplete" else "response.completed", {"response": first})


def noted(engine: Engine, said: dict[int, list[str]]) -> Engine:
    """The engine, with the text of each choice noted as it comes; of an answer that breaks off it is all that is known."""

    async def run(call: Call) -> AsyncIterator[Event]:
        events: Any = engine(call)
        async with aclosing(events):
            async for event in events:
                if event.type == "response.output_text.delta":
                    said.setdefault(of(event), []).append(event.data["delta"])
                yield event

    return run
