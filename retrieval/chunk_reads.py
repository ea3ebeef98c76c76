"""Reads of the record of truth: chunks, their vectors, word pieces and terms, as searches and copies need them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from sys import intern
from typing import Any

import numpy as np
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from retrieval.tables import chunks, documents, pieces, terms
from retrieval.types import Passage

BATCH = 500
"""Values of one `IN`, and rows read at once: these stay in the processor's cache until they are taken over."""

Embedded = tuple[bytes, bytes]
"""A chunk's vector and word pieces, see `retrieval.late`."""


@contextmanager
def one_state(engine: Engine) -> Iterator[Connection]:
    """A connection all of whose reads see one committed state. For what is short: meanwhile SQLite's log cannot be taken over."""
    sqlite = engine.dialect.name == "sqlite"
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT" if sqlite else "REPEATABLE READ") as db:
        if sqlite:  # its driver begins no transaction for what only reads
            db.exec_driver_sql("BEGIN")
        try:
            yield db
        finally:
            if sqlite:
                db.exec_driver_sql("ROLLBACK")
            else:
                db.rollback()


class ChunkReads:
    """What is read of chunks on one engine. Thread-safe as far as the engine is."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    @contextmanager
    def reading(self, db: Connection | None = None) -> Iterator[Connection]:
        """A connection whose reads neither take a lock nor begin a transaction: each statement sees one committed state.

        `db` is such a connection where there is one already: what reads several times does so over one.
        """
        if db is not None:
            yield db
            return
        with self.engine.connect() as connection:
            sqlite = self.engine.dialect.name == "sqlite"  # its driver begins no transaction for what only reads
            yield connection if sqlite else connection.execution_options(isolation_level="AUTOCOMMIT")

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
        found = self.picked_pieces(seqs, db)
        return [found[seq] for seq in seqs] if len(found) == len(seqs) else None

    def picked_pieces(self, seqs: Sequence[int], db: Connection | None = None) -> dict[int, bytes]:
        """Word pieces of those chunks that have any, by number."""
        return self._picked(pieces.c.pieces, seqs, db)

    def _picked(self, column: sa.Column[Any], seqs: Sequence[int], db: Connection | None) -> dict[int, Any]:
        if not seqs:
            return {}
        statement = f"SELECT seq, {column.name} FROM {column.table.name} WHERE seq IN ({{}})"
        with self.reading(db) as db:
            return dict(plainly(db, statement, seqs))

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

    def seqs(self, index_id: int, db: Connection | None = None) -> np.ndarray:
        """Numbers of an index's chunks, ascending."""
        with self.reading(db) as db:
            return numbers(db, chunks, index_id)

    def records(self, index_id: int, after: int, db: Connection | None = None) -> Iterator[Sequence[Any]]:
        """Chunks above a number, a few hundred at a time: number, id, vector, terms, document, source, title, heading, place."""
        while True:
            with self.reading(db) as reader:
                rows = reader.execute(_RECORDS.where(chunks.c.index_id == index_id, chunks.c.seq > after)).all()
            if not rows:
                return
            yield rows
            after = rows[-1].seq


def plainly(db: Connection, statement: str, values: Sequence[int | str]) -> list[Any]:
    """What a statement gives that has `{}` where values belong. By the driver alone, which keeps it prepared: for the few rows
    that a search reads, SQLAlchemy takes as long as the database. Its errors are the driver's."""
    mark = "?" if db.dialect.name == "sqlite" else "%s"
    driver: Any = db.connection.driver_connection
    return driver.execute(statement.format(",".join([mark] * len(values))), values).fetchall()


def numbers(db: Connection, table: sa.Table, index_id: int) -> np.ndarray:
    """Numbers of an index's rows in a table, ascending. As one text: a million objects would take ten times as long."""
    joined = "group_concat(seq)" if db.dialect.name == "sqlite" else "string_agg(seq::text, ',')"
    rows = f"SELECT seq FROM {table.name} WHERE index_id = {int(index_id)} ORDER BY seq"
    text = db.exec_driver_sql(f"SELECT {joined} FROM ({rows}) AS found").scalar()
    found = np.fromstring(text, np.int64, sep=",") if text else np.empty(0, np.int64)
    found.sort()
    return found


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


def unpack(vectors: Sequence[bytes]) -> np.ndarray:
    """Stored vectors as a matrix."""
    return np.frombuffer(b"".join(vectors), np.float32).reshape(len(vectors), -1)
