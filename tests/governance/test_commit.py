"""Power failures: what was acknowledged is on the disk, and calls that end together share a flush."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from governance.call import Call, CallError, Event
from governance.commit import GroupCommit
from governance.journal import Journal
from tests.governance.conftest import House

pytestmark = pytest.mark.anyio


@pytest.fixture
def durable(house: House, database: Engine, tmp_path: Path) -> Iterator[House]:
    house.gateway.journal = Journal(database, tmp_path / "durable", interval=None, fsync=True)
    yield house
    house.gateway.journal.close()


async def engine(call: Call) -> AsyncIterator[Event]:
    yield Event("response.completed", {"response": {"output": []}})


async def test_what_was_acknowledged_survives_a_power_failure(
    durable: House, database: Engine, tmp_path: Path, monkeypatch: Any
) -> None:
    """Only what was flushed is kept of each file; the end of it is torn besides."""
    flushed: dict[int, int] = {}
    count = [0]
    real = os.fsync

    def fsync(fd: int) -> None:
        size, inode = os.fstat(fd).st_size, os.fstat(fd).st_ino
        real(fd)
        count[0] += 1
        flushed[inode] = max(size, flushed.get(inode, 0))

    monkeypatch.setattr(os, "fsync", fsync)
    acknowledged: list[str] = []

    async def one(number: int) -> None:
        call = durable.call("wrong") if number % 10 == 0 else durable.call()
        with contextlib.suppress(CallError):  # the wrong key
            await durable.gateway.invoke(call, engine)
        acknowledged.append(call.request_id)

    await asyncio.gather(*(one(number) for number in range(100)))
    assert count[0] < 100  # 190 frames and as many waits
    after = tmp_path / "after"
    after.mkdir()
    for segment in (tmp_path / "durable").iterdir():
        kept = segment.read_bytes()[: flushed[segment.stat().st_ino]]
        (after / segment.name).write_bytes(kept + b"\xf5SM1\x10\x00\x00\x00torn")
    with Journal(database, after, interval=None) as found:
        rows = {row["databricks_request_id"]: row["status_code"] for row in found.rows()}
    assert {rows.get(request) for request in acknowledged} == {200, 401}


async def test_a_disk_that_cannot_be_flushed_lets_nothing_pass(durable: House, monkeypatch: Any) -> None:
    def broken(fd: int) -> None:
        raise OSError(5, "Input/output error")

    ran: list[Call] = []

    async def watched(call: Call) -> AsyncIterator[Event]:
        ran.append(call)
        yield Event("response.completed", {"response": {"output": []}})

    await durable.gateway.invoke(durable.call(), watched)
    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(CallError, match="cannot be recorded") as caught:
        await durable.gateway.invoke(durable.call(), watched)
    assert caught.value.status == 503
    assert len(ran) == 1
    monkeypatch.undo()
    await durable.gateway.invoke(durable.call(), watched)


def test_segments_go_only_when_their_rows_are_as_safe(database: Engine, tmp_path: Path) -> None:
    journal = Journal(database, tmp_path / "j", interval=None, fsync=True, segment_bytes=1)
    for name in ("a", "b"):
        row = {"databricks_request_id": name, "request_time": 1, "status_code": 200}
        journal.append({**row, "endpoint_name": "e", "task": "chat"})
    journal.close()
    assert list((tmp_path / "j").iterdir()) == []
    with Journal(database, tmp_path / "j", interval=None) as again:
        assert len(list(again.rows())) == 2


async def test_nobody_waits_for_a_flush_that_never_comes() -> None:
    commit = GroupCommit(lambda: None)
    await commit.wait()
    commit.close()
    with pytest.raises(OSError, match="closed"):
        await commit.wait()
