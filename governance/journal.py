"""The durable record of every call: append-only frames, and the inference table they become.

A call is written twice: INTENT before its engine is called, COMPLETION before its last event leaves. Each is one frame
appended by one `os.write`, so that killing the process loses nothing that was acknowledged. A process writes to segment
files of its own, which it holds locked; whoever finds a segment unlocked knows that its writer is gone. Any process may
ingest: a segment's position moves in the transaction that stores the rows, by compare-and-swap.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson
from sqlalchemy import Engine, and_, or_, select

from governance import hourly, intake
from governance.commit import GroupCommit
from governance.frames import encode, iso, moment
from governance.ingester import Ingester
from governance.ingestion import Ingestion, lock, same_file
from governance.intake_sql import SqlStore
from governance.tables import create, inference_table

logger = logging.getLogger("smalti.journal")

_BUSY = 100  # frames between two rounds from which on a process of its own takes them in
_ALONE = 60.0  # seconds for which a thread does without a process that ended
_OLDEST = 3_600 * 10**9  # nanoseconds after which a segment is let go of, however small


_process = [os.getpid()]
"""This process's id, known without a system call for each frame."""
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: _process.__setitem__(0, os.getpid()))


class JournalError(Exception):
    """A frame could not be written; the call it belongs to must not go on."""


