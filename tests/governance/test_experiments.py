"""What is counted of an experiment's calls, and what is said of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Engine, insert

from governance.call import CallError
from governance.experiments import Spec, allocation, report
from governance.exposures import Event, Exposures
from governance.frames import iso
from governance.journal import Journal
from governance.tables import experiment_events

NOW = time.time_ns()


@pytest.fixture(autouse=True)
def _now() -> None:
    """A test's calls are made now, not when this file was read."""
    global NOW
    NOW = time.time_ns()


class Rows:
    """Writes calls of the endpoint `e` to a real journal."""

    def __init__(self, journal: Journal) -> None:
        self.journal, self.number = journal, 0

    def add(self, arm: str, unit: str, *, done: bool = True, **more: Any) -> str:
        self.number += 1
        identifier = f"r{self.number}"
        exposure = {"smalti_experiment": more.pop("experiment", "x"), "smalti_arm": arm, "smalti_unit": unit}
        columns = {
            "databricks_request_id": identifier,
            "request_time": NOW + more.pop("after", self.number) * 1_000_000,
            "endpoint_name": "e",
            "task": "chat",
            "requester": "alice",
            "requester_kind": "user",
            "usage_context": exposure,
        }
        answer = {"status_code": 200, "execution_duration_ms": 100.0, "served_entity_name": arm, **more} if done else {}
        self.journal.append({**columns, **answer})
        return identifier

    def finish(self, identifier: str, **more: Any) -> None:
        self.journal.append(
            {
                "databricks_request_id": identifier,
                "request_time": NOW,
                "endpoint_name": "e",
                "task": "chat",
                "status_code": 200,
                **more,
            }
        )


@pytest.fixture
def rows(database: Engine, tmp_path: Path) -> Iterator[Rows]:
    with Journal(database, tmp_path / "segments", interval=None) as journal:
        yield Rows(journal)


def seen(database: Engine, rows: Rows, **more: Any) -> Exposures:
    made = Exposures(database, "x", "e", ["a", "b"], iso(NOW - 10**9), **more)
    rows.journal.ingest()
    made.read()
    return made


def spec(**more: Any) -> Spec:
    arms = [{"served_entity_name": name, "traffic_percentage": 50} for name in ("a", "b")]
    return Spec.parse({"name": "x", "endpoint": "e", "control": "a", "arms": arms, "metric": "latency_ms", **more})


def test_each_call_counts_once_for_its_unit_however_late_it_ends(database: Engine, rows: Rows) -> None:
    rows.add("a", "user:one", execution_duration_ms=100.0)
    rows.add("a", "user:one", execution_duration_ms=300.0)
    late = rows.add("b", "user:two", done=False)
    rows.add("b", "user:three", experiment="other")
    found = seen(database, rows)
    assert found.counts() == [{"units": 1, "calls": 2, "fallbacks": 0}, {"units": 0, "calls": 0, "fallbacks": 0}]
    rows.finish(late, execution_duration_ms=50.0, served_entity_name="b")
    rows.journal.ingest()
    for _ in range(3):
        found.read()
    assert found.counts()[1] == {"units": 1, "calls": 1, "fallbacks": 0}
    assert found.values("latency_ms").values.tolist() == [200.0, 50.0]
    assert found.values("turns").values.tolist() == [2.0, 1.0]
    again = seen(database, rows)  # as after a restart
    assert again.counts() == found.counts()


def test_clocks_that_jump_lose_no_call_and_count_none_twice(
    database: Engine, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    def units(found: Exposures) -> int:
        rows.journal.ingest()
        found.read()
        return sum(arm["calls"] for arm in found.counts())

    hour = 3_600_000
    rows.add("a", "user:one")
    found = seen(database, rows)
    rows.add("b", "user:two", after=hour)  # a server whose clock is ahead
    assert units(found) == 2
    rows.add("a", "user:three", after=60_000)
    assert [units(found) for _ in range(3)] == [3, 3, 3]
    clock = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: clock() + 2 * hour * 1_000_000)  # this one's runs ahead
    rows.add("b", "user:four", after=2 * hour)
    assert [units(found) for _ in range(2)] == [4, 4]
    monkeypatch.undo()  # and is put right
    rows.add("a", "user:five", after=120_000)
    assert [units(found) for _ in range(3)] == [5, 5, 5]


