"""Chroma on disk, kept equal to the record of truth: told what changed, and rebuilt when it is missing, older or damaged.

Only one process may own the folder: two writers of an embedded Chroma damage it. Whoever makes `Indexes` holds that lock.
A Chroma server, which several processes may share, is kept by `retrieval.shared_vectors`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from retrieval.chunk_reads import unpack
from retrieval.locks import COPY, Locks
from retrieval.store import Store

log = logging.getLogger("smalti.retrieval")

HNSW = {
    "space": "cosine",
    "ef_construction": 100,
    "ef_search": 400,
    "max_neighbors": 16,
    "batch_size": 1000,
    "sync_threshold": 5000,
}
ADD = 1000
"""Vectors of one call to Chroma."""


class Nearest(Protocol):
    """The vectors of all indexes, as a copy of the truth. Thread-safe."""

    def start(self) -> None:
        """Begins what goes on beside searches."""
        ...

    def open(self, index_id: int) -> Any:
        """Checks an index's copy, so that the first search need not."""
        ...

    def query(self, index_id: int, vector: np.ndarray, limit: int) -> list[tuple[str, float]] | None:
        """Nearest chunks: (id, cosine similarity), best first. May name chunks that the truth no longer has. None where there is
        no copy that can be asked: the truth is searched then."""
        ...

    def catch_up(self, index_id: int) -> None:
        """After something was noted that the copy must be told."""
        ...

    def drop(self, index_id: int) -> None:
        """Of an index that is dropped next."""
        ...

    def trouble(self, index_id: int) -> str:
        """Why a copy is not asked, "" where all is well."""
        ...

    def close(self) -> None: ...


class NoVectors:
    """No copy at all: of servers that share a database and no Chroma. Searches of any size read the truth's vectors."""

    def __init__(self, store: Store, locks: Locks) -> None:
        self._store, self._locks = store, locks

    def start(self) -> None:
        pass

    def open(self, index_id: int) -> None:
        pass

    def query(self, index_id: int, vector: np.ndarray, limit: int) -> None:
        return None

    def catch_up(self, index_id: int) -> None:
        """Drops the notes: nobody is told. Where a server does keep a copy, it may not be believed any more."""
        with self._locks.trying(COPY, index_id) as mine:
            if mine:
                self._store.forget_notes(index_id)

    def drop(self, index_id: int) -> None:
        pass

    def trouble(self, index_id: int) -> str:
        return ""

    def close(self) -> None:
        pass


class Vectors:
    """The vectors of all indexes. Opened when first used; thread-safe.

    Every index's collection carries an `epoch` (when it was built) and a `generation` (counted up with each change told to
    it). The database holds the same two; a copy restored from elsewhere, or lost writes, show as a difference.
    """

    def __init__(self, store: Store, folder: Path) -> None:
        self._store, self._folder = store, Path(folder)
        self._lock = threading.RLock()
        self._client: Any = None
        self._collections: dict[int, Any] = {}

    def start(self) -> None:
        pass

    def open(self, index_id: int) -> Any:
        """The index's collection, equal to the truth as of now."""
        with self._lock:
            found = self._collections.get(index_id)
            if found is not None:
                return found
            try:
                collection = self._verify(index_id)
            except BaseException as error:  # damage inside Chroma's native part is a panic, which is no Exception
                if not _damage(error):
                    raise
                self._discard(error)
                collection = self._verify(index_id)
            self._collections[index_id] = collection
            return collection

    def query(self, index_id: int, vector: np.ndarray, limit: int) -> list[tuple[str, float]]:
        """Nearest chunks: (id, cosine similarity), best first. May name chunks that the truth no longer has."""
        try:
            return nearest(self.open(index_id), vector, limit)
        except BaseException as error:
            if not _damage(error):
                raise
            with self._lock:
                self._discard(error)
                return nearest(self.open(index_id), vector, limit)

    def catch_up(self, index_id: int) -> None:
        """Tells Chroma what the truth noted since the last time."""
        with self._lock:
            collection = self.open(index_id)
            try:
                replay(self._store, index_id, collection)
            except BaseException as error:
                if not _damage(error):
                    raise
                self._discard(error)
                self.open(index_id)

    def drop(self, index_id: int) -> None:
        with self._lock:
            self._collections.pop(index_id, None)
            with contextlib.suppress(Exception):
                self._open_client().delete_collection(_name(index_id))

    def trouble(self, index_id: int) -> str:
        return ""

    def close(self) -> None:
        with self._lock:
            self._collections.clear()
            client, self._client = self._client, None
            if client is not None:
                client.close()

    def _open_client(self) -> Any:
        if self._client is None:
            # Chroma reads its telemetry's address at import; the setting alone comes too late for some of it.
            os.environ.setdefault("ANONYMIZED_TELEMETRY", "False")
            import chromadb
            from chromadb.config import Settings

            self._folder.mkdir(parents=True, exist_ok=True)
            self._client = chromadb.PersistentClient(str(self._folder), settings=Settings(anonymized_telemetry=False))
        return self._client

    def _verify(self, index_id: int) -> Any:
        """The collection if it is what the truth says, after replaying what it had not been told; else a new one."""
        from chromadb.errors import NotFoundError

        client = self._open_client()
        row = next((r for r in self._store.indexes() if r.id == index_id), None)
        assert row is not None, f"index {index_id} is not in the database"
        _, waiting = self._store.pending(index_id)
        try:
            collection = client.get_collection(_name(index_id), embedding_function=None)
        except (NotFoundError, ValueError):
            collection = None
        if collection is not None:
            if follows(collection, row.epoch, row.generation, bool(waiting)):
                replay(self._store, index_id, collection)
                if collection.count() == self._store.counts(index_id)[1]:
                    if collection.count():
                        nearest(collection, np.ones(384, np.float32), 1)  # loads the graph, and finds it damaged now, not later
                    return collection
            log.warning("Chroma's copy of index %s differs from the database: rebuilding it", row.name)
            client.delete_collection(_name(index_id))
        return self._build(index_id)

    def _build(self, index_id: int) -> Any:
        make = self._open_client().create_collection
        return build(self._store, index_id, os.urandom(8).hex(), lambda **given: make(_name(index_id), **given))

    def _discard(self, error: BaseException) -> None:
        """Throws the whole folder away: it holds nothing that the database does not."""
        log.warning("Chroma's folder %s is damaged (%r): rebuilding it from the database", self._folder, error)
        self._collections.clear()
        client, self._client = self._client, None
        if client is not None:
            with contextlib.suppress(Exception):
                client.close()
        from chromadb.api.shared_system_client import SharedSystemClient

        # A client that failed to start stays registered under its path and would be handed out again.
        SharedSystemClient._identifier_to_system.pop(str(self._folder), None)
        shutil.rmtree(self._folder, ignore_errors=True)
        if not self._folder.is_dir():  # a file or a broken link is in its place
            self._folder.unlink(missing_ok=True)


