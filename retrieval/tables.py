"""The record of truth: indexes, documents, chunks with their vectors, what was skipped, and what Chroma has yet to be told."""

from __future__ import annotations

import sqlalchemy as sa

metadata = sa.MetaData()

indexes = sa.Table(
    "vector_indexes",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("name", sa.String(400), nullable=False, unique=True),
    sa.Column("path", sa.Text, nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("synced_at", sa.Float),
    sa.Column("encoder", sa.String(200), nullable=False),
    # Chroma's collection carries the same two; where they differ it is rebuilt.
    sa.Column("epoch", sa.String(32), nullable=False, default=""),
    sa.Column("generation", sa.Integer, nullable=False, default=0),
    sa.Column("report", sa.Text),
    sa.Column("error", sa.Text, nullable=False, default=""),
    sqlite_autoincrement=True,
)

# How an index's documents are cut, where that was chosen; see `retrieval.chunk.Chunking`.
chunkings = sa.Table(
    "vector_chunkings",
    metadata,
    sa.Column("index_id", sa.ForeignKey("vector_indexes.id", ondelete="CASCADE"), primary_key=True, autoincrement=False),
    sa.Column("strategy", sa.String(40), nullable=False),
    sa.Column("tokens", sa.Integer, nullable=False),
    sa.Column("overlap", sa.Integer, nullable=False),
)

documents = sa.Table(
    "vector_documents",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("index_id", sa.ForeignKey("vector_indexes.id", ondelete="CASCADE"), nullable=False),
    sa.Column("source", sa.Text, nullable=False),
    sa.Column("title", sa.Text, nullable=False),
    sa.Column("media_type", sa.String(100), nullable=False),
    sa.Column("text", sa.Text, nullable=False),
    sa.Column("sha256", sa.String(64), nullable=False),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("mtime_ns", sa.BigInteger, nullable=False),
    sa.Column("versions", sa.String(300), nullable=False),
    sa.Column("note", sa.Text, nullable=False, default=""),
    sa.UniqueConstraint("index_id", "source"),
)

chunks = sa.Table(
    "vector_chunks",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True),
    sa.Column("id", sa.String(32), nullable=False, unique=True),
    sa.Column("index_id", sa.ForeignKey("vector_indexes.id", ondelete="CASCADE"), nullable=False, index=True),
    sa.Column("document_id", sa.ForeignKey("vector_documents.id", ondelete="CASCADE"), nullable=False, index=True),
    sa.Column("position", sa.Integer, nullable=False),
    sa.Column("text", sa.Text, nullable=False),
    sa.Column("start", sa.Integer, nullable=False),
    sa.Column("end", sa.Integer, nullable=False),
    sa.Column("heading", sa.Text, nullable=False),
    sa.Column("context", sa.Text, nullable=False),
    sa.Column("page", sa.Integer),
    # Hash of encoder and embedded text: a vector is reused wherever the same text is met again.
    sa.Column("content", sa.String(32), nullable=False, index=True),
    sa.Column("vector", sa.LargeBinary, nullable=False),
    sqlite_autoincrement=True,
)

