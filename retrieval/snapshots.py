"""Snapshots that outlive the process: written beside the database when an index rests, read at the start, never believed alone.

The database names the file that it was last told of and the hashes of what is in it, so whatever else lies in the folder is
thrown away: what is torn, damaged, of another database or of a later state than the one that was restored. Numbers of rows
are never given twice, so a file is of a state that the database has had, and `Memory` reads what changed since.

Nothing of a deleted row stays: as soon as searches no longer see a row that is in the file, the file goes, and the next one is
written without it.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from retrieval import snapshot_file
from retrieval.fields import Fields
from retrieval.memory import Snapshot
from retrieval.tables import snapshots

log = logging.getLogger("smalti.retrieval")

LEAST = 20_000
"""Rows from which a snapshot is written: fewer are read from the database in a second."""
GROWN = 0.05
"""Share of rows that are not in the file at which it is written anew."""
QUIET, LONGEST = 30.0, 600.0
"""Seconds without a change after which it is written, and the longest that it waits for them."""
SPACING = 20
"""How many times the time that a writing took passes before the next: what changes all the time is not written all the time."""
RETRY = 600.0
"""Seconds after a failure until it is tried again."""
KEPT = 8
"""Files of an index that the database remembers: each server on it has one."""


class Snapshots:
    """The files of a folder. With None for it there are none.

    Parameters
    ----------
    engine: where it is told which are believed.
    folder: made when the first is written, for its owner's eyes only; nothing in it is worth a backup. One process at a time
        may have it: hold the state folder's lock.
    """

    def __init__(self, engine: Engine, folder: Path | None) -> None:
        self._engine, self._folder = engine, folder
        self._lock = threading.Lock()
        self._kept: dict[str, SnapshotOf] = {}

    def of(self, kind: str, index_id: int) -> SnapshotOf | None:
        """That of one index; `kind` tells apart indexes of the same number."""
        if self._folder is None:
            return None
        name = f"{kind}-{index_id}"
        with self._lock:
            return self._kept.setdefault(name, SnapshotOf(self._engine, self._folder, name))

    def remove(self, kind: str, index_id: int) -> None:
        """Of an index that is dropped."""
        found = self.of(kind, index_id)
        if found is not None:
            found.remove()
            with self._lock:
                self._kept.pop(f"{kind}-{index_id}", None)

    def tidy(self, kind: str, there: set[int]) -> None:
        """Removes files of indexes that are not there: another process dropped them while none had the folder."""
        for path in self._folder.glob(f"{kind}-*.*") if self._folder is not None else ():
            number = path.name.removeprefix(f"{kind}-").partition(".")[0]
            if number.isdecimal() and int(number) not in there:
                path.unlink(missing_ok=True)

    def close(self) -> None:
        """Writes what waits to be written."""
        with self._lock:
            kept, self._kept = list(self._kept.values()), {}
        for each in kept:
            each.close()


class SnapshotOf:
    """The file of one index, for `retrieval.memory`. Thread-safe."""

    def __init__(self, engine: Engine, folder: Path, name: str) -> None:
        self._engine, self._folder, self._name = engine, folder, name
        self._changed = threading.Condition()
        self._path: Path | None = None
        self._rows = 0
        self._wanted: Snapshot | None = None
        """What is to be written."""
        self._since = self._due = self._not_before = self._retry = 0.0
        self._lost = 0
        """How often rows went: what is being written meanwhile must not stay."""
        self._thread: threading.Thread | None = None
        self._closing = self._removed = False

    @property
    def there(self) -> bool:
        """Whether there is a file, good or not."""
        return bool(self._files())

    def read(self, dimension: int, fields: Fields) -> Snapshot | None:
        """The snapshot that the database was told of; None where there is none. Every other file of the index goes."""
        found = None
        with self._changed:
            self._path = None
            self._lost += 1
        for path in self._files():
            layout = None if path.suffix == ".tmp" or found is not None else self._layout(path.name)
            try:
                if layout is None:
                    path.unlink(missing_ok=True)
                    continue
                found = snapshot_file.read(path, layout, dimension, fields)
                with self._changed:
                    self._path, self._rows = path, found.size
            except Exception as error:
                log.warning("%s is not used, its rows are read from the database: %s", path, error)
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)
        return found

    def follow(self, before: Snapshot | None, now: Snapshot) -> None:
        """Told of each state that searches see: what no longer holds goes, what is missing is written when the index rests."""
        if now is before:
            return
        with self._changed:
            if before is not None and _lost(before, now):
                self._drop()
            if self._removed or self._closing:
                return
            if now.live < LEAST or self._fits(now):
                self._wanted = None
                return
            at = time.monotonic()
            self._since = self._since if self._wanted is not None else at
            self._wanted, self._due = now, max(min(at + QUIET, self._since + LONGEST), self._not_before, self._retry)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=f"smalti-snapshot-{self._name}", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def remove(self) -> None:
        """Of an index that is dropped: nothing of it stays, and nothing is written any more."""
        with self._changed:
            self._removed = True
            self._wanted = None
            self._drop()
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join()
        for path in self._files():
            path.unlink(missing_ok=True)
        with self._engine.begin() as db:
            db.execute(sa.delete(snapshots).where(snapshots.c.name == self._name))

    def close(self) -> None:
        """Writes at once what waits to be written."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                while self._wanted is not None and not self._closing and (left := self._due - time.monotonic()) > 0:
                    self._changed.wait(left)
                wanted, self._wanted, lost = self._wanted, None, self._lost
                if wanted is None or (self._closing and time.monotonic() < self._retry):
                    self._thread = None
                    return
            if not self._fits(wanted):
                self._write(wanted, lost)
            del wanted  # while it waits no state is held that searches no longer see

    def _write(self, rows: Snapshot, lost: int) -> None:
        began = time.monotonic()
        name = f"{self._name}.{os.urandom(8).hex()}"
        path, made = self._folder / name, self._folder / f"{name}.tmp"
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if shutil.disk_usage(self._folder).free < 2 * snapshot_file.size_of(rows):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            stopped = lambda: self._lost != lost  # noqa: E731
            layout = snapshot_file.write(made, rows, stopped, sync=lambda: not (self._closing or stopped()))
            self._tell(name, layout)
            with self._changed:
                if self._lost != lost:
                    raise snapshot_file.Stopped
                made.replace(path)
                old, self._path, self._rows, self._retry = self._path, path, rows.live, 0.0
                if old is not None:
                    old.unlink(missing_ok=True)
        except snapshot_file.Stopped:
            pass
        except Exception as error:  # of the disk or the database: nothing depends on it
            level = logging.DEBUG if self._retry else logging.WARNING  # told once, not every ten minutes
            log.log(level, "the snapshot of index %s is not written, its next start reads the database: %s", self._name, error)
            with self._changed:
                self._retry = time.monotonic() + RETRY
                if self._wanted is None and self._lost == lost:
                    self._wanted, self._since, self._due = rows, began, self._retry
        finally:
            with contextlib.suppress(OSError):
                made.unlink(missing_ok=True)
        done = time.monotonic()
        self._not_before = done + SPACING * (done - began)

    def _fits(self, rows: Snapshot) -> bool:
        """Whether the file holds enough of a state."""
        return self._path is not None and rows.live <= self._rows * (1 + GROWN)

    def _drop(self) -> None:
        """While the lock is held. The database may go on naming the file: it is never made again."""
        self._lost += 1
        path, self._path = self._path, None
        if path is not None:
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                log.error("%s holds deleted rows and cannot be removed: %s", path, error)

    def _files(self) -> list[Path]:
        with contextlib.suppress(OSError):
            return sorted(self._folder.glob(f"{self._name}.*"))
        return []

    def _layout(self, file: str) -> str | None:
        with self._engine.connect() as db:
            return db.execute(sa.select(snapshots.c.layout).where(snapshots.c.file == file)).scalar()

    def _tell(self, file: str, layout: str) -> None:
        c = snapshots.c
        with self._engine.begin() as db:
            db.execute(sa.insert(snapshots).values(file=file, name=self._name, layout=layout, created_at=time.time()))
            newest = sa.select(c.file).where(c.name == self._name).order_by(c.created_at.desc()).limit(KEPT)
            db.execute(sa.delete(snapshots).where(c.name == self._name, c.file.not_in(newest)))


def _lost(before: Snapshot, now: Snapshot) -> bool:
    """Whether a row is gone that searches saw before."""
    if not np.array_equal(now.seqs[: before.size], before.seqs):  # it was built anew
        return True
    return bool((before.alive & ~now.alive[: before.size]).any())