def build(
    store: Store,
    index_id: int,
    epoch: str,
    make: Callable[..., Any],
    stopped: Callable[[], bool] = lambda: False,
    **told: str,
) -> Any:
    """A new copy of an index; it is believed once it is whole. Gives None where it was stopped.

    Parameters
    ----------
    make: makes the collection, given what Chroma's `create_collection` takes besides the name.
    told: what its metadata says besides.
    """
    last = 0
    # What was noted before the copy began is in the copy.
    while True:
        up_to, _ = store.pending(index_id)
        if not up_to or up_to == last:
            break
        last = up_to
        store.told(index_id, up_to, "", 0)
    metadata = {"epoch": epoch, "generation": 0, **told}
    collection = make(embedding_function=None, metadata=metadata, configuration={"hnsw": HNSW})
    for ids, vectors in store.vectors(index_id):
        _upsert(collection, ids, vectors)
        if stopped():
            return None
    store.told(index_id, 0, epoch, 0)
    return collection


def follows(collection: Any, epoch: str, generation: int, waiting: bool) -> bool:
    """Whether a collection is the one that the truth knows of. `waiting` is whether there are notes that it must be told."""
    known = collection.metadata or {}
    # A crash between telling Chroma and noting so leaves Chroma one ahead, with the notes still there.
    return known.get("epoch") == epoch and known.get("generation") in {generation, generation + waiting}


def replay(store: Store, index_id: int, collection: Any) -> None:
    """Tells a collection what the truth noted since the last time."""
    while True:
        up_to, changes = store.pending(index_id)
        if not up_to:
            return
        known = collection.metadata
        gone = [key for key, vector in changes.items() if vector is None]
        kept = {key: vector for key, vector in changes.items() if vector is not None}
        if gone:
            collection.delete(ids=gone)
        _upsert(collection, list(kept), unpack(list(kept.values())) if kept else np.empty((0, 384), np.float32))
        generation = int(known["generation"]) + 1
        collection.modify(metadata={**known, "generation": generation})
        store.told(index_id, up_to, known["epoch"], generation)


def nearest(collection: Any, vector: np.ndarray, limit: int) -> list[tuple[str, float]]:
    """Nearest chunks of a collection: (id, cosine similarity), best first."""
    answer = collection.query(query_embeddings=[vector], n_results=limit, include=["distances"])
    return [(key, 1.0 - distance) for key, distance in zip(answer["ids"][0], answer["distances"][0], strict=True)]


def _upsert(collection: Any, ids: list[str], vectors: np.ndarray) -> None:
    for at in range(0, len(ids), ADD):
        collection.upsert(ids=ids[at : at + ADD], embeddings=vectors[at : at + ADD])


def _damage(error: BaseException) -> bool:
    if isinstance(error, (KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError, AssertionError, ImportError)):
        return False
    # Ours to report, not Chroma's: the database failed.
    return not type(error).__module__.startswith("sqlalchemy")


def _name(index_id: int) -> str:
    return f"index-{index_id}"
