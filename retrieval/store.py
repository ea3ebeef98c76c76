"""Reads and writes of the record of truth. One transaction a document."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from sys import intern
from typing import Any

import numpy as np
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine, Row

from retrieval.chunk import Chunk
from retrieval.tables import chunks, documents, indexes, metadata, pending, pieces, skipped, terms
from retrieval.types import Document, Passage, SyncReport

BATCH = 500
"""Values of one `IN`, and rows read at once: these stay in the processor's cache until they are taken over."""


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


Embedded = tuple[bytes, bytes]
"""A chunk's vector and word pieces, see `retrieval.late`."""


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


class Store:
    """The tables of retrieval on one engine. Thread-safe as far as the engine is."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
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

    @contextmanager
    def reading(self, db: Connection | None = None) -> Iterator[Connection]:
        """A connection whose reads neither take a lock nor begin a transaction: each statement sees one committed state.

        `db` is such a connection where there is one already: what reads several times does so over one.
        """
        if db is not None:
            yield db
            return
        with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            yield connection

    # Indexes

    def add_index(self, name: str, path: str, encoder: str) -> None:
        with self.engine.begin() as db:
            moved = db.execute(sa.update(indexes).where(indexes.c.name == name).values(path=path)).rowcount
            if not moved:
                db.execute(sa.insert(indexes).values(name=name, path=path, created_at=time.time(), encoder=encoder))

    def index(self, name: str) -> Row[Any] | None:
        with self.reading() as db:
            return db.execute(sa.select(indexes).where(indexes.c.name == name)).first()

    def indexes(self) -> Sequence[Row[Any]]:
        with self.reading() as db:
            return db.execute(sa.select(indexes).order_by(indexes.c.name)).all()

    def drop_index(self, index_id: int) -> None:
        with self.engine.begin() as db:
            # Children by hand too: a connection may have been opened without foreign keys.
            for table in (terms, pieces):
                db.execute(sa.delete(table).where(table.c.seq.in_(sa.select(chunks.c.seq).where(chunks.c.index_id == index_id))))
            for table in (pending, skipped, chunks, documents):
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

    def known(self, contents: Iterable[str]) -> dict[str, Embedded]:
        """Vectors and word pieces of texts that any index holds already, by content hash."""
        wanted = list(dict.fromkeys(contents))
        known: dict[str, Embedded] = {}
        with self.reading() as db:
            for at in range(0, len(wanted), BATCH):
                both = sa.select(chunks.c.content, chunks.c.vector, pieces.c.pieces).join(pieces, pieces.c.seq == chunks.c.seq)
                found = db.execute(both.where(chunks.c.content.in_(wanted[at : at + BATCH])))
                known.update((row.content, (row.vector, row.pieces)) for row in found)
        return known

    def document(self, index_id: int, index: str, document_id: str) -> Document | None:
        c = documents.c
        with self.reading() as db:
            columns = sa.select(c.id, c.source, c.title, c.text, c.media_type, c.sha256)
            row = db.execute(columns.where(c.index_id == index_id, c.id == document_id)).first()
        return Document(row.id, index, row.source, row.title, row.text, row.media_type, row.sha256) if row else None

    # Chunks

    def passages(self, index: str, ids: Sequence[str]) -> dict[str, Passage]:
        """Chunks by id, read in one statement, without scores. Unknown ids are left out."""
        statement = _PASSAGES.where(chunks.c.id.in_(ids))
        with self.reading() as db:
            return {row.id: _passage(index, row) for row in db.execute(statement)}

    def texts(self, seqs: Sequence[int], db: Connection | None = None) -> dict[int, str]:
        """Texts of chunks by number. Those that are gone are left out."""
        return self._picked(chunks.c.text, seqs, db)

    def pieces(self, seqs: Sequence[int], db: Connection | None = None) -> list[bytes] | None:
        """Word pieces of some chunks; None where one has none: it was embedded without, or is gone."""
        found = self._picked(pieces.c.pieces, seqs, db)
        return [found[seq] for seq in seqs] if len(found) == len(seqs) else None

    def _picked(self, column: sa.Column[Any], seqs: Sequence[int], db: Connection | None) -> dict[int, Any]:
        # Plain SQL: making the statement would take longer than reading the rows.
        numbers = ",".join(str(int(seq)) for seq in seqs)
        statement = f"SELECT seq, {column.name} FROM {column.table.name} WHERE seq IN ({numbers})"
        with self.reading(db) as db:
            return dict(db.exec_driver_sql(statement).fetchall()) if numbers else {}  # type: ignore[arg-type]

    def rows(self, index_id: int, index: str) -> Iterator[Passage]:
        """All chunks by source and place. Pages through, so that a long read holds nothing open."""
        c, last = chunks.c, ("", -1)
        while True:
            statement = (
                _PASSAGES.add_columns(c.position)
                .where(c.index_id == index_id, sa.tuple_(documents.c.source, c.position) > last)
                .order_by(documents.c.source, c.position)
                .limit(BATCH)
            )
            with self.reading() as db:
                page = db.execute(statement).all()
            if not page:
                return
            for row in page:
                yield _passage(index, row)
            last = (page[-1].source, page[-1].position)

    def vectors(self, index_id: int) -> Iterator[tuple[list[str], np.ndarray]]:
        """Ids and vectors of an index's chunks, a few thousand at a time."""
        last = 0
        while True:
            statement = (
                sa.select(chunks.c.seq, chunks.c.id, chunks.c.vector)
                .where(chunks.c.index_id == index_id, chunks.c.seq > last)
                .order_by(chunks.c.seq)
                .limit(4000)
            )
            with self.reading() as db:
                rows = db.execute(statement).all()
            if not rows:
                return
            yield [row.id for row in rows], unpack([row.vector for row in rows])
            last = rows[-1].seq

    def seqs(self, index_id: int) -> np.ndarray:
        """Numbers of an index's chunks, ascending."""
        with self.reading() as db:
            found = db.execute(sa.select(chunks.c.seq).where(chunks.c.index_id == index_id).order_by(chunks.c.seq))
            return np.fromiter((row[0] for row in found), np.int64)

    def records(self, index_id: int, after: int) -> Iterator[Sequence[Any]]:
        """Chunks above a number, a few hundred at a time: number, id, vector, terms, document, source, title, heading, place."""
        while True:
            with self.reading() as db:
                rows = db.execute(_RECORDS.where(chunks.c.index_id == index_id, chunks.c.seq > after)).all()
            if not rows:
                return
            yield rows
            after = rows[-1].seq

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


