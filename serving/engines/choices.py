"""Several choices from an engine that gives one: it is asked for each, at the same time.

A seed gives the first choice what it gives alone, and each of the others what the next number would: distinct choices, and the
same ones again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from governance import choices
from governance.call import TERMINAL, Call, CallError, Engine, Event

_AHEAD = 64  # events of each choice that may wait for who reads them
_Item = tuple[int, Event | BaseException]


def several(engine: Engine, *, prompt_once: bool = False) -> Engine:
    """The engine, with as many choices as a call asks for (`n`).

    `prompt_once`: the usage counts the prompt once, as of a model of one's own, not as often as a model elsewhere was sent it.
    """

    def run(call: Call) -> AsyncIterator[Event]:
        count = choices.asked(call)
        return engine(call) if count == 1 else _several(engine, call, count, prompt_once)

    return run


async def _several(engine: Engine, call: Call, count: int, prompt_once: bool) -> AsyncIterator[Event]:
    waiting: asyncio.Queue[_Item] = asyncio.Queue(_AHEAD * count)

    async def answer(place: int) -> None:
        events: Any = engine(replace(call, payload=_one(call.payload, place)))
        try:
            async with aclosing(events):
                async for event in events:
                    await waiting.put((place, event))
        except Exception as error:
            await waiting.put((place, error))

    tasks = [asyncio.create_task(answer(place)) for place in range(count)]
    ended: dict[int, Mapping[str, Any]] = {}
    try:
        while len(ended) < count:
            place, event = await waiting.get()
            if isinstance(event, BaseException):
                raise event
            if event.type == "response.failed":
                error = event.data["response"].get("error") or {}
                raise CallError(error.get("message") or "The model failed.", status=502)
            if event.type in TERMINAL:
                ended[place] = event.data["response"]
            else:
                yield Event(event.type, {**event.data, "choice": place})
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    responses = [ended[place] for place in range(count)]
    yield choices.together(responses, _usage([each.get("usage") or {} for each in responses], prompt_once))


def _one(payload: Mapping[str, Any], place: int) -> dict[str, Any]:
    """The request of one choice."""
    made = {key: value for key, value in payload.items() if key != "n"}
    if (seed := made.get("seed")) is not None and place:
        made["seed"] = seed + place
    return made


def _usage(counts: list[Mapping[str, Any]], prompt_once: bool) -> dict[str, Any]:
    read = [each.get("input_tokens") or 0 for each in counts]
    given, written = max(read) if prompt_once else sum(read), sum(each.get("output_tokens") or 0 for each in counts)

    def of(details: str, name: str) -> int:
        told = [(each.get(details) or {}).get(name) or 0 for each in counts]
        return max(told) if prompt_once and details.startswith("input") else sum(told)

    return {
        "input_tokens": given,
        "input_tokens_details": {name: of("input_tokens_details", name) for name in ("cached_tokens", "cache_write_tokens")},
        "output_tokens": written,
        "output_tokens_details": {"reasoning_tokens": of("output_tokens_details", "reasoning_tokens")},
        "total_tokens": given + written,
    }
