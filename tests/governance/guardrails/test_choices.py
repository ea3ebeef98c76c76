"""Each of several choices is guarded as an answer of its own, and limits reckon with all of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from governance import choices
from governance.call import Call, CallError, Event
from governance.guardrails.judges import Toolkit

from ..conftest import House
from .test_guard import IBAN, MAIL, ask


def saying(*texts: Sequence[str]) -> Any:
    """An engine of as many choices, each in pieces that come by turns."""

    async def engine(call: Call) -> AsyncIterator[Event]:
        from serving.engines.answer import Answer

        answers = [Answer(call) for _ in texts]
        events = [event for answer in answers for event in answer.start()]
        for turn in range(max(map(len, texts))):
            for place, pieces in enumerate(texts):
                told = answers[place].write(pieces[turn]) if turn < len(pieces) else []
                for event in [*events, *told]:
                    yield Event(event.type, {**event.data, "choice": place})
                events = []
        ended = [answer.finish(usage={"input_tokens": 2, "output_tokens": 3}) for answer in answers]
        for place, last in enumerate(ended):
            for event in last[:-1]:
                yield Event(event.type, {**event.data, "choice": place})
        usage = {"input_tokens": 2, "output_tokens": 3 * len(texts)}
        yield choices.together([last[-1].data["response"] for last in ended], usage)

    return engine


def said(response: Any) -> list[str]:
    return [each["output"][0]["content"][0]["text"] for each in choices.parts(response)]


def asking(house: House, count: int, **more: Any) -> Call:
    house.gateway.grants.grant("user:alice", "endpoint:chat", "CAN_QUERY")
    return house.call(endpoint="chat", task="chat", payload={"input": "hi", "n": count, **more})


pytestmark = pytest.mark.anyio

TURNS = (["It is 536", "-22-", "1234."], ["No ", "num", "ber."], ["Write ", "ann@exam", "ple.org."])


@pytest.mark.parametrize("behavior", ["MASK", "BLOCK"])
async def test_pieces_that_come_by_turns_are_not_mixed(house: House, behavior: str) -> None:
    house.policies.set("chat", {"guardrails": {"output": {"pii": {"behavior": behavior}}}})
    call = asking(house, 3)
    events = await ask(house, call, saying(*TURNS))
    assert [event.terminal for event in events] == [False] * (len(events) - 1) + [True]
    response = events[-1].data["response"]
    streamed = dict.fromkeys(range(3), "")
    for event in events:
        if event.type == "response.output_text.delta":
            streamed[event.data["choice"]] += event.data["delta"]
    masked = behavior == "MASK"
    ended = [(each["status"], (each.get("incomplete_details") or {}).get("reason")) for each in choices.parts(response)]
    stopped = ("incomplete", "content_filter")
    assert ended == ([("completed", None)] * 3 if masked else [stopped, ("completed", None), stopped])
    wanted = ["It is [US_SSN].", "No number.", "Write [EMAIL]."] if masked else ["It is ", "No number.", ""]
    assert said(response) == list(streamed.values()) == wanted
    row = house.row(call)
    for forbidden in ("536", "ann@"):
        assert forbidden not in str(events)
        assert forbidden not in row["response"]
    assert "No number." in row["response"]
    assert row["output_tokens"] == 9
    assert {each["action"] for each in row["guardrail_verdicts"]} == {behavior}


async def test_each_choice_is_judged_whole(house: House, tmp_path: Any) -> None:
    (tmp_path / "rails.py").write_text("def check(text, where):\n    return 'it counts' if 'number' in text else None\n")
    house.gateway.toolkit = Toolkit(folder=tmp_path)
    house.policies.declare({"chat": {"guardrails": {"output": {"custom": ["./rails.py:check"]}}}})
    events = await ask(house, asking(house, 3), saying(*TURNS))
    parts = choices.parts(events[-1].data["response"])
    assert [each["status"] for each in parts] == ["completed", "incomplete", "completed"]
    assert "number" not in str(events)


async def test_once_all_are_stopped_the_engine_is(house: House) -> None:
    house.policies.set("chat", {"guardrails": {"output": {"pii": {"behavior": "BLOCK"}}}})
    ended: list[bool] = []

    async def engine(call: Call) -> AsyncIterator[Event]:
        try:
            for _ in range(100):
                for place in (0, 1):
                    yield Event("response.output_text.delta", {"delta": f"{IBAN} ", "choice": place})
                await asyncio.sleep(0)
        finally:
            ended.append(True)

    last = (await ask(house, asking(house, 2), engine))[-1]
    assert (last.type, ended) == ("response.incomplete", [True])
    assert MAIL not in str(last)


async def test_limits_reserve_for_all_and_a_broken_answer_has_each_choice(house: House) -> None:
    house.policies.set("chat", {"rate_limits": [{"key": "endpoint", "tokens": 100, "renewal_period": "minute"}]})
    with pytest.raises(CallError, match="100 tokens a minute"):
        await ask(house, asking(house, 3, max_output_tokens=40), saying(*TURNS))
    call = asking(house, 3, max_output_tokens=20)
    events = house.gateway.call(call, saying(*TURNS))
    async for event in events:
        if event.data.get("delta") == "num":
            break
    await events.aclose()
    row = house.row(call)
    assert row["status_code"] == 499
    for begun in ("It is 536-22-", "No num", "Write "):
        assert f'"{begun}"' in row["response"]
