from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import create_engine, event

from evals.drift import compare
from evals.online import Online
from governance.call import Call, CallRecord


@dataclass(frozen=True)
class Watch:
    endpoint: str = "assistant"
    scorers: Sequence[str] = ()
    sample: float = 1.0
    reference: int = 30
    window: int = 30
    alpha: float = 0.01
    webhook: str | None = "http://hook"
    timeout: float = 5.0


@dataclass
class Scorer:
    name: str
    say: Callable[[str], Any]

    def run(self, *, inputs=None, outputs=None, expectations=None, trace=None):
        return self.say(outputs["text"])


@dataclass
class Kept:
    """What assessments and alerts were sent."""

    assessed: list[tuple[str, str, Any]] = field(default_factory=list)
    alerts: list[dict[str, Any]] = field(default_factory=list)
    refusals: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def assess(self, request_id: str, name: str, said: Any) -> bool:
        if self.refusals:
            self.refusals -= 1
            return False
        self.assessed.append((request_id, name, said.get("error") or said["value"]))
        return True

    def alert(self, webhook: str, body: Any) -> str | None:
        self.alerts.append({"webhook": webhook, **body})
        return None if len(self.alerts) > 1 else "it did not answer"


def record(number: int, question: str = "Where?", answer: str = "Here.", **more: Any) -> CallRecord:
    call = Call("assistant", "agent", {"input": question}, request_id=f"{number:032x}", parent_id=more.pop("parent", None))
    body = {"output": [{"type": "message", "content": [{"type": "output_text", "text": answer}]}]}
    return CallRecord(call, more.get("status", 200), 0, 5_000_000, response=body)


def embed(texts: Sequence[str]) -> np.ndarray:
    return np.array([[len(text) % 7, text.count("e")] for text in texts], np.float32)


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., tuple[Online, Kept]]]:
    engine, made = create_engine(f"sqlite:///{tmp_path / 'state.db'}"), []

    @event.listens_for(engine, "connect")
    def _(connection: Any, _record: Any) -> None:
        connection.execute("PRAGMA synchronous=OFF")  # no test here is about power failures

    def online(*scorers: Scorer, **more: Any) -> tuple[Online, Kept]:
        kept = Kept()
        watch = Watch(**{key: more.pop(key) for key in list(more) if key in Watch.__dataclass_fields__})
        found = Online(engine, [watch], scorers=lambda _: scorers, embed=embed, assess=kept.assess, alert=kept.alert, **more)
        made.append(found)
        return found, kept

    yield online
    for each in made:
        each.stop()
    engine.dispose()


def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def test_answers_are_scored_off_the_path_and_told_once_their_trace_is_there(make: Any) -> None:
    online, kept = make(Scorer("words", lambda text: len(text.split())), Scorer("broken", lambda text: 1 / 0))
    kept.refusals = 2
    online.start()
    for each in (
        record(1),
        record(1),
        record(2, status=500),
        record(3, parent="1"),
        record(4, question=""),
        record(5, answer="a b c"),
    ):
        online(each)
    until(lambda: len(kept.assessed) == 4)
    assert {(each[0][-1], *each[1:]) for each in kept.assessed} == {
        ("1", "words", 1), ("5", "words", 3), ("1", "broken", "ZeroDivisionError: division by zero"),
        ("5", "broken", "ZeroDivisionError: division by zero"),
    }  # fmt: skip
    status = online.store.status("assistant")
    assert status["scores"] == {"words": {"mean": 2, "n": 2, "errors": 0}, "broken": {"mean": None, "n": 0, "errors": 2}}
    assert [row["scores"]["words"] for row in online.store.rows("assistant")] == [{"value": 3}, {"value": 1}]


