from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine

from governance.budgets import Budgets, LeaseNeeded
from governance.call import Call, Caller, CallError, Event
from governance.policies import AiGatewayConfig

from .conftest import RESPONSE, House, answering, midmonth

pytestmark = pytest.mark.anyio
ALICE = Caller("alice")


def limited(**limit: Any) -> AiGatewayConfig:
    return AiGatewayConfig.parse({"rate_limits": [{"renewal_period": "day", **limit}]})


def take(budgets: Budgets, policy: AiGatewayConfig, given: int = 1, output: int | None = 0) -> Any:
    while True:
        try:
            return budgets.reserve(ALICE, "assistant", policy, given, output, lambda tokens: tokens / 1e6)
        except LeaseNeeded as needed:
            needed.fetch()


async def test_a_day_admits_exactly_its_calls_under_concurrency_and_over_a_restart(house: House) -> None:
    house.policies.set("assistant", {"rate_limits": [{"calls": 30, "renewal_period": "day"}]})

    async def engine(call: Call) -> AsyncIterator[Event]:
        await asyncio.sleep(0)
        yield Event("result", {"result": {}})

    async def one() -> int:
        try:
            await house.gateway.invoke(house.call(), engine)
        except CallError as error:
            return error.status
        return 200

    outcomes = await asyncio.gather(*(one() for _ in range(200)))
    assert (outcomes.count(200), outcomes.count(429)) == (30, 170)
    restarted = Budgets(house.identity._engine, midmonth)
    with pytest.raises(CallError, match="budget of endpoint assistant, 30 calls a day, is used up") as caught:
        take(restarted, limited(calls=30))
    assert 0 < (caught.value.retry_after or 0) <= 86_400
    restarted.close()


def test_processes_together_admit_no_more_than_the_limit(database: Engine) -> None:
    elsewhere = create_engine(database.url)
    several, policy, admitted = [Budgets(database, midmonth), Budgets(elsewhere, midmonth)], limited(calls=1_000), 0
    refused = 0
    while refused < 2:
        for budgets in several:
            try:
                take(budgets, policy)
                admitted += 1
            except CallError:
                refused += 1
    assert 1_000 - 2 * 20 <= admitted <= 1_000
    for budgets in several:
        budgets.close()  # gives back what it leased and did not spend
    assert list(Budgets(database, midmonth).used().values()) == [admitted]
    elsewhere.dispose()


def test_tokens_and_money_are_settled_by_what_was_used(database: Engine) -> None:
    budgets = Budgets(database, midmonth)
    charges, _ = take(budgets, limited(tokens=1_000), given=100, output=100)
    budgets.settle(charges, 950, 0)
    with pytest.raises(CallError):
        take(budgets, limited(tokens=1_000), given=60, output=0)
    charges, _ = take(budgets, limited(cost=0.001), given=1, output=500)
    budgets.settle(charges, 0, 0.0025)  # more than there was: that much the budget is over
    budgets.close()
    used = {key[1]: value for key, value in budgets.used().items()}
    assert used == {"tokens": 950, "cost": 2_500}
    again = Budgets(database, midmonth)
    with pytest.raises(CallError, match=r"0\.001 dollars a day"):
        take(again, limited(cost=0.001), given=1, output=1)
    again.close()


def test_budgets_in_force_are_told_with_what_is_left(database: Engine) -> None:
    budgets = Budgets(database, midmonth)
    limits = [
        {"calls": 500, "renewal_period": "day"}, {"tokens": 1_000, "key": "user", "renewal_period": "month"},
        {"cost": 2.5, "key": "user_group", "principal": "ml", "renewal_period": "day", "soft": True},
        {"calls": 5, "renewal_period": "minute"},
    ]  # fmt: skip
    policy = AiGatewayConfig.parse({"rate_limits": limits})
    for _ in range(3):
        charges, _warnings = take(budgets, policy, given=100)
        budgets.settle(charges, 150, 0)
    told = budgets.standing({"assistant": policy, "free": AiGatewayConfig()})
    assert [
        (row["kind"], row["whose"], row["metric"], row["period"], row["limit"], row["used"], row["soft"]) for row in told
    ] == [
        ("user", "alice", "tokens", "month", 1_000, 450, False),  # what was leased and not spent is not used
        ("endpoint", "", "calls", "day", 500, 3, False),
        ("user_group", "ml", "cost", "day", 2_500_000, 0, True),
    ]
    budgets.close()


def test_a_new_day_begins_anew_and_old_counters_can_be_forgotten(database: Engine) -> None:
    now = [1_795_000_000.0]
    budgets = Budgets(database, lambda: now[0])
    take(budgets, limited(calls=1))
    with pytest.raises(CallError):
        take(budgets, limited(calls=1))
    now[0] += 86_400
    take(budgets, limited(calls=1))
    budgets.close()
    assert budgets.prune("2027-01-01") == 2


async def test_a_soft_budget_warns_and_cost_is_stamped(house: House) -> None:
    house.policies.set("assistant", {"rate_limits": [{"cost": 0.00002, "renewal_period": "month", "soft": True}]})
    calls = [house.call() for _ in range(3)]
    for call in calls:
        await house.gateway.invoke(call, answering)
    row = house.row(calls[0])
    assert row["cost"] == pytest.approx((RESPONSE["usage"]["input_tokens"] + 2 * RESPONSE["usage"]["output_tokens"]) / 1e6)
    assert row["price_version"] == "test"
    assert "soft budget of endpoint assistant" in house.gateway.warnings[calls[-1].request_id]


