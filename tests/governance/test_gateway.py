from __future__ import annotations

import asyncio
import gc
import json
import logging
import re
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from governance.call import Call, Caller, CallError, Event, bad_request, current_call, new_id
from governance.journal import JournalError

from .conftest import RESPONSE, House, answering

pytestmark = pytest.mark.anyio


async def everything(house: House, call: Call, engine: Any = answering) -> list[Event]:
    return [event async for event in house.gateway.call(call, engine)]


async def refusal(house: House, call: Call, engine: Any = answering) -> CallError:
    with pytest.raises(CallError) as caught:
        await everything(house, call, engine)
    return caught.value


def frames(house: House, call: Call) -> list[dict[str, Any]]:
    """What the journal's files hold of a call, before ingestion."""
    from governance.frames import scan

    data = b"".join(path.read_bytes() for path in sorted((house.home / "journal").iterdir()))
    bodies = [json.loads(body) for body in scan(data, final=True)[0]]
    return [body for body in bodies if body["databricks_request_id"] == call.request_id]


def test_ids_of_calls_come_in_the_order_of_time() -> None:
    ids = [new_id() for _ in range(2_000)]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch("[0-9a-f]{32}", each) for each in ids)
    assert [each[:12] for each in ids] == sorted(each[:12] for each in ids)


async def test_an_answer_passes_and_is_recorded(house: House) -> None:
    call = house.call(client_request_id="mine", thread_id="t1", usage_context={"team": "tiles"})
    events = await everything(house, call)
    assert [event.type for event in events][-1] == "response.completed"
    assert sum(event.terminal for event in events) == 1
    assert "smalti.step" in [event.type for event in events]
    assert len(frames(house, call)) == 2
    row = house.row(call)
    assert row["status_code"] == 200
    assert (row["requester"], row["requester_kind"], row["endpoint_name"], row["task"]) == ("alice", "user", "assistant", "agent")
    assert json.loads(row["request"]) == {"input": "What is a tessera?"}
    assert json.loads(row["response"]) == RESPONSE
    assert (row["input_tokens"], row["output_tokens"], row["total_tokens"]) == (5, 7, 12)
    assert (row["client_request_id"], row["thread_id"], row["usage_context"]) == ("mine", "t1", {"team": "tiles"})
    assert (row["served_entity_name"], row["trace_id"]) == ("quoting", f"tr-{call.request_id}")
    assert 0 < row["time_to_first_byte_ms"] <= row["execution_duration_ms"]
    (record,) = house.records
    assert record.status_code == 200
    assert record.call.caller is not None
    assert record.call.caller.name == "alice"
    assert [step["name"] for step in record.steps] == ["retrieve"]
    assert house.gateway.in_flight == 0


async def test_the_intent_is_written_before_the_engine_is_called_and_the_completion_before_the_last_event(house: House) -> None:
    call = house.call()
    seen: list[int] = []

    async def engine(inner: Call) -> AsyncIterator[Event]:
        seen.append(len(frames(house, call)))
        assert inner.credential is None
        yield Event("response.completed", {"response": {}})

    async for event in house.gateway.call(call, engine):
        assert event.terminal
        seen.append(len(frames(house, call)))
    assert seen == [1, 2]


async def test_refusals_are_told_and_recorded(house: House, caplog: pytest.LogCaptureFixture) -> None:
    _, bob = house.identity.create_key("bob")
    house.policies.set("assistant", {"rate_limits": [{"calls": 0}]})
    cases = [
        (house.call(None), answering, 401, "UNAUTHENTICATED"),
        (house.call("smk_wrong"), answering, 401, "UNAUTHENTICATED"),
        (house.call("smk_wrong"), None, 401, "UNAUTHENTICATED"),  # who asks comes before what there is
        (house.call(endpoint="nothing"), None, 404, "RESOURCE_DOES_NOT_EXIST"),
        (house.call(bob), answering, 403, "PERMISSION_DENIED"),
        (house.call(), answering, 429, "REQUEST_LIMIT_EXCEEDED"),
        (house.call(endpoint="main.default.docs", task="search"), answering, 403, "PERMISSION_DENIED"),
    ]
    for call, engine, status, code in cases:
        error = await refusal(house, call, engine)
        assert (error.status, error.code) == (status, code)
        assert len(frames(house, call)) == 1
        row = house.row(call)
        assert (row["status_code"], row["error"]) == (status, error.message)
        assert (row["request"] is None) == (status == 401)
        assert (row["requester"] is None) == (status == 401)
    assert "nothing" in (await refusal(house, house.call(endpoint="nothing"), None)).message
    assert "index:main.default.docs" in error.message
    assert len(house.records) == len(cases) + 1
    assert caplog.records == []


