"""Several choices from an engine that gives one: it is asked for each, at the same time.

The prompts of a text completion share its choices evenly: the first prompt has the first of them.

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

    `prompt_once`: the usage counts each prompt once, as of a model of one's own, not as often as a model elsewhere was sent it.
    """

    def run(call: Call) -> AsyncIterator[Event]:
        count = choices.asked(call)
        return engine(call) if count == 1 else _several(engine, call, count, prompt_once)

    return run


async def _several(engine: Engine, call: Call, count: int, prompt_once: bool) -> AsyncIterator[Event]:
    prompts = len(call.payload["input"]) if call.payload.get("raw") else 1
    waiting: asyncio.Queue[_Item] = asyncio.Queue(_AHEAD * count)

    async def answer(place: int) -> None:
        events: Any = engine(replace(call, payload=_one(call.payload, place, count // prompts)))
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
    yield choices.together(responses, _usage([each.get("usage") or {} for each in responses], prompts if prompt_once else count))


def _one(payload: Mapping[str, Any], place: int, each: int) -> dict[str, Any]:
    """The request of one choice; `each` prompt has so many."""
    made = {key: value for key, value in payload.items() if key != "n"}
    if made.get("raw"):
        made["input"] = [made["input"][place // each]]
    if (seed := made.get("seed")) is not None:
        made["seed"] = seed + place % each
    return made


def _usage(counts: list[Mapping[str, Any]], prompts: int) -> dict[str, Any]:
    """What all took, each of so many prompts counted once."""
    once = counts[:: len(counts) // prompts]
    given, written = sum(each.get("input_tokens") or 0 for each in once), sum(each.get("output_tokens") or 0 for each in counts)

    def of(details: str, name: str) -> int:
        return sum((each.get(details) or {}).get(name) or 0 for each in (once if details.startswith("input") else counts))

    return {
        "input_tokens": given,
        "input_tokens_details": {name: of("input_tokens_details", name) for name in ("cached_tokens", "cache_write_tokens")},
        "output_tokens": written,
        "output_tokens_details": {"reasoning_tokens": of("output_tokens_details", "reasoning_tokens")},
        "total_tokens": given + written,
    }
