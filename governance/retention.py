"""What is deleted is gone: old rows of the inference table, and the bytes they were written in."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime, timedelta

from sqlalchemy import Engine, delete, select

from governance.budgets import Budgets
from governance.frames import iso
from governance.journal import Journal
from governance.tables import inference_table

logger = logging.getLogger("smalti.journal")

_AT_ONCE = 1_000
_EVERY = 3_600.0


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


def keep(engine: Engine, journal: Journal, days: float) -> int:
    """Delete what is older than so many days, and what was counted for budgets before; gives the number of rows."""
    before = iso(datetime.now(UTC) - timedelta(days=days))
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
    while True:
        try:
            if count := await asyncio.to_thread(keep, engine, journal, days):
                logger.info("%d rows of the inference table were older than %g days and are deleted", count, days)
        except Exception:
            logger.warning("old rows of the inference table could not be deleted; trying again in an hour", exc_info=True)
        await asyncio.sleep(_EVERY)