skipped = sa.Table(
    "vector_skipped",
    metadata,
    sa.Column("index_id", sa.ForeignKey("vector_indexes.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("source", sa.String(1000), primary_key=True),
    sa.Column("reason", sa.Text, nullable=False),
    # Set where the same bytes would fail again, so that a sync need not try.
    sa.Column("size", sa.BigInteger),
    sa.Column("mtime_ns", sa.BigInteger),
    sa.Column("versions", sa.String(300)),
)

pending = sa.Table(
    "vector_pending",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True),
    sa.Column("index_id", sa.ForeignKey("vector_indexes.id", ondelete="CASCADE"), nullable=False, index=True),
    sa.Column("chunk_id", sa.String(32), nullable=False),
    sqlite_autoincrement=True,
)

# The words of a chunk, see `retrieval.words.encode`; apart from the chunk, so that reading text reads no words.
terms = sa.Table(
    "vector_terms",
    metadata,
    sa.Column("seq", sa.ForeignKey("vector_chunks.seq", ondelete="CASCADE"), primary_key=True, autoincrement=False),
    sa.Column("terms", sa.LargeBinary, nullable=False),
)

# The word pieces of a chunk, see `retrieval.late`.
pieces = sa.Table(
    "vector_pieces",
    metadata,
    sa.Column("seq", sa.ForeignKey("vector_chunks.seq", ondelete="CASCADE"), primary_key=True, autoincrement=False),
    sa.Column("pieces", sa.LargeBinary, nullable=False),
)

# What clients of the vector search API make: endpoints, indexes over rows, their rows, and tables to sync from.
search_endpoints = sa.Table(
    "vector_search_endpoints",
    metadata,
    sa.Column("name", sa.String(200), primary_key=True),
    sa.Column("id", sa.String(36), nullable=False),
    sa.Column("kind", sa.String(40), nullable=False),
    sa.Column("creator", sa.String(200), nullable=False),
    sa.Column("created_ms", sa.BigInteger, nullable=False),
    sa.Column("details", sa.Text),
)

row_indexes = sa.Table(
    "vector_row_indexes",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("name", sa.String(400), nullable=False, unique=True),
    sa.Column("endpoint", sa.String(200), nullable=False),
    sa.Column("creator", sa.String(200), nullable=False),
    sa.Column("spec", sa.Text, nullable=False),
    sa.Column("created_ms", sa.BigInteger, nullable=False),
    sa.Column("synced_ms", sa.BigInteger),
    sa.Column("error", sa.Text, nullable=False, default=""),
    sqlite_autoincrement=True,
)

rows = sa.Table(
    "vector_rows",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True),
    sa.Column("index_id", sa.ForeignKey("vector_row_indexes.id", ondelete="CASCADE"), nullable=False, index=True),
    sa.Column("key", sa.String(1000), nullable=False),
    sa.Column("body", sa.Text, nullable=False),
    # Hash of what was embedded: a sync embeds only what changed.
    sa.Column("content", sa.String(32), nullable=False),
    sa.Column("vector", sa.LargeBinary),
    sa.Column("terms", sa.LargeBinary),
    sa.UniqueConstraint("index_id", "key"),
    sqlite_autoincrement=True,
)

# How the last sync of an index over rows went.
row_reports = sa.Table(
    "vector_row_reports",
    metadata,
    sa.Column("index_id", sa.ForeignKey("vector_row_indexes.id", ondelete="CASCADE"), primary_key=True, autoincrement=False),
    sa.Column("report", sa.Text, nullable=False),
)

# Which column of an index names the groups that may see a row; see `retrieval.guard`.
row_guards = sa.Table(
    "vector_row_guards",
    metadata,
    sa.Column("index", sa.String(400), primary_key=True),
    sa.Column("column", sa.String(400), nullable=False),
)

source_tables = sa.Table(
    "vector_source_tables",
    metadata,
    sa.Column("name", sa.String(400), primary_key=True),
    sa.Column("place", sa.Text, nullable=False),
)

# Files that hold an index's snapshot, see `retrieval.snapshots`; one that is not told of here is not believed.
snapshots = sa.Table(
    "vector_snapshots",
    metadata,
    sa.Column("file", sa.String(100), primary_key=True),
    sa.Column("name", sa.String(60), nullable=False, index=True),
    sa.Column("layout", sa.Text, nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
)

# Raised with each change of an index where several processes share the database, see `retrieval.revisions`.
revisions = sa.Table(
    "vector_revisions",
    metadata,
    sa.Column("name", sa.String(60), primary_key=True),
    sa.Column("value", sa.BigInteger, nullable=False),
)

# Collections made on a Chroma server, by the epoch that names them; what is not an index's present one is removed there.
copies = sa.Table(
    "vector_copies",
    metadata,
    sa.Column("epoch", sa.String(32), primary_key=True),
    sa.Column("index_id", sa.Integer, nullable=False),
)