async def test_a_flood_of_refused_calls_is_kept_short(house: House) -> None:
    big = {"input": "x" * 1_000_000}
    for call in (house.call("bad", payload=big, endpoint="y" * 5_000), house.call(house.alice, payload=big, endpoint="other")):
        await refusal(house, call)
        assert sum(len(json.dumps(frame)) for frame in frames(house, call)) < 3_000


async def test_only_the_granted_may_call(house: House) -> None:
    key, secret = house.identity.create_key("nightly", kind="service_principal", groups=["jobs"])
    assert (await refusal(house, house.call(secret))).status == 403
    house.grants.grant("group:jobs", "endpoint:assistant", "CAN_VIEW")
    assert (await refusal(house, house.call(secret))).status == 403
    house.grants.grant("group:jobs", "endpoint:assistant", "CAN_QUERY")
    assert await everything(house, house.call(secret))
    house.identity.set_groups("nightly", [], kind="service_principal")
    assert (await refusal(house, house.call(secret))).status == 403
    assert await everything(house, house.call(house.admin))
    house.identity.revoke(key.id)
    assert (await refusal(house, house.call(secret))).status == 401


async def test_a_thousand_calls_at_once_admit_exactly_the_limit(house: House) -> None:
    house.policies.set("assistant", {"rate_limits": [{"key": "user", "calls": 100}]})

    async def engine(call: Call) -> AsyncIterator[Event]:
        await asyncio.sleep(0)
        yield Event("result", {"result": {}})

    async def one() -> int:
        try:
            await house.gateway.invoke(house.call(), engine)
        except CallError as error:
            return error.status
        return 200

    outcomes = await asyncio.gather(*(one() for _ in range(1_000)))
    assert (outcomes.count(200), outcomes.count(429)) == (100, 900)
    statuses = [row["status_code"] for row in house.rows()]
    assert (statuses.count(200), statuses.count(429)) == (100, 900)


async def test_tokens_are_settled_by_what_was_used(house: House) -> None:
    house.policies.set("assistant", {"rate_limits": [{"tokens": 50}]})
    call = house.call(payload={"input": "hi", "max_output_tokens": 20})
    for _ in range(2):  # 12 tokens each, though 30 are reserved
        await everything(house, replace(call, request_id=house.call().request_id))
    assert (await refusal(house, call)).status == 429


async def test_a_call_that_failed_at_once_costs_no_tokens(house: House) -> None:
    house.policies.set("assistant", {"rate_limits": [{"tokens": 40}]})

    async def engine(call: Call) -> AsyncIterator[Event]:
        raise bad_request("no such field", "input")
        yield

    for _ in range(10):
        error = await refusal(house, house.call(payload={"input": "hi", "max_output_tokens": 30}), engine)
        assert (error.status, error.param) == (400, "input")


async def test_a_failure_before_the_first_event_is_raised(house: House, caplog: pytest.LogCaptureFixture) -> None:
    async def engine(call: Call) -> AsyncIterator[Event]:
        yield Event("smalti.step", {"name": "retrieve"})
        raise KeyError("internal detail")

    call = house.call()
    error = await refusal(house, call, engine)
    assert error.status == 500
    assert "internal detail" not in error.message
    assert call.request_id in error.message
    assert "internal detail" in caplog.text
    row = house.row(call)
    assert (row["status_code"], row["error"]) == (500, error.message)


