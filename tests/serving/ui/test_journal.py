"""The console's numbers, from real rows of the inference table."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest
import sqlalchemy

from governance.call import Caller
from governance.tables import create, inference_table
from serving.ui.journal import reader, seconds_of, usage


class Ingested:
    count = 0

    def ingest(self) -> int:
        self.count += 1
        return 0


@pytest.fixture
def engine(tmp_path):
    engine = sqlalchemy.create_engine(f"sqlite:///{tmp_path}/smalti.db")
    create(engine)
    yield engine
    engine.dispose()


def test_admin_reads_all_others_their_own_newest_first(engine):
    now = time.time()
    rows = [
        {
            "databricks_request_id": f"r{i}",
            "request_time": datetime.fromtimestamp(now - 60 * i, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "endpoint_name": "assistant",
            "task": "agent",
            "status_code": 200,
            "execution_duration_ms": 10.0 * i,
            "requester": "alice" if i % 2 else "bob",
            "input_tokens": 5,
            "output_tokens": 2,
            "request": "x" * 1000,
            "parent_request_id": "r0" if i == 4 else None,
        }
        for i in range(6)
    ]
    with engine.begin() as connection:
        connection.execute(inference_table.insert(), rows)
    journal = Ingested()
    rows_of = reader(engine, journal)

    def read(*given):
        with ThreadPoolExecutor(1) as pool:  # a browser of other tests has the main thread's loop
            return pool.submit(lambda: asyncio.run(rows_of(*given))).result()

    seen = read(Caller("root", admin=True), now - 250, 100)
    assert [row["request_id"] for row in seen] == ["r0", "r1", "r2", "r3", "r4"]
    assert seen[1]["time"] == pytest.approx(now - 60, abs=0.001)
    assert "request" not in seen[0]
    assert (seen[4]["parent_id"], seen[3]["latency_ms"], seen[0]["caller"]) == ("r0", 30.0, "bob")
    assert [row["request_id"] for row in read(Caller("alice"), 0, 2)] == ["r1", "r3"]
    assert journal.count == 2


def test_numbers_count_what_was_asked_from_outside():
    now = 1_000_000.0
    rows = [
        {
            "time": now - 10 * i,
            "endpoint": "assistant",
            "status": 200,
            "latency_ms": float(i),
            "input_tokens": 3,
            "output_tokens": 1,
        }
        for i in range(1, 101)
    ]
    rows += [
        {"time": now - 5, "endpoint": "main.default.docs", "status": 200, "latency_ms": 1.0, "parent_id": "x"},
        {"time": now - 5, "endpoint": "assistant", "status": 429, "latency_ms": 0.1},
        {"time": now - 5, "endpoint": "assistant", "status": None},
        {"time": now - 5, "endpoint": "assistant", "status": 503, "latency_ms": 900.0},
        {"time": now - 5, "endpoint": "assistant", "status": 499, "latency_ms": 50.0},
    ]
    seen = usage(rows, now - 1000, now, 10)
    assert (seen.total.requests, seen.total.errors, seen.total.refused, seen.total.tokens) == (104, 2, 1, 400)
    assert (seen.total.percentile(0.5), seen.total.percentile(0.95)) == (51.0, 96.0)
    assert seen.endpoints["main.default.docs"].requests == 1
    assert len(seen.stretches) == 10
    assert sum(numbers.requests for _, numbers in seen.stretches) == 104
    assert usage([], 0, 10, 5).total.percentile(0.5) is None


def test_times_are_read_as_utc():
    assert seconds_of("1970-01-01T00:01:00Z") == seconds_of("1970-01-01T00:01:00") == seconds_of(60) == 60.0
    assert seconds_of("soon") is None