async def test_what_inner_calls_cost_counts_for_the_call_they_were_made_for(house: House) -> None:
    house.policies.set("assistant", {"rate_limits": [{"cost": 0.00004, "renewal_period": "day"}]})
    house.grants.grant("user:alice", "endpoint:chat", "CAN_QUERY")

    async def agent(call: Call) -> AsyncIterator[Event]:
        inner = Call("chat", "chat", {"input": "x"}, caller=call.caller, parent_id=call.request_id)
        await house.gateway.invoke(inner, answering)
        yield Event("response.completed", {"response": {"model": "agent", "usage": {"input_tokens": 1, "output_tokens": 1}}})

    statuses = []
    for _ in range(6):
        try:
            await house.gateway.invoke(house.call(payload={"input": "x", "max_output_tokens": 1}), agent)
            statuses.append(200)
        except CallError as error:
            statuses.append(error.status)
    assert statuses[0] == 200
    assert statuses[-1] == 429


async def test_a_model_without_a_price_is_told_where_dollars_are_limited(house: House) -> None:
    house.gateway.prices.serve("assistant", "made-at-home")
    house.policies.set("assistant", {"rate_limits": [{"cost": 1, "renewal_period": "day"}]})

    async def engine(call: Call) -> AsyncIterator[Event]:
        yield Event("response.completed", {"response": {**RESPONSE, "model": "made-at-home"}})

    call = house.call()
    await house.gateway.invoke(call, engine)
    assert "no price is known of made-at-home" in house.gateway.warnings.pop(call.request_id)
    row = house.row(call)
    assert (row["cost"], row["price_version"]) == (None, None)
    house.policies.set("assistant", {"rate_limits": [{"tokens": 1_000_000, "renewal_period": "day"}]})
    call = house.call()
    await house.gateway.invoke(call, engine)
    assert call.request_id not in house.gateway.warnings


@pytest.fixture
def budgets(database: Engine) -> Iterator[Budgets]:
    made = Budgets(database, midmonth)
    yield made
    made.close()


def admitted(budgets: Budgets, policy: AiGatewayConfig, **more: Any) -> bool:
    try:
        take(budgets, policy, **more)
    except CallError:
        return False
    return True


def test_a_changed_limit_is_in_force_on_the_next_request(budgets: Budgets) -> None:
    assert [admitted(budgets, limited(calls=1)) for _ in range(2)] == [True, False]
    assert admitted(budgets, limited(calls=1_000))  # raised: what was found spent is looked up again
    assert not admitted(budgets, limited(calls=2))  # lowered: what is leased may not be spent
    assert admitted(budgets, limited(calls=3))
    assert not admitted(budgets, limited(calls=0))
    assert admitted(budgets, limited(calls=1, soft=True))  # one that only warns refuses nothing


def test_a_hard_and_a_soft_limit_of_one_key_count_a_call_once(budgets: Budgets) -> None:
    limits = [{"calls": 10, "renewal_period": "day"}, {"calls": 5, "renewal_period": "day", "soft": True}]
    policy = AiGatewayConfig.parse({"rate_limits": limits})
    warned = [bool(take(budgets, policy)[1]) for _ in range(10)]
    assert warned == [False] * 5 + [True] * 5
    assert not admitted(budgets, policy)


def test_a_call_that_needs_too_much_keeps_no_smaller_one_out(budgets: Budgets) -> None:
    policy = limited(tokens=1_000)
    assert not admitted(budgets, policy, output=10**19)
    assert admitted(budgets, policy, output=100)
    assert admitted(budgets, limited(tokens=1_000, soft=True), output=10**19)


async def test_whoever_hangs_up_has_used_what_came_before(house: House) -> None:
    """The usage comes with the end of an answer: who never waits for it would pay for nothing."""
    limits = [{"renewal_period": "day", "tokens": 10**6}, {"renewal_period": "day", "cost": 100.0}]
    house.policies.set("assistant", {"rate_limits": limits})

    reached = asyncio.Event()

    async def engine(call: Call) -> AsyncIterator[Event]:
        if call.payload["input"] == "?":
            reached.set()
            await asyncio.Event().wait()
        yield Event("response.output_text.delta", {"delta": "x" * 4_000})
        yield Event("response.function_call_arguments.delta", {"delta": "y" * 2_000})
        await asyncio.Event().wait()

    budgets = house.gateway.limits.budgets
    assert budgets is not None

    def used() -> dict[str, int]:
        found = budgets.standing({"assistant": house.policies.get("assistant") or AiGatewayConfig()})
        return {each["metric"]: each["used"] for each in found}

    events = house.gateway.call(house.call(), engine)
    assert [(await anext(events)).type for _ in range(2)][1] == "response.function_call_arguments.delta"
    await events.aclose()
    cut = used()
    assert 1_500 <= cut["tokens"] < 1_600
    assert 3_000 <= cut["cost"] < 3_200  # two dollars for a million tokens of an answer, in millionths
    task = asyncio.create_task(house.gateway.invoke(house.call(payload={"input": "?"}), engine))
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert used()["tokens"] > cut["tokens"], "what was asked was read"