def test_a_scorer_that_hangs_delays_no_call_and_what_waits_is_bounded(make: Any) -> None:
    released = threading.Event()
    online, kept = make(Scorer("hung", lambda text: released.wait(60)), timeout=0.2, capacity=3)
    online.start()
    try:
        began = time.monotonic()
        for number in range(50):
            online(record(number))
        assert time.monotonic() - began < 50, "fifty calls must not wait for a scorer"
        assert online.dropped >= 40
        until(lambda: kept.assessed)
        assert kept.assessed[0][2] == "timed out after 0.2 s"
    finally:
        released.set()


def test_a_sample_is_the_same_share_whoever_asks(make: Any) -> None:
    online, _ = make(sample=0.2, capacity=10_000)
    for number in range(5_000):
        online(record(number))
    assert 900 < online.waiting < 1_100


def test_traffic_that_changes_is_told_once_a_window_and_unchanged_traffic_is_not(make: Any) -> None:
    draw = random.Random(1)
    online, kept = make(Scorer("score", float))

    def ask(start: int, count: int, mean: float, question: Callable[[], str]) -> None:
        for number in range(start, start + count):
            online._score(record(number, question(), str(draw.gauss(mean, 1))))

    def usual() -> str:
        return "e" * draw.randint(5, 30)

    ask(0, 90, 0.0, usual)
    online._deliver()
    assert kept.alerts == [], "two windows as the reference was"
    report = online.store.status("assistant")["drift"]
    assert {series["name"] for series in report["series"]} == {"question_length", "latency_ms", "score", "inputs"}
    ask(200, 30, -2.0, usual)
    online._deliver()
    assert [alert["text"] for alert in kept.alerts] == ["assistant: score of the last 30 scored calls differ from the reference."]
    until(lambda: (online._deliver(), len(kept.alerts) == 2)[1])
    assert kept.alerts[0]["id"] == kept.alerts[1]["id"], "the first attempt was not answered"
    online._deliver()
    ask(300, 30, 0.0, lambda: "a" * draw.randint(60, 90))
    online._deliver()
    assert len(kept.alerts) == 3
    moved = {series["name"] for series in kept.alerts[2]["series"] if series["drifted"]}
    assert moved == {"question_length", "inputs"}
    online.store.begin("assistant")
    ask(400, 60, 0.0, lambda: "a" * draw.randint(60, 90))
    online._deliver()
    assert len(kept.alerts) == 3, "what was new is the reference now"


def test_scorers_that_cannot_be_made_leave_the_rest_watched(make: Any) -> None:
    online, _ = make()

    def missing(_: Any) -> Sequence[Any]:
        raise ImportError("no module named colours")

    online._make = missing
    online._score(record(1))
    assert "colours" in online.problem
    assert online.store.status("assistant")["calls"] == 1


def test_series_without_variance_or_numbers_say_nothing_untrue() -> None:
    same, few = [1.0] * 50, [1.0, None, float("nan")]
    found = compare({"flat": same, "few": few * 20, "moved": same}, {"flat": same, "few": few, "moved": [2.0] * 50})
    assert {series["name"]: series["drifted"] for series in found} == {"flat": False, "moved": True}
    assert compare({}, {}) == []


def test_p_values_are_corrected_as_holm_does() -> None:
    from evals.paired import holm

    draw = np.random.default_rng(2)
    sides = [{name: draw.normal(shift * place, size=50).tolist() for place, name in enumerate("abcd")} for shift in (0, 0.3)]
    alone = [compare({name: sides[0][name]}, {name: sides[1][name]})[0]["p_value"] for name in "abcd"]
    assert [series["p_value"] for series in compare(*sides)] == pytest.approx(holm(alone))


def test_unchanged_traffic_is_called_drifted_as_seldom_as_was_asked_for() -> None:
    draw = np.random.default_rng(0)
    alarms = 0
    for _ in range(60):
        before, after = (
            {name: draw.normal(size=60).tolist() for name in ("a", "b", "c")} for _ in range(2)
        )  # fmt: skip
        alarms += any(series["drifted"] for series in compare(before, after, alpha=0.05))
    assert alarms <= 0.1 * 60
