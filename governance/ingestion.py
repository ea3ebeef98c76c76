"""Segments of the journal are read and taken in, by any process that may read the folder.

A segment that is not locked has lost its writer: it is read to its end, torn or not, and removed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path

from governance import intake
from governance.frames import scan

try:
    import fcntl
except ImportError:  # without file locks, segments of ended processes are read but kept
    fcntl = None

logger = logging.getLogger("smalti.journal")

_BATCH = 1 << 20  # bytes of a segment that one transaction takes in


class Ingestion:
    """Brings frames into the inference table. Thread-safe; several processes may share a folder.

    Parameters
    ----------
    store: where the rows go.
    folder: where segments are kept.
    pause, fsync: as the journal's.
    own: the name of the segment that this process writes to now; "" where there is none.
    """

    def __init__(
        self, store: intake.Store, folder: Path, *, pause: int, fsync: bool = False, own: Callable[[], str] = lambda: ""
    ) -> None:
        self._store, self._folder, self._pause, self._fsync, self._own = store, folder, pause, fsync, own
        self._lock = threading.Lock()
        self._seen: dict[str, int] = {}
        self._troubled = False

    def run(self) -> int:
        """Bring every whole frame into the table; gives the number of frames. Safe while others do the same."""
        count = 0
        with self._lock:
            try:
                names = sorted(name for name in os.listdir(self._folder) if name.endswith(".seg"))
            except FileNotFoundError:
                return 0
            for name in names:
                count += self._segment(name)
            for gone in self._seen.keys() - set(names):
                del self._seen[gone]
        return count

    def run_quietly(self) -> int:
        """What `run` gives; 0 where it fails, and that is logged: the frames are safe in their segments."""
        try:
            count, self._troubled = self.run(), False
        except Exception:  # the next round tries again
            if not self._troubled:
                logger.warning("the journal could not be brought into the inference table yet; trying on", exc_info=True)
            count, self._troubled = 0, True
        return count

    def _segment(self, name: str) -> int:
        path, own, count = self._folder / name, name == self._own(), 0
        try:
            fd = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        except FileNotFoundError:
            return 0
        try:
            ended = not own and lock(fd, wait=False)
            if ended and not same_file(fd, path):
                return 0
            size = os.fstat(fd).st_size
            if ended and size == 0:  # its writer may be waiting for the lock; it sees that the file is gone and makes another
                os.unlink(path)
                return 0
            if not ended and self._seen.get(name, 0) == size:
                return 0
            position, window = self._store.position(name), _BATCH
            while position < size:
                os.lseek(fd, position, os.SEEK_SET)
                data = os.read(fd, min(window, size - position))
                bodies, consumed, skipped = scan(data, final=ended and position + len(data) >= size)
                if consumed == 0:
                    if position + len(data) >= size or not data:
                        break
                    window *= 2  # a frame longer than what was read
                    continue
                if skipped:
                    logger.warning("journal segment %s: passed over %d damaged or torn stretches", name, skipped)
                rows = intake.read(bodies, self._store.columns, self._pause)  # before the database is locked
                if self._store.take_in(name, position, position + consumed, rows, skipped):
                    position += consumed
                    count += len(bodies)
                    continue
                if not same_file(fd, path):
                    return count  # another process took all of it
                position = self._store.position(name)  # another took this stretch; what follows it is read here
            self._seen[name] = position
            # a segment goes once its rows survive what it would have survived
            if ended and position >= size and (not self._fsync or self._store.flushed()):
                os.unlink(path)
                self._store.forget(name)
        finally:
            os.close(fd)
        return count


def lock(fd: int, *, wait: bool) -> bool:
    """Take a segment's lock; False where another process has it, or none can be had."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def same_file(fd: int, path: Path) -> bool:
    """Whether a file that is open is still the one at its path."""
    with contextlib.suppress(FileNotFoundError):
        held, found = os.fstat(fd), os.stat(path)
        return (held.st_ino, held.st_dev) == (found.st_ino, found.st_dev)
    return False
