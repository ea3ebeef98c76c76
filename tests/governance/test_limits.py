from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from governance.call import Caller, CallError
from governance.limits import DEFAULT_OUTPUT_TOKENS, Limits
from governance.policies import Policies

ALICE, BOB = Caller("alice", groups=frozenset({"support"})), Caller("bob", groups=frozenset({"support", "ops"}))
ROBOT = Caller("robot", "service_principal")


class Clock:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


def limits(*rules: dict[str, Any], clock: Callable[[], float] | None = None) -> Limits:
    return Limits(Policies(declared={"assistant": {"rate_limits": list(rules)}}), clock or Clock())


def admitted(of: Limits, caller: Caller = ALICE, times: int = 20, **size: Any) -> int:
    refusals = []
    for _ in range(times):
        try:
            of.reserve(caller, "assistant", **size)
        except CallError as refusal:
            refusals.append(refusal)
    assert all(refusal.status == 429 and refusal.retry_after and 0 < refusal.retry_after <= 61 for refusal in refusals)
    return times - len(refusals)


def test_no_policy_means_no_limit() -> None:
    assert admitted(Limits(), times=100) == 100


def test_calls_of_an_endpoint_are_shared_by_everyone() -> None:
    of = limits({"calls": 5})
    assert admitted(of, ALICE, 3) == 3
    assert admitted(of, BOB, 10) == 2
    of.reserve(ALICE, "other")


def test_each_user_by_itself_and_a_named_one_otherwise() -> None:
    of = limits({"key": "user", "calls": 2}, {"key": "user", "principal": "bob", "calls": 7})
    assert [admitted(of, who) for who in (ALICE, BOB, ROBOT)] == [2, 7, 2]
    of = limits({"key": "user", "calls": 2}, {"key": "service_principal", "principal": "robot", "calls": 4})
    assert [admitted(of, who) for who in (ALICE, ROBOT)] == [2, 4]
    assert admitted(limits({"key": "service_principal", "principal": "alice", "calls": 1})) == 20  # a user of the same name


def test_a_group_shares_its_limit_and_a_second_group_helps_out() -> None:
    of = limits({"key": "user_group", "principal": "support", "calls": 4}, {"key": "user_group", "principal": "ops", "calls": 3})
    assert admitted(of, ALICE, 3) == 3
    assert admitted(of, BOB) == 1 + 3
    assert admitted(of, ALICE) == 0


def test_the_lower_of_two_counts_and_the_endpoint_is_above_all() -> None:
    assert admitted(limits({"calls": 5}, {"calls": 3})) == 3
    of = limits({"calls": 6}, {"key": "user", "calls": 4})
    assert [admitted(of, who) for who in (ALICE, BOB)] == [4, 2]
    assert admitted(limits({"calls": 0})) == 0


def test_a_refused_call_takes_nothing() -> None:
    of = limits({"calls": 10}, {"key": "user", "calls": 1})
    assert admitted(of, ALICE) == 1
    assert admitted(of, BOB) == 1
    others = [Caller(f"user{number}") for number in range(20)]
    assert sum(admitted(of, who, 1) for who in others) == 8


def test_the_message_says_which_limit() -> None:
    of = limits({"key": "user_group", "principal": "support", "calls": 1})
    of.reserve(ALICE, "assistant")
    with pytest.raises(CallError, match="the limit of user_group support on assistant is reached: 1 calls a minute"):
        of.reserve(ALICE, "assistant")


def test_room_comes_back_when_retry_after_says() -> None:
    clock = Clock()
    of = limits({"calls": 2}, clock=clock)
    of.reserve(ALICE, "assistant")
    clock.now += 20
    of.reserve(ALICE, "assistant")
    with pytest.raises(CallError) as caught:
        of.reserve(ALICE, "assistant")
    assert caught.value.retry_after is not None
    assert 39 < caught.value.retry_after < 41
    clock.now += caught.value.retry_after - 0.5
    assert admitted(of) == 0
    clock.now += 0.5
    assert admitted(of) == 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 30), st.integers(1, 5)), max_size=60), st.integers(1, 12))
def test_no_sixty_seconds_admit_more_than_the_limit(steps: list[tuple[float, int]], limit: int) -> None:
    clock = Clock()
    of = limits({"calls": limit}, clock=clock)
    times: list[float] = []
    for pause, tries in steps:
        clock.now += pause
        times += [clock.now] * admitted(of, times=tries)
    for start in times:
        assert sum(start <= at < start + 60 for at in times) <= limit


def test_tokens_are_reserved_by_estimate_and_settled_by_use() -> None:
    of = limits({"tokens": 1_000})
    first = of.reserve(ALICE, "assistant", size=400, output_tokens=800)
    assert first.estimate == 900
    assert admitted(of, size=400, output_tokens=100) == 0
    first.settle(300)
    first.settle(0)  # once only
    assert admitted(of, size=400, output_tokens=100) == 3
    assert admitted(of, size=400, output_tokens=1) == 0


def test_more_than_was_reserved_counts_too() -> None:
    of = limits({"tokens": 1_000})
    of.reserve(ALICE, "assistant", size=4, output_tokens=9).settle(5_000)
    with pytest.raises(CallError, match="1000 tokens a minute"):
        of.reserve(ALICE, "assistant", size=4, output_tokens=9)


def test_an_unbounded_answer_reserves_what_there_is_room_for() -> None:
    of = limits({"tokens": 100})
    reservation = of.reserve(ALICE, "assistant", size=40)
    assert reservation.estimate == 100
    with pytest.raises(CallError, match="is reached"):
        of.reserve(ALICE, "assistant", size=40)
    reservation.settle(30)
    assert limits({"tokens": 10**6}).reserve(ALICE, "assistant", size=40).estimate == 10 + DEFAULT_OUTPUT_TOKENS
    with pytest.raises(CallError, match="this request needs about 250 tokens"):
        of.reserve(ALICE, "assistant", size=1_000)


def test_a_released_call_was_never_made() -> None:
    of = limits({"calls": 1, "tokens": 50})
    of.reserve(ALICE, "assistant", size=40).release()
    of.reserve(ALICE, "assistant", size=40)


def test_settling_after_the_minute_changes_nothing_that_is_over() -> None:
    clock = Clock()
    of = limits({"tokens": 100}, clock=clock)
    old = of.reserve(ALICE, "assistant", size=40, output_tokens=80)
    clock.now += 70
    new = of.reserve(ALICE, "assistant", size=40, output_tokens=80)
    old.settle(0)
    assert admitted(of, size=40, output_tokens=80) == 0
    new.settle(10)
    assert admitted(of, times=1, size=40, output_tokens=80) == 1


@pytest.mark.parametrize("rule", [{"calls": 100}, {"key": "user", "calls": 100}, {"tokens": 1_000}])
def test_a_thousand_at_once_are_admitted_to_the_limit_and_not_one_more(rule: dict[str, Any]) -> None:
    of = limits(rule)
    gate, count, lock = threading.Barrier(50), [0], threading.Lock()

    def hammer() -> None:
        gate.wait()
        mine = admitted(of, times=20, size=20, output_tokens=5)  # 10 tokens each
        with lock:
            count[0] += mine

    threads = [threading.Thread(target=hammer) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert count[0] == 100


def test_windows_of_passers_by_are_forgotten() -> None:
    clock = Clock()
    of = limits({"key": "user", "calls": 5}, clock=clock)
    for number in range(4_000):
        of.reserve(Caller(f"user{number}"), "assistant")
    clock.now += 120
    for number in range(200):
        of.reserve(Caller(f"late{number}"), "assistant")
    assert len(of._windows) < 300
