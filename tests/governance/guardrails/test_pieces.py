"""Chunks of a model's own, guarded: what they say together is looked at, however it is cut."""

from __future__ import annotations

from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from governance.call import CHUNK, Call, CallError, Event
from governance.guardrails import pieces
from governance.guardrails.rules import Rules, mask

from ..conftest import House

MAIL = "anna@example.org"


@given(
    st.lists(st.sampled_from(["anna@", "example.org", " and ", MAIL, "4242", "4242 ", "", "ü"]), max_size=12),
    st.lists(st.integers(0, 40)),
)
def test_pieces_are_masked_as_the_whole_text_is(parts: list[str], cuts: list[int]) -> None:
    text, rules = "".join(parts), Rules("MASK", ())
    ends = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    values = [{"id": 1, "said": [{"text": text[start:end]}]} for start, end in pairwise(ends)]
    shown = pieces.masked(values, rules.find)
    assert "".join(each["said"][0]["text"] for each in shown) == mask(text, rules.find(text))
    assert pieces.joined(values) == ([text] if values else [])


def test_texts_at_other_places_are_others() -> None:
    values = [{"a": "anna@", "b": "x"}, {"a": "example", "b": "y"}, ["example.org"], "anna@", "example.org"]
    assert sorted(pieces.joined(values)) == ["anna@example", MAIL, "example.org", "xy"]
    deep: Any = "x"
    for _ in range(70):
        deep = [deep]
    with pytest.raises(ValueError, match="nested"):
        pieces.joined([deep])


def predicting(*chunks: Any) -> Any:
    async def engine(call: Call) -> AsyncIterator[Event]:
        for chunk in chunks:
            yield Event(CHUNK, {"delta": chunk})
        given = ["".join(chunks)] if all(isinstance(chunk, str) for chunk in chunks) else list(chunks)
        yield Event("result", {"result": {"predictions": given}})

    return engine


async def ask(house: House, *chunks: Any) -> list[Any]:
    call = house.call(task="predict", payload={"inputs": {"word": "x"}}, stream=True)
    events = [event async for event in house.gateway.call(call, predicting(*chunks))]
    assert [event.type for event in events] == [CHUNK] * (len(events) - 1) + ["result"]
    return [event.data["delta"] for event in events[:-1]]


@pytest.mark.anyio
@pytest.mark.parametrize("how", ["texts", "objects", "both"])
async def test_no_chunk_shows_what_is_masked_and_one_row_has_them_all(house: House, how: str) -> None:
    house.policies.set("assistant", {"guardrails": {"output": {"pii": {"behavior": "MASK"}}}})
    parts = ["write to an", "na@exam", "ple.org", " now"]
    chunks: list[Any] = [{"delta": {"content": part}} for part in parts]
    if how == "texts":
        chunks = list(parts)
    if how == "both":
        chunks = ["begin ", *chunks]
    shown = await ask(house, *chunks)
    texts = [each if isinstance(each, str) else each["delta"]["content"] for each in shown]
    assert "".join(texts).removeprefix("begin ") == "write to [EMAIL] now"
    (row,) = house.rows()
    assert (row["status_code"], [each["reason"] for each in row["guardrail_verdicts"]]) == (200, ["EMAIL"])
    kept = orjson.loads(row["response"])["predictions"]
    told = "".join(each if isinstance(each, str) else each["delta"]["content"] for each in kept)
    assert told.removeprefix("begin ") == "write to [EMAIL] now"


@pytest.mark.anyio
@pytest.mark.parametrize("side", [{"pii": {"behavior": "BLOCK"}}, {"invalid_keywords": ["anna@example.org"]}, {"safety": True}])
async def test_a_stream_that_may_not_go_on_raises_before_the_rest_of_it(
    house: House, side: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    async def judge(texts: list[str], where: str, call: Call) -> None:
        from governance.guardrails.rules import Blocked

        asked.extend(texts)
        raise Blocked("safety", "it is about mail")

    monkeypatch.setattr("governance.guardrails.guard.safety", lambda kit: judge)
    house.policies.set("assistant", {"guardrails": {"output": side}})
    with pytest.raises(CallError, match="keeps this answer back") as caught:
        await ask(house, {"text": "anna@"}, {"text": "example.org"})
    assert (caught.value.status, caught.value.code) == (400, "CONTENT_FILTER")
    (row,) = house.rows()
    assert (row["status_code"], row["response"]) == (400, None)
    if "safety" in side:
        assert MAIL in asked  # as one text
