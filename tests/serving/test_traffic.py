from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from governance.call import Call, Caller, CallError, Event, unavailable
from governance.gateway import Gateway
from governance.policies import AiGatewayConfig
from serving.config import parse
from serving.endpoint import Endpoint
from serving.engines.answer import Answer
from serving.traffic import Arms, Traffic, arms, position
from tests.serving.upstream import House, house

pytestmark = pytest.mark.anyio


def config(sticky: str | None = None, shadow: dict[str, int] | None = None, **shares: int) -> dict[str, Any]:
    routes = [{"served_entity_name": name, "traffic_percentage": share} for name, share in shares.items()]
    copies = [{"served_entity_name": name, "traffic_percentage": share} for name, share in (shadow or {}).items()]
    entities = [{"name": name, "entity_name": "m", "entity_version": "1"} for name in {**shares, **(shadow or {})}]
    traffic = {"routes": routes, "sticky": sticky, "shadow": copies}
    return parse({"served_entities": entities, "traffic_config": traffic})


class Says:
    """An engine that says its name, fails as often as it is told, and waits for `gate` where it has one."""

    def __init__(self, name: str, *, failures: int = 0, gate: asyncio.Event | None = None) -> None:
        self.name, self.failures, self.gate = name, failures, gate
        self.calls: list[Call] = []

    async def __call__(self, call: Call) -> AsyncIterator[Event]:
        self.calls.append(call)
        if self.gate is not None:
            await self.gate.wait()
        answer = Answer(call)
        for event in answer.start():
            yield event
        if self.failures:
            self.failures -= 1
            raise unavailable(f"{self.name} is down", status=502)
        for event in (*answer.write(self.name), *answer.finish(usage={"input_tokens": 2, "output_tokens": 1})):
            yield event


def made(given: dict[str, Any], *engines: Says, attempts: int = 1, **more: Any) -> Arms:
    return arms(Traffic.of(given, "e"), [(each.name, each, attempts) for each in engines], **more)


async def answered(of: Arms, call: Call) -> str:
    return [event async for event in of.answer(call)][-1].data["served_entity_name"]


def ask(user: str = "alice", **more: Any) -> Call:
    payload = {"input": [{"type": "message", "role": "user", "content": "hi"}], **more.pop("payload", {})}
    return Call("e", "chat", payload, caller=Caller(user), **more)


async def test_shares_hold_over_units_and_a_unit_stays_where_it_is() -> None:
    a, b = Says("a"), Says("b")
    for sticky in ("thread", "user", "request"):
        split = made(config(sticky, a=70, b=30), a, b)
        calls = [ask(f"user{n}", thread_id=f"t{n}", client_request_id=f"r{n}") for n in range(2000)]
        first = [split.pick(call) for call in calls]
        assert abs(Counter(first)["b"] / 2000 - 0.3) < 0.04
        assert [split.pick(replace(call, request_id="other")) for call in calls] == first
    salted = Arms(replace(split.traffic, salt="next"), split.candidates)
    moved = sum(salted.pick(call) != arm for call, arm in zip(calls, first, strict=True))
    assert 0.3 < moved / 2000 < 0.55  # another salt deals again: 2 * 0.7 * 0.3
    more = made(config("request", a=60, b=40), a, b)
    assert all(
        more.pick(call) == "b" for call, arm in zip(calls, first, strict=True) if arm == "b"
    )  # a growing arm keeps its own


async def test_a_thread_is_known_by_what_each_protocol_calls_it() -> None:
    split = made(config("thread", a=50, b=50), Says("a"), Says("b"))
    for number in range(50):
        name = f"t{number}"
        same = (
            ask(thread_id=name),
            ask("bob", payload={"custom_inputs": {"thread_id": name}}),
            ask("eve", payload={"context": {"conversation_id": name}}),
        )
        assert len({split.pick(call) for call in same}) == 1
    assert len({split.pick(ask("carol")) for _ in range(20)}) == 1  # without one it is the caller's


async def test_an_entity_that_is_asked_for_answers_alone() -> None:
    a, b, c = Says("a"), Says("b", failures=1), Says("c")
    exposed: list[str] = []
    given = config(shadow={"c": 100}, a=100, b=0)
    given["traffic_config"]["experiment"] = "x"
    split = made(
        given,
        a,
        b,
        c,
        fallback=lambda: True,
        mirror=lambda call, engine: exposed.append("copy"),
        expose=lambda *_: exposed.append("row"),
    )
    with pytest.raises(CallError, match="b is down"):  # nothing stands in for it
        await answered(split, ask(served_entity="b"))
    assert [await answered(split, ask(served_entity=name)) for name in "bc"] == ["b", "c"]
    assert (len(a.calls), exposed) == (0, [])
    with pytest.raises(CallError, match="serves no entity 'z'; it serves a, b, c"):
        split.answer(ask(served_entity="z"))


async def test_people_behind_one_caller_are_dealt_one_by_one() -> None:
    split = made(config("user", a=50, b=50), Says("a"), Says("b"))
    people = [ask("app", payload={"user": f"u{n}"}) for n in range(40)]
    dealt = [split.pick(call) for call in people]
    assert set(dealt) == {"a", "b"}
    again = [ask("app", payload={"context": {"user_id": f"u{n}"}}, thread_id=f"t{n}") for n in range(40)]
    assert [split.pick(call) for call in again] == dealt
    assert len({split.pick(ask("app", payload={"context": "odd"})) for _ in range(20)}) == 1
    other = [ask("another app", payload={"user": f"u{n}"}) for n in range(40)]
    assert [split.pick(call) for call in other] != dealt, "one caller's u1 is not another's"


