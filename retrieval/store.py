"""The record of truth: indexes, documents with their chunks, what was skipped, what Chroma has yet to be told."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine, Row

from retrieval.chunk import Chunk, Chunking
from retrieval.chunk_reads import BATCH, ChunkReads, Embedded, one_state
from retrieval.revisions import CHUNKS, dropped, raised
from retrieval.tables import chunkings, chunks, copies, documents, indexes, metadata, pending, pieces, skipped, terms
from retrieval.types import Document, SyncReport


@dataclass(frozen=True, slots=True)
class Stored:
    """A document as the last sync left it."""

    id: str
    source: str
    sha256: str
    size: int
    mtime_ns: int
    versions: str
    note: str


@dataclass(frozen=True, slots=True)
class Prepared:
    """A document about to be written, its chunks' ids, contexts and content hashes beside them."""

    document: Document
    size: int
    mtime_ns: int
    versions: str
    note: str
    chunks: Sequence[Chunk]
    ids: Sequence[str]
    contexts: Sequence[str]
    contents: Sequence[str]
    terms: Sequence[bytes]


def digest(*parts: str) -> str:
    return hashlib.blake2b("\x00".join(parts).encode("utf-8", "replace"), digest_size=16).hexdigest()


class Store(ChunkReads):
    """The tables of retrieval on one engine. Thread-safe as far as the engine is."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        metadata.create_all(engine)
        self._forget_fts()

    def _forget_fts(self) -> None:
        """Drops the full-text tables of version 0.1: words are kept with the chunks now."""
        if self.engine.dialect.name != "sqlite":
            return
        old = "SELECT name FROM sqlite_master WHERE name GLOB 'vector_lexical_[0-9]*' AND sql LIKE 'CREATE VIRTUAL%'"
        with self.reading() as db:
            names = [row[0] for row in db.exec_driver_sql(old)]
        if names:
            with self.engine.begin() as db:
                for name in names:
                    db.exec_driver_sql(f'DROP TABLE IF EXISTS "{name}"')

    # Indexes

    def add_index(self, name: str, path: str, encoder: str, plan: Chunking | None = None) -> None:
        """`plan` None leaves how an index is cut as it is."""
        with self.engine.begin() as db:
            moved = db.execute(sa.update(indexes).where(indexes.c.name == name).values(path=path)).rowcount
            if not moved:
                db.execute(sa.insert(indexes).values(name=name, path=path, created_at=time.time(), encoder=encoder))
            if plan is not None:
                index_id = db.execute(sa.select(indexes.c.id).where(indexes.c.name == name)).scalar_one()
                db.execute(sa.delete(chunkings).where(chunkings.c.index_id == index_id))
                if plan != Chunking():
                    db.execute(sa.insert(chunkings).values(index_id=index_id, **asdict(plan)))

    def chunking(self, index_id: int) -> Chunking:
        """How an index's documents are cut."""
        c = chunkings.c
        with self.reading() as db:
            found = db.execute(sa.select(c.strategy, c.tokens, c.overlap).where(c.index_id == index_id)).first()
        return Chunking(*found) if found else Chunking()

    def index(self, name: str) -> Row[Any] | None:
        with self.reading() as db:
            return db.execute(_NAMED, {"name": name}).first()

    def indexes(self) -> Sequence[Row[Any]]:
        with self.reading() as db:
            return db.execute(sa.select(indexes).order_by(indexes.c.name)).all()

    def drop_index(self, index_id: int) -> None:
        with self.engine.begin() as db:
            dropped(db, CHUNKS, index_id)
            # Children by hand too: a connection may have been opened without foreign keys.
            for table in (terms, pieces):
                db.execute(sa.delete(table).where(table.c.seq.in_(sa.select(chunks.c.seq).where(chunks.c.index_id == index_id))))
            for table in (pending, skipped, chunks, documents, chunkings):
                db.execute(sa.delete(table).where(table.c.index_id == index_id))
            db.execute(sa.delete(indexes).where(indexes.c.id == index_id))

    def counts(self, index_id: int) -> tuple[int, int]:
        """Documents and chunks of an index."""
        with self.reading() as db:
            counted = [sa.select(sa.func.count()).select_from(t).where(t.c.index_id == index_id) for t in (documents, chunks)]
            return db.execute(counted[0]).scalar_one(), db.execute(counted[1]).scalar_one()

    def last(self, index_id: int) -> int:
        """The number of its newest chunk; numbers are never given twice."""
        with self.reading() as db:
            return db.execute(sa.select(sa.func.max(chunks.c.seq)).where(chunks.c.index_id == index_id)).scalar_one() or 0

    def finish(self, index_id: int, report: SyncReport, encoder: str) -> None:
        row = {**asdict(report), "skipped": [asdict(s) for s in report.skipped]}
        with self.engine.begin() as db:
            values = {"report": json.dumps(row), "synced_at": time.time(), "encoder": encoder, "error": ""}
            db.execute(sa.update(indexes).where(indexes.c.id == index_id).values(values))

    def set_error(self, index_id: int, message: str) -> None:
        with self.engine.begin() as db:
            db.execute(sa.update(indexes).where(indexes.c.id == index_id).values(error=message))

    # Documents

    def manifest(self, index_id: int) -> dict[str, Stored]:
        c = documents.c
        with self.reading() as db:
            rows = db.execute(
                sa.select(c.id, c.source, c.sha256, c.size, c.mtime_ns, c.versions, c.note).where(c.index_id == index_id)
            ).all()
        return {row.source: Stored(*row) for row in rows}

    def write(self, index_id: int, prepared: Prepared, embedded: Sequence[Embedded]) -> None:
        """Replaces a document and its chunks, and notes what Chroma must be told. One transaction."""
        d = prepared.document
        with self.engine.begin() as db:
            raised(db, CHUNKS, index_id)
            old = self._remove(db, index_id, [d.id])
            db.execute(
                sa.insert(documents).values(
                    id=d.id,
                    index_id=index_id,
                    source=d.source,
                    title=d.title,
                    media_type=d.media_type,
                    text=d.text,
                    sha256=d.sha256,
                    size=prepared.size,
                    mtime_ns=prepared.mtime_ns,
                    versions=prepared.versions,
                    note=prepared.note,
                )
            )
            rows = [
                {
                    "id": key,
                    "index_id": index_id,
                    "document_id": d.id,
                    "position": i,
                    "text": c.text,
                    "start": c.start,
                    "end": c.end,
                    "heading": json.dumps(c.heading, ensure_ascii=False),
                    "context": around,
                    "page": c.page,
                    "content": content,
                    "vector": vector,
                }
                for i, (c, key, around, content, (vector, _)) in enumerate(
                    zip(prepared.chunks, prepared.ids, prepared.contexts, prepared.contents, embedded, strict=True)
                )
            ]
            if rows:
                db.execute(sa.insert(chunks), rows)
                mine = sa.select(chunks.c.id, chunks.c.seq).where(chunks.c.document_id == d.id)
                numbers = {row.id: row.seq for row in db.execute(mine)}
                db.execute(
                    sa.insert(terms),
                    [{"seq": numbers[key], "terms": held} for key, held in zip(prepared.ids, prepared.terms, strict=True)],
                )
                held = [{"seq": numbers[key], "pieces": each} for key, (_, each) in zip(prepared.ids, embedded, strict=True)]
                db.execute(sa.insert(pieces), held)
            new = dict(zip(prepared.ids, prepared.contents, strict=True))
            told = [key for key in old.keys() | new.keys() if old.get(key) != new.get(key)]
            _tell(db, index_id, told)

    def touch(self, document_id: str, size: int, mtime_ns: int) -> None:
        """Notes that a file's time changed but its bytes did not."""
        with self.engine.begin() as db:
            db.execute(sa.update(documents).where(documents.c.id == document_id).values(size=size, mtime_ns=mtime_ns))

    def remove(self, index_id: int, document_ids: Sequence[str]) -> None:
        for at in range(0, len(document_ids), BATCH):
            with self.engine.begin() as db:
                raised(db, CHUNKS, index_id)
                _tell(db, index_id, list(self._remove(db, index_id, document_ids[at : at + BATCH])))

    def _remove(self, db: Connection, index_id: int, document_ids: Sequence[str]) -> dict[str, str]:
        of = chunks.c.document_id.in_(document_ids)
        # A write comes first, so that the transaction holds the write lock before it reads.
        for table in (terms, pieces):
            db.execute(sa.delete(table).where(table.c.seq.in_(sa.select(chunks.c.seq).where(of))))
        old = {row.id: row.content for row in db.execute(sa.select(chunks.c.id, chunks.c.content).where(of))}
        db.execute(sa.delete(chunks).where(of))
        db.execute(sa.delete(documents).where(documents.c.id.in_(document_ids)))
        return old

    def document(self, index_id: int, index: str, document_id: str) -> Document | None:
        c = documents.c
        with self.reading() as db:
            columns = sa.select(c.id, c.source, c.title, c.text, c.media_type, c.sha256)
            row = db.execute(columns.where(c.index_id == index_id, c.id == document_id)).first()
        return Document(row.id, index, row.source, row.title, row.text, row.media_type, row.sha256) if row else None

    # What was skipped

    def skipped(self, index_id: int) -> list[Row[Any]]:
        with self.reading() as db:
            return list(db.execute(sa.select(skipped).where(skipped.c.index_id == index_id).order_by(skipped.c.source)).all())

    def set_skipped(self, index_id: int, rows: Sequence[Mapping[str, Any]]) -> None:
        with self.engine.begin() as db:
            db.execute(sa.delete(skipped).where(skipped.c.index_id == index_id))
            if rows:
                db.execute(sa.insert(skipped), [{"index_id": index_id, **row} for row in rows])

    # What Chroma has yet to be told

    def pending(self, index_id: int) -> tuple[int, dict[str, bytes | None]]:
        """The last note's number, and for each chunk noted its vector now, or None where it is gone."""
        statement = (
            sa.select(pending.c.seq, pending.c.chunk_id, chunks.c.vector)
            .select_from(pending.outerjoin(chunks, chunks.c.id == pending.c.chunk_id))
            .where(pending.c.index_id == index_id)
            .order_by(pending.c.seq)
            .limit(4000)
        )
        with self.reading() as db:
            rows = db.execute(statement).all()
        return (rows[-1].seq if rows else 0), {row.chunk_id: row.vector for row in rows}

    def told(self, index_id: int, up_to: int, epoch: str, generation: int) -> None:
        """Notes that Chroma knows everything up to a note, at a generation."""
        with self.engine.begin() as db:
            db.execute(sa.delete(pending).where(pending.c.index_id == index_id, pending.c.seq <= up_to))
            db.execute(sa.update(indexes).where(indexes.c.id == index_id).values(epoch=epoch, generation=generation))

    def noted(self, index_id: int, limit: int) -> tuple[str, list[str]]:
        """The epoch that searches may believe, and the chunks noted, up to a limit; ("", []) where there is no such index."""
        with self.reading() as db:
            epoch = db.execute(sa.select(indexes.c.epoch).where(indexes.c.id == index_id)).scalar() or ""
            keys = sa.select(pending.c.chunk_id).where(pending.c.index_id == index_id).limit(limit)
            return epoch, list(db.execute(keys).scalars()) if epoch else []

    def unsaid(self) -> set[int]:
        """Indexes of which there is something that Chroma must be told."""
        with self.reading() as db:
            return set(db.execute(sa.select(pending.c.index_id).distinct()).scalars())

    def settled(self, index_id: int) -> int | None:
        """How many chunks an index has, where Chroma was told of all; None where there are notes. Of one state."""
        with one_state(self.engine) as db:
            if db.execute(sa.select(pending.c.seq).where(pending.c.index_id == index_id).limit(1)).first():
                return None
            return db.execute(sa.select(sa.func.count()).select_from(chunks).where(chunks.c.index_id == index_id)).scalar_one()

    def forget_notes(self, index_id: int) -> None:
        """Notes that no copy of an index may be believed, and that none need be told."""
        with self.engine.begin() as db:
            gone = db.execute(sa.delete(pending).where(pending.c.index_id == index_id)).rowcount
            if gone:
                db.execute(sa.update(indexes).where(indexes.c.id == index_id).values(epoch="", generation=0))

    def copy_begun(self, epoch: str, index_id: int) -> None:
        """Notes that a collection is made, so that it is removed should it not become the index's own."""
        with self.engine.begin() as db:
            db.execute(sa.insert(copies).values(epoch=epoch, index_id=index_id))

    def stale_copies(self, index_id: int | None = None) -> list[tuple[str, int]]:
        """Collections that are not their index's present one: epoch and index."""
        own = sa.exists().where(indexes.c.id == copies.c.index_id, indexes.c.epoch == copies.c.epoch)
        found = sa.select(copies.c.epoch, copies.c.index_id).where(~own)
        with self.reading() as db:
            return [(row[0], row[1]) for row in db.execute(found) if index_id in (None, row[1])]

    def copy_gone(self, epoch: str) -> None:
        with self.engine.begin() as db:
            db.execute(sa.delete(copies).where(copies.c.epoch == epoch))


_NAMED = sa.select(indexes).where(indexes.c.name == sa.bindparam("name"))
"""Made once: each search asks for its index."""


def _tell(db: Connection, index_id: int, ids: Sequence[str]) -> None:
    if ids:
        db.execute(sa.insert(pending), [{"index_id": index_id, "chunk_id": key} for key in ids])