async def test_a_failure_in_the_middle_ends_the_stream_with_one_terminal_event(house: House) -> None:
    async def engine(call: Call) -> AsyncIterator[Event]:
        yield Event("response.created", {"response": {"id": "resp_9", "model": "m", "status": "in_progress"}})
        yield Event("response.output_text.delta", {"delta": "half an "})
        raise CallError("the upstream stopped", status=502, code="TEMPORARILY_UNAVAILABLE")

    call = house.call()
    events = await everything(house, call, engine)
    assert [event.type for event in events] == ["response.created", "response.output_text.delta", "response.failed"]
    response = events[-1].data["response"]
    assert (response["id"], response["status"]) == ("resp_9", "failed")
    assert response["error"] == {"code": "server_error", "message": "the upstream stopped"}
    row = house.row(call)
    assert row["status_code"] == 502
    assert json.loads(row["response"])["output"][0]["content"][0]["text"] == "half an "
    # who asked for one whole answer gets the error itself
    assert (await refusal(house, house.call(stream=False), engine)).status == 502
    with pytest.raises(CallError, match="the upstream stopped"):
        await house.gateway.invoke(house.call(), engine)


@pytest.mark.parametrize("started", [False, True])
async def test_an_engine_that_ends_without_a_terminal_event_has_failed(house: House, started: bool) -> None:
    async def engine(call: Call) -> AsyncIterator[Event]:
        if started:
            yield Event("response.output_text.delta", {"delta": "so"})

    call = house.call()
    if started:
        events = await everything(house, call, engine)
        assert [event.type for event in events] == ["response.output_text.delta", "response.failed"]
    else:
        assert "without an answer" in (await refusal(house, call, engine)).message
    assert house.row(call)["status_code"] == 500


async def test_nothing_comes_after_the_terminal_event(house: House) -> None:
    closed = []

    async def engine(call: Call) -> AsyncIterator[Event]:
        try:
            yield Event("response.incomplete", {"response": {"status": "incomplete"}})
            yield Event("response.completed", {"response": {}})
        finally:
            closed.append(current_call.get())

    call = house.call()
    events = await everything(house, call, engine)
    assert [event.type for event in events] == ["response.incomplete"]
    assert len(closed) == 1
    assert closed[0] is not None
    assert len(frames(house, call)) == 2


async def test_an_engines_own_failed_event_is_its_status(house: House) -> None:
    async def engine(call: Call) -> AsyncIterator[Event]:
        error = {"code": "rate_limit_exceeded", "message": "too much"}
        yield Event("response.failed", {"response": {"status": "failed", "error": error}})

    call = house.call()
    assert [event.type for event in await everything(house, call, engine)] == ["response.failed"]
    assert (house.row(call)["status_code"], house.row(call)["error"]) == (429, "too much")
    with pytest.raises(CallError, match="too much") as caught:
        await house.gateway.invoke(house.call(), engine)
    assert caught.value.status == 429


@pytest.mark.parametrize("engine", [lambda call: None, lambda call: 1 / 0])
async def test_a_broken_engine_is_an_internal_error(house: House, engine: Any) -> None:
    call = house.call()
    assert (await refusal(house, call, engine)).status == 500
    assert house.row(call)["status_code"] == 500


async def waiting(call: Call) -> AsyncIterator[Event]:
    yield Event("response.output_text.delta", {"delta": "a word"})
    await asyncio.sleep(30)
    yield Event("response.completed", {"response": {}})


