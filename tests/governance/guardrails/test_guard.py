from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from governance.call import Call, CallError, Event
from governance.guardrails.guard import Guard
from governance.guardrails.judges import Toolkit, stretches
from governance.guardrails.rules import Rules
from governance.policies import Guardrails

from ..conftest import House, answering

pytestmark = pytest.mark.anyio

MAIL, IBAN = "anna@example.org", "DE89 3704 0044 0532 0130 00"


def saying(pieces: Sequence[str], *, arguments: str | None = None, annotation: Mapping[str, Any] | None = None) -> Any:
    """An engine that says `pieces`, with the events that OpenAI's API sends."""

    async def engine(call: Call) -> AsyncIterator[Event]:
        from serving.engines.answer import Answer

        answer = Answer(call)
        for event in answer.start():
            yield event
        yield Event("smalti.step", {"name": "retrieve", "kind": "retrieval", "outputs": {"text": MAIL}})
        for piece in pieces:
            for event in answer.write(piece):
                yield event
        if annotation:
            for event in answer.annotate(annotation):
                yield event
        if arguments is not None:
            for event in answer.call_tool("call_1", "send"):
                yield event
            for place in range(0, len(arguments), 3):
                for event in answer.arguments(arguments[place : place + 3]):
                    yield event
        for event in answer.finish(usage={"input_tokens": 3, "output_tokens": 4}):
            yield event

    return engine


def texts(events: Sequence[Event]) -> str:
    return "".join(event.data["delta"] for event in events if event.type == "response.output_text.delta")


async def ask(house: House, call: Call, engine: Any) -> list[Event]:
    return [event async for event in house.gateway.call(call, engine)]


def policy(house: House, **sides: Any) -> None:
    house.policies.set("assistant", {"guardrails": sides})


async def test_masked_input_is_all_the_engine_and_the_journal_see(house: House) -> None:
    policy(house, input={"pii": {"behavior": "MASK"}})
    seen: list[Any] = []

    async def engine(call: Call) -> AsyncIterator[Event]:
        seen.append(call.payload)
        async for event in answering(call):
            yield event

    arguments = json.dumps({"to": MAIL}).replace("@", "\\u0040")
    call = house.call(
        payload={
            "input": [
                {"type": "message", "role": "user", "content": [{"type": "input_text", "text": f"I am {MAIL}, {IBAN}"}]},
                {"type": "function_call", "call_id": "c", "name": "send", "arguments": arguments},
                {"type": "function_call_output", "call_id": "c", "output": f"sent to {MAIL}"},
            ],
            "instructions": f"Write to {MAIL}",
        },
        usage_context={"who": MAIL},
    )
    await ask(house, call, engine)
    row = house.row(call)
    assert MAIL not in str(seen) + str(row)
    assert "\\u0040" not in str(seen)
    assert json.loads(row["request"])["input"][0]["content"][0]["text"] == "I am [EMAIL], [IBAN]"
    assert row["guardrail_verdicts"] == [
        {"guardrail": "pii", "where": "input", "action": "MASK", "reason": "EMAIL x5, IBAN"},
    ]
    assert house.records[-1].verdicts == tuple(row["guardrail_verdicts"])


@pytest.mark.parametrize(
    ("rules", "reason"),
    [({"pii": {"behavior": "BLOCK"}}, "EMAIL"), ({"invalid_keywords": ["tessera"]}, "1 forbidden keyword")],
)
async def test_a_blocked_input_reaches_no_engine(house: House, rules: Any, reason: str) -> None:
    policy(house, input=rules)
    call = house.call(payload={"input": f"What is a Tessera? {MAIL if 'pii' in rules else ''}"})
    with pytest.raises(CallError) as caught:
        await ask(house, call, None if False else _never)
    assert (caught.value.status, caught.value.code) == (400, "CONTENT_FILTER")
    row = house.row(call)
    assert row["status_code"] == 400
    assert [(each["action"], each["reason"]) for each in row["guardrail_verdicts"]] == [("BLOCK", reason)]
    assert MAIL not in str(row)
    policy(house)  # in force on the next request
    assert await ask(house, house.call(payload={"input": MAIL}), answering)


async def _never(call: Call) -> AsyncIterator[Event]:
    raise AssertionError("the engine was called")
    yield


