"""Indexes: made, synced, searched, read, dropped."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy.engine import Engine, Row

from retrieval import passages
from retrieval import search as searching
from retrieval.chroma_server import ChromaServer
from retrieval.chunk import Chunking
from retrieval.chunk_reads import folder_of
from retrieval.embed import Encoder
from retrieval.errors import AlreadyExists, BadRequest, NotFound, RetrievalError, SourceError
from retrieval.find import FILTERED, Finder
from retrieval.guard import NOBODY, Groups, Guards
from retrieval.locks import SYNC, Locks
from retrieval.passages import MAX_K
from retrieval.revisions import CHUNKS, ROWS, Revisions, shared
from retrieval.rows import facets
from retrieval.rows.indexes import RowIndexes
from retrieval.rows.rerank import BUILT_IN, Rerank, blend
from retrieval.rows.write import Embed
from retrieval.shared_vectors import SharedVectors
from retrieval.snapshots import Snapshots
from retrieval.store import Store
from retrieval.sync import Progress, Sync
from retrieval.types import Document, IndexInfo, Passage, Skipped, SyncReport
from retrieval.vectors import Nearest, NoVectors, Vectors
from retrieval.worker import Workers

log = logging.getLogger("smalti.retrieval")


class Indexes:
    """All indexes of a state folder.

    The database is the record of truth; Chroma, in `chroma_folder` or on a server, is rebuilt from it. Of SQLite only one
    process at a time may search or sync (Chroma's folder has one owner): hold the state folder's lock. Reading `get`, `list`,
    `document` and `rows` beside it is safe. PostgreSQL may have several processes, each with folders of its own; they have no
    Chroma but a server. Chroma is opened when it is first needed.

    Parameters
    ----------
    engine: where the tables are; SQLite or PostgreSQL.
    chroma_folder: made when missing; nothing in it is worth a backup.
    encoder: embeds chunks and questions. An index built by another one is searched by words alone until its next sync.
    snapshot_folder: where large indexes are written as searches hold them, see `retrieval.snapshots`; None for nowhere.
    chroma: a server in the place of `chroma_folder`, which other processes and databases may use as well.
    """

    def __init__(
        self,
        engine: Engine,
        chroma_folder: Path,
        encoder: Encoder,
        snapshot_folder: Path | None = None,
        chroma: ChromaServer | None = None,
    ) -> None:
        self.encoder = encoder
        self._store = Store(engine)
        self._locks = Locks(engine)
        self._revisions = Revisions(engine, self._changed)
        self._vectors = self._copy(Path(chroma_folder), chroma)
        self._workers = Workers()
        self.guards = Guards(engine)
        """Which rows of an index a caller's groups may see."""
        self._snapshots = Snapshots(engine, snapshot_folder)
        self._finder = Finder(self._store, self._vectors, self.guards, encoder.dimension, self._snapshots, self._revisions)
        self.over_rows = RowIndexes(
            engine,
            self.guards,
            folder_rows=self.rows,
            folder_stamp=self._stamp,
            snapshots=self._snapshots,
            locks=self._locks,
            revisions=self._revisions,
        )
        """Direct Access and Delta Sync indexes, and their endpoints."""
        self.embed_with: Embed | None = None
        """How an embeddings endpoint is called, through the gateway; the application sets it."""
        self.rerank_with: Rerank | None = None
        """How an endpoint that reranks is called, through the gateway; the application sets it."""

    def start(self) -> None:
        """Begins what goes on beside searches where other processes use the database: taking over what they change, keeping the
        copy on a Chroma server. Without it an index is searched as it is when it is first read."""
        self._snapshots.tidy(CHUNKS, {row.id for row in self._store.indexes()})
        self._snapshots.tidy(ROWS, {index.id for index in self.over_rows.list()})
        self._revisions.start()
        self._vectors.start()

    def add(self, name: str, path: Path, chunking: Chunking | None = None) -> IndexInfo:
        """Declares an index over a folder or a file; `sync` fills it. Of an existing index the path is replaced.

        Parameters
        ----------
        name: up to three levels of letters, digits and `_`: `docs` is `main.default.docs`.
        chunking: how documents are cut; None leaves that of an existing index, another one has it cut anew by its next sync.

        Raises
        ------
        BadRequest: not such a name.
        SourceError: the path does not exist.
        """
        full = full_name(name)
        place = Path(path).expanduser().absolute()
        if not place.exists():
            raise SourceError(f"{place} does not exist: give the folder or file that holds the documents")
        if self.over_rows.find(full) is not None:
            raise AlreadyExists(f"index {full} exists already, over rows: choose another name, or drop it")
        self._store.add_index(full, str(place), self.encoder.fingerprint, chunking)
        return self.get(full)

    def sync(self, name: str, progress: Callable[[Progress], None] | None = None) -> SyncReport:
        """Brings an index up to date with its folder. A second sync of the same index waits for the first, in any process.

        Raises
        ------
        NotFound: no such index.
        SourceError: its folder is missing, or nothing in it can be indexed; what was skipped, and why, is in `get(name).skipped`.
        """
        row = self._row(name)
        with self._locks.holding(SYNC, row.id):
            row = self._row(name)  # it may have been dropped while this one waited
            changed = partial(self._finder.changed, row.id)
            run = Sync(self._store, self._vectors, self.encoder, self._workers, row.id, row.name, progress, changed)
            try:
                report = run.run(Path(row.path))
            except Exception as error:
                known = isinstance(error, RetrievalError)
                self._store.set_error(row.id, error.message if known else f"sync failed ({type(error).__name__}): see the log")
                raise
            self._finder.synced(row.id)
            return report

    def sync_quietly(self, name: str) -> None:
        """`sync` for a background thread: a failure is logged, and kept in `get(name).error`."""
        try:
            self.sync(name)
        except RetrievalError as error:
            log.warning("sync of %s: %s", name, error)
        except Exception:
            log.exception("sync of %s failed", name)

    def open(self) -> None:
        """Reads every index and checks Chroma against the truth, so that the first search need not."""
        for row in self._store.indexes():
            self._vectors.open(row.id)
            self._finder.memory(row.id).refresh()

    def search(
        self,
        name: str,
        query: str,
        *,
        k: int = 5,
        mode: str = "hybrid",
        filters: Mapping[str, Any] | str | None = None,
        groups: Groups = NOBODY,
        diversity: float = 0.0,
    ) -> list[Passage]:
        """The `k` best passages for `query`, best first; [] for a question without words. Of an index over a folder.

        Parameters
        ----------
        filters: over the columns in `FILTERED`: see `retrieval.filters`; a string is SQL.
        groups: of who asks; what they may see is what is found, where the index has a rule (`guards`).
        diversity: 0 to 1: how much passages unlike those before them are preferred to higher scores.

        Raises
        ------
        NotFound: no such index.
        BadRequest: `k` is not in 1 to 1000, or `mode` is not hybrid, dense or lexical.
        """
        _check(k, mode)
        row, query = self._row(name), searching.tidy(query)
        asked = self.encoder.ask(query) if query and self._dense(row) else None
        return self._finder.find(row, query, asked, k, mode, filters, groups, diversity)

    async def asearch(
        self,
        name: str,
        query: str,
        *,
        k: int = 5,
        mode: str = "hybrid",
        filters: Mapping[str, Any] | str | None = None,
        groups: Groups = NOBODY,
        diversity: float = 0.0,
        merge: bool = False,
    ) -> list[Passage]:
        """`search` off the event loop, of indexes over rows too; questions that arrive together are embedded together.

        `merge` joins passages that follow each other, see `retrieval.gather.merged`.
        """
        _check(k, mode)
        full = full_name(name)
        row = await asyncio.to_thread(self._over_folder, full)
        if row is None:
            return await self.over_rows.passages(full, query, k, mode, filters, self.embed, groups, diversity)
        query = searching.tidy(query)
        asked = await self.encoder.aask(query) if query and self._dense(row) else None

        def find() -> list[Passage]:
            found = self._finder.find(row, query, asked, k, mode, filters, groups, diversity)
            return self._finder.merged(row, found) if merge and len(found) > 1 else found

        return await asyncio.to_thread(find)

    async def answer(self, name: str, asked: Mapping[str, Any], groups: Groups = NOBODY) -> dict[str, Any]:
        """A query or scan as `retrieval.ask` made it of a request, for a caller in `groups`."""
        full = full_name(name)
        over_rows = await asyncio.to_thread(self.over_rows.find, full) is not None
        if asked["op"] == "query":
            if over_rows:
                return await self.over_rows.query(full, asked, self.embed, self.rerank, groups)
            return await passages.query(self, full, asked, groups)
        scan = self.over_rows.scan if over_rows else self._scan
        return await asyncio.to_thread(scan, full, asked["count"], asked["after"], groups)

    async def rerank(self, model: str, query: str, texts: Sequence[str]) -> np.ndarray:
        """How well each text answers: by the reranker that is always there, or by an endpoint through `rerank_with`."""
        if model != BUILT_IN:
            if self.rerank_with is None:
                raise NotFound(f"endpoint {model!r} does not exist: {BUILT_IN!r} is the reranker that is always there")
            return await self.rerank_with(model, query, texts)
        vectors = await self.encoder.aembed([query, *texts])
        return await asyncio.to_thread(blend, query, texts, vectors[1:] @ vectors[0])

    def facets(self, name: str, asked: Mapping[str, Any], groups: Groups = NOBODY) -> list[list[Any]]:
        """The facets of a query over an index of a folder. Blocking."""
        row = self._row(name)
        rows = self._finder.memory(row.id).snapshot()
        seen = self._finder.seen(row.name, rows, asked.get("filters"), groups)
        return facets.count(rows, rows.alive if seen is None else rows.alive & seen, facets.parse(asked["facets"]), FILTERED)

    async def embed(self, endpoint: str, texts: Sequence[str], caller: Any) -> np.ndarray:
        """Vectors by an embeddings endpoint: the encoder here by its own name, every other through `embed_with`."""
        if endpoint == self.encoder.name.lower():
            return await self.encoder.aembed(texts)
        if self.embed_with is None:
            raise NotFound(f"embeddings endpoint {endpoint!r} does not exist: {self.encoder.name.lower()!r} does")
        return await self.embed_with(endpoint, texts, caller)

    def warning(self, name: str, query: str) -> str:
        """Why vectors do not help to answer a question to an index over a folder, "" where they do. Blocking. Raises NotFound."""
        row = self._row(name)
        return self._finder.warning(row, searching.tidy(query), self._dense(row))

    def _scan(self, name: str, count: int, after: str | None, groups: Groups) -> dict[str, Any]:
        row = self._row(name)
        rows = self._finder.memory(row.id).snapshot()
        seen = self._finder.seen(row.name, rows, None, groups)
        slots = np.flatnonzero(rows.alive if seen is None else rows.alive & seen)
        if after is not None:
            at = rows.slot_of().get(after)
            if at is None or (seen is not None and not seen[at]):
                raise BadRequest("field 'last_primary_key' must be a primary key of the index")
            slots = slots[slots > at]
        keys = [rows.keys[slot] for slot in slots[:count]]
        found = self._store.passages(row.name, keys)
        data = [_columns(found[key]) for key in keys if key in found]
        return {"data": data, "last_primary_key": keys[-1] if keys else None}

    def document(self, name: str, document_id: str, groups: Groups = NOBODY) -> Document:
        """A stored document, its text as indexed; of an index over rows a row's text, by its key.

        Raises NotFound, also where `groups` may not see it.
        """
        full = full_name(name)
        if self.over_rows.find(full) is not None:
            return self.over_rows.document(full, document_id, groups)
        row = self._row(full)
        found = self._store.document(row.id, row.name, document_id)
        if found is None or not self.guards.admits(row.name, {"folder": folder_of(found.source)}, groups):
            raise NotFound(f"index {row.name} has no document {document_id!r}: it may have been deleted or replaced")
        return found

    def passage(self, name: str, passage_id: str, groups: Groups = NOBODY) -> Passage:
        """A stored passage, without scores. Raises NotFound."""
        row = self._row(name)
        found = self._store.passages(row.name, [passage_id]).get(passage_id)
        if found is None or not self.guards.admits(row.name, {"folder": folder_of(found.source)}, groups):
            raise NotFound(f"index {row.name} has no passage {passage_id!r}: its document may have changed")
        return found

    def get(self, name: str) -> IndexInfo:
        """Raises NotFound."""
        return self._info(self._row(name), self._locks.held(SYNC))

    def list(self) -> list[IndexInfo]:
        syncing = self._locks.held(SYNC)
        return [self._info(row, syncing) for row in self._store.indexes()]

    def told(self, info: IndexInfo, groups: Groups) -> IndexInfo:
        """An index as it is told of to `groups`, who may see some of its rows alone where it has a rule (`guards`)."""
        return info if self.guards.open(info.name, groups) else self._finder.told(self._row(info.name), info, groups)

    def trouble(self) -> str:
        """What is wrong with the vector store, of the first index that is searched without it; "" where nothing is."""
        return next((said for row in self._store.indexes() if (said := self._vectors.trouble(row.id))), "")

    def drop(self, name: str) -> None:
        """Removes an index from every structure; its folder is not touched. Raises NotFound."""
        row = self._row(name)
        with self._locks.holding(SYNC, row.id):
            self._finder.forget(row.id)
            self._vectors.drop(row.id)
            self._store.drop_index(row.id)
            self._finder.forget(row.id)

    def rows(self, name: str) -> Iterator[dict[str, Any]]:
        """All passages by source and place: id, document_id, source, title, heading, text, start, end, page."""
        row = self._row(name)
        for each in self._store.rows(row.id, row.name):
            yield _columns(each)

    def close(self) -> None:
        """Closes Chroma, ends the converters, writes snapshots that wait for it. The engine and the encoder stay open."""
        self._revisions.close()
        self._vectors.close()
        self._workers.close()
        self._snapshots.close()
        self._locks.close()

    def _copy(self, folder: Path, chroma: ChromaServer | None) -> Nearest:
        if chroma is not None:
            return SharedVectors(self._store, chroma, self._locks)
        # A folder's Chroma has one owner, of whom the database alone cannot tell whether there is a second.
        return NoVectors(self._store, self._locks) if shared(self._store.engine) else Vectors(self._store, folder)

    def _changed(self, kind: str, index_id: int, gone: bool) -> None:
        """Of an index that another process changed or dropped."""
        if kind == ROWS:
            rows = self.over_rows.store
            (rows.forget if gone else rows.changed)(index_id)
        else:
            (self._finder.forget if gone else self._finder.changed)(index_id)

    def _row(self, name: str) -> Row[Any]:
        full = full_name(name)
        row = self._store.index(full)
        if row is None:
            raise NotFound(f"index {full} does not exist: `smalti index add {full.rsplit('.', 1)[1]} FOLDER` makes it")
        return row

    def _over_folder(self, full: str) -> Row[Any] | None:
        """An index over a folder; None for one over rows. Raises NotFound."""
        row = self._store.index(full)
        return self._row(full) if row is None and self.over_rows.find(full) is None else row

    def _info(self, row: Row[Any], syncing: set[int]) -> IndexInfo:
        documents, chunks = self._store.counts(row.id)
        status = "SYNCING" if row.id in syncing else "ONLINE" if row.synced_at else "NOT_SYNCED"
        report = None
        if row.report:
            values = json.loads(row.report)
            report = SyncReport(**{**values, "skipped": tuple(Skipped(**s) for s in values["skipped"])})
        skipped = tuple(Skipped(s.source, s.reason) for s in self._store.skipped(row.id))
        times = row.created_at, row.synced_at
        held = f"{self._store.last(row.id)}-{chunks}"
        told = skipped, report, row.error, held, asdict(self._store.chunking(row.id)), self._vectors.trouble(row.id)
        return IndexInfo(row.name, row.path, status, documents, chunks, row.encoder, *times, *told)

    def _stamp(self, name: str) -> float | None:
        row = self._store.index(name)
        return None if row is None else row.synced_at or 0.0

    def _dense(self, row: Row[Any]) -> bool:
        return row.encoder == self.encoder.fingerprint


def _check(k: int, mode: str) -> None:
    if not 1 <= k <= MAX_K:
        raise BadRequest(f"k must be between 1 and {MAX_K}, not {k}")
    if mode not in searching.MODES:
        raise BadRequest(f"mode must be one of {', '.join(searching.MODES)}, not {mode!r}")


def _columns(passage: Passage) -> dict[str, Any]:
    values = passage.to_dict()
    for score in ("index", "score", "similarity", "lexical"):
        del values[score]
    return values


def full_name(name: str) -> str:
    """`docs` -> `main.default.docs`. Raises BadRequest for what cannot be an index's name."""
    parts = name.split(".")
    if len(parts) > 3 or not all(re.fullmatch(r"[A-Za-z0-9_]{1,100}", part) for part in parts):
        raise BadRequest(f"{name!r} is not an index name: use letters, digits and _, in up to three levels, as main.default.docs")
    return ".".join(("main", "default", "")[: 3 - len(parts)] + tuple(parts)) if len(parts) < 3 else name
