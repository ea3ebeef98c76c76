"""Word pieces of indexes that are not large, in memory: reading those of fifty rows takes a tenth of a search, and as often as
there are rows lets another thread of the interpreter go first.

A row's number is never given twice and its pieces never change, so nothing here can be out of date; what a search does not find
here it reads from the database. 4.8 kB for each hundred pieces.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
from sqlalchemy.engine import Connection

from retrieval.chunk_reads import BATCH, ChunkReads
from retrieval.memory import Snapshot

LARGE = 100_000
"""Rows above which an index's pieces stay in the database."""
MOST = 512 << 20
"""Bytes of pieces that are held of all indexes together; those of an index all or none."""


class HeldPieces:
    """The word pieces of the rows that searches see. Thread-safe."""

    def __init__(self, store: ChunkReads) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._held: dict[int, dict[int, bytes]] = {}
        self._seen: dict[int, np.ndarray] = {}
        """Numbers of the rows whose pieces were read, of each index."""
        self._size = 0

    def of(self, index_id: int, seqs: Sequence[int], db: Connection | None = None) -> Sequence[bytes] | None:
        """Word pieces of some rows; None where one has none: it was embedded without, or is gone."""
        held = self._held.get(index_id, {})
        found = [each for seq in seqs if (each := held.get(seq)) is not None]
        return found if len(found) == len(seqs) else self._store.pieces(seqs, db)

    def follow(self, index_id: int, rows: Snapshot) -> None:
        """Reads those of new rows, and forgets those of rows that are gone."""
        there = rows.seqs[rows.alive] if rows.live <= LARGE else np.empty(0, np.int64)
        with self._lock:
            held = self._held.setdefault(index_id, {})
            before = self._seen.get(index_id, np.empty(0, np.int64))
            gone = ~np.isin(before, there, assume_unique=True)
            for seq in before[gone].tolist():
                self._size -= len(held.pop(seq, b""))
            before = self._seen[index_id] = before[~gone]
            new = there[~np.isin(there, before, assume_unique=True)]
            for at in range(BATCH, len(new) + BATCH, BATCH):
                found = self._store.picked_pieces(new[at - BATCH : at].tolist())
                held.update(found)
                read = sum(map(len, found.values()))
                self._size += read
                self._seen[index_id] = np.concatenate((before, new[:at]))
                if self._size + read / BATCH * max(len(new) - at, 0) > MOST:  # a part of them would spare few reads
                    self._forget(index_id)
                    return

    def forget(self, index_id: int) -> None:
        """Of an index that is dropped."""
        with self._lock:
            self._forget(index_id)

    def _forget(self, index_id: int) -> None:
        self._size -= sum(map(len, self._held.pop(index_id, {}).values()))
        self._seen.pop(index_id, None)
