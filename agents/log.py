"""The event log of runs: append-only, `(run, seq)`, what a client is sent and what steps were taken, in order.

An event is committed before anyone is told of it, so that a stream which is dropped, or whose server is killed, can be gone
on with from the last event that was read. Appends of all runs share a transaction where they come together.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, delete, func, insert, select, update

from agents.tables import metadata, run_events, run_hosts, runs

KEEP = 30 * 86_400.0
"""Seconds for which the events of a run are kept."""

TIDY = 400
"""Commits after which SQLite's write-ahead log is copied into the database, beside the next commits. SQLite would do it within
one of them (https://sqlite.org/wal.html#ckpt): that one, and the events of all runs with it, would wait for the disk."""

RUNNING = "in_progress"


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A run in the log. Times are Unix seconds; `status` is `in_progress` or that of the Response it ended with."""

    id: str
    owner: str
    agent: str
    thread_id: str | None
    status: str
    created: float
    updated: float


Entry = tuple[str, bytes]
"""An event's type and its data as JSON."""


class RunLog:
    """The log in the database. Blocking, but for `append`.

    `host` is this server among those that share the database.
    """

    def __init__(self, engine: Engine, host: str = "") -> None:
        self._engine, self._host = engine, host
        metadata.create_all(engine)
        self._pending: list[tuple[list[dict[str, Any]], dict[str, Any] | None, asyncio.Future[None]]] = []
        self._writing: asyncio.Task[None] | None = None
        self._tidying: asyncio.Task[None] | None = None
        self._commits = 0

    def begin(self, run_id: str, *, owner: str, agent: str, thread_id: str | None) -> RunRecord:
        now = time.time()
        record = RunRecord(run_id, owner, agent, thread_id, RUNNING, now, now)
        fields = {"id": run_id, "owner": owner, "agent": agent, "thread_id": thread_id, "status": RUNNING}
        with self._engine.begin() as connection:
            connection.execute(insert(runs).values(**fields, created=now, updated=now))
            connection.execute(insert(run_hosts).values(run_id=run_id, host=self._host))
        return record

    async def append(self, run_id: str, seq: int, entries: Sequence[Entry], *, status: str | None = None) -> None:
        """Commit entries from `seq` on, and with them how the run ended, if it did."""
        rows = [{"run_id": run_id, "seq": seq + i, "type": kind, "data": data} for i, (kind, data) in enumerate(entries)]
        end = {"id": run_id, "status": status} if status else None
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pending.append((rows, end, done))
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write())
        await asyncio.shield(done)

    async def _write(self) -> None:
        while self._pending:
            batch, self._pending = self._pending, []
            try:
                rows = [row for rows, *_ in batch for row in rows]
                await asyncio.to_thread(self._insert, rows, [end for _, end, _ in batch if end])
            except Exception as error:
                for *_, done in batch:
                    if not done.done():
                        done.set_exception(error)
            else:
                for *_, done in batch:
                    if not done.done():
                        done.set_result(None)
                self._commits += 1
                if self._commits >= TIDY and (self._tidying is None or self._tidying.done()):
                    self._commits, self._tidying = 0, asyncio.create_task(asyncio.to_thread(self._tidy))

    def _tidy(self) -> None:
        if self._engine.dialect.name == "sqlite":
            with self._engine.connect() as connection:
                connection.exec_driver_sql("PRAGMA wal_checkpoint(PASSIVE)")

    def _insert(self, rows: list[dict[str, Any]], ends: list[dict[str, Any]]) -> None:
        with self._engine.begin() as connection:
            if rows:
                connection.execute(insert(run_events), rows)
            for end in ends:
                connection.execute(update(runs).where(runs.c.id == end["id"]).values(status=end["status"], updated=time.time()))
                connection.execute(delete(run_hosts).where(run_hosts.c.run_id == end["id"]))

    def find(self, run_id: str, owner: str) -> RunRecord | None:
        """The owner's run."""
        with self._engine.connect() as connection:
            row = connection.execute(select(runs).where(runs.c.id == run_id, runs.c.owner == owner)).first()
        return RunRecord(*row) if row else None

    def of_thread(self, thread_id: str, owner: str, limit: int = 100) -> list[RunRecord]:
        """The owner's runs on a thread, the last first."""
        query = select(runs).where(runs.c.thread_id == thread_id, runs.c.owner == owner).order_by(runs.c.created.desc())
        with self._engine.connect() as connection:
            return [RunRecord(*row) for row in connection.execute(query.limit(limit))]

    def read(self, run_id: str, after: int = -1) -> list[tuple[int, str, bytes]]:
        """(seq, type, data) of a run's events after `after`."""
        columns = (run_events.c.seq, run_events.c.type, run_events.c.data)
        query = select(*columns).where(run_events.c.run_id == run_id, run_events.c.seq > after).order_by(run_events.c.seq)
        with self._engine.connect() as connection:
            return [(row.seq, row.type, row.data) for row in connection.execute(query)]

    def unfinished(self) -> list[RunRecord]:
        """Runs that are noted as going on here; at a start, those that were killed."""
        elsewhere = select(run_hosts.c.run_id).where(run_hosts.c.host != self._host)
        with self._engine.connect() as connection:
            going_on = select(runs).where(runs.c.status == RUNNING, runs.c.id.not_in(elsewhere))
            return [RunRecord(*row) for row in connection.execute(going_on)]

    def next_seq(self, run_id: str) -> int:
        with self._engine.connect() as connection:
            last = connection.execute(select(func.max(run_events.c.seq)).where(run_events.c.run_id == run_id)).scalar()
        return 0 if last is None else last + 1

    def delete(self, run_id: str) -> None:
        with self._engine.begin() as connection:
            connection.execute(delete(run_events).where(run_events.c.run_id == run_id))
            connection.execute(delete(run_hosts).where(run_hosts.c.run_id == run_id))
            connection.execute(delete(runs).where(runs.c.id == run_id))

    def forget(self, before: float) -> int:
        """Remove runs that ended before a time, and tell how many."""
        old = select(runs.c.id).where(runs.c.updated < before, runs.c.status != RUNNING)
        with self._engine.begin() as connection:
            connection.execute(delete(run_events).where(run_events.c.run_id.in_(old)))
            return connection.execute(delete(runs).where(runs.c.updated < before, runs.c.status != RUNNING)).rowcount
