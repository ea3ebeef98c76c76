from __future__ import annotations

import time
from pathlib import Path

import pytest

from governance import journal as journal_module
from governance.journal import Journal
from governance.retention import Calendar, keep, prune

from .conftest import House, answering

pytestmark = pytest.mark.anyio


def bytes_of(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("size", [10, 50_000])
async def test_deleted_means_deleted(house: House, size: int) -> None:
    """Of a deleted row no byte is left in the database, its log or the journal; of one that stays all is."""
    for word in ("goes-", "stays-"):
        for number in range(6):
            await house.gateway.invoke(house.call(payload={"input": f"{word}{number} " + "x" * size}), answering)
        if word == "goes-":
            house.journal.ingest()
            house.journal._end()  # as the background does with an old segment
    assert b"goes-3" in bytes_of(house.home)
    assert prune(house.identity._engine, house.rows()[6]["request_time"]) == 6
    left = bytes_of(house.home)
    assert b"goes-" not in left
    assert b"stays-5" in left
    assert len(house.rows()) == 6


async def test_what_is_too_old_goes_and_the_rest_stays(house: House) -> None:
    await house.gateway.invoke(house.call(), answering)
    engine = house.identity._engine
    assert keep(engine, house.journal, 1) == 0
    assert keep(engine, house.journal, 1e-9) == 1
    assert house.rows() == []


def test_a_segment_is_let_go_of_in_time(house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "_OLDEST", 1)
    row = {"request_time": 1, "endpoint_name": "x", "task": "chat", "status_code": 200}
    with Journal(house.identity._engine, tmp_path / "other", interval=0.01) as journal:
        journal.append({"databricks_request_id": "a", **row})
        deadline = time.monotonic() + 60
        while list((tmp_path / "other").glob("*.seg")) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert list((tmp_path / "other").glob("*.seg")) == []
        journal.append({"databricks_request_id": "b", **row})
        assert {each["databricks_request_id"] for each in journal.rows()} == {"a", "b"}


async def test_a_clock_that_jumps_ahead_deletes_nothing_until_it_has_stood_so_for_a_day(house: House) -> None:
    await house.gateway.invoke(house.call(), answering)
    wall, steady, hour = [time.time()], [100.0], 3_600.0
    calendar = Calendar(lambda: wall[0], lambda: steady[0])

    def later(hours: float, jump: float = 0.0) -> float:
        """Hours by which the calendar is behind the clock, so much later."""
        wall[0] += (hours + jump) * hour
        steady[0] += hours * hour
        return round((wall[0] - calendar.now().timestamp()) / hour, 3)

    engine = house.identity._engine
    assert later(1) == 0
    assert later(1, jump=24 * 365) == 24 * 365  # a year ahead by mistake
    assert keep(engine, house.journal, 30, calendar.now()) == 0
    assert later(20) == 24 * 365
    assert later(1, jump=-24 * 365) == 0  # and put right
    assert later(1, jump=-24 * 365) == 0  # put back: what is there is kept longer
    assert keep(engine, house.journal, 30, calendar.now()) == 0
    assert later(1, jump=24 * 365) == 24 * 365  # put right again, which is believed when it has stood for a day
    assert later(23) == 24 * 365
    assert later(1.5) == 0
    assert len(house.rows()) == 1
