"""No field of a request or an answer hides what is forbidden: ids, free objects, parts of a message, tokens of an answer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from governance.call import Call, Event
from governance.guardrails.guard import _screen
from governance.guardrails.output import Shield
from governance.guardrails.rules import Blocked, Rules

from .test_rules import CUTS, in_pieces

SSN, CARD = "536-22-1234", "4111111111111111"
RULES = Rules("MASK", ["nightfall"])


def screened(payload: Mapping[str, Any], task: Any = "agent") -> Any:
    call, _, _ = _screen(Call("e", task, payload), RULES)
    return call.payload


@pytest.mark.parametrize("secret", [SSN, CARD])
@pytest.mark.parametrize(
    "place",
    [
        lambda secret: {"metadata": {"id": secret, "url": secret, "model": secret, "type": secret}},
        lambda secret: {"custom_inputs": {"a": [{"object": secret, "status": secret}]}},
        lambda secret: {"context": {"id": secret, "user_id": secret}},
        lambda secret: {"prompt": {"id": "p", "variables": {"id": secret}}},
        lambda secret: {"user": secret, "instructions": secret, "stop": [secret]},
        lambda secret: {"input": [{"type": "function_call_output", "call_id": secret, "output": secret}]},
        lambda secret: {"input": [{"type": "message", "id": secret, "role": "user", "content": "hello"}]},
        lambda secret: {"input": [{"type": "reasoning", "summary": [{"type": "summary_text", "text": secret}]}]},
        lambda secret: {
            "input": [{"role": "user", "content": [{"type": "input_file", "filename": secret, "file_data": secret}]}]
        },
        lambda secret: {
            "input": [{"role": "user", "content": [{"type": "input_image", "image_url": f"https://x.test/{secret}"}]}]
        },
        lambda secret: {
            "tools": [
                {
                    "type": "function",
                    "name": "f",
                    "description": secret,
                    "parameters": {"properties": {"a": {"enum": [secret], "default": secret}}},
                }
            ]
        },
        lambda secret: {"text": {"format": {"type": "json_schema", "name": "n", "schema": {"title": secret}}}},
    ],
)
def test_no_field_of_a_request_hides_it(place: Any, secret: str) -> None:
    assert secret not in json.dumps(screened({"input": "hello", **place(secret)}))


def test_ids_that_are_ids_stay() -> None:
    ids = {"id": "550e8400-e29b-41d4-a716-446655440000", "call_id": "call_9Fz0123456789", "model": "gpt-4o-2024-08-06"}
    payload = {"input": [{"type": "function_call_output", **ids, "output": "fine"}], "previous_response_id": "resp_0123456789"}
    assert screened(payload) == payload


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ({"password": "hunter2"}, "PASSWORD"),
        ({"dbPassword": "letmein"}, "PASSWORD"),
        ({"ssn": 536221234}, "US_SSN"),
        ({"date_of_birth": "1984-03-12"}, "DATE_OF_BIRTH"),
        ({"passportNumber": "X1234567"}, "PASSPORT"),
        ({"phone": "5125550100"}, "PHONE"),
        ({"client_secret": "Q7vX2mK9pL4sR8tW"}, "API_KEY"),
    ],
)
def test_the_name_of_a_value_says_what_it_is(given: dict[str, Any], kind: str) -> None:
    """As `password: hunter2` in a text, so in JSON: of a request, of a tool's arguments, of an answer, of rows."""
    (name,) = given
    masked = f"[{kind}]"
    assert screened({"input": "x", "custom_inputs": {"user": given}})["custom_inputs"]["user"][name] == masked
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": json.dumps(given)}
    assert json.loads(screened({"input": [call]})["input"][0]["arguments"]) == {name: masked}
    assert screened({"dataframe_records": [given]}, "predict")["dataframe_records"] == [{name: masked}]
    answer = {"object": "response", "output": [call], "custom_outputs": {"user": given}}
    (told,) = Shield(RULES, Call("e", "agent", {})).feed(Event("response.completed", {"response": answer}))
    assert told.data["response"]["custom_outputs"]["user"] == {name: masked}
    assert json.loads(told.data["response"]["output"][0]["arguments"]) == {name: masked}


@pytest.mark.parametrize(
    "table",
    [
        {"dataframe_split": {"index": [0, 1], "columns": ["user", "Password", "n"], "data": [["ann", "hunter2x", 1], ["bo"]]}},
        {"dataframe_records": [{"user": "ann", "password": "hunter2x"}, {"user": "bo", "password": None}]},
        {"instances": [{"user": "ann", "password": "hunter2x"}]},
        {"instances": [{"user": "ann", "password": [["hunter2x"], None]}]},
        {"inputs": {"user": ["ann", "bo"], "password": ["hunter2x", None]}},
        {"inputs": {"user": "ann", "password": "hunter2x"}},
    ],
)
def test_the_name_of_a_column_says_what_its_cells_are(table: dict[str, Any]) -> None:
    """In requests and in a model's predictions, which may be a table too."""
    made = json.dumps(screened(table, "predict"))
    assert "hunter2x" not in made
    assert made.replace("[PASSWORD]", "hunter2x") == json.dumps(table)
    (predictions,) = table.values()
    for task in ("predict", "http"):
        shield = Shield(Rules("MASK"), Call("e", task, {}))
        (told,) = shield.feed(Event("result", {"result": {"predictions": predictions}}))
        assert json.dumps(told.data).replace("[PASSWORD]", "hunter2x") == json.dumps({"result": {"predictions": predictions}})
        assert "hunter2x" not in json.dumps(told.data)
    shield = Shield(Rules("MASK"), Call("e", "predict", {}))
    shield.feed(Event("predictions.delta", {"delta": predictions}))
    assert "hunter2x" not in json.dumps(
        [event.data for event in shield.feed(Event("result", {"result": {"predictions": [predictions]}}))]
    )