@given(st.lists(st.integers(1, 9), min_size=1, max_size=30), st.booleans())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_chunking_of_a_stream_leaks(cuts: list[int], block: bool) -> None:
    import asyncio

    text = f"You can write to {MAIL} or pay to {IBAN} today."
    pieces, place, number = [], 0, 0
    while place < len(text):
        pieces.append(text[place : place + cuts[number % len(cuts)]])
        place, number = place + len(pieces[-1]), number + 1
    guard = Guard(Guardrails.model_validate({"output": {"pii": {"behavior": "BLOCK" if block else "MASK"}}}), Toolkit())
    verdicts: list[dict[str, str]] = []

    async def collect() -> list[Event]:
        call = Call("assistant", "agent", {"input": "hi"}, stream=True, request_id="r")
        return [event async for event in guard.around(saying(pieces), verdicts)(call)]

    events = asyncio.run(collect())
    everything = str([event.data for event in events])
    assert MAIL not in everything
    assert "3704" not in everything
    assert sum(event.terminal for event in events) == 1
    response = events[-1].data["response"]
    said = response["output"][0]["content"][0]["text"]
    assert said == texts(events)
    if block:
        assert (response["status"], response["incomplete_details"]) == ("incomplete", {"reason": "content_filter"})
        assert said == "You can write to "
        assert verdicts == [{"guardrail": "pii", "where": "output", "action": "BLOCK", "reason": "EMAIL"}]
    else:
        assert said == "You can write to [EMAIL] or pay to [IBAN] today."
        assert verdicts == [{"guardrail": "pii", "where": "output", "action": "MASK", "reason": "EMAIL, IBAN"}]


async def test_the_row_of_a_guarded_answer_holds_what_was_sent_only(house: House) -> None:
    policy(house, output={"pii": {"behavior": "MASK"}})
    note = {"type": "url_citation", "start_index": 26, "end_index": 29, "url": "http://127.0.0.1/d", "title": MAIL}
    call = house.call()
    events = await ask(house, call, saying(["Write ", "to anna@exam", "ple.org [1]"], annotation=note))
    response = events[-1].data["response"]
    part = response["output"][0]["content"][0]
    assert part["text"] == "Write to [EMAIL] [1]"
    told = [event.data["annotation"] for event in events if event.type.endswith("annotation.added")]
    assert told == part["annotations"]
    assert part["text"][told[0]["start_index"] : told[0]["end_index"]] == "[1]"
    assert [event.type for event in events].index("response.output_text.annotation.added") > 4
    row = house.row(call)
    assert MAIL not in str(row) + str(house.records)
    assert json.loads(row["response"]) == response


async def test_arguments_of_a_tool_call_are_read_as_they_mean(house: House) -> None:
    policy(house, output={"pii": {"behavior": "MASK"}})
    arguments = '{"to": "anna\\u0040example.org", "card": 4111111111111111}'
    events = await ask(house, house.call(), saying([], arguments=arguments))
    sent = "".join(event.data["delta"] for event in events if event.type == "response.function_call_arguments.delta")
    assert json.loads(sent) == {"to": "[EMAIL]", "card": "[CREDIT_CARD]"}
    assert events[-1].data["response"]["output"][0]["arguments"] == sent
    policy(house, output={"pii": {"behavior": "BLOCK"}})
    events = await ask(house, house.call(), saying([], arguments=arguments))
    assert events[-1].type == "response.incomplete"
    assert "example.org" not in str(events)
    assert "4111111111111111" not in str(events)


async def test_results_of_inner_calls_are_guarded_too(house: House) -> None:
    house.policies.set("main.default.docs", {"guardrails": {"output": {"pii": {"behavior": "MASK"}}}})
    house.grants.grant("user:alice", "index:main.default.docs", "CAN_QUERY")

    async def index(call: Call) -> AsyncIterator[Event]:
        yield Event(
            "result", {"result": {"passages": [{"text": f"Mail {MAIL}", "start": 0, "end": 21, "index": "main.default.docs"}]}}
        )

    call = house.call(endpoint="main.default.docs", task="search", payload={"query": "mail"})
    result = await house.gateway.invoke(call, index)
    assert result["passages"][0]["text"] == "Mail [EMAIL]"
    house.policies.set("main.default.docs", {"guardrails": {"output": {"pii": {"behavior": "BLOCK"}}}})
    with pytest.raises(CallError, match="keeps this answer back") as caught:
        await house.gateway.invoke(house.call(endpoint="main.default.docs", task="search", payload={"query": "mail"}), index)
    assert caught.value.status == 400


class _Classifier:
    labels = ("injection", "safe")

    def predict_proba(self, X: Any, /) -> Any:
        return np.array([[0.99, 0.01] if row[0] > 0.5 else [0.01, 0.99] for row in X])


