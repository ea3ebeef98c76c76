"""Places in requests and answers where a text may stand, and what no place hides."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from governance.call import Call, CallError, Event
from governance.guardrails.texts import json_text, walk

from ..conftest import House
from .test_guard import policy

MAIL, CARD = "anna@example.org", 4111111111111111
values = st.recursive(
    st.sampled_from(["plain", 7, None, True, 0.5, MAIL, f"write to {MAIL}", json.dumps({"to": MAIL})]),
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.sampled_from(["a", "name", "b c"]), inner, max_size=3),
    max_leaves=20,
)


def hidden(text: str) -> str:
    return text.replace(MAIL, "***")


@given(values, st.booleans(), st.sampled_from(["", " ", "\n\t"]))
@settings(max_examples=200)
def test_no_json_hides_a_text(value: Any, escaped: bool, before: str) -> None:
    text = json.dumps(value)
    if escaped:
        text = text.replace("@", "\\u0040").replace("anna", "\\u0061nna")
    seen = json_text(before + text, hidden)
    assert MAIL not in seen
    assert MAIL not in str(json.loads(seen))
    assert "\\u0040" not in seen


def test_a_name_that_is_there_twice_shows_one_value() -> None:
    seen = json_text('{"a": "\\u0061nna@example.org", "a": "x"}', hidden)
    assert json.loads(seen) == {"a": "x"}
    assert seen == '{"a":"x"}'


@pytest.mark.parametrize(
    "value",
    [
        [0, *[MAIL] * 20],
        {"image_url": f"data:,{MAIL}"},
        {"image_url": f"data:image/png;base64,AAAA {MAIL}"},
        [[[{"x": [MAIL]}]]],
    ],
)
def test_what_only_looks_like_a_vector_or_an_image_is_looked_at(value: Any) -> None:
    assert MAIL not in str(walk(value, hidden, frozenset()))
    vector, image = [0.5, 1] * 20, {"image_url": "data:image/png;base64,AAAA=="}
    assert walk(vector, hidden, frozenset()) is vector
    assert walk(image, str.upper, frozenset()) == image


@pytest.mark.anyio
async def test_rows_are_looked_at_in_every_column(house: House) -> None:
    side = {"pii": {"behavior": "MASK"}}
    policy(house, input=side, output=side)
    seen: list[Any] = []

    async def engine(call: Call) -> AsyncIterator[Event]:
        seen.append(call.payload)
        yield Event("result", {"result": {"predictions": [{"name": MAIL, "id": CARD, "url": MAIL, MAIL: 1}, 0.5, 12]}})

    rows = [{"id": MAIL, "name": MAIL, "type": MAIL, "url": MAIL, "card": CARD, "age": 42, MAIL: 1}]
    call = house.call(task="predict", payload={"dataframe_records": rows}, stream=False)
    answer = await house.gateway.invoke(call, engine)
    row = house.row(call)
    for told in (seen, answer, row["request"], row["response"]):
        assert MAIL not in str(told)
        assert str(CARD) not in str(told)
    assert seen[0]["dataframe_records"][0]["age"] == 42
    assert answer["predictions"][0] == {"name": "[EMAIL]", "id": "[CREDIT_CARD]", "url": "[EMAIL]", "[EMAIL]": 1}
    assert answer["predictions"][1:] == [0.5, 12]


@pytest.mark.anyio
async def test_names_numbers_and_ids_of_a_request_hold_nothing_personal_either(house: House) -> None:
    side = {"pii": {"behavior": "MASK"}, "invalid_keywords": ["project nightfall"]}
    policy(house, input=side, output=side)
    seen: list[Any] = []

    async def engine(call: Call) -> AsyncIterator[Event]:
        seen.append(call.payload)
        yield Event("response.completed", {"response": {"output": [], "custom_outputs": {MAIL: 1, "card": CARD, 7: "x"}}})

    schema = {"type": "object", "properties": {MAIL: {"type": "string"}, "street_name": {"type": "string"}}}
    payload = {
        "input": [
            {"role": "user", "content": "hi"},
            {"type": "function_call", "call_id": MAIL, "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": MAIL, "output": "ok"},
        ],
        "metadata": {MAIL: "x", "card": CARD},
        "tools": [{"type": "function", "name": "f", "parameters": schema}],
        "seed": CARD,
    }
    tags = {MAIL: "x", "team": "blue"}
    call = replace(house.call(payload=payload, stream=False), usage_context=tags, client_request_id=MAIL)
    answer = await house.gateway.invoke(call, engine)
    row = house.row(call)
    for told in (seen, answer, row):
        assert MAIL not in str(told)
    (given,) = seen
    assert given["metadata"] == {"[EMAIL]": "x", "card": "[CREDIT_CARD]"}
    assert given["tools"][0]["parameters"]["properties"].keys() == {"[EMAIL]", "street_name"}
    assert given["input"][1]["call_id"] == given["input"][2]["call_id"] == "[EMAIL]"
    assert given["seed"] == CARD, "what the protocol has numbers for stays a number"
    assert answer["custom_outputs"] == {"[EMAIL]": 1, "card": "[CREDIT_CARD]", 7: "x"}
    assert row["usage_context"] == {"[EMAIL]": "x", "team": "blue"}
    with pytest.raises(CallError, match="invalid_keywords"):
        await house.gateway.invoke(house.call(payload={"input": "hi", "metadata": {"Project  Nightfall": 1}}), engine)
