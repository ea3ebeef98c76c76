from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from governance.call import Call, CallError, Event
from governance.policies import AiGatewayConfig
from governance.redact import redacted
from tests.governance.conftest import House

pytestmark = pytest.mark.anyio


async def engine(call: Call) -> AsyncIterator[Event]:
    content = [{"type": "output_text", "text": "her salary is 90", "annotations": []}]
    output = [{"type": "message", "role": "assistant", "content": content}]
    again = {"metadata": call.payload.get("metadata"), "user": call.payload.get("user")}  # as the protocol has it
    yield Event("response.completed", {"response": {"object": "response", "output": output, "model": "m", **again}})


def keep(house: House, **config: Any) -> None:
    house.policies.set("assistant", AiGatewayConfig.parse({"inference_table_config": config}))


async def test_what_a_rule_names_is_never_written_and_still_answered(house: House) -> None:
    keep(house, redact=["request.metadata.email", "request.input.content", "response.output.content.text"])
    payload = {"input": [{"role": "user", "content": "what does she earn"}], "metadata": {"email": "a@b.org", "team": "x"}}
    call = house.call(payload=payload)
    answer = await house.gateway.invoke(call, engine)
    assert answer["output"][0]["content"][0]["text"] == "her salary is 90"
    row = house.row(call)
    request, response = json.loads(row["request"]), json.loads(row["response"])
    assert request == {"input": [{"role": "user", "content": "[redacted]"}], "metadata": {"email": "[redacted]", "team": "x"}}
    assert response["output"][0]["content"][0]["text"] == "[redacted]"
    assert response["model"] == "m"
    assert response["metadata"] == {"email": "[redacted]", "team": "x"}
    refused = house.call(payload=payload, usage_context={}, credential=house.identity.create_key("eve")[1])
    with pytest.raises(CallError):
        await house.gateway.invoke(refused, engine)
    assert "earn" not in str(house.row(refused))
    long = house.call(payload={"input": "earns " * 1_000}, credential=house.identity.create_key("eve")[1])
    with pytest.raises(CallError):
        await house.gateway.invoke(long, engine)
    assert json.loads(house.row(long)["request"])["smalti_truncated"]
    assert "earns" not in str(house.row(long))


async def test_a_sample_of_the_payloads_is_kept_and_every_row(house: House) -> None:
    keep(house, sample_percentage=30)
    for _ in range(200):
        await house.gateway.invoke(house.call(), engine)
    rows = list(house.journal.rows())
    kept = [row for row in rows if row["response"] is not None]
    assert len(rows) == 200
    assert 30 <= len(kept) <= 90
    assert all((row["request"] is None) == (row["response"] is None) for row in rows)
    keep(house, sample_percentage=0)
    call = house.call()
    await house.gateway.invoke(call, engine)
    assert house.row(call)["request"] is None


def test_paths_go_through_lists_and_any_key() -> None:
    body = {"a": {"x": {"t": 1}, "y": [{"t": 2}, {"u": 3}]}, "b": None}
    assert redacted(body, "request", ["request.a.*.t", "request.b", "response.a"]) == {
        "a": {"x": {"t": "[redacted]"}, "y": [{"t": "[redacted]"}, {"u": 3}]},
        "b": None,
    }
    for wrong in ("metadata.email", "request", "request.", "request.a[0]"):
        with pytest.raises(ValueError, match="redact"):
            AiGatewayConfig.parse({"inference_table_config": {"redact": [wrong]}})
