"""Knowing within microseconds whether keys, grants or policies changed, in this process or in another.

What decides about a call is held in memory and must still be true on the next request. So each write bumps its topic's
counter in the same transaction, and each read first asks whether a counter moved. Beside an SQLite file lies a small one,
mapped into the memory of every process, that each writer rings once its transaction is done: a read compares eight bytes.
Whoever writes without ringing (a process that was killed in between) is noticed a moment later by `PRAGMA data_version` on a
connection of its own (https://www.sqlite.org/pragma.html#pragma_data_version). On another database a read is one short SELECT.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Engine, event, select, text, update

from governance import tables

_SETTLED = 0.05  # seconds for which a look is good while nobody rings
_SETTLED_REMOTE = 2e-3
_registry: weakref.WeakKeyDictionary[Engine, Changes] = weakref.WeakKeyDictionary()
_registry_lock = threading.Lock()


class Changes:
    """Change counters of one database. Get it with `Changes.of(engine)`, which makes one per engine. Thread-safe."""

    def __init__(self, engine: Engine) -> None:
        self._connection: sqlite3.Connection | None = None  # first: it is closed though the database fails below
        tables.create(engine)
        self._engine = weakref.ref(engine)
        self._lock = threading.Lock()
        self._file = _database_file(engine)
        self._data_version = -1
        self._versions: dict[str, int] = {}
        self._checked = 0.0
        self._settled = _SETTLED if self._file else _SETTLED_REMOTE
        self._bell = Bell(f"{self._file}-bell") if self._file else None
        self._heard: bytes | None = None
        event.listen(engine, "engine_disposed", self._on_dispose)

    @classmethod
    def of(cls, engine: Engine) -> Changes:
        with _registry_lock:
            found = _registry.get(engine)
            if found is None:
                found = _registry[engine] = cls(engine)
            return found

    @property
    def inline(self) -> bool:
        """Whether `versions` is fast enough for the event loop (an SQLite file), or belongs in a thread."""
        return self._file is not None

    def versions(self) -> Mapping[str, int]:
        """Counter of each topic, as of now."""
        now, rung = time.perf_counter(), self._bell.rung() if self._bell is not None else None
        if now - self._checked < self._settled and rung == self._heard:
            return self._versions
        with self._lock:
            if self._file is not None:
                (seen,) = self._sqlite().execute("PRAGMA data_version").fetchone()
                if seen != self._data_version:
                    self._versions = dict(self._sqlite().execute("SELECT topic, value FROM governance_changes").fetchall())
                    self._data_version = seen
            else:
                self._versions = dict(self._select("SELECT topic, value FROM governance_changes", {}))
            self._checked, self._heard = now, rung  # as they were before the look: what came during it is looked at again
            return self._versions

    def fetch(self, sql: str, parameters: Mapping[str, Any] | None = None) -> Sequence[tuple[Any, ...]]:
        """Rows of a SELECT with `:named` parameters, by the connection kept for this and never by the pool."""
        if self._file is None:
            return self._select(sql, parameters or {})
        with self._lock:
            return self._sqlite().execute(sql, dict(parameters or {})).fetchall()

    @contextlib.contextmanager
    def write(self, topic: str) -> Iterator[tuple[Connection, int]]:
        """A transaction that changes `topic`: gives the connection and the counter's new value.

        The counter is written first, so that writers of one topic come one after another in every database.
        """
        counter = tables.changes
        with self._require().begin() as connection:
            connection.execute(update(counter).where(counter.c.topic == topic).values(value=counter.c.value + 1))
            value = connection.execute(select(counter.c.value).where(counter.c.topic == topic)).scalar_one()
            yield connection, value
        self._checked = 0.0
        if self._bell is not None:
            self._bell.ring()

    def _select(self, sql: str, parameters: Mapping[str, Any]) -> Sequence[tuple[Any, ...]]:
        with self._require().connect() as connection:
            return [tuple(row) for row in connection.execute(text(sql), dict(parameters))]

    def _require(self) -> Engine:
        engine = self._engine()
        if engine is None:
            raise RuntimeError("the database engine of this governance state is gone")
        return engine

    def _sqlite(self) -> sqlite3.Connection:
        if self._connection is None:
            assert self._file is not None
            self._connection = sqlite3.connect(self._file, timeout=30.0, isolation_level=None, check_same_thread=False)
            self._connection.execute("PRAGMA query_only = ON")
            self._data_version = -1
        return self._connection

    def __del__(self) -> None:
        if self._connection is not None:
            self._connection.close()

    def _on_dispose(self, _engine: Engine) -> None:
        with self._lock:
            if self._connection is not None:
                self._connection.close()
            self._connection, self._data_version, self._checked = None, -1, 0.0


class Bell:
    """Eight bytes that processes share, different after each `ring`."""

    def __init__(self, path: str) -> None:
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if os.fstat(fd).st_size < 8:
                os.ftruncate(fd, 8)
            self._shared = mmap.mmap(fd, 8)
        finally:
            os.close(fd)

    def rung(self) -> bytes:
        return self._shared[:8]

    def ring(self) -> None:
        self._shared[:8] = os.urandom(8)


def _database_file(engine: Engine) -> str | None:
    url = engine.url
    if url.get_backend_name() != "sqlite" or url.database in (None, "", ":memory:") or "uri" in url.query:
        return None
    return url.database
