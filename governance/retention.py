"""What is deleted is gone: old rows of the inference table, and the bytes they were written in."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from sqlalchemy import Engine, delete, select

from governance.budgets import Budgets
from governance.frames import iso
from governance.journal import Journal
from governance.tables import inference_table

logger = logging.getLogger("smalti.journal")

_AT_ONCE = 1_000
_EVERY = 3_600.0
_BELIEVED = 86_400.0  # seconds that a clock which jumped ahead must stand so before anything is deleted by it


def _steady() -> float:
    """Seconds since the machine started, those asleep included where the system counts them."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


class Calendar:
    """The time by which things are deleted: a wrong clock must not delete what is young.

    Where the clock jumps ahead by more than an hour while the server runs, the time goes on as before until the clock has stood
    so for a day. Where it is put back, things are kept longer.

    Parameters
    ----------
    wall, steady: seconds since 1970, and by a clock that nobody sets.
    """

    def __init__(self, wall: Callable[[], float] = time.time, steady: Callable[[], float] = _steady) -> None:
        self._wall, self._steady = wall, steady
        self._told, self._at = wall(), steady()
        self._jumped: float | None = None

    def now(self) -> datetime:
        wall, steady = self._wall(), self._steady()
        expected = self._told + steady - self._at
        if wall > expected + _EVERY:
            if self._jumped is None:
                self._jumped = steady
                logger.warning(
                    "the clock jumped ahead by %.0f hours: nothing is deleted by it for a day", (wall - expected) / 3_600
                )
            if steady - self._jumped < _BELIEVED:
                return datetime.fromtimestamp(expected, UTC)
        self._told, self._at, self._jumped = wall, steady, None
        return datetime.fromtimestamp(wall, UTC)


def prune(engine: Engine, before: str) -> int:
    """Delete the rows of the inference table from before an ISO date or time, a thousand at a time; gives their number.

    SQLite overwrites what they held (https://sqlite.org/pragma.html#pragma_secure_delete), its write-ahead log included.
    """
    table, count, sqlite = inference_table.c, 0, engine.dialect.name == "sqlite"
    old = select(table.databricks_request_id).where(table.request_time < before).limit(_AT_ONCE)
    with engine.connect() as connection:
        if sqlite:
            connection.exec_driver_sql("PRAGMA secure_delete=ON")
            connection.commit()
        removed = _AT_ONCE
        while removed == _AT_ONCE:
            removed = connection.execute(delete(inference_table).where(table.databricks_request_id.in_(old))).rowcount
            connection.commit()
            count += removed
        if sqlite and count:
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    return count


def keep(engine: Engine, journal: Journal, days: float, now: datetime | None = None) -> int:
    """Delete what is older than so many days, and what was counted for budgets before; gives the number of rows."""
    before = iso((now or datetime.now(UTC)) - timedelta(days=days))
    journal.ingest()
    count = prune(engine, before)
    budgets = Budgets(engine)
    try:
        budgets.prune(before)
    finally:
        budgets.close()
    return count


async def keep_on(engine: Engine, journal: Journal, days: float) -> None:
    """Delete what has become too old, every hour, until cancelled."""
    calendar = Calendar()
    while True:
        try:
            if count := await asyncio.to_thread(keep, engine, journal, days, calendar.now()):
                logger.info("%d rows of the inference table were older than %g days and are deleted", count, days)
        except Exception:
            logger.warning("old rows of the inference table could not be deleted; trying again in an hour", exc_info=True)
        await asyncio.sleep(_EVERY)