async def _embed(given: Sequence[str]) -> Any:
    """Two directions: texts that say `ignore`, and the others; topics lie with the others."""
    return np.array([[1.0, 0.0] if "ignore" in text else [0.0, 1.0] for text in given])


async def test_safety_and_topics_judge_what_is_meant(house: House) -> None:
    house.gateway.toolkit = Toolkit(_embed, _Classifier)
    policy(house, input={"safety": True}, output={"valid_topics": ["tiles"]})
    asked = {
        "input": [{"role": "user", "content": "fine"}, {"type": "function_call_output", "call_id": "c", "output": "ignore it"}]
    }
    with pytest.raises(CallError, match="safety guardrail of assistant refuses this request: injection"):
        await ask(house, house.call(payload=asked), answering)
    assert texts(await ask(house, house.call(), saying(["All ", "is well."]))) == "All is well."
    call = house.call()
    events = await ask(house, call, saying(["Please ", "ignore."]))
    assert [event.type for event in events] == ["smalti.step", "response.incomplete"]
    assert "ignore" not in str(events)
    assert house.row(call)["guardrail_verdicts"][0]["guardrail"] == "valid_topics"


async def test_a_guardrail_that_fails_or_is_not_there_lets_nothing_pass(house: House, caplog: pytest.LogCaptureFixture) -> None:
    policy(house, input={"safety": True})
    with pytest.raises(CallError, match="cannot be applied") as caught:
        await ask(house, house.call(), answering)
    assert caught.value.status == 503

    async def broken(given: Sequence[str]) -> Any:
        raise OSError("gone")

    house.gateway.toolkit = Toolkit(broken, _Classifier)
    for sides in ({"input": {"safety": True}}, {"output": {"safety": True}}):
        policy(house, **sides)
        call = house.call()
        if "input" in sides:
            with pytest.raises(CallError) as caught:
                await ask(house, call, answering)
            assert caught.value.status == 503
        else:
            assert (await ask(house, call, answering))[-1].type == "response.incomplete"
        (verdict,) = house.row(call)["guardrail_verdicts"]
        assert (verdict["action"], verdict["reason"]) == ("BLOCK", "it could not decide, so nothing passes")
    caplog.clear()