def test_a_call_that_is_under_way_while_the_clock_jumps_counts_when_it_ends(
    database: Engine, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = rows.add("a", "user:one", done=False)
    found = seen(database, rows)
    clock = time.time_ns
    for hours in (30, -30):
        monkeypatch.setattr(time, "time_ns", lambda hours=hours: clock() + hours * 3_600_000_000_000)
        found.read()
    monkeypatch.undo()
    rows.finish(late, execution_duration_ms=50.0, served_entity_name="a")
    rows.journal.ingest()
    found.read()
    assert found.counts()[0] == {"units": 1, "calls": 1, "fallbacks": 0}


def test_units_that_a_fallback_touched_are_left_out_and_told(database: Engine, rows: Rows) -> None:
    rows.add("a", "user:one")
    rows.add("b", "user:two", served_entity_name="a")
    rows.add("b", "user:two")
    rows.add("b", "user:three", status_code=502)
    rows.add("b", "user:three", status_code=499)
    rows.add("b", "user:four", status_code=400, error="The model failed: ValueError: no")  # not the client's doing
    rows.add("b", "user:five", status_code=400, error="Column 'a' is missing.")
    found = seen(database, rows)
    assert found.counts()[1] == {"units": 4, "calls": 6, "fallbacks": 1}
    assert found.values("latency_ms").arms.tolist() == [0]
    assert found.values("fallback").values.tolist() == [0.0, 0.5, 0.0, 0.0, 0.0]
    assert found.values("error").values.tolist() == [0.0, 0.0, 1.0, 1.0, 0.0]
    assert found.values("abandoned").values.tolist() == [0.0, 0.5, 0.0, 0.0]
    rows.add("a", "user:three")  # dealt anew: it stays what it was
    rows.journal.ingest()
    found.read()
    assert found.crossed == 1


def test_events_join_their_call_s_unit_and_are_replaced_or_taken_back(database: Engine, rows: Rows) -> None:
    one, two = rows.add("a", "user:one"), rows.add("b", "user:two")
    with database.begin() as connection:
        kept = {"experiment": "x", "request_id": one, "name": "sales", "value": 3.5, "time": ""}
        connection.execute(insert(experiment_events).values(**kept))
    found = seen(database, rows)
    assert found.values("sales").values.tolist() == [3.5]
    found.read([Event("t1", two, "user_feedback", 1.0), Event("t2", "unknown", "user_feedback", 1.0)])
    assert found.values("user_feedback").values.tolist() == [1.0]
    found.read([Event("t1", two, "user_feedback", 0.0)])
    assert found.values("user_feedback").values.tolist() == [0.0]
    found.read([Event("t1", two, "user_feedback", None)])
    assert found.values("user_feedback").values.tolist() == []


def test_asking_the_same_again_is_a_retry(database: Engine, rows: Rows) -> None:
    rows.add("a", "user:one", request={"input": "why?"}, after=0)
    rows.add("a", "user:one", request={"input": "why?"}, after=1_000)
    rows.add("a", "user:one", request={"input": "why not?"}, after=2_000)
    rows.add("a", "user:one", request={"input": "why not?"}, after=2_000_000)  # half an hour later
    assert seen(database, rows).values("retry").values.tolist() == [0.25]


def test_what_an_hour_of_a_wrong_clock_lies_between_is_no_retry(database: Engine, rows: Rows) -> None:
    rows.add("a", "user:one", request={"input": "why?"}, after=3_600_000)
    found = seen(database, rows)
    rows.add("a", "user:one", request={"input": "why?"}, after=1_000)
    rows.journal.ingest()
    found.read()
    assert found.values("turns").values.tolist() == [2.0]
    assert found.values("retry").values.tolist() == [0.0]


def test_what_a_user_did_before_narrows_what_is_known_of_latency(database: Engine, rows: Rows) -> None:
    rng = np.random.default_rng(0)
    for user in range(200):
        base, arm = 1_000 * rng.random(), "ab"[user % 2]
        for after in (-100_000, 10):  # long before the experiment, and in it
            rows.add(
                arm,
                f"user:u{user}",
                after=after,
                requester=f"u{user}",
                experiment="x" if after > 0 else "none",
                execution_duration_ms=base + (50 if arm == "b" and after > 0 else 0) + rng.normal(0, 10),
            )
    told = report(spec(sticky="user"), seen(database, rows))
    assert told["metrics"][0]["adjusted"]
    assert told["metrics"][0]["differences"][0]["verdict"] == "worse"  # 50 ms among a second's spread
    assert told["verdict"]["winner"] == "a"
    assert "b is worse than a in latency_ms" in told["verdict"]["text"]


def fill(rows: Rows, units: int = 80, **b: Any) -> None:
    for number in range(units):
        rows.add("a", f"user:a{number}", execution_duration_ms=100.0 + number % 7)
        rows.add("b", f"user:b{number}", **{"execution_duration_ms": 100.0 + number % 7, **b})


def test_a_guardrail_that_breaks_is_told_before_anything_else(database: Engine, rows: Rows) -> None:
    fill(rows, status_code=502)
    told = report(spec(), seen(database, rows))
    assert told["guardrail"]["metric"] == "error"
    assert told["verdict"]["decision"] == "guardrail"
    slow = spec(guardrails=[{"metric": "latency_ms", "ratio": 1.5}])
    assert report(slow, seen(database, rows))["guardrail"] is None


def test_a_ratio_guardrail_is_in_times_the_control(database: Engine, rows: Rows) -> None:
    fill(rows, execution_duration_ms=200.0)
    assert report(spec(guardrails=[{"metric": "latency_ms", "ratio": 3}]), seen(database, rows))["guardrail"] is None
    assert report(spec(guardrails=[{"metric": "latency_ms", "ratio": 1.5}]), seen(database, rows))["guardrail"] is not None


def test_a_wrong_split_is_told_and_no_winner_is_named(database: Engine, rows: Rows) -> None:
    fill(rows, execution_duration_ms=10.0)
    for number in range(200):
        rows.add("a", f"user:more{number}")
    told = report(spec(), seen(database, rows))
    assert told["verdict"]["decision"] == "sample_ratio_mismatch"
    assert told["verdict"]["winner"] is None


def test_calls_of_one_user_say_why_an_arm_waits(database: Engine, rows: Rows) -> None:
    for _ in range(20):
        rows.add("a", "user:one")
    text = report(spec(sticky="user"), seen(database, rows))["verdict"]["text"]
    assert "b got no traffic. All 20 calls are those of 1 users, who stay with their arm" in text


def test_arms_without_traffic_and_metrics_without_variance_are_told_apart(database: Engine, rows: Rows) -> None:
    assert report(spec(), seen(database, rows))["verdict"]["decision"] == "no_traffic"
    fill(rows, 40)
    told = report(spec(metric="error"), seen(database, rows))
    assert told["verdict"]["decision"] == "undecided"
    assert told["metrics"][0]["differences"][0] == {
        "served_entity_name": "b",
        "difference": 0.0,
        "lower": 0.0,
        "upper": 0.0,
        "relative": None,
        "verdict": "not shown",
    }
    missing = report(spec(metric="user_feedback"), seen(database, rows))
    assert missing["verdict"]["decision"] == "undecided"
    assert missing["metrics"][0]["arms"][0]["mean"] is None


def test_track_and_stop_deals_more_to_what_is_noisier(database: Engine, rows: Rows) -> None:
    rng = np.random.default_rng(1)
    for number in range(120):
        rows.add("a", f"user:a{number}", execution_duration_ms=100 + rng.normal(0, 1))
        rows.add("b", f"user:b{number}", execution_duration_ms=100 + rng.normal(0, 9))
    shares = allocation(spec(mode="track-and-stop"), seen(database, rows))
    assert sum(shares) == 100
    assert shares[1] > 80


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"name": "a b"}, "name"),
        ({"control": "c"}, "none of the arms"),
        ({"arms": [{"served_entity_name": "a", "traffic_percentage": 100}]}, "two arms"),
        ({"alpha": 0.9}, "alpha"),
        ({"metric": "x y"}, "no metric"),
        ({"colour": 1}, "colour"),
        ({"arms": [{"served_entity_name": n, "traffic_percentage": 20} for n in "ab"]}, "add to 100"),
    ],
)
def test_a_wrong_experiment_is_refused_by_name(wrong: dict[str, Any], word: str) -> None:
    with pytest.raises(CallError, match=word) as caught:
        spec(**wrong)
    assert caught.value.status == 400