@pytest.mark.parametrize("how", ["closed", "cancelled", "dropped"])
async def test_a_client_that_is_gone_is_recorded_and_ends_the_engine(house: House, how: str) -> None:
    ended = asyncio.Event()

    async def engine(call: Call) -> AsyncIterator[Event]:
        try:
            async for event in waiting(call):
                yield event
        finally:
            assert current_call.get() is call
            ended.set()

    call = house.call()
    events = house.gateway.call(call, engine)
    assert (await anext(events)).type == "response.output_text.delta"
    if how == "closed":
        await events.aclose()
    elif how == "cancelled":
        task = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    else:
        del events
        gc.collect()
    await asyncio.wait_for(ended.wait(), 60)
    assert len(frames(house, call)) == 2
    row = house.row(call)
    assert row["status_code"] == 499
    assert json.loads(row["response"])["output"][0]["content"][0]["text"] == "a word"
    assert current_call.get() is None
    assert house.gateway.in_flight == 0


async def test_an_engine_that_fails_while_it_is_ended_does_no_harm(house: House, caplog: pytest.LogCaptureFixture) -> None:
    async def untidy(call: Call) -> AsyncIterator[Event]:
        try:
            yield Event("response.output_text.delta", {"delta": "more"})
        finally:
            raise OSError("the connection was gone already")

    call = house.call()
    events = house.gateway.call(call, untidy)
    await anext(events)
    await events.aclose()
    assert house.row(call)["status_code"] == 499
    assert "did not end cleanly" in caplog.text


async def test_inner_calls_act_for_the_same_caller_and_keep_their_parent(house: House) -> None:
    house.grants.grant("user:alice", "index:main.default.docs", "CAN_QUERY")
    inner_ids: list[str] = []

    async def index(call: Call) -> AsyncIterator[Event]:
        assert current_call.get() is call
        assert call.caller == Caller("alice", key_id=call.caller.key_id if call.caller else None)
        yield Event("result", {"result": {"passages": []}})

    async def agent(call: Call) -> AsyncIterator[Event]:
        assert current_call.get() is call

        async def search() -> None:
            outer = current_call.get()
            assert outer is call
            inner = Call("main.default.docs", "search", {"query": "tile"}, caller=outer.caller, parent_id=outer.request_id)
            inner_ids.append(inner.request_id)
            assert await house.gateway.invoke(inner, index) == {"passages": []}
            assert current_call.get() is call

        await search()
        yield Event("response.output_text.delta", {"delta": "x"})
        await asyncio.gather(search(), search())  # tasks of their own, as a graph makes them
        yield Event("response.completed", {"response": {}})
        assert current_call.get() is call

    calls = [house.call(), house.call()]
    await asyncio.gather(*(everything(house, call, agent) for call in calls))
    assert current_call.get() is None
    rows = {row["databricks_request_id"]: row for row in house.rows()}
    assert len(rows) == 8
    for request_id in inner_ids:
        row = rows[request_id]
        assert row["parent_request_id"] in {call.request_id for call in calls}
        assert row["trace_id"] == f"tr-{row['parent_request_id']}"
        assert row["requester"] == "alice"


async def test_steps_asked_for_from_different_tasks_see_the_call(house: House) -> None:
    async def engine(call: Call) -> AsyncIterator[Event]:
        for _ in range(3):
            assert current_call.get() is call
            yield Event("response.output_text.delta", {"delta": "x"})
        yield Event("response.completed", {"response": {}})

    async with aclosing(house.gateway.call(house.call(), engine)) as events:
        for _ in range(4):
            await asyncio.wait_for(anext(events), 60)
            assert current_call.get() is None


async def test_no_secret_reaches_the_record(house: House, caplog: pytest.LogCaptureFixture) -> None:
    house.identity.ensure_admin("chosen password")
    _, other = house.identity.create_key("other")

    async def engine(call: Call) -> AsyncIterator[Event]:
        yield Event("response.output_text.delta", {"delta": f"you said chosen password and {other}"})
        raise CallError(f"upstream refused chosen password and {house.alice}", status=502)

    call = house.call("chosen password", payload={"input": f"my keys: chosen password, {house.alice}, {other}"})
    await everything(house, call, engine)
    await refusal(house, house.call("smk_" + "z" * 43, payload={"input": "chosen password"}))
    written = b"".join(path.read_bytes() for path in house.home.rglob("*.seg"))
    house.journal.ingest()
    house.journal.close()
    written += b"".join(path.read_bytes() for path in house.home.rglob("*") if path.is_file())
    for secret in ("chosen password", house.alice, other, "z" * 43):
        assert secret.encode() not in written
        assert secret not in caplog.text
    assert "chosen password" not in repr(house.call("chosen password"))
    assert all(record.call.credential is None for record in house.records)