def test_columns_that_say_nothing_leave_their_cells() -> None:
    table = {"dataframe_split": {"columns": ["word", "token_count", 3], "data": [["hunter2x", 12, None], "odd", [{"a": 1}]]}}
    assert screened(table, "predict") == table


def test_names_that_say_nothing_leave_their_values() -> None:
    payload = {"input": "x", "custom_inputs": {"password_reset": True, "max_tokens": 100, "phone_required": False, "order_id": 1}}
    assert screened(payload) == payload


@given(st.lists(st.integers(1, 12), min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_what_lies_across_the_parts_of_a_message_is_one_text(cuts: list[int]) -> None:
    """A model reads the parts one after the other, so they are looked at in this way."""
    pieces = in_pieces(f"so {SSN} and more", cuts)
    parts = [{"type": "input_text", "text": piece} for piece in pieces]
    made = screened({"input": [{"role": "user", "content": parts}]})["input"][0]["content"]
    assert "".join(part["text"] for part in made) == "so [US_SSN] and more"
    parts = [{"type": "input_text", "text": piece} for piece in in_pieces("night fall nightfall", cuts)]
    _, _, blocked = _screen(Call("e", "agent", {"input": [{"role": "user", "content": parts}]}), RULES)
    assert blocked is not None


@given(st.lists(st.integers(1, 12), min_size=1, max_size=4), st.booleans(), st.booleans())
@settings(max_examples=80, deadline=None)
def test_what_lies_across_the_texts_of_an_answer_is_one_text(cuts: list[int], streamed: bool, calls: bool) -> None:
    """Whether they are parts of one message or messages with a tool's call between them; of none of it a part leaves."""
    whole = f"so {SSN}, and more"
    texts = in_pieces(whole, cuts)
    shield, told = Shield(RULES, Call("e", "agent", {})), list[Event]()
    for number, text in enumerate(texts):
        place = {"output_index": 2 * number, "content_index": 0}
        part = {"type": "output_text", "text": text, "annotations": []}
        events = [
            *(Event("response.output_text.delta", {**place, "delta": piece}) for piece in in_pieces(text, [2])),
            Event("response.output_text.done", {**place, "text": text}),
            Event("response.content_part.done", {**place, "part": part}),
            Event("response.output_item.done", {"item": {"type": "message", "content": [part]}}),
            *([Event("response.function_call_arguments.done", {"output_index": 2 * number + 1, "arguments": "{}"})] * calls),
        ]
        told += [each for event in events for each in shield.feed(event)] if streamed else []
    parts = [{"type": "output_text", "text": text, "annotations": []} for text in texts]
    output = [{"type": "message", "content": [part]} for part in parts] if calls else [{"type": "message", "content": parts}]
    told += shield.feed(Event("response.completed", {"response": {"object": "response", "output": output}}))
    said = ["".join(event.data["delta"] for event in told if event.type == "response.output_text.delta")] * streamed
    said += ["".join(event.data["text"] for event in told if event.type == "response.output_text.done")] * streamed
    last = told[-1].data["response"]["output"]
    for text in [*said, "".join(part["text"] for item in last for part in item["content"])]:
        assert not any(char.isdecimal() for char in text)
        assert text.replace("[US_SSN]", "") == "so , and more"
    kinds = [event.type for event in told if event.type.endswith("done")]
    assert len(kinds) == streamed * len(texts) * (3 + calls)  # nothing was lost, and the end came last
    assert [event.terminal for event in told] == [False] * (len(told) - 1) + [True]
    blocking = Shield(Rules("BLOCK"), Call("e", "agent", {}))
    with pytest.raises(Blocked):
        blocking.feed(Event("response.completed", {"response": {"object": "response", "output": output}}))


def tokens(pieces: list[str]) -> list[dict[str, Any]]:
    return [{"token": piece, "logprob": -0.1, "bytes": list(piece.encode()), "top_logprobs": []} for piece in pieces]


@given(CUTS)
@settings(max_examples=150, deadline=None)
def test_the_tokens_of_what_was_masked_do_not_leave_beside_it(cuts: list[int]) -> None:
    """Nor do those of a text that is still held back."""
    whole = f"It is {SSN} as said, and more."
    shield, place, told = Shield(RULES, Call("e", "agent", {})), {"output_index": 0, "content_index": 0}, []
    pieces = in_pieces(whole, cuts)
    for piece in pieces:
        told += shield.feed(Event("response.output_text.delta", {**place, "delta": piece, "logprobs": tokens([piece])}))
        left = "".join(each["token"] for event in told for each in event.data["logprobs"])
        assert "536"[:2] not in left
        assert len(left) <= len("".join(event.data["delta"] for event in told)) + len(SSN)
    part = {"type": "output_text", "text": whole, "annotations": [], "logprobs": tokens(pieces)}
    told += shield.feed(Event("response.output_text.done", {**place, "text": whole, "logprobs": tokens(pieces)}))
    told += shield.feed(Event("response.content_part.done", {**place, "part": part}))
    item = {"type": "message", "role": "assistant", "content": [part]}
    told += shield.feed(Event("response.completed", {"response": {"object": "response", "output": [item]}}))
    assert '"-22' not in json.dumps([event.data for event in told])
    assert SSN not in json.dumps([event.data for event in told])
    kept = [each["token"] for event in told if event.type.endswith("delta") for each in event.data["logprobs"]]
    at = whole.index(SSN)
    begins = [sum(map(len, pieces[:number])) for number in range(len(pieces))]
    free = [p for p, begin in zip(pieces, begins, strict=True) if begin + len(p) <= at or begin >= at + len(SSN)]
    assert kept == free
