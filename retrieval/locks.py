"""One at a time, of all threads and of all processes that share a database.

Where several processes share PostgreSQL a lock is one of its advisory locks, taken by a session of its own
(https://www.postgresql.org/docs/current/explicit-locking.html#ADVISORY-LOCKS): it ends with the process, however that ends. A
state folder with SQLite has one process, whose threads alone are to be told apart.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.engine import Engine

from retrieval.errors import RetrievalError

log = logging.getLogger("smalti.retrieval")

SYNC, COPY, ROWS = 5026, 5027, 5028
"""What is locked of an index, by its number: the sync of a folder, what Chroma's server is told, the sync of rows."""
WAIT = 0.1
"""Seconds between two tries to take what another process holds."""
_HELD = """SELECT objid::bigint FROM pg_locks WHERE locktype = 'advisory' AND classid = :kind AND objsubid = 2 AND granted
AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"""
_ALIVE = {"tcp_keepalives_idle": "20", "tcp_keepalives_interval": "10", "tcp_keepalives_count": "3"}
"""After how many seconds without a sign of life PostgreSQL takes the locks of a machine that is gone."""


class Locks:
    """The locks of one process. Thread-safe; not reentrant."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._shared = engine.dialect.name == "postgresql"
        self._free = threading.Condition()
        self._mine: set[tuple[int, int]] = set()
        self._asking = threading.Lock()
        self._session: Any = None
        self._closed = False

    def take(self, kind: int, number: int) -> bool:
        """Takes a lock; False where a thread or another process has it."""
        with self._free:
            if self._closed or (kind, number) in self._mine:
                return False
            self._mine.add((kind, number))
        try:
            if not self._shared or self._ask("pg_try_advisory_lock", kind, number):
                return True
        except BaseException:
            self._forget(kind, number)
            raise
        self._forget(kind, number)
        return False

    def leave(self, kind: int, number: int) -> None:
        """Gives a lock back."""
        try:
            if self._shared:
                self._ask("pg_advisory_unlock", kind, number)
        except exc.DBAPIError as error:  # the session is gone, and with it the lock
            log.warning("a lock was lost with its session: %s", type(error.orig).__name__)
        finally:
            self._forget(kind, number)

    @contextmanager
    def trying(self, kind: int, number: int) -> Iterator[bool]:
        """Whether the lock is had for the length of the block."""
        taken = self.take(kind, number)
        try:
            yield taken
        finally:
            if taken:
                self.leave(kind, number)

    @contextmanager
    def holding(self, kind: int, number: int) -> Iterator[None]:
        """The lock for the length of the block, waited for. Raises RetrievalError when the process stops meanwhile."""
        while not self.take(kind, number):
            with self._free:
                if self._closed:
                    raise RetrievalError("the server is stopping", 503, "TEMPORARILY_UNAVAILABLE")
                self._free.wait(WAIT)
        try:
            yield
        finally:
            self.leave(kind, number)

    def held(self, kind: int) -> set[int]:
        """What is locked now, by whomever."""
        with self._free:
            mine = {number for each, number in self._mine if each == kind}
        if not self._shared:
            return mine
        with self._engine.connect() as db:
            return mine | set(db.execute(sa.text(_HELD), {"kind": kind}).scalars())

    def close(self) -> None:
        """Gives all back; who waits is told so."""
        with self._free:
            self._closed = True
            self._free.notify_all()
        with self._asking:
            self._end()

    def _forget(self, kind: int, number: int) -> None:
        with self._free:
            self._mine.discard((kind, number))
            self._free.notify_all()

    def _ask(self, what: str, kind: int, number: int) -> bool:
        with self._asking:
            for again in (False, True):
                try:
                    taking = (kind, number) if what == "pg_try_advisory_lock" else None
                    session = self._session or self._open(taking)
                    asked = {"kind": kind, "number": number}
                    return bool(session.execute(sa.text(f"SELECT {what}(:kind, :number)"), asked).scalar())
                except exc.DBAPIError:  # the session broke, the database was started anew
                    self._end()
                    if again or what != "pg_try_advisory_lock":
                        raise
        raise AssertionError

    def _open(self, taking: tuple[int, int] | None) -> Any:
        """A session apart from those that read and write, with the locks that one before it had, but for one being taken."""
        apart = sa.create_engine(self._engine.url, poolclass=sa.pool.NullPool, isolation_level="AUTOCOMMIT")
        session = self._session = apart.connect()
        for name, value in _ALIVE.items():
            session.execute(sa.text("SELECT set_config(:name, :value, false)"), {"name": name, "value": value})
        with self._free:
            had = self._mine - {taking}
        for kind, number in had:
            session.execute(sa.text("SELECT pg_try_advisory_lock(:kind, :number)"), {"kind": kind, "number": number})
        return session

    def _end(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            with suppress(exc.SQLAlchemyError):
                session.close()