async def test_what_cannot_be_recorded_is_not_done(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.policies.set("assistant", {"rate_limits": [{"calls": 1}]})
    asked = []

    async def engine(call: Call) -> AsyncIterator[Event]:
        asked.append(call)
        yield Event("response.completed", {"response": RESPONSE})

    def full(*_: Any, **__: Any) -> None:
        raise JournalError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(house.journal, "append", full)
        for _ in range(3):  # and takes nothing from the limit
            error = await refusal(house, house.call(), engine)
            assert (error.status, error.code) == (503, "TEMPORARILY_UNAVAILABLE")
        assert (await refusal(house, house.call("bad"), engine)).status == 401
    assert asked == []
    call = house.call()
    events = house.gateway.call(call, answering)
    assert (await anext(events)).type == "response.created"
    monkeypatch.setattr(house.journal, "append", full)
    last = [event async for event in events][-1]
    assert last.type == "response.failed"
    assert "cannot be recorded" in last.data["response"]["error"]["message"]


async def test_a_failing_observer_harms_nobody(house: House, caplog: pytest.LogCaptureFixture) -> None:
    def broken(record: object) -> None:
        raise ValueError("no")

    house.gateway.observers.insert(0, broken)
    assert (await everything(house, house.call()))[-1].type == "response.completed"
    assert len(house.records) == 1
    assert "observer" in caplog.text


async def test_vectors_stay_out_of_the_record(house: House) -> None:
    house.grants.grant("user:alice", "endpoint:minilm", "CAN_QUERY")

    async def engine(call: Call) -> AsyncIterator[Event]:
        usage = {"prompt_tokens": 2, "total_tokens": 2}
        yield Event("result", {"result": {"data": [{"embedding": [0.5] * 384}], "usage": usage}})

    call = house.call(endpoint="minilm", task="embeddings", payload={"input": ["a", "b"]}, stream=False)
    result = await house.gateway.invoke(call, engine)
    assert len(result["data"][0]["embedding"]) == 384
    row = house.row(call)
    assert "<384 numbers>" in row["response"]
    assert (row["input_tokens"], row["total_tokens"]) == (2, 2)


async def test_policy_keeps_payloads_and_usage_out(house: House) -> None:
    house.policies.set("assistant", {"inference_table_config": {"enabled": False}, "usage_tracking_config": {"enabled": False}})
    call = house.call()
    await everything(house, call)
    row = house.row(call)
    assert (row["status_code"], row["request"], row["response"], row["total_tokens"]) == (200, None, None, None)


async def test_strange_payloads_are_recorded_somehow(house: House) -> None:
    nested: Any = []
    for _ in range(600):
        nested = [nested]
    for payload in ({"input": "\ud83d"}, {"input": 2**70}, {"input": nested}, {"input": {1, 2}}, {"max_output_tokens": "many"}):
        call = house.call(payload=payload, client_request_id="\udcff" * 300, usage_context={"a": "\ud800"})
        assert await everything(house, call)
        assert house.row(call)["request"]


async def test_no_logging_of_ordinary_calls(house: House, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    with caplog.at_level(logging.DEBUG, logger="smalti"):
        await everything(house, house.call())
    assert caplog.records == []


async def test_one_call_too_many_is_refused_at_once(house: House) -> None:
    house.gateway.admission.limit = 2
    held = [house.gateway.call(house.call(), answering) for _ in range(2)]
    for stream in held:
        await anext(stream)
    error = await refusal(house, house.call())
    assert (error.status, error.retry_after) == (503, 1.0)
    for stream in held:
        await stream.aclose()
    assert await everything(house, house.call())
