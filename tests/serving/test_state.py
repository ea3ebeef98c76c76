from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from sqlalchemy import inspect, text

from governance.hourly import read
from governance.journal import Journal
from governance.tables import metadata
from serving.state import SCHEMA_VERSION, open_database, upgrade

FIRST = (
    "CREATE TABLE smalti_schema (version INTEGER NOT NULL)",
    "INSERT INTO smalti_schema VALUES (1)",
    "CREATE TABLE inference_table (databricks_request_id VARCHAR(64) NOT NULL PRIMARY KEY, client_request_id VARCHAR(256), "
    "request_time VARCHAR(32) NOT NULL, status_code INTEGER, execution_duration_ms FLOAT, request TEXT, response TEXT, "
    "served_entity_id VARCHAR(256), served_entity_name VARCHAR(256), requester VARCHAR(256), requester_kind VARCHAR(32), "
    "endpoint_name VARCHAR(256) NOT NULL, task VARCHAR(32) NOT NULL, usage_context TEXT, time_to_first_byte_ms FLOAT, "
    "input_tokens BIGINT, output_tokens BIGINT, total_tokens BIGINT, parent_request_id VARCHAR(64), thread_id VARCHAR(256), "
    "error TEXT, trace_id VARCHAR(64))",
    "INSERT INTO inference_table (databricks_request_id, request_time, endpoint_name, task, status_code) "
    "VALUES ('old', '2026-11-22T10:00:00.000000Z', 'assistant', 'agent', 200)",
)


def test_state_of_the_first_schema_is_upgraded_in_place_and_a_copy_kept(tmp_path: Path) -> None:
    engine = open_database(f"sqlite:///{tmp_path}/smalti.db")
    with engine.begin() as connection:
        for statement in FIRST:
            connection.execute(text(statement))
    upgrade(engine, [metadata])
    assert (tmp_path / "smalti.db.v1.bak").exists()
    with Journal(engine, tmp_path / "journal", interval=None) as journal:
        journal.append(
            {
                "databricks_request_id": "new",
                "request_time": 1_800_000_000_000_000_000,
                "endpoint_name": "assistant",
                "task": "agent",
                "cost": 0.5,
                "guardrail_verdicts": [{"guardrail": "pii"}],
            }
        )
        old, new = journal.rows()
    assert (old["databricks_request_id"], old["cost"], old["guardrail_verdicts"]) == ("old", None, [])
    assert (new["cost"], new["guardrail_verdicts"]) == (0.5, [{"guardrail": "pii"}])
    with engine.connect() as connection:
        assert connection.execute(text("SELECT version FROM smalti_schema")).scalar() == SCHEMA_VERSION
    for table in metadata.tables.values():
        present = {column["name"] for column in inspect(engine).get_columns(table.name)}
        assert present == {column.name for column in table.columns}, table.name
    upgrade(engine, [metadata])  # again changes nothing
    engine.dispose()


def test_an_index_that_came_later_is_made_in_a_state_from_before_it(tmp_path: Path) -> None:
    engine = open_database(f"sqlite:///{tmp_path}/smalti.db")
    upgrade(engine, [metadata])
    with engine.begin() as connection:
        connection.execute(text("DROP INDEX inference_table_by_requester"))
    upgrade(engine, [metadata])
    assert "inference_table_by_requester" in {each["name"] for each in inspect(engine).get_indexes("inference_table")}
    engine.dispose()


def test_limits_hit_before_they_were_counted_are_counted_by_the_upgrade(tmp_path: Path) -> None:
    engine = open_database(f"sqlite:///{tmp_path}/smalti.db")
    upgrade(engine, [metadata])
    row = {"request_time": 1_800_000_000_000_000_000, "endpoint_name": "assistant", "task": "agent", "requester": "ann"}
    with Journal(engine, tmp_path / "journal", interval=None) as journal:
        for number, status in enumerate((200, 429, 429, 403)):
            journal.append({"databricks_request_id": f"r{number}", **row, "status_code": status})
        journal.ingest()
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE usage_hourly DROP COLUMN limited"))
        connection.execute(text("UPDATE smalti_schema SET version = 4"))
    upgrade(engine, [metadata])
    with Journal(engine, tmp_path / "journal", interval=None) as journal:
        journal.append({"databricks_request_id": "later", **row, "status_code": 429})
        journal.ingest()
    (everyone,) = read(engine, since="2027-01-01T00")
    (hers,) = read(engine, since="2027-01-01T00", requester="ann")
    for counted in (everyone, hers):
        assert (counted["requests"], counted["refused"], counted["limited"]) == (5, 4, 3)
    engine.dispose()


def test_a_command_beside_an_upgraded_server_leaves_it_its_log(tmp_path: Path) -> None:
    engine = open_database(f"sqlite:///{tmp_path}/smalti.db")
    upgrade(engine, [metadata])
    with engine.begin() as connection:
        connection.execute(text("UPDATE smalti_schema SET version = 3"))
    upgrade(engine, [metadata])
    count = (
        "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); print(c.execute('SELECT count(*) FROM audit_log').fetchone()[0])"
    )

    def beside() -> str:
        command = [sys.executable, "-c", f"{count}; c.close()", f"{tmp_path}/smalti.db"]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    for written in range(2):
        assert beside() == str(written)
        with engine.begin() as connection:
            entry = "INSERT INTO audit_log (time, actor, action, subject) VALUES ('', '', '', '')"
            connection.execute(text(entry))
    assert beside() == "2"
    assert (tmp_path / "smalti.db-wal").exists()
    engine.dispose()
    kept = open_database(f"sqlite:///{tmp_path}/smalti.db.v3.bak")
    with kept.connect() as connection:
        assert connection.execute(text("SELECT version FROM smalti_schema")).scalar() == 3
    kept.dispose()
