from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine

from governance.call import Caller
from governance.changes import Changes
from governance.grants import Grants


def test_one_counter_moves_and_the_others_stay(database: Engine) -> None:
    changes = Changes.of(database)
    assert Changes.of(database) is changes
    before = dict(changes.versions())
    with changes.write("grants") as (_, version):
        pass
    assert version == before["grants"] + 1
    assert changes.versions() == {**before, "grants": version}


def test_a_failed_change_moves_nothing(database: Engine) -> None:
    changes = Changes.of(database)
    before = dict(changes.versions())
    with pytest.raises(RuntimeError), changes.write("grants"):
        raise RuntimeError
    assert changes.versions() == before


def test_it_goes_on_after_the_engine_was_disposed(database: Engine) -> None:
    changes = Changes.of(database)
    changes.versions()
    database.dispose()
    with changes.write("identity") as (_, version):
        pass
    assert changes.versions()["identity"] == version


def test_a_database_without_a_file_works_the_plain_way() -> None:
    from sqlalchemy.pool import StaticPool

    engine = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
    grants = Grants(engine)
    assert not grants.changes.inline
    grants.grant("user:alice", "endpoint:x", "CAN_QUERY")
    grants.check(Caller("alice"), "endpoint:x")
    grants.revoke("user:alice", "endpoint:x")
    assert not grants.allowed(Caller("alice"), "endpoint:x")
    engine.dispose()


def test_many_threads_may_look_while_others_write(database: Engine) -> None:
    changes = Changes.of(database)
    first = changes.versions()["grants"]
    failures: list[BaseException] = []

    def work(writes: bool) -> None:
        try:
            for _ in range(25):
                if writes:
                    with changes.write("grants"):
                        pass
                changes.versions()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number < 4,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert changes.versions()["grants"] == first + 100


def test_importing_the_room_is_cheap() -> None:
    script = (
        "import sys, governance\n"
        "assert not {'sqlalchemy', 'pydantic', 'fastapi', 'orjson'} & sys.modules.keys()\n"
        "assert all(getattr(governance, name) for name in governance.__all__)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).resolve().parents[2], timeout=100)


def test_another_processs_change_is_seen_at_once(database: Engine, home: Path) -> None:
    changes = Changes.of(database)
    script = (
        "import sys; from sqlalchemy import create_engine; from governance.changes import Changes\n"
        "engine = create_engine(f'sqlite:///{sys.argv[1]}/smalti.db'); changes = Changes.of(engine)\n"
        "for line in sys.stdin:\n"
        "    with changes.write('grants') as (_, version): pass\n"
        "    print(version, flush=True)\n"
        "engine.dispose()"
    )
    command = [sys.executable, "-c", script, str(home)]
    root = Path(__file__).resolve().parents[2]
    with subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        for _ in range(20):
            changes.versions()
            other.stdin.write("\n")
            other.stdin.flush()
            version = int(other.stdout.readline())
            assert changes.versions()["grants"] == version
        other.stdin.close()


def test_a_change_of_one_that_does_not_ring_is_seen_soon(database: Engine, home: Path) -> None:
    changes = Changes.of(database)
    before = changes.versions()["grants"]
    with sqlite3.connect(home / "smalti.db") as connection:
        connection.execute("UPDATE governance_changes SET value = value + 1 WHERE topic = 'grants'")
    connection.close()
    deadline = time.monotonic() + 60
    while changes.versions()["grants"] == before:
        assert time.monotonic() < deadline
