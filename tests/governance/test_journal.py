from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest
from sqlalchemy import Engine, create_engine, select, text

from governance.frames import MAGIC, encode
from governance.journal import Journal, JournalError
from governance.tables import inference_table

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder(home: Path) -> Path:
    return home / "journal"


@pytest.fixture
def journal(database: Engine, folder: Path) -> Iterator[Journal]:
    with Journal(database, folder, interval=None) as opened:
        yield opened


def columns(request_id: str, **more: Any) -> dict[str, Any]:
    return {
        "databricks_request_id": request_id,
        "request_time": f"2026-11-22T10:00:{len(request_id):02d}.000000Z",
        "endpoint_name": "assistant",
        "task": "agent",
        **more,
    }


def intent(request_id: str) -> dict[str, Any]:
    return columns(request_id, request=orjson.Fragment(b'{"input":"hello"}'), requester="alice")


def completion(request_id: str) -> dict[str, Any]:
    return columns(request_id, status_code=200, response={"text": "hi"}, total_tokens=3)


def ids(journal: Journal, **query: Any) -> list[str]:
    return [row["databricks_request_id"] for row in journal.rows(**query)]


def segments(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.seg"))


def test_intent_and_completion_become_one_row(journal: Journal) -> None:
    journal.append(intent("a"))
    (row,) = journal.rows()
    assert row["status_code"] is None
    assert row["request"] == '{"input":"hello"}'
    journal.append(completion("a"))
    (row,) = journal.rows()
    assert (row["status_code"], row["requester"], row["total_tokens"]) == (200, "alice", 3)
    assert json.loads(row["response"]) == {"text": "hi"}
    assert row["usage_context"] == {}


def test_a_completion_found_first_is_not_lost(journal: Journal) -> None:
    journal.append(completion("a"))
    journal.ingest()
    journal.append(intent("a"))
    (row,) = journal.rows()
    assert (row["status_code"], row["requester"]) == (200, "alice")


def test_ingesting_again_adds_nothing(journal: Journal) -> None:
    for name in ("a", "b"):
        journal.append(intent(name))
    assert journal.ingest() == 2
    assert journal.ingest() == 0
    assert ids(journal) == ["a", "b"]


def test_segments_rotate_and_those_taken_in_are_removed(database: Engine, folder: Path) -> None:
    with Journal(database, folder, interval=None, segment_bytes=500) as journal:
        for number in range(20):
            journal.append(intent(f"{number:03}"))
        assert len(segments(folder)) > 5
        assert journal.ingest() == 20
        assert len(segments(folder)) == 1  # the one being written
        assert len(ids(journal)) == 20
    assert segments(folder) == []
    with pytest.raises(JournalError, match="closed"):
        journal.append(intent("late"))


def test_two_writers_and_two_ingesters_on_one_folder(database: Engine, home: Path, folder: Path) -> None:
    elsewhere = create_engine(f"sqlite:///{home}/smalti.db", connect_args={"timeout": 30})
    with Journal(database, folder, interval=0.01) as one, Journal(elsewhere, folder, interval=0.01, segment_bytes=4_000) as two:

        def write(journal: Journal, name: str) -> None:
            for number in range(150):
                journal.append(intent(f"{name}{number:03}"))
                journal.append(completion(f"{name}{number:03}"))

        work = [(one, "a"), (one, "b"), (two, "c"), (two, "d")]
        threads = [threading.Thread(target=write, args=each) for each in work]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        rows = list(one.rows())
    assert len(rows) == 600
    assert {row["status_code"] for row in rows} == {200}
    elsewhere.dispose()


def test_a_torn_tail_is_passed_over_and_counted(database: Engine, folder: Path) -> None:
    folder.mkdir()
    good, torn = encode(intent("a")), encode(completion("a"))
    (folder / "00000000000000000001-1-dead.seg").write_bytes(good + torn[:-3])
    with Journal(database, folder, interval=None) as journal:
        assert ids(journal) == ["a"]
        assert segments(folder) == []


def test_damage_in_the_middle_costs_one_frame(database: Engine, folder: Path) -> None:
    folder.mkdir()
    frames = [encode(intent(name)) for name in ("a", "b", "c")]
    frames[1] = frames[1][:40] + b"\x00" + frames[1][41:]
    nonsense = encode({"no": "id"})
    (folder / "00000000000000000001-1-dead.seg").write_bytes(b"".join(frames) + nonsense + MAGIC)
    with Journal(database, folder, interval=None) as journal:
        assert ids(journal) == ["a", "c"]
        assert segments(folder) == []


def test_a_frame_longer_than_a_batch_is_taken_in(journal: Journal) -> None:
    journal.append(columns("big", request={"input": "x" * 3_000_000}))
    journal.append(intent("small"))
    rows = {row["databricks_request_id"]: row for row in journal.rows()}
    assert len(rows["big"]["request"]) > 3_000_000
    assert "small" in rows


def test_the_live_segment_of_another_process_is_left_in_place(journal: Journal, folder: Path, home: Path) -> None:
    journal.append(intent("a"))
    elsewhere = create_engine(f"sqlite:///{home}/smalti.db")
    with Journal(elsewhere, folder, interval=None) as other:
        assert ids(other) == ["a"]
        assert len(segments(folder)) == 1
    journal.append(completion("a"))
    (row,) = journal.rows()
    assert row["status_code"] == 200
    elsewhere.dispose()


def test_an_unwritten_record_is_an_error(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    journal.append(intent("a"))
    real = os.write

    def full(fd: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(JournalError, match="No space left"):
            journal.append(intent("b"))
        patch.setattr(os, "write", lambda fd, data: real(fd, data[:20]))
        with pytest.raises(JournalError, match="disk full"):
            journal.append(intent("c"))
    journal.append(intent("d"))
    assert ids(journal) == ["a", "d"]


def test_rows_can_be_chosen(journal: Journal) -> None:
    start = datetime(2026, 11, 22, tzinfo=UTC)
    for number in range(1_200):
        at = (start + timedelta(seconds=number // 3)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        journal.append({**intent(f"{number:05}"), "request_time": at, "endpoint_name": "chat" if number % 2 else "assistant"})
    everything = ids(journal)
    assert everything == [f"{number:05}" for number in range(1_200)]
    assert ids(journal, newest=True) == everything[::-1]
    assert ids(journal, limit=700) == everything[:700]
    assert ids(journal, limit=3, newest=True, endpoint="chat") == ["01199", "01197", "01195"]
    assert ids(journal, since=start + timedelta(seconds=399)) == everything[-3:]
    assert ids(journal, since="2026-11-22T00:06:39") == everything[-3:]
    assert ids(journal, since="2026-11-23") == []
    assert ids(journal, request_id="00007") == ["00007"]
    with pytest.raises(ValueError, match="is no time"):
        ids(journal, since="yesterday")


def test_the_background_ingests_by_itself(database: Engine, folder: Path) -> None:
    with Journal(database, folder, interval=0.02) as journal:
        journal.append(intent("a"))
        seen = threading.Event()

        def look() -> None:
            while not seen.is_set():
                with database.connect() as connection:
                    if connection.execute(text("SELECT count(*) FROM inference_table")).scalar():
                        seen.set()
                seen.wait(0.01)

        thread = threading.Thread(target=look)
        thread.start()
        there = seen.wait(60)
        seen.set()
        thread.join()
        assert there


WRITERS = """
import os, signal, sys
from pathlib import Path
from sqlalchemy import create_engine
from governance.journal import Journal

def say(text):
    os.write(1, text.encode())

def write(home, writer):
    database = create_engine(f"sqlite:///{home}/smalti.db", connect_args={"timeout": 30})
    journal = Journal(database, home / "journal", interval=0.02, segment_bytes=30_000)
    base = {"request_time": "2026-11-22T10:00:00.000000Z", "endpoint_name": "assistant", "task": "agent"}
    number = 0
    while True:
        name = f"{writer}-{number}"
        journal.append({**base, "databricks_request_id": name, "request": {"input": "x" * 300}})
        say(f"intent {name}\\n")
        journal.append({**base, "databricks_request_id": name, "status_code": 200, "response": {"text": "y" * 300}})
        say(f"completion {name}\\n")
        number += 1

signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        write(Path(sys.argv[1]), line.strip())
    say(f"writer {child}\\n")
"""


def test_kill_9_loses_nothing_that_was_acknowledged(database: Engine, home: Path, folder: Path) -> None:
    chance = random.Random(7)
    said: dict[str, set[str]] = {"intent": set(), "completion": set(), "writer": set()}
    command = [sys.executable, "-c", WRITERS, str(home)]
    with subprocess.Popen(
        command, cwd=Path(__file__).parents[2], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        for number in range(20):
            parent.stdin.write(f"{number}\n")
            parent.stdin.flush()
            said["writer"].clear()
            patience = chance.randrange(1, 250)  # records until this writer is killed, whatever it is doing
            while patience > 0 or not said["writer"]:
                kind, name = parent.stdout.readline().split()
                said[kind].add(name)
                patience -= 1
            os.kill(int(said["writer"].pop()), signal.SIGKILL)
        parent.stdin.close()
        for line in parent.stdout:  # what was acknowledged before the kills reached them
            kind, _, name = line.strip().partition(" ")
            said[kind].add(name)
    with Journal(database, folder, interval=None) as journal:
        rows = {}
        for row in journal.rows():
            assert row["databricks_request_id"] not in rows
            rows[row["databricks_request_id"]] = row
        assert segments(folder) == []
    assert len(said["completion"]) > 500
    assert said["intent"] <= rows.keys()
    assert all(
        rows[name]["status_code"] == 200 and rows[name]["request"] and rows[name]["response"] for name in said["completion"]
    )
    assert sum(row["status_code"] is None for row in rows.values()) <= 20  # at most the one each was busy with


def test_closing_without_a_database_keeps_the_frames_for_the_next_start(
    database: Engine, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal(database, folder, interval=None)
    journal.append(intent("a"))
    with database.begin() as connection:
        connection.execute(text("ALTER TABLE inference_table RENAME TO elsewhere"))
    journal.close()
    assert "could not be brought" in caplog.text
    with database.begin() as connection:
        connection.execute(text("ALTER TABLE elsewhere RENAME TO inference_table"))
    with Journal(database, folder, interval=None) as again:
        assert ids(again) == ["a"]


def test_a_busy_journal_is_ingested_by_a_process_of_its_own(database: Engine, folder: Path) -> None:
    with Journal(database, folder, interval=0.02) as journal:
        deadline, number = time.monotonic() + 60, 0
        while journal._helper is None:
            assert time.monotonic() < deadline
            for _ in range(200):
                number += 1
                journal.append(intent(f"r{number:06}"))
        helper = journal._helper
        journal.append(intent("last"))
        while not taken_in(database, "last"):  # nobody asks this process for rows
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert helper.alive
        helper._process.kill()
        helper._process.wait()
        while journal._helper is not None:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        journal.append(completion("last"))
        while not taken_in(database, "last", status_code=200):  # the thread has taken over again
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert len(ids(journal)) == number + 1
    assert segments(folder) == []


def test_a_process_that_ends_by_itself_is_not_begun_again_and_again(
    database: Engine, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However busy the journal is: the thread takes it in meanwhile."""
    begun = []

    class Ending:
        alive = False

        def __init__(self, *_: object, **__: object) -> None:
            begun.append(self)

        def close(self) -> None:
            pass

    monkeypatch.setattr("governance.journal.Ingester", Ending)
    with Journal(database, folder, interval=0.01) as journal:
        deadline, number = time.monotonic() + 60, 0
        while not (begun and journal._helper is None):
            assert time.monotonic() < deadline
            journal.append(intent(f"r{(number := number + 1):06}"))
        journal.append(intent("last"))
        while not taken_in(database, "last"):
            assert time.monotonic() < deadline
            for _ in range(50):
                journal.append(intent(f"r{(number := number + 1):06}"))
        assert len(begun) == 1


def test_a_process_whose_server_is_gone_ends_without_a_word() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "governance.ingester_process"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        timeout=120,
    )
    assert (ended.returncode, ended.stderr) == (0, "")


def test_the_journals_process_is_small() -> None:
    code = "import sys, governance.ingester_process; print({'asyncio', 'sqlalchemy', 'pydantic'} & sys.modules.keys())"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2], check=True)
    assert told.stdout == "set()\n"  # which would make it two and a half times as large


def taken_in(database: Engine, name: str, **columns: object) -> bool:
    with database.connect() as connection:
        query = select(inference_table).where(inference_table.c.databricks_request_id == name)
        row = connection.execute(query).mappings().first()
    return row is not None and all(row[key] == value for key, value in columns.items())


def test_what_no_database_takes_is_not_in_the_way_of_what_follows(journal: Journal) -> None:
    strange = {"total_tokens": 2**63, "client_request_id": "a\x00b", "thread_id": "\x00"}
    journal.append({"databricks_request_id": "odd", "request_time": 1, "endpoint_name": "x\x00", "task": "agent", **strange})
    journal.append({"databricks_request_id": "next", "request_time": 2, "endpoint_name": "x", "task": "chat", "status_code": 200})
    following, odd = journal.rows()
    assert (odd["total_tokens"], odd["client_request_id"], odd["endpoint_name"]) == (None, "a\ufffdb", "x\ufffd")
    assert following["status_code"] == 200