async def test_a_failing_arm_is_replaced_before_the_first_word_only_where_the_policy_says_so() -> None:
    allowed = [True]
    a, b = Says("a", failures=2), Says("b")
    both = made(config(a=100, b=0), a, b, fallback=lambda: allowed[0])
    assert await answered(both, ask()) == "b"
    allowed[0] = False
    with pytest.raises(Exception, match="a is down") as caught:
        await answered(both, ask())
    assert caught.value.served_entity_name == "a"  # type: ignore[attr-defined]
    assert await answered(both, ask()) == "a"


async def test_a_change_keeps_what_is_known_of_an_entity() -> None:
    a, b = Says("a"), Says("b")
    before = made(config(a=100), a)
    after = made(config(a=50, b=50), a, b, before=before)
    assert after.candidates["a"] is before.candidates["a"]
    assert made(config(a=100), Says("a"), before=before).candidates["a"] is not before.candidates["a"]


# --- through the gateway ---


@pytest.fixture
def home(tmp_path: Path) -> Iterator[House]:
    with house(tmp_path) as made:
        yield made


def serve(home: House, given: dict[str, Any], *engines: Says, **more: Any) -> str:
    engine = made(given, *engines, mirror=home.gateway.mirror, **more).answer
    home.endpoints.register(Endpoint("e", "llm/v1/chat", engine))
    return home.key("alice", "endpoint:e")


def request(key: str, **more: Any) -> Call:
    return Call("e", "chat", {"input": [{"type": "message", "role": "user", "content": "hi"}]}, credential=key, **more)


async def test_the_arm_is_in_the_row_of_answers_and_of_failures(home: House) -> None:
    key = serve(home, config("request", a=50, b=50), Says("a"), Says("b", failures=1))
    seen = []
    home.gateway.observers.append(lambda record: seen.append((record.served_entity_name, record.status_code)))
    for number in range(12):
        with contextlib.suppress(CallError):
            await home.dispatcher.invoke(request(key, client_request_id=str(number)))
    rows = [(row["served_entity_name"], row["status_code"]) for row in home.rows()]
    assert sorted(rows) == sorted(seen)
    assert ("b", 502) in rows
    assert {"a", "b"} == {name for name, _ in rows}


async def test_the_header_names_the_arm(home: House) -> None:
    key = serve(home, config(a=100, b=0), Says("a", failures=3), Says("b"), fallback=lambda: True)
    transport = httpx.ASGITransport(app=home.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://x", headers={"authorization": f"Bearer {key}"}) as client:
        body = {"model": "e", "messages": [{"role": "user", "content": "hi"}]}
        answer = await client.post("/v1/chat/completions", json=body)
        assert (answer.status_code, answer.headers["served-model-name"]) == (200, "b")


async def test_a_shadow_neither_delays_nor_fails_nor_is_charged_and_has_its_row(home: House) -> None:
    gate = asyncio.Event()
    slow, broken, a = Says("slow", gate=gate), Says("broken", failures=99), Says("a")
    key = serve(home, config(shadow={"slow": 100, "broken": 100}, a=100), a, slow, broken)
    policies = home.gateway.limits.policies
    policies.set("e", AiGatewayConfig.parse({"rate_limits": [{"calls": 3}]}))
    for _ in range(3):  # as many as the limit lets through: the copies take none of it
        result = await asyncio.wait_for(home.dispatcher.invoke(request(key)), 10)
        assert result["output"][0]["content"][0]["text"] == "a"
    gate.set()
    await asyncio.wait_for(asyncio.gather(*home.gateway._mirrors), 20)
    rows = home.rows()
    parents = {row["databricks_request_id"] for row in rows if row["parent_request_id"] is None}
    copies = [row for row in rows if row["parent_request_id"] in parents]
    assert Counter((row["served_entity_name"], row["status_code"]) for row in copies) == {("slow", 200): 3, ("broken", 502): 3}
    assert all("shadow" in str(row["usage_context"]) and row["requester"] == "alice" for row in copies)
    assert len(parents) == 3


async def test_too_many_copies_are_left_out_and_the_rest_end_with_the_server(home: House, monkeypatch: Any) -> None:
    monkeypatch.setattr("governance.gateway.MAX_MIRRORS", 2)
    slow, a = Says("slow", gate=asyncio.Event()), Says("a")
    key = serve(home, config(shadow={"slow": 100}, a=100), a, slow)
    for _ in range(5):
        await home.dispatcher.invoke(request(key))
        await asyncio.sleep(0)
    assert home.gateway.mirrors_dropped == 3
    await home.gateway.close()
    assert isinstance(home.gateway, Gateway)
    assert not home.gateway._mirrors
    assert len(slow.calls) == 2


def test_positions_are_evenly_spread() -> None:
    tenths = Counter(int(position("salt", str(number)) * 10) for number in range(10_000))
    assert max(tenths.values()) - min(tenths.values()) < 200
