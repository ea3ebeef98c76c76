"""Endpoints as guardrails: asked through the gateway, and what they say decides."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from governance.admission import Admission
from governance.call import Call, CallError, Event
from governance.guardrails.judges import Toolkit
from serving.endpoint import Endpoint
from serving.engines.answer import Answer
from serving.engines.messages import text_of
from serving.judging import asker
from tests.serving.upstream import House, house

pytestmark = pytest.mark.anyio


@pytest.fixture
def made(tmp_path: Path) -> Iterator[House]:
    with house(tmp_path) as opened:
        opened.gateway.toolkit = Toolkit(ask=asker(opened.dispatcher))

        async def judge(call: Call) -> AsyncIterator[Event]:
            """Llama Guard's form: what says `bomb` is unsafe; it breaks on `crash` and cannot decide on `maybe`."""
            text = text_of(call.payload["input"][-1]["content"])
            if "crash" in text:
                raise CallError("gone", status=502)
            answer = Answer(call)
            says = "unsafe\nS9,S2\nthe words: " + text if "bomb" in text else "perhaps" if "maybe" in text else "Safe."
            if call.payload.get("instructions"):
                says = "unsafe" if "verse" in call.payload["instructions"] and "verse" in text else "safe"
            for event in (*answer.start(), *answer.write(says), *answer.finish()):
                yield event

        async def classifier(call: Call) -> AsyncIterator[Event]:
            label = "injection" if "ignore" in call.payload["inputs"][0] else "safe"
            yield Event("result", {"result": {"predictions": [{"label": label, "confidence": 0.9}]}})

        opened.endpoints.register(Endpoint("judge", "llm/v1/chat", judge))
        opened.endpoints.register(Endpoint("classifier", "predict", classifier))
        yield opened


def declare(made: House, *custom: str, side: str = "input", name: str = "echo") -> None:
    policies = made.gateway.limits.policies
    policies.declare({name: {"guardrails": {side: {"custom": list(custom)}}}})


async def ask(made: House, text: str, **more: Any) -> dict[str, Any]:
    payload = {"input": [{"type": "message", "role": "user", "content": text}], **more}
    call = Call("echo", "chat", payload, credential=made.key("alice", "endpoint:echo"))
    status = 200
    try:
        await made.dispatcher.invoke(call)
    except CallError as error:
        status = error.status
    (row,) = made.rows(request_id=call.request_id)
    assert row["status_code"] == status
    return row


async def test_a_chat_endpoint_judges_as_llama_guard_does(made: House) -> None:
    declare(made, "endpoint:judge")
    row = await ask(made, "hello")
    assert (row["status_code"], row["guardrail_verdicts"]) == (200, [])
    (judged,) = [each for each in made.rows(endpoint="judge") if each["parent_request_id"] == row["databricks_request_id"]]
    assert (judged["requester"], judged["requester_kind"]) == ("guardrails", "service_principal")
    row = await ask(made, "a bomb")
    assert row["status_code"] == 400
    assert row["guardrail_verdicts"] == [
        {"guardrail": "judge", "where": "input", "action": "BLOCK", "reason": "unsafe, S9, S2"},
    ], "and nothing of the text"
    assert [call.payload["input"][-1]["content"] for call in made.ran] == ["hello"]


@pytest.mark.parametrize("text", ["crash", "maybe"])
async def test_a_judge_that_fails_or_does_not_decide_lets_nothing_pass(made: House, text: str) -> None:
    declare(made, "endpoint:judge")
    assert (await ask(made, text))["status_code"] == 503
    declare(made, "endpoint:nobody")
    assert (await ask(made, "hello"))["status_code"] == 503
    assert made.ran == []


async def test_a_rule_in_words_and_a_classifier(made: House) -> None:
    declare(made, "endpoint:judge no verses", "endpoint:classifier")
    assert (await ask(made, "hello"))["status_code"] == 200
    assert (await ask(made, "a verse"))["guardrail_verdicts"][0]["reason"] == "unsafe"
    assert (await ask(made, "ignore all"))["guardrail_verdicts"][0] == {
        "guardrail": "classifier", "where": "input", "action": "BLOCK", "reason": "injection",
    }  # fmt: skip


async def test_answers_and_the_arguments_of_tools_are_judged(made: House) -> None:
    declare(made, "endpoint:classifier", side="output")
    assert (await ask(made, "fine"))["status_code"] == 200
    row = await ask(made, "ignore it")
    assert row["guardrail_verdicts"][0]["where"] == "output"
    assert "ignore" not in str(row["response"])
    tool = {"type": "function", "name": "ignore_me", "parameters": {}}
    assert (await ask(made, "fine", tools=[tool]))["status_code"] == 200

    async def calls(call: Call) -> AsyncIterator[Event]:
        answer = Answer(call)
        for event in (*answer.start(), *answer.call_tool("c", "f"), *answer.arguments('{"a": "ignore it"}'), *answer.finish()):
            yield event

    made.endpoints.register(Endpoint("echo", "llm/v1/chat", calls))
    assert (await ask(made, "fine", tools=[tool]))["guardrail_verdicts"][0]["reason"] == "injection"


async def test_judges_judge_no_circle_and_wait_in_no_line(made: House) -> None:
    made.gateway.admission = Admission(1, queue=0, seconds=0.1)
    declare(made, "endpoint:judge")
    assert (await ask(made, "hello"))["status_code"] == 200
    declare(made, "endpoint:judge", name="judge")
    call = Call("judge", "chat", {"input": [{"role": "user", "content": "hello"}]}, credential=made.admin)
    with pytest.raises(CallError) as caught:
        await made.dispatcher.invoke(call)
    assert caught.value.status == 503
