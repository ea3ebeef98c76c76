"""What frames say becomes rows, whatever a payload holds."""

from __future__ import annotations

from contextlib import closing

import pytest
import sqlalchemy

from governance import intake
from governance.frames import encode, scan
from governance.tables import create, inference_table

CALL = {"request_time": 1_790_000_000_123_456_789, "endpoint_name": "x", "task": "chat"}


@pytest.fixture
def engine():
    made = sqlalchemy.create_engine("sqlite://", poolclass=sqlalchemy.StaticPool)
    create(made)
    yield made
    made.dispose()


def body(name, **columns):
    return scan(encode({"databricks_request_id": name, **CALL, **columns}), final=True)[0][0]


def merge(engine, bodies, pause=intake.PAUSE):
    with closing(engine.raw_connection()) as held, held.driver_connection as connection:
        intake.merge(connection, intake.read(bodies, inference_table.columns.keys(), pause), pause)


def rows(engine):
    with engine.connect() as connection:
        order = inference_table.c.databricks_request_id
        return connection.execute(sqlalchemy.select(inference_table).order_by(order)).mappings().all()


@pytest.mark.parametrize("pause", [1, intake.PAUSE])
def test_what_comes_later_is_laid_over_what_came_before(engine, pause):
    for bodies in (
        [body("a", request={"input": "ü\0"}), body("b", error="one\0two")],
        [body("a", status_code=200), body("a", cost=1.5)],
    ):
        merge(engine, bodies, pause)
    a, b = rows(engine)
    assert a["request"] == '{"input":"ü\\u0000"}'
    assert (a["status_code"], a["cost"], a["request_time"]) == (200, 1.5, "2026-09-21T14:13:20.123456Z")
    assert b["error"] == "one\ufffdtwo"


@pytest.mark.parametrize("strange", [b'{"cut', b'{"no": "id"}', b"[]", b"\xff"])
def test_what_cannot_be_read_costs_no_other_row(engine, strange, caplog):
    merge(engine, [body("a"), strange, body("b")])
    assert [row["databricks_request_id"] for row in rows(engine)] == ["a", "b"]
    assert "passed over" in caplog.text
