"""A Chroma server, kept equal to the record of truth by whichever of the processes that share it comes first.

A thread of each process tells the server what the database notes for it, verifies collections, and builds those that are
missing, older or damaged: one process at a time for an index (`retrieval.locks`). A collection is named by the epoch it was
built in, which the database names once it is whole: nobody sees a half of one. It also names the database that made it, so that
what another made is not touched, also where this one began as a copy of that.
Searches ask only what was verified a moment ago, and read the database for what is not told yet; where the server fails they
read vectors in memory.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import exc
from sqlalchemy.engine import Engine, Row

from retrieval import vectors as copies
from retrieval.chroma_server import ChromaError, ChromaServer, Collections, damaged
from retrieval.locks import COPY, Locks
from retrieval.store import Store, digest

log = logging.getLogger("smalti.retrieval")

EVERY = 1.0
"""Seconds between two looks at what there is to tell; a sync's own process looks at once."""
VERIFIED = 10.0
"""Seconds for which a collection is believed to be what it was; after three times as long without a look none is asked."""
ASKING, TELLING = 2.0, 30.0
"""Seconds within which a search's request must be answered, and one that tells it something."""
RETRY, LONGEST = 2.0, 120.0
"""Seconds until a server that failed is asked again, at first and at most."""
UNTOLD = 2000
"""Chunks that are not told yet, above which memory is searched instead."""


@dataclass(frozen=True)
class _Copy:
    """A collection that was verified; `asked` is the same for searches."""

    epoch: str
    collection: Any
    asked: Any
    at: float