async def test_a_guardrail_that_hangs_lets_nothing_pass_and_keeps_nobody(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hangs.py").write_text("import asyncio\nasync def check(text, where):\n    await asyncio.Event().wait()\n")
    house.gateway.toolkit = Toolkit(folder=tmp_path)
    monkeypatch.setattr("governance.guardrails.guard.PATIENCE", 0.05)
    house.policies.declare({"assistant": {"guardrails": {"input": {"custom": ["./hangs.py:check"]}}}})
    call = house.call()
    with pytest.raises(CallError) as caught:
        await ask(house, call, answering)
    assert caught.value.status == 503
    house.policies.declare({"assistant": {"guardrails": {"output": {"custom": ["./hangs.py:check"]}}}})
    assert (await ask(house, house.call(), answering))[-1].type == "response.incomplete"
    assert house.row(call)["guardrail_verdicts"][0]["action"] == "BLOCK"


async def test_a_guardrail_of_ones_own(house: House, tmp_path: Path) -> None:
    (tmp_path / "rails.py").write_text(
        "def no_shouting(text, where):\n    return f'shouting in the {where}' if text.isupper() else None\n"
        "async def slow(text, where):\n    assert 'crash' not in text\n    if 'quit' in text:\n        raise SystemExit\n"
    )
    house.gateway.toolkit = Toolkit(folder=tmp_path)
    sides = {"input": {"custom": ["./rails.py:no_shouting", "./rails.py:slow"]}}
    with pytest.raises(ValueError, match=r"smalti\.yaml only"):
        house.policies.set("assistant", {"guardrails": sides})
    house.policies.declare({"assistant": {"guardrails": sides}})
    assert await ask(house, house.call(), answering)
    with pytest.raises(CallError, match="no_shouting guardrail of assistant refuses this request: shouting in the input"):
        await ask(house, house.call(payload={"input": "HELLO"}), answering)
    for said in ("crash", "quit"):
        call = house.call(payload={"input": said})
        with pytest.raises(CallError) as caught:
            await ask(house, call, answering)
        assert caught.value.status == house.row(call)["status_code"] == 503
    house.policies.declare({"assistant": {"guardrails": {"input": {"custom": ["./rails.py:missing"]}}}})
    with pytest.raises(CallError, match="cannot be loaded"):
        await ask(house, house.call(), answering)


async def test_what_a_model_fails_with_is_guarded_as_what_it_says(house: House, tmp_path: Path) -> None:
    (tmp_path / "failing.py").write_text("def no_names(text, where):\n    return 'a name' if 'Anna' in text else None\n")
    house.gateway.toolkit = Toolkit(folder=tmp_path)

    async def engine(call: Call) -> AsyncIterator[Event]:
        yield Event("response.output_text.delta", {"delta": "Once upon a time, ", "output_index": 0, "content_index": 0})
        raise CallError(f"The model refuses the request: {call.payload['input']}", status=400, code="BAD_REQUEST")

    for output, said, told, verdict in [
        ({"pii": {"behavior": "MASK"}}, f"{MAIL} is none", "The model refuses the request: [EMAIL] is none", "EMAIL"),
        ({"pii": {"behavior": "BLOCK"}}, f"{MAIL} is none", "The model refuses the request: [EMAIL] is none", "EMAIL"),
        ({"invalid_keywords": ["tessera"]}, "no Tessera", "The model refuses the request: no [KEYWORD]", "1 forbidden keyword"),
        ({"custom": ["./failing.py:no_names"]}, "Anna", "assistant failed, and its guardrails keep back what it said", "a name"),
    ]:
        house.policies.declare({"assistant": {"guardrails": {"output": output}}})
        for stream in (False, True):
            call = house.call(stream=stream, payload={"input": said})
            if stream and "custom" not in output:
                events = await ask(house, call, engine)
                assert events[-1].type == "response.failed"
                assert events[-1].data["response"]["error"]["message"] == told
            else:
                with pytest.raises(CallError) as caught:
                    await ask(house, call, engine)
                assert (caught.value.message, caught.value.status) == (told, 400)
            assert MAIL not in str(house.row(call)["response"])
            assert [each["reason"] for each in house.row(call)["guardrail_verdicts"]] == [verdict]


@pytest.mark.parametrize("whole", [False, True])
async def test_tool_calls_are_judged_whether_or_not_the_answer_is_followed(house: House, tmp_path: Path, whole: bool) -> None:
    (tmp_path / "rails.py").write_text("def no_deleting(text, where):\n    return 'deletes' if 'rm -rf' in text else None\n")
    house.gateway.toolkit = Toolkit(folder=tmp_path)
    house.policies.declare({"assistant": {"guardrails": {"output": {"custom": ["./rails.py:no_deleting"]}}}})
    engine = saying(["Done."], arguments='{"command": "rm -rf /"}')

    async def last(call: Call) -> AsyncIterator[Event]:
        async for event in engine(call):
            if event.terminal or not whole:
                yield event

    call = house.call()
    events = await ask(house, call, last)
    assert events[-1].type == "response.incomplete"
    assert "rm -rf" not in str(events)
    (verdict,) = house.row(call)["guardrail_verdicts"]
    assert (verdict["where"], verdict["action"], verdict["reason"]) == ("output", "BLOCK", "deletes")


async def test_an_answer_whose_text_is_none_does_not_pass(house: House) -> None:
    policy(house, output={"pii": {"behavior": "MASK"}})

    async def engine(call: Call) -> AsyncIterator[Event]:
        part = {"type": "output_text", "text": [{"index": MAIL}]}
        yield Event(
            "response.completed", {"response": {"object": "response", "output": [{"type": "message", "content": [part]}]}}
        )

    (last,) = await ask(house, house.call(), engine)
    assert (last.type, last.data["response"]["incomplete_details"]) == ("response.incomplete", {"reason": "content_filter"})
    assert MAIL not in str(last.data)


async def test_a_text_that_left_in_pieces_is_not_looked_for_again(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    policy(house, output={"pii": {"behavior": "MASK"}, "invalid_keywords": ["codeword"]})
    looked: list[int] = []
    find = Rules.find

    def counting(self: Rules, text: str) -> Any:
        looked.append(len(text))
        return find(self, text)

    monkeypatch.setattr(Rules, "find", counting)
    events = await ask(house, house.call(), saying([f"Write to {MAIL} ", "and wait. "] * 100))
    body = events[-1].data["response"]["output"][0]["content"][0]["text"]
    assert body == texts(events) == "Write to [EMAIL] and wait. " * 100
    assert max(looked) < 500  # the pieces with what stood before them, and never the whole


def test_long_texts_are_judged_in_stretches_the_newest_first() -> None:
    pieces = stretches(["old. " * 20_000, "One. Two!\nThree " + "x" * 1_200])
    assert len(pieces) == 64
    assert all(len(piece) <= 500 for piece in pieces)
    assert pieces[-1].endswith("x")
