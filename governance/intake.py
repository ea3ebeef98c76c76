"""Frames' bodies become rows of the inference table, merged by call and counted by the hour, in one transaction with the position
up to which their segment was read.

What is here needs SQLite's driver alone, so that the journal's own process stays small; `governance.intake_sql` does the same by
SQLAlchemy, for PostgreSQL.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import lru_cache
from typing import Any, Protocol

import orjson

from governance import counts
from governance.frames import iso, storable

logger = logging.getLogger("smalti.journal")

_KEY = "databricks_request_id"
_JSON = frozenset(("request", "response", "usage_context", "guardrail_verdicts"))
"""Columns that hold JSON as text."""
PAUSE = 32
"""Frames, or rows, after which ingestion makes way for the threads that answer calls."""

_KNOWN = f"SELECT {', '.join(counts.READ)} FROM inference_table WHERE {_KEY} IN (SELECT value FROM json_each(?))"
_HOURLY = (
    f"INSERT INTO usage_hourly ({', '.join((*counts.KEYS, *counts.COUNTS))})"
    f" VALUES ({', '.join('?' * len((*counts.KEYS, *counts.COUNTS)))}) ON CONFLICT ({', '.join(counts.KEYS)}) DO UPDATE SET "
    + ", ".join(f"{name} = {name} + excluded.{name}" for name in counts.COUNTS)
)


class Store(Protocol):
    """Where rows go, and how far each segment was read."""

    columns: tuple[str, ...]
    """Of the inference table."""

    def position(self, name: str) -> int:
        """Bytes of a segment that are taken in."""
        ...

    def take_in(self, name: str, old: int, new: int, rows: Sequence[dict[str, Any]], skipped: int) -> bool:
        """Rows and a new position in one transaction; False, with nothing changed, where it is not at `old` any more."""
        ...

    def flushed(self) -> bool:
        """Whether the rows have reached the disk; asked for where a power failure must lose nothing."""
        ...

    def forget(self, name: str) -> None:
        """A segment is gone."""
        ...


class SqliteStore:
    """A `Store` in SQLite.

    Parameters
    ----------
    connect: gives a connection for as long as a `with` statement lasts; the tables are there already.
    pause: as the journal's.
    """

    def __init__(self, connect: Callable[[], AbstractContextManager[sqlite3.Connection]], pause: int = PAUSE) -> None:
        self._connect, self._pause = connect, pause
        with connect() as connection:
            self.columns = tuple(row[1] for row in connection.execute("PRAGMA table_info(inference_table)"))

    def position(self, name: str) -> int:
        with self._connect() as connection:
            found = connection.execute("SELECT position FROM journal_segments WHERE name = ?", (name,)).fetchone()
        return found[0] if found else 0

    def take_in(self, name: str, old: int, new: int, rows: Sequence[dict[str, Any]], skipped: int) -> bool:
        begin = "INSERT INTO journal_segments (name, position, skipped) VALUES (?, 0, 0) ON CONFLICT DO NOTHING"
        move = "UPDATE journal_segments SET position = ?, skipped = skipped + ? WHERE name = ? AND position = ?"
        with self._connect() as connection, connection:  # which commits, or rolls back
            # a write comes first, so that the transaction never has to grow from reading to writing
            connection.execute(begin, (name,))
            if connection.execute(move, (new, skipped, name, old)).rowcount != 1:
                return False
            merge(connection, rows, self._pause)
        return True

    def flushed(self) -> bool:
        with self._connect() as connection:
            (busy, *_) = connection.execute("PRAGMA wal_checkpoint(FULL)").fetchone()
        return not busy  # somebody reads: the next round tries again

    def forget(self, name: str) -> None:
        with self._connect() as connection, connection:
            connection.execute("DELETE FROM journal_segments WHERE name = ?", (name,))


def merge(connection: sqlite3.Connection, rows: Sequence[dict[str, Any]], pause: int = PAUSE) -> None:
    """Merge what `read` gave into the inference table and the hourly counts; later ones win."""
    if not rows:
        return
    identifiers = orjson.dumps([row[_KEY] for row in rows]).decode()
    found = connection.execute(_KNOWN, (identifiers,))  # one short statement, however many they are
    known: dict[str, dict[str, Any]] = {row[0]: dict(zip(counts.READ, row, strict=True)) for row in found}
    connection.executemany(_HOURLY, counts.added(rows, known))
    statement = _merging(tuple(rows[0]))
    values = [tuple(row.values()) for row in rows]
    for start in range(0, len(values), pause):
        connection.executemany(statement, values[start : start + pause])
        breathe()


@lru_cache(maxsize=4)
def _merging(columns: tuple[str, ...]) -> str:
    """The statement that lays a row over what is known of its call."""
    return (
        f"INSERT INTO inference_table ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"
        f" ON CONFLICT ({_KEY}) DO UPDATE SET "
        + ", ".join(f"{name} = coalesce(excluded.{name}, {name})" for name in columns if name != _KEY)
    )


def read(bodies: Sequence[bytes], columns: Sequence[str], pause: int = PAUSE) -> list[dict[str, Any]]:
    """One row a call, with all `columns`: what its frames say, put together, later ones over earlier ones."""
    empty: dict[str, Any] = dict.fromkeys(columns)
    rows: dict[str, dict[str, Any]] = {}
    for number, body in enumerate(bodies):
        if number % pause == 0:
            breathe()
        try:
            told = orjson.loads(body)
            request_id = told[_KEY]
        except (ValueError, KeyError, TypeError):
            logger.error("a journal frame of %d bytes is whole but says nothing readable; it is passed over", len(body))
            continue
        row = rows.get(request_id)
        if row is None:
            row = rows[request_id] = empty.copy()
        for name, value in told.items():
            if value is None or name not in row:
                continue
            if name in _JSON:
                row[name] = orjson.dumps(value).decode()
            elif type(value) is str:
                row[name] = value.replace("\x00", "\ufffd") if "\x00" in value else value
            elif name == "request_time" and isinstance(value, int):
                row[name] = iso(value)
            elif (kept := storable(value)) is not None:
                row[name] = kept
    return list(rows.values())


def breathe() -> None:
    """Let the threads that answer calls have the interpreter: otherwise each of their writes waits for a switch interval."""
    time.sleep(0.0001)
