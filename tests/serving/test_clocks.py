"""Experiments while the clock is put forward and back: assignment, what is counted, durations, feedback."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from governance.call import Call, Caller, Event
from governance.experiments import Spec
from serving.config import parse
from serving.declared import Dealt
from serving.engines.answer import Answer
from serving.experiments.live import Experiments
from serving.tables import metadata
from serving.traffic import Arms, Traffic, arms
from tests.serving.upstream import House, house

pytestmark = pytest.mark.anyio
HOUR = 3_600.0


class Clock:
    """The time of day, so many seconds ahead of what it is."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ahead, nanoseconds, seconds = 0.0, time.time_ns, time.time
        monkeypatch.setattr(time, "time_ns", lambda: nanoseconds() + int(self.ahead * 1e9))
        monkeypatch.setattr(time, "time", lambda: seconds() + self.ahead)


class Trial:
    """An endpoint of two entities under experiments; while one answers, the clock jumps by `jump` seconds."""

    def __init__(self, made: House, clock: Clock) -> None:
        self.house, self.clock, self.jump = made, clock, 0.0
        engine = made.identity._engine
        metadata.create_all(engine)
        entities = [{"name": name, "external_model": MODEL} for name in "ab"]
        routes = [{"served_entity_name": "a", "traffic_percentage": 100}, {"served_entity_name": "b", "traffic_percentage": 0}]
        config = parse({"served_entities": entities, "traffic_config": {"routes": routes}})

        def make(wanted: dict[str, Any], before: Arms | None) -> Arms:
            engines = [(name, self.answering(name), 1) for name in "ab"]
            return arms(Traffic.of(wanted, "e"), engines, before, expose=made.gateway.expose)

        self.dealt = Dealt(config, make)
        self.asked: list[int] = []

        def events(since: int, _names: Sequence[str]) -> list[Any]:
            self.asked.append(since)
            return []

        lifecycle: Any = None  # the endpoint is declared
        self.experiments = Experiments(engine, made.journal, lifecycle, dealt={"e": self.dealt}, told=events)
        made.grants.grant("group:everyone", "endpoint:e", "CAN_QUERY")

    def answering(self, name: str) -> Any:
        async def engine(call: Call) -> AsyncIterator[Event]:
            answer = Answer(call)
            for event in answer.start():
                yield event
            self.clock.ahead += self.jump
            for event in (*answer.write(name), *answer.finish(usage={"input_tokens": 2, "output_tokens": 1})):
                yield event

        return engine

    async def ask(self, user: str) -> str:
        """The arm that answers a user."""
        body = {"input": [{"role": "user", "content": f"hello from {user}"}]}
        call = Call(endpoint="e", task="chat", payload=body, caller=Caller(user, groups=frozenset({"everyone"})))
        events = [event async for event in self.house.gateway.call(call, self.dealt.answer)]
        return str(events[-1].data["served_entity_name"])

    async def counted(self, name: str = "x") -> dict[str, Any]:
        return await self.experiments.get(name)


MODEL = {
    "name": "m",
    "provider": "custom",
    "task": "llm/v1/chat",
    "custom_provider_config": {"custom_provider_url": "http://127.0.0.1:9/v1", "bearer_token_auth": {"token_plaintext": "k"}},
}
SPEC: dict[str, Any] = {
    "name": "x",
    "endpoint": "e",
    "arms": [{"served_entity_name": name, "traffic_percentage": 50} for name in "ab"],
    "sticky": "user",
    "metric": "latency_ms",
    "guardrails": [{"metric": "error", "margin": 0.02}, {"metric": "latency_ms", "margin": 60_000.0}],
}


@pytest.fixture
def tested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Trial]:
    with house(tmp_path) as made:
        yield Trial(made, Clock(monkeypatch))


async def test_users_stay_with_their_arms_and_each_call_counts_once_while_the_clock_jumps(tested: Trial) -> None:
    await tested.experiments.create(Spec.parse(SPEC), "ann")
    users, dealt = [f"user{number}" for number in range(60)], {}
    found: dict[str, Any] = {}
    jumps = [5 * HOUR, -5 * HOUR, -3 * HOUR, 30 * HOUR, -27 * HOUR]
    for turn, jump in enumerate(jumps):
        for number, user in enumerate(users):
            tested.jump = jump if number == 30 else 0.0  # in the midst of an answer
            arm = await tested.ask(user)
            assert dealt.setdefault(user, arm) == arm
        found = await tested.counted()
        assert sum(each["calls"] for each in found["arms"]) == 60 * (turn + 1)
    assert {each["served_entity_name"]: each["units"] for each in found["arms"]} == Counter(dealt.values())
    assert found["crossed_calls"] == 0
    assert found["sample_ratio"]["ok"]
    assert found["state"] == "RUNNING", "no guardrail is broken by a clock"
    latency = next(metric for metric in found["metrics"] if metric["name"] == "latency_ms")
    assert all(0 <= arm["mean"] < 60_000 for arm in latency["arms"]), "no answer took hours, or less than nothing"
    rows = tested.house.rows()
    assert all(0 <= row["time_to_first_byte_ms"] <= row["execution_duration_ms"] < 60_000 for row in rows)
    retries = next(metric for metric in found["metrics"] if metric["name"] == "retry")
    assert any(arm["mean"] for arm in retries["arms"]), "the same question, minutes later or before"


async def test_an_experiment_begun_by_a_clock_that_was_ahead_counts_what_comes_when_it_is_right(tested: Trial) -> None:
    tested.clock.ahead = 48 * HOUR
    made = await tested.experiments.create(Spec.parse(SPEC), "ann")
    await tested.ask("one")
    tested.clock.ahead = 0.0
    for user in ("two", "three"):
        await tested.ask(user)
    found = await tested.counted()
    assert sum(each["calls"] for each in found["arms"]) == 3
    assert found["started"] < made["started"]
    again = Experiments(tested.house.identity._engine, tested.house.journal, None, dealt={"e": tested.dealt})  # pyright: ignore
    assert sum(each["calls"] for each in (await again.get("x"))["arms"]) == 3, "after a restart too"


async def test_feedback_is_read_from_before_the_last_look_whatever_the_clock_did_since(tested: Trial) -> None:
    await tested.experiments.create(Spec.parse(SPEC), "ann")
    tested.clock.ahead = 5 * HOUR
    await tested.counted()
    tested.clock.ahead = 0.0
    await tested.counted()
    assert tested.asked[-1] <= time.time_ns() // 1_000_000 - 30_000
