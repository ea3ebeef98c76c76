"""Passages of indexes over folders: their rows in memory, searched, read from the record of truth, joined."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from sqlalchemy.engine import Row

from retrieval import filters as filtering
from retrieval import search as searching
from retrieval import snapshots, words
from retrieval.chunks import ChunkFields, ChunkSource, passage
from retrieval.gather import merged
from retrieval.guard import FAILED, NOBODY, Groups, Guards, both
from retrieval.held_pieces import HeldPieces
from retrieval.late import Asked
from retrieval.memory import Memory, Snapshot
from retrieval.revisions import CHUNKS, Revisions
from retrieval.snapshots import Snapshots
from retrieval.store import Store
from retrieval.types import IndexInfo, Passage
from retrieval.vectors import Nearest

FILTERED = ("id", "document_id", "source", "folder", "title", "heading", "page", "start", "end")


def _commonest(rows: Snapshot) -> int:
    return next(iter(rows.languages), 0)


class Finder:
    """Searches indexes over folders, given as their rows of the database. Thread-safe; blocking."""

    def __init__(
        self, store: Store, vectors: Nearest, guards: Guards, dimension: int, snapshots: Snapshots, revisions: Revisions
    ) -> None:
        self._store, self._vectors, self._guards, self._dimension = store, vectors, guards, dimension
        self._snapshots, self._revisions = snapshots, revisions
        self._lock = threading.Lock()
        self._memories: dict[int, Memory] = {}
        self._pieces = HeldPieces(store)

    def find(
        self,
        row: Row[Any],
        query: str,
        asked: Asked | None,
        k: int,
        mode: str,
        filters: Mapping[str, Any] | str | None = None,
        groups: Groups = NOBODY,
        diversity: float = 0.0,
    ) -> list[Passage]:
        """The `k` best passages, see `Indexes.search`; `query` is tidy."""
        if not query:
            return []
        memory = self.memory(row.id)
        rows, hits, seqs, found = memory.snapshot(), [], [], {}
        for _ in range(3):
            rows = memory.snapshot()
            with self._store.reading() as db:
                search = partial(
                    searching.search,
                    rows,
                    query,
                    asked.vector if asked else None,
                    k,
                    mask=filtering.of(rows, filters, FILTERED) if filters else None,
                    seen=self._guards.mask(row.name, rows, groups, db),
                    nearest=lambda v, n: self._vectors.query(row.id, v, n),
                    diversity=diversity,
                    asked=asked,
                    pieces=lambda slots, rows=rows, db=db: self._pieces.of(row.id, rows.seqs[slots].tolist(), db),
                )
                worded = search("lexical") if mode == "hybrid" and words.foreign(query, _commonest(rows)) else []
                hits = [replace(hit, score=hit.score / worded[0].score) for hit in worded] or search(mode)
                seqs = rows.seqs[[hit.slot for hit in hits]].tolist()
                found = self._store.texts(seqs, db)
            if len(found) == len(hits):
                break
            memory.refresh()  # a document changed between the search and the reading of its passages
        return [passage(row.name, rows, hit, found[seq]) for hit, seq in zip(hits, seqs, strict=True) if seq in found]

    def warning(self, row: Row[Any], query: str, dense: bool) -> str:
        """Why vectors do not help to find it, "" where they do; `dense` is whether the index has this encoder's."""
        if not dense:
            return "The index was embedded by another encoder: its words alone were searched, until it is synced."
        if words.foreign(query, _commonest(self.memory(row.id).snapshot())):
            return "The encoder knows English: the question's words alone were searched, where they were found."
        return ""

    def merged(self, row: Row[Any], found: list[Passage]) -> list[Passage]:
        """Passages that follow each other as one, see `retrieval.gather`."""

        def between(first: Passage, second: Passage) -> str:
            document = self._store.document(row.id, row.name, first.document_id)
            # Of a document that was replaced meanwhile the offsets no longer hold: its passages stay apart.
            same = document is not None and document.text[first.start : first.end] == first.text
            return document.text[first.end : second.start] if document is not None and same else "replaced"

        return merged(found, between)

    def seen(self, index: str, rows: Snapshot, given: Mapping[str, Any] | str | None, groups: Groups) -> np.ndarray | None:
        """Rows that meet a filter and that the groups may see; None for all."""
        return both(filtering.of(rows, given, FILTERED) if given else None, self._guards.mask(index, rows, groups))

    def told(self, row: Row[Any], info: IndexInfo, groups: Groups) -> IndexInfo:
        """An index as it is told of to who may not see all its rows: how many they may, and nothing of the others."""
        rows = self.memory(row.id).snapshot()
        seen = self.seen(info.name, rows, None, groups)
        slots = np.flatnonzero(rows.alive if seen is None else rows.alive & seen).tolist()
        of = rows.fields.column("document_id")
        counts = {"documents": len({of[slot] for slot in slots}), "chunks": len(slots)}
        return replace(info, **counts, error=FAILED if info.error else "", skipped=(), report=None, revision="")

    def memory(self, index_id: int) -> Memory:
        """The index's rows; read when they are first asked for."""
        with self._lock:
            found = self._memories.get(index_id)
            if found is None:
                source = ChunkSource(self._store, index_id)
                kept, follow = self._snapshots.of(CHUNKS, index_id), partial(self._pieces.follow, index_id)
                found = self._memories[index_id] = Memory(source, self._dimension, fields=ChunkFields, kept=kept, follow=follow)
            return found

    def forget(self, index_id: int) -> None:
        """Of an index that is dropped."""
        self._snapshots.remove(CHUNKS, index_id)
        with self._lock:
            self._memories.pop(index_id, None)
        self._pieces.forget(index_id)

    def changed(self, index_id: int) -> None:
        """Takes over what was written, where searches read the index already or a file may hold what is gone now."""
        memory, kept = self.memory(index_id), self._snapshots.of(CHUNKS, index_id)
        if memory.loaded or (kept is not None and kept.there):
            with self._revisions.taking(CHUNKS, index_id):
                memory.refresh()

    def synced(self, index_id: int) -> None:
        """Reads what is large once it is whole, so that the first search need not and a snapshot is written."""
        memory, kept = self.memory(index_id), self._snapshots.of(CHUNKS, index_id)
        if kept is not None and not memory.loaded and self._store.counts(index_id)[1] >= snapshots.LEAST:
            memory.refresh()
