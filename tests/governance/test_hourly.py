"""Usage by the hour is what counting the whole inference table gives."""

from __future__ import annotations

import random
import time

import pytest
import sqlalchemy

from governance import hourly
from governance.frames import iso
from governance.journal import Journal
from governance.tables import create, inference_table
from governance.tables import hourly as table

HOUR = 3600 * 10**9


@pytest.fixture
def engine(tmp_path):
    engine = sqlalchemy.create_engine(f"sqlite:///{tmp_path}/smalti.db")
    yield engine
    engine.dispose()


def calls(count=300):
    chance, start = random.Random(5), 1_790_000_000 * 10**9
    for i in range(count):
        begun = {
            "databricks_request_id": f"r{i}",
            "request_time": start + chance.randrange(5) * HOUR,
            "endpoint_name": chance.choice(["assistant", "chat", "docs"]),
            "task": "agent",
            "requester": chance.choice(["alice", "bob", None]),
            "parent_request_id": chance.choice([None, None, "r0"]),
        }
        ended = {
            "databricks_request_id": f"r{i}",
            "status_code": chance.choice([200, 200, 200, 429, 424, 499, 503]),
            "execution_duration_ms": chance.lognormvariate(4, 1.5),
            "input_tokens": chance.choice([None, 10, 400]),
            "output_tokens": chance.choice([None, 7]),
            "cost": chance.choice([None, 0.25]),
        }
        yield begun, {**begun, **ended} if i % 17 else None


def everything(engine):
    with engine.connect() as connection:
        return connection.execute(sqlalchemy.select(table).order_by(*table.primary_key)).all()


def test_counting_as_calls_arrive_equals_counting_the_table(tmp_path, engine):
    with Journal(engine, tmp_path / "journal", interval=None) as journal:
        hanging = []
        for i, (begun, ended) in enumerate(calls()):
            journal.append(begun)
            if ended and i % 3:
                journal.append(ended)
            elif ended:
                hanging.append(ended)
            if i % 40 == 0:
                journal.ingest()
        assert journal.ingest() > 0
        for ended in hanging:  # their beginnings are in the table already
            journal.append(ended)
        journal.ingest()
    kept = everything(engine)
    assert sum(row.requests for row in kept if row.requester == "") == sum(ended is not None for _, ended in calls())
    with engine.begin() as connection:
        connection.execute(table.delete())
    hourly.fill(engine)
    again = everything(engine)
    assert [row[:-1] for row in again] == [row[:-1] for row in kept]
    assert [row.cost for row in again] == pytest.approx([row.cost for row in kept])
    hourly.fill(engine)
    assert everything(engine) == again
    assert sum(row.limited for row in again if row.requester == "") == sum(
        ended is not None and ended["status_code"] == 429 for _, ended in calls()
    )
    with engine.begin() as connection:  # as a database from before limits were counted has it
        connection.execute(table.update().values(limited=0))
        hourly.fill_limited(connection)
    assert everything(engine) == again


def test_reading_sums_over_hours_and_endpoints(tmp_path, engine):
    now = time.time_ns()
    with Journal(engine, tmp_path / "journal", interval=None) as journal:
        for i, status in enumerate([200, 200, 200, 429, 500, 403, 424]):
            row = {"request_time": now - i % 2 * HOUR, "endpoint_name": "chat", "task": "chat", "requester": "alice"}
            more = {"status_code": status, "execution_duration_ms": 100.0 * (i + 1), "input_tokens": 3, "cost": 0.5}
            journal.append({"databricks_request_id": f"r{i}", **row, **more})
        row |= {"endpoint_name": "docs", "parent_request_id": "r0", "requester": "bob", "request_time": now}
        journal.append({"databricks_request_id": "inner", **row, "status_code": 200, "execution_duration_ms": 1.0})
        journal.ingest()
    rows = hourly.read(engine, since=iso(now - 2 * HOUR), by=("endpoint",))
    assert [(r["endpoint"], r["inner_call"], r["requests"], r["refused"], r["limited"], r["errors"]) for r in rows] == [
        ("chat", 0, 7, 2, 1, 2),
        ("docs", 1, 1, 0, 0, 0),
    ]
    assert (rows[0]["input_tokens"], rows[0]["cost"], sum(rows[0]["bands"].values())) == (21, 3.5, 3)
    assert len(hourly.read(engine, since=iso(now - 2 * HOUR), requester="alice")) == 2
    assert hourly.read(engine, since=iso(now + HOUR)) == []


def test_percentiles_from_bands_are_close():
    chance = random.Random(3)
    latencies = sorted(chance.lognormvariate(5, 1) for _ in range(5000))
    bands: dict[int, int] = {}
    for latency in latencies:
        bands[hourly.band_of(latency)] = bands.get(hourly.band_of(latency), 0) + 1
    for share in (0.5, 0.95):
        assert hourly.percentile(bands, share) == pytest.approx(latencies[int(share * 5000)], rel=0.05)
    assert hourly.percentile({}, 0.5) is None


def test_a_table_of_before_is_counted_when_the_journal_opens(tmp_path, engine):
    create(engine)
    row = {"databricks_request_id": "old", "request_time": "2026-11-01T10:00:00.000000Z", "endpoint_name": "chat", "task": "chat"}
    with engine.begin() as connection:
        connection.execute(inference_table.insert().values(**row, status_code=200, execution_duration_ms=12.0))
    Journal(engine, tmp_path / "journal", interval=None).close()
    (kept,) = everything(engine)
    assert (kept.requester, kept.hour, kept.requests) == ("", "2026-11-01T10", 1)