class SharedVectors:
    """The vectors of all indexes on a Chroma server, see `retrieval.vectors.Nearest`.

    Parameters
    ----------
    store: the truth.
    server: it need not run.
    locks: of the database.
    """

    def __init__(self, store: Store, server: ChromaServer, locks: Locks) -> None:
        self._store, self._server, self._locks = store, server, locks
        self._owner = ""
        self._known: dict[int, _Copy] = {}
        self._api: tuple[Collections, Collections] | None = None
        self._lock = threading.Lock()
        self._wake, self._stop = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._error, self._down, self._failed_at, self._pause = "", False, 0.0, RETRY
        self._building: int | None = None
        self._wrong: dict[int, str] = {}
        """Why an index's copy cannot be made, though the server is there."""

    def start(self) -> None:
        self._look_soon()

    def open(self, index_id: int) -> None:
        self._look_soon()

    def catch_up(self, index_id: int) -> None:
        """What was noted is told in the background: a sync does not wait for the server, nor fails with it."""
        self._look_soon()

    def drop(self, index_id: int) -> None:
        """Its collections go once the database no longer knows the index."""
        self._known.pop(index_id, None)

    def trouble(self, index_id: int) -> str:
        if self._error:
            return f"{self._error}; until then searches read vectors in memory"
        return self._wrong.get(index_id, "")

    def query(self, index_id: int, vector: np.ndarray, limit: int) -> list[tuple[str, float]] | None:
        copy = self._known.get(index_id)
        if copy is None or self._down or time.monotonic() - copy.at > 3 * VERIFIED:
            self._look_soon()
            return None
        # First what is not told, then what was: in between it may be.
        epoch, noted = self._store.noted(index_id, UNTOLD + 1)
        if epoch != copy.epoch or len(noted) > UNTOLD:
            self._look_soon()
            return None
        try:
            found = copies.nearest(copy.asked, vector, limit + len(noted))
        except Exception as error:
            self._known.pop(index_id, None)
            if not damaged(error):
                self._fail(self._server.told(error))
            self._look_soon()
            return None
        return found + [(key, 0.0) for key in set(noted) - {key for key, _ in found}]

    def close(self) -> None:
        self._stop.set()
        self._wake.set()
        with self._lock:
            thread = self._thread
        if thread is not None:
            thread.join(2 * TELLING)
        for api in self._api or ():
            api.close()

    # The thread

    def _look_soon(self) -> None:
        with self._lock:
            if self._thread is None and not self._stop.is_set():
                self._thread = threading.Thread(target=self._run, name="smalti-chroma", daemon=True)
                self._thread.start()
        self._wake.set()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._look()
            except Exception as error:
                self._fail(self._reason(error))
            else:
                self._well()
            if self._down:  # who wakes this cannot make it answer
                self._stop.wait(self._pause)
                self._pause = min(2 * self._pause, LONGEST)
            else:
                self._wake.wait(EVERY)
            self._wake.clear()

    def _reason(self, error: Exception) -> str:
        """What is wrong with the server, or else what was wrong with the request."""
        try:
            self._server.check()
        except ChromaError as known:
            return known.message
        return self._server.told(error)

    def _fail(self, said: str) -> None:
        """Searches go on without the server. Why is told once, not with every try."""
        if said != self._error:
            log.warning("%s; until then searches read vectors in memory", said)
        self._error, self._down, self._failed_at = said, True, time.monotonic()

    def _well(self) -> None:
        if self._down:
            log.warning("Chroma at %s answers again", self._server.url)
        elif time.monotonic() - self._failed_at > LONGEST:  # one that fails now and then is asked ever less often
            self._pause = RETRY
        self._error, self._down = "", False

    def _look(self) -> None:
        telling, _ = self._apis()
        if self._down:
            self._server.check()
            self._known.clear()
        unsaid, rows = self._store.unsaid(), self._store.indexes()
        for row in rows:
            if self._stop.is_set():
                return
            if row.id == self._building:
                continue
            known = self._known.get(row.id)
            fresh = known is not None and known.epoch == row.epoch and time.monotonic() - known.at < VERIFIED
            if row.id in unsaid or not fresh:
                self._keep(row.id, full=known is None or known.epoch != row.epoch)
        here = {row.id for row in rows}
        for gone in self._known.keys() - here:
            self._known.pop(gone, None)
        for epoch, index_id in self._store.stale_copies():
            self._remove(epoch, index_id, telling)

    def _apis(self) -> tuple[Collections, Collections]:
        if self._api is None:
            self._owner = identity(self._store.engine)
            self._server.check()
            self._api = self._server.connect(TELLING), self._server.connect(ASKING)
        return self._api

    def _keep(self, index_id: int, *, full: bool) -> None:
        """Verifies, tells or builds an index's copy; where another process does so, sees whether there is one to read."""
        with self._locks.trying(COPY, index_id) as mine:
            row = self._row(index_id)
            if row is None:
                return
            collection = self._mended(row, full) if mine else self._readable(row)
            epoch = (collection.metadata or {}).get("epoch") if collection is not None else None
        asked = self._apis()[1].get(_name(epoch)) if epoch else None
        if asked is None:
            self._known.pop(index_id, None)
        else:
            self._known[index_id] = _Copy(epoch or "", collection, asked, time.monotonic())
            self._wrong.pop(index_id, None)

    def _row(self, index_id: int) -> Row[Any] | None:
        return next((row for row in self._store.indexes() if row.id == index_id), None)

    def _readable(self, row: Row[Any]) -> Any | None:
        """The collection that the truth names, which another process may be telling something."""
        found = self._own(row)
        known = (found.metadata or {}) if found is not None else {}
        return found if known.get("epoch") == row.epoch and int(known.get("generation", -1)) >= row.generation else None

    def _own(self, row: Row[Any]) -> Any | None:
        found = self._apis()[0].get(_name(row.epoch)) if row.epoch else None
        return found if found is not None and (found.metadata or {}).get("owner") == self._owner else None

    def _mended(self, row: Row[Any], full: bool) -> Any | None:
        """The collection as the truth has it, built anew where it is not; None where that was stopped. While locked."""
        try:
            found = self._verified(row, full)
        except Exception as error:
            if not damaged(error):
                raise
            log.warning("Chroma's copy of index %s is damaged (%s)", row.name, self._server.told(error))
            found = None
        if found is not None:
            return found
        if self._building is not None:  # it comes next
            return None
        if row.epoch:
            log.warning("Chroma's copy of index %s is missing, or not what the database says: building it anew", row.name)
        epoch = os.urandom(16).hex()
        self._store.copy_begun(epoch, row.id)
        self._wrong[row.id] = f"Chroma's copy of index {row.name} is being built: vectors are read in memory until it is whole"
        telling, self._building, looked = self._apis()[0], row.id, time.monotonic()

        def stopped() -> bool:
            nonlocal looked
            if time.monotonic() - looked > EVERY:  # a large one takes long: the others are kept meanwhile
                self._look()
                looked = time.monotonic()
            return self._stop.is_set()

        try:
            make = lambda **given: telling.create(_name(epoch), **given)  # noqa: E731
            made = copies.build(self._store, row.id, epoch, make, stopped, owner=self._owner)
            if made is not None:
                copies.replay(self._store, row.id, made)
            return made
        finally:
            self._building = None

    def _verified(self, row: Row[Any], full: bool) -> Any | None:
        found = self._own(row)
        _, waiting = self._store.pending(row.id)
        if found is None or not copies.follows(found, row.epoch, row.generation, bool(waiting)):
            return None
        copies.replay(self._store, row.id, found)
        for _ in range(3 if full else 0):
            count = found.count()
            chunks = self._store.settled(row.id)
            if chunks is None:  # something came meanwhile
                copies.replay(self._store, row.id, found)
            elif chunks != count:
                return None
            else:
                if count:
                    copies.nearest(found, np.ones(384, np.float32), 1)  # finds its graph damaged now, not with a search
                break
        return found

    def _remove(self, epoch: str, index_id: int, telling: Collections) -> None:
        """What was built and is not, or no longer, an index's copy; not while another process may be building it."""
        with self._locks.trying(COPY, index_id) as mine:
            if mine and (epoch, index_id) in self._store.stale_copies(index_id):
                found = telling.get(_name(epoch))
                if found is not None and (found.metadata or {}).get("owner") == self._owner:
                    telling.delete(_name(epoch))
                self._store.copy_gone(epoch)


def identity(engine: Engine) -> str:
    """What tells a database from another, and from one that was made as a copy of it."""
    if engine.dialect.name != "postgresql":
        return digest(socket.gethostname(), str(Path(engine.url.database or "").absolute()))
    with engine.connect() as db:
        own = str(db.exec_driver_sql("SELECT oid FROM pg_database WHERE datname = current_database()").scalar())
        try:
            return digest(own, str(db.exec_driver_sql("SELECT system_identifier FROM pg_control_system()").scalar()))
        except exc.ProgrammingError:  # not everybody may ask everywhere
            return digest(own, engine.url.database or "")


def _name(epoch: str) -> str:
    return f"smalti-{epoch}"
