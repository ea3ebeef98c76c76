"""What an older Smalti kept under a bare name is its owner's, and no namesake's, in SQLite and PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, insert, select, text

from agents.tables import memories, runs, threads
from agents.tables import metadata as agents
from governance.tables import keys, principals
from governance.tables import metadata as governance
from serving.state import open_database, upgrade
from tests import servers

LONG = "n" * 250


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/smalti.db"
        return
    with servers.postgres() as address:
        yield address


def keep_as_schema_3_did(connection: Connection) -> None:
    """`both` is a user and a service principal; `robot` a service principal alone; of `gone` nothing is known."""
    key: dict[str, Any] = {"pepper": "", "admin": False, "label": "", "created": 0.0, "changed": 0}
    for position, (name, kind) in enumerate((("both", "user"), ("both", "service_principal"), ("ann", "user"))):
        connection.execute(insert(keys).values(id=str(position), digest=str(position), name=name, kind=kind, **key))
    connection.execute(insert(principals).values(kind="service_principal", name="robot", groups="[]", changed=0))
    times = {"created": 1.0, "updated": 1.0}
    for thread, owner in (("t1", "ann"), ("t2", "robot"), ("t3", "both"), ("t4", "both"), ("t5", "gone"), ("t6", "")):
        connection.execute(insert(threads).values(id=thread, owner=owner, title=thread, agent="a", **times))
    for owner in ("ann", "robot", "both"):
        connection.execute(insert(memories).values(owner=owner, namespace="", key="k", value="{}", **times))
    run = {"agent": "a", "thread_id": "t4", "status": "completed", **times}
    connection.execute(insert(runs).values(id="r0", owner="user:eve", **{**run, "created": 0.5}))  # was refused
    connection.execute(insert(runs).values(id="r1", owner="service_principal:both", **run))


def test_old_rows_stay_with_their_owner(url: str) -> None:
    engine = open_database(url)
    tables = [governance, agents]
    upgrade(engine, tables)
    with engine.begin() as connection:
        connection.execute(text("UPDATE smalti_schema SET version = 3"))
        if engine.dialect.name == "postgresql":
            connection.execute(text("ALTER TABLE threads ALTER COLUMN owner TYPE VARCHAR(200)"))
        keep_as_schema_3_did(connection)
    upgrade(engine, tables)
    upgrade(engine, tables)  # again changes nothing
    with engine.begin() as connection:
        assert {row.id: row.owner for row in connection.execute(select(threads.c.id, threads.c.owner))} == {
            "t1": "user:ann",
            "t2": "service_principal:robot",
            "t3": "user:both",
            "t4": "service_principal:both",
            "t5": "user:gone",
            "t6": "",
        }
        held = set(connection.execute(select(memories.c.owner)).scalars())
        assert held == {"user:ann", "service_principal:robot", "user:both"}
        new = {"owner": f"service_principal:{LONG}", "title": "", "agent": "", "created": 0, "updated": 0}
        connection.execute(insert(threads).values(id="t7", **new))
    engine.dispose()