class Journal:
    """Writes frames, and turns them into rows of the inference table. Thread-safe; several processes may share a folder.

    Parameters
    ----------
    engine: the state database.
    folder: where segments are kept.
    interval: seconds between ingestions in the background, by a thread or, where there is much, by a process of its own; None
        for ingestion on demand only.
    segment_bytes: size at which a new segment is begun.
    pause: frames after which ingestion makes way for the threads that answer calls.
    fsync: whether `durable` waits until what was written is on the disk, so that a power failure loses nothing either. Calls
        that wait at the same time share one flush.
    """

    def __init__(
        self,
        engine: Engine,
        folder: Path,
        *,
        interval: float | None = 0.5,
        segment_bytes: int = 64 << 20,
        pause: int = intake.PAUSE,
        fsync: bool = False,
    ) -> None:
        create(engine)
        hourly.fill(engine)
        self._engine = engine
        self._folder = Path(folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._segment_bytes = segment_bytes
        self._lock = threading.Lock()
        self._fd: int | None = None
        self._name = ""
        self._size = 0
        self._written = 0  # frames since the last round of the background
        self._pid = _process[0]
        self._closed = False
        self.fsync = fsync
        self._commit = GroupCommit(self._flush) if fsync else None
        self._ingestion = Ingestion(_store(engine, pause), self._folder, pause=pause, fsync=fsync, own=lambda: self._name)
        self._helper: Ingester | None = None
        self._alone_until = 0.0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        if interval is not None:
            self._thread = threading.Thread(target=self._run, args=(interval,), name="smalti-journal", daemon=True)
            self._thread.start()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- writing ---

    def append(self, columns: Mapping[str, Any], *, secrets: Sequence[str] = ()) -> None:
        """Write one frame. `columns` are those of the inference table, payloads as `orjson.Fragment`, times as Unix nanoseconds.

        `secrets`, and whatever looks like one of our keys, are taken out. Raises `JournalError` when not all of it is written.
        """
        frame = encode(columns, secrets)
        with self._lock:
            try:
                if self._fd is None or self._size >= self._segment_bytes or self._pid != _process[0]:
                    self._begin()
                assert self._fd is not None
                written = os.write(self._fd, frame)
            except OSError as error:
                raise JournalError(f"the journal in {self._folder} cannot be written: {error.strerror or error}") from None
            if written != len(frame):
                self._cut()
                raise JournalError(f"the journal in {self._folder} took part of a record only: is the disk full?")
            self._size += written
            self._written += 1

    async def durable(self) -> None:
        """Returns once everything appended before is as safe as `fsync` says. Raises `JournalError` where that cannot be."""
        if self._commit is not None:
            try:
                await self._commit.wait()
            except OSError as error:
                raise JournalError(f"the journal in {self._folder} cannot be flushed: {error.strerror or error}") from None

    def _flush(self) -> None:
        with self._lock:
            fd = os.dup(self._fd) if self._fd is not None else None  # the writers go on meanwhile
        if fd is not None:
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

    def _begin(self) -> None:
        """Begin a segment: the old one is let go, which tells ingesters that it is complete."""
        if self._closed:
            raise OSError("it is closed")
        self._end()
        while True:
            name = f"{time.time_ns():020d}-{os.getpid()}-{secrets.token_hex(4)}.seg"
            path = self._folder / name
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o600)
            lock(fd, wait=True)
            if same_file(fd, path):  # an ingester may have found it empty and unlocked, and removed it
                break
            os.close(fd)
        self._fd, self._name, self._size, self._pid = fd, name, 0, _process[0]
        if self.fsync:
            _flush_folder(self._folder)

    def _end(self) -> None:
        fd, self._fd, self._name = self._fd, None, ""
        if fd is not None:
            try:
                if self.fsync and self._pid == _process[0]:
                    os.fsync(fd)
            finally:
                os.close(fd)

    def _turn(self) -> None:
        """Let a segment go that was begun long ago, so that rows which are deleted do not live on in it."""
        with self._lock:
            if self._name and self._pid == os.getpid() and abs(time.time_ns() - int(self._name[:20])) > _OLDEST:
                self._end()

    def _cut(self) -> None:
        """Take a half-written frame off; where that fails, leave it as the torn end of its segment."""
        assert self._fd is not None
        try:
            os.ftruncate(self._fd, self._size)
        except OSError:
            self._end()

    # --- ingesting ---

    def ingest(self) -> int:
        """Bring every whole frame into the inference table; gives the number of frames. Safe while others do the same."""
        return self._ingestion.run()

    def _run(self, interval: float) -> None:
        while True:
            self._turn()
            written, self._written = self._written, 0
            if self._helper is not None and not self._helper.alive:
                self._helper.close()
                self._helper, self._alone_until = None, time.monotonic() + _ALONE  # it would end again for the same reason
                logger.warning("the journal's process ended; a thread goes on with it for a while")
            helped = self._helper is not None or (written >= _BUSY and self._help(interval))
            if not helped and self._ingestion.run_quietly() >= _BUSY:
                self._help(interval)
            if self._stop.wait(interval):
                return

    def _help(self, interval: float) -> bool:
        """Have a process take over, where one can: reading frames beside the calls would slow each of them."""
        url = self._engine.url
        if url.database in (None, "", ":memory:") or "uri" in url.query or time.monotonic() < self._alone_until:
            return False
        try:
            self._helper = Ingester(url, self._folder, interval=interval, fsync=self.fsync)
        except OSError:
            logger.warning("no process can be started for the journal; a thread goes on with it", exc_info=True)
            self._alone_until = time.monotonic() + _ALONE
            return False
        return True

    # --- reading ---

    def rows(
        self,
        since: datetime | str | None = None,
        limit: int | None = None,
        endpoint: str | None = None,
        *,
        request_id: str | None = None,
        newest: bool = False,
    ) -> Iterator[dict[str, Any]]:
        """Rows of the inference table, everything written so far included; oldest first, or newest first.

        Parameters
        ----------
        since: only calls from this time on; a datetime or ISO 8601, UTC where it names no zone. `ValueError` if it is neither.
        limit: at most so many.
        endpoint: only calls of this endpoint or index.
        request_id: only this call.
        """
        self.ingest()
        table = inference_table.c
        where = []
        if since is not None:
            where.append(table.request_time >= iso(moment(since)))
        if endpoint is not None:
            where.append(table.endpoint_name == endpoint)
        if request_id is not None:
            where.append(table.databricks_request_id == request_id)
        order = (table.request_time, table.databricks_request_id)
        last: tuple[str, str] | None = None
        while limit is None or limit > 0:
            page = 500 if limit is None else min(500, limit)
            statement = select(inference_table).where(*where).limit(page)
            if last is not None:
                past = (order[0] < last[0], order[1] < last[1]) if newest else (order[0] > last[0], order[1] > last[1])
                statement = statement.where(or_(past[0], and_(order[0] == last[0], past[1])))
            statement = statement.order_by(*(column.desc() if newest else column for column in order))
            with self._engine.connect() as connection:
                found = connection.execute(statement).mappings().all()
            for row in found:
                value = dict(row)
                value["usage_context"] = orjson.loads(value["usage_context"]) if value["usage_context"] else {}
                value["guardrail_verdicts"] = orjson.loads(value["guardrail_verdicts"]) if value["guardrail_verdicts"] else []
                yield value
            if len(found) < page:
                return
            last = (found[-1]["request_time"], found[-1]["databricks_request_id"])
            if limit is not None:
                limit -= len(found)

    def close(self) -> None:
        """End the background work, let the segment go and ingest what is left. Appending afterwards fails."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=30)
            self._thread = None
        if self._helper is not None:
            self._helper.close()
        with self._lock:
            already, self._closed = self._closed, True
            self._end()
        if self._commit is not None:
            self._commit.close()
        if not already:
            try:
                self.ingest()
            except Exception:  # the frames stay in their segments, and the next start takes them in
                logger.warning("the journal could not be brought into the inference table at the end", exc_info=True)


def _flush_folder(folder: Path) -> None:
    """Put a folder's list of files on the disk."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _store(engine: Engine, pause: int) -> intake.Store:
    if engine.dialect.name == "postgresql":
        return SqlStore(engine)

    @contextlib.contextmanager
    def connect() -> Iterator[sqlite3.Connection]:
        held: Any = engine.raw_connection()
        try:
            yield held.driver_connection
        finally:
            held.close()  # back to the pool

    return intake.SqliteStore(connect, pause)
