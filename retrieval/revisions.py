"""Knowing within a moment that another process changed an index.

Where several processes share a database, each transaction that changes an index raises its number, first of all: so they come
one after another. A thread looks at all numbers, and has what searches read brought up to date. An SQLite database has one
process, which knows what it does: nothing of this happens there.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.engine import Connection, Engine

from retrieval.tables import revisions

log = logging.getLogger("smalti.retrieval")

EVERY = 0.25
"""Seconds between two looks."""
CHUNKS, ROWS = "chunks", "rows"
"""What tells apart indexes of the same number: those over folders, those over rows."""

_c = revisions.c


def shared(engine: Engine) -> bool:
    """Whether other processes may change the indexes of a database."""
    return engine.dialect.name == "postgresql"


def raised(db: Connection, kind: str, index_id: int) -> None:
    """Begins a change of an index: comes first in its transaction."""
    if db.dialect.name == "postgresql":
        made = insert(revisions).values(name=f"{kind}-{index_id}", value=1)
        db.execute(made.on_conflict_do_update(index_elements=[_c.name], set_={"value": _c.value + 1}))


def dropped(db: Connection, kind: str, index_id: int) -> None:
    """Of an index that is dropped: comes first in its transaction."""
    if db.dialect.name == "postgresql":
        db.execute(sa.delete(revisions).where(_c.name == f"{kind}-{index_id}"))


class Revisions:
    """What a process has taken over.

    Parameters
    ----------
    changed: called, in a thread, with the kind and number of an index that another process changed, and whether it is gone.
    """

    def __init__(self, engine: Engine, changed: Callable[[str, int, bool], None]) -> None:
        self._engine, self._changed, self._shared = engine, changed, shared(engine)
        self._seen: dict[str, int] = {}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        if self._shared and self._thread is None:
            self._thread = threading.Thread(target=self._run, name="smalti-revisions", daemon=True)
            self._thread.start()

    @contextmanager
    def taking(self, kind: str, index_id: int) -> Iterator[None]:
        """Around what takes over an index's state: what was there when it began need not be taken over again."""
        name = f"{kind}-{index_id}"
        if not self._shared:
            yield
            return
        with self._engine.connect() as db:
            value = db.execute(sa.select(_c.value).where(_c.name == name)).scalar()
        yield
        if value is not None:
            self._seen[name] = value

    def look(self) -> None:
        """Has taken over what changed."""
        with self._engine.connect() as db:
            now: dict[str, int] = {row.name: row.value for row in db.execute(sa.select(_c.name, _c.value))}
        failed: Exception | None = None
        for name in [name for name in {**self._seen, **now} if self._seen.get(name) != now.get(name)]:
            kind, _, number = name.rpartition("-")
            try:
                self._changed(kind, int(number), name not in now)
            except Exception as error:  # the others are taken over all the same
                failed = error
                continue
            if name in now:
                self._seen[name] = now[name]
            else:
                self._seen.pop(name, None)
        if failed is not None:
            raise failed

    def close(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        failed = False
        while not self._stop.wait(EVERY):
            try:
                self.look()
                failed = False
            except Exception as error:  # of the database: told once, it is looked at again and again
                level = logging.DEBUG if failed else logging.WARNING
                log.log(level, "what other servers changed cannot be read (%s)", type(error).__name__)
                failed = True
