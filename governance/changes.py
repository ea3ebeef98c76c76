"""Knowing within microseconds whether keys, grants or policies changed, in this process or in another.

What decides about a call is held in memory and must still be true on the next request. So each write bumps its topic's
counter in the same transaction, and each read first asks whether a counter moved. On an SQLite file that is one
`PRAGMA data_version` on a connection of its own (https://www.sqlite.org/pragma.html#pragma_data_version); on another
database it is one short SELECT.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Engine, event, select, text, update

from governance import tables

_SETTLED = 50e-6  # seconds for which one look is good: the three looks of one call become one
_SETTLED_REMOTE = 2e-3
_registry: weakref.WeakKeyDictionary[Engine, Changes] = weakref.WeakKeyDictionary()
_registry_lock = threading.Lock()


class Changes:
    """Change counters of one database. Get it with `Changes.of(engine)`, which makes one per engine. Thread-safe."""

    def __init__(self, engine: Engine) -> None:
        tables.create(engine)
        self._engine = weakref.ref(engine)
        self._lock = threading.Lock()
        self._file = _database_file(engine)
        self._connection: sqlite3.Connection | None = None
        self._data_version = -1
        self._versions: dict[str, int] = {}
        self._checked = 0.0
        self._settled = _SETTLED if self._file else _SETTLED_REMOTE
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
        now = time.perf_counter()
        if now - self._checked < self._settled:
            return self._versions
        with self._lock:
            if self._file is not None:
                (seen,) = self._sqlite().execute("PRAGMA data_version").fetchone()
                if seen != self._data_version:
                    self._versions = dict(self._sqlite().execute("SELECT topic, value FROM governance_changes").fetchall())
                    self._data_version = seen
            else:
                self._versions = dict(self._select("SELECT topic, value FROM governance_changes", {}))
            self._checked = now
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


def _database_file(engine: Engine) -> str | None:
    url = engine.url
    if url.get_backend_name() != "sqlite" or url.database in (None, "", ":memory:") or "uri" in url.query:
        return None
    return url.database