_PASSAGES = sa.select(
    chunks.c.seq,
    chunks.c.id,
    chunks.c.document_id,
    documents.c.source,
    documents.c.title,
    chunks.c.heading,
    chunks.c.text,
    chunks.c.start,
    chunks.c.end,
    chunks.c.page,
).join_from(chunks, documents, documents.c.id == chunks.c.document_id)


_RECORDS = (
    sa.select(
        chunks.c.seq,
        chunks.c.id,
        chunks.c.vector,
        terms.c.terms,
        chunks.c.document_id,
        documents.c.source,
        documents.c.title,
        chunks.c.heading,
        chunks.c.page,
        chunks.c.start,
        chunks.c.end,
    )
    .select_from(chunks.join(documents, documents.c.id == chunks.c.document_id).outerjoin(terms, terms.c.seq == chunks.c.seq))
    .order_by(chunks.c.seq)
    .limit(BATCH)
)


def folder_of(source: str) -> str | None:
    """The first folder of a document's path; None for one that lies at the top."""
    first, slash, _ = source.partition("/")
    return intern(first) if slash else None


def _passage(index: str, row: Any) -> Passage:
    return Passage(
        row.id,
        row.document_id,
        index,
        row.source,
        row.title,
        tuple(json.loads(row.heading)),
        row.text,
        row.start,
        row.end,
        page=row.page,
    )


def _tell(db: Connection, index_id: int, ids: Sequence[str]) -> None:
    if ids:
        db.execute(sa.insert(pending), [{"index_id": index_id, "chunk_id": key} for key in ids])


def unpack(vectors: Sequence[bytes]) -> np.ndarray:
    """Stored vectors as a matrix."""
    return np.frombuffer(b"".join(vectors), np.float32).reshape(len(vectors), -1)
