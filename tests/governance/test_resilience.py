from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from governance.call import Call, CallError, Event, bad_request, limit_exceeded, misconfigured, unavailable
from governance.resilience import Breaker, resilient

pytestmark = pytest.mark.anyio
CALL = Call("chat", "chat", {"input": "hi"})


class Flaky:
    """An engine that fails as it is told, one entry a call: an error before the first word, or `late` for one after it."""

    def __init__(self, *outcomes: Any) -> None:
        self.outcomes, self.calls = list(outcomes), 0

    async def __call__(self, call: Call) -> AsyncIterator[Event]:
        self.calls += 1
        outcome = self.outcomes.pop(0) if self.outcomes else None
        yield Event("response.created", {"response": {}})
        if isinstance(outcome, CallError):
            raise outcome
        yield Event("response.output_text.delta", {"delta": str(self.calls)})
        if outcome == "late":
            raise unavailable("gone", status=502)
        yield Event("response.completed", {"response": {}})


async def told(engine: Any) -> list[str]:
    return [event.data.get("delta", event.type) async for event in engine(CALL)]


def down(status: int = 502) -> CallError:
    return unavailable("down", status=status)


async def test_a_failure_before_the_first_word_is_tried_again_and_seen_by_nobody() -> None:
    engine = Flaky(down(), down(503))
    assert await told(resilient([("a", engine)], pause=0.001)) == ["response.created", "3", "response.completed"]


async def test_what_trying_again_cannot_mend_is_not_tried_again() -> None:
    for error in (bad_request("no"), limit_exceeded("wait", 30), CallError("broken")):
        engine = Flaky(error)
        with pytest.raises(CallError) as caught:
            await told(resilient([("a", engine)], pause=0.001))
        assert (caught.value, engine.calls) == (error, 1)
    engine = Flaky("late")
    with pytest.raises(CallError, match="gone"):
        await told(resilient([("a", engine)], pause=0.001))
    assert engine.calls == 1


async def test_the_next_engine_answers_where_the_policy_lets_it() -> None:
    allowed = [False]
    first, second = Flaky(*[down() for _ in range(10)]), Flaky()
    both = resilient([("a", first), ("b", second)], fallback=lambda: allowed[0], attempts=2, pause=0.001)
    with pytest.raises(CallError, match="down"):
        await told(both)
    allowed[0] = True
    assert await told(both) == ["response.created", "1", "response.completed"]
    assert (first.calls, second.calls) == (4, 1)


async def test_an_engine_that_keeps_failing_is_left_alone_for_a_while() -> None:
    now = [0.0]
    engine = Flaky(*[down() for _ in range(5)])
    run = resilient([("a", engine)], attempts=1, breaker=lambda: Breaker(3, 10, lambda: now[0]))
    for _ in range(5):
        with pytest.raises(CallError):
            await told(run)
    assert engine.calls == 3
    with pytest.raises(CallError, match="several times in a row") as caught:
        await told(run)
    assert caught.value.retry_after == 10
    now[0] = 11
    with pytest.raises(CallError, match="down"):
        await told(run)
    assert engine.calls == 4
    engine.outcomes.clear()
    now[0] = 22
    assert "response.completed" in await told(run)
    assert "response.completed" in await told(run)


async def test_a_wrong_setting_is_told_at_once_and_another_engine_may_answer() -> None:
    allowed = [True]
    first, second = Flaky(*[misconfigured("wrong key") for _ in range(20)]), Flaky()
    both = resilient([("a", first), ("b", second)], fallback=lambda: allowed[0], pause=0.001, breaker=lambda: Breaker(2, 60))
    for _ in range(4):  # more than the breaker would bear
        assert "response.completed" in await told(both)
    assert (first.calls, second.calls) == (4, 4)
    allowed[0] = False
    with pytest.raises(CallError, match="wrong key") as caught:
        await told(both)
    assert (caught.value.status, first.calls) == (424, 5)


@pytest.mark.parametrize("wrong_first", [True, False])
async def test_where_one_is_set_wrongly_and_one_is_down_it_is_said_that_it_may_pass(wrong_first: bool) -> None:
    engines = [("a", Flaky(misconfigured("wrong key"))), ("b", Flaky(*[down() for _ in range(9)]))]
    run = resilient(engines if wrong_first else engines[::-1], fallback=lambda: True, pause=0.001)
    with pytest.raises(CallError, match="down") as caught:
        await told(run)
    assert caught.value.status == 502
