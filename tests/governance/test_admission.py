from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from governance.admission import Admission
from governance.call import Call, CallError, Event
from governance.limits import Limits
from tests.governance.conftest import House

pytestmark = pytest.mark.anyio


async def test_turns_are_first_come_first_served_and_the_line_has_an_end() -> None:
    admission = Admission(2, queue=2, seconds=30)
    await admission.enter()
    await admission.enter()
    order: list[str] = []

    async def wait(name: str) -> None:
        await admission.enter()
        order.append(name)

    line = [asyncio.create_task(wait(name)) for name in ("first", "second")]
    await asyncio.sleep(0)
    assert admission.waiting == 2
    with pytest.raises(CallError) as refused:
        await admission.enter()
    assert (refused.value.status, refused.value.retry_after) == (503, 1.0)
    for _ in line:
        admission.leave()
    await asyncio.gather(*line)
    assert order == ["first", "second"]
    assert (admission.running, admission.waiting) == (2, 0)
    admission.leave()
    admission.leave()
    assert admission.running == 0


async def test_whoever_waits_too_long_or_goes_away_leaves_no_gap() -> None:
    admission = Admission(1, queue=5, seconds=0.01)
    await admission.enter()
    with pytest.raises(CallError, match="busy"):
        await admission.enter()
    admission.seconds = 30
    gone, stays = asyncio.create_task(admission.enter()), asyncio.create_task(admission.enter())
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.sleep(0)
    admission.leave()
    await stays
    assert (admission.running, admission.waiting) == (1, 0)
    cut = asyncio.create_task(admission.enter())
    await asyncio.sleep(0)
    admission.leave()
    cut.cancel()  # its turn came in the same moment
    await asyncio.gather(cut, return_exceptions=True)
    assert (admission.running, admission.waiting) == (0, 0)


async def test_calls_wait_for_their_turn_and_every_end_of_a_call_gives_it_back(house: House) -> None:
    house.gateway.admission = Admission(3, queue=100, seconds=30)
    now, most = [0], [0]

    async def engine(call: Call) -> AsyncIterator[Event]:
        now[0] += 1
        most[0] = max(most[0], now[0])
        try:
            await asyncio.sleep(0)
            yield Event("response.output_text.delta", {"delta": "x"})
            if call.client_request_id == "fails":
                raise CallError("no", status=400)
            yield Event("response.completed", {"response": {"output": []}})
        finally:
            now[0] -= 1

    async def one(number: int) -> Any:
        if number % 5 == 0:
            return await house.gateway.invoke(house.call("wrong"), engine)
        if number % 7 == 0:
            stream = house.gateway.call(house.call(), engine)
            await anext(stream)
            return await stream.aclose()
        return await house.gateway.invoke(house.call(client_request_id="fails" if number % 3 == 0 else None), engine)

    results = await asyncio.gather(*(one(number) for number in range(60)), return_exceptions=True)
    assert most[0] <= 3
    assert {getattr(error, "status", 200) for error in results} <= {200, 400, 401, 500}
    assert (house.gateway.admission.running, house.gateway.admission.waiting) == (0, 0)


async def test_a_thousand_at_once_on_one_key_get_exactly_what_the_limit_allows(house: House) -> None:
    """Calls and tokens: what is admitted never exceeds the limit, however many ask in the same moment."""
    house.policies.set("assistant", {"rate_limits": [{"key": "user", "calls": 100}, {"key": "user", "tokens": 20_000}]})
    clock = [0.0]
    house.gateway.limits = Limits(house.policies, lambda: clock[0])
    admitted: list[int] = []

    async def engine(call: Call) -> AsyncIterator[Event]:
        admitted.append(1)
        await asyncio.sleep(0)
        usage = {"input_tokens": 5, "output_tokens": 100, "total_tokens": 105}
        yield Event("response.completed", {"response": {"output": [], "usage": usage}})

    async def one() -> int:
        try:
            await house.gateway.invoke(house.call(payload={"input": "x", "max_output_tokens": 100}), engine)
        except CallError as error:
            return error.status
        return 200

    for _ in range(2):
        admitted.clear()
        statuses = await asyncio.gather(*(one() for _ in range(1_000)))
        assert len(admitted) == statuses.count(200) == 100
        assert statuses.count(429) == 900
        clock[0] += 61
    house.policies.set("assistant", {"rate_limits": [{"key": "user", "tokens": 5_000}]})
    admitted.clear()
    statuses = await asyncio.gather(*(one() for _ in range(1_000)))
    assert 0 < len(admitted) * 105 <= 5_000
    assert set(statuses) == {200, 429}
