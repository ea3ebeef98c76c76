"""Tables of the evals room: review queues and what people said there, scores of live traffic, alerts of drift.

Times are ISO 8601 text in UTC, as in the inference table.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime

from sqlalchemy import Column, Engine, Float, Index, Integer, LargeBinary, MetaData, String, Table, Text
from sqlalchemy.exc import OperationalError, ProgrammingError

metadata = MetaData()

review_queues = Table(
    "review_queues",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("endpoint", String(256), nullable=False, index=True),  # who manages it manages the queue
    Column("spec", Text, nullable=False),  # JSON of `evals.review.Queue`
    Column("creator", String(256), nullable=False),
    Column("created", String(32), nullable=False),
)

review_items = Table(
    "review_items",
    metadata,
    Column("queue", String(64), primary_key=True),
    Column("id", String(64), primary_key=True),
    Column("position", Integer, nullable=False),
    Column("content", Text, nullable=False),  # JSON: question, answer, passages, request_id, trace_id, row_id …
    Column("added", String(32), nullable=False),
)

review_labels = Table(
    "review_labels",
    metadata,
    Column("queue", String(64), primary_key=True),
    Column("item", String(64), primary_key=True),
    Column("reviewer", String(256), primary_key=True),
    Column("name", String(64), primary_key=True),
    Column("value", Text, nullable=False),  # JSON
    Column("comment", Text),
    Column("time", String(32), nullable=False),
)

online_calls = Table(
    "online_calls",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),  # the order of calls, whatever the clock does
    Column("request_id", String(64), nullable=False, unique=True),
    Column("endpoint", String(256), nullable=False),
    Column("time", String(32), nullable=False),
    Column("length", Float, nullable=False),  # characters of what was asked
    Column("latency_ms", Float, nullable=False),
    Column("vector", LargeBinary),  # float16: the embedding of what was asked
    Index("online_calls_by_endpoint", "endpoint", "id"),
)

online_scores = Table(
    "online_scores",
    metadata,
    Column("request_id", String(64), primary_key=True),
    Column("name", String(128), primary_key=True),
    Column("value", Float),
    Column("error", Text),
)

online_windows = Table(
    "online_windows",
    metadata,
    Column("endpoint", String(256), primary_key=True),
    Column("since", Integer, nullable=False),  # the call after which the reference window begins
    Column("looked", Integer, nullable=False),  # the last call of the last window that was looked at
    Column("report", Text),  # JSON of that look
)

online_alerts = Table(
    "online_alerts",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("endpoint", String(256), nullable=False, index=True),
    Column("time", String(32), nullable=False),
    Column("told", Text, nullable=False),  # JSON, as it is sent to the webhook
    Column("delivered", String(32)),
    Column("attempts", Integer, nullable=False),
    Column("problem", Text),
)


def create(engine: Engine) -> None:
    """Create what is missing; safe when several processes start at once."""
    for attempt in range(5):
        try:
            metadata.create_all(engine)
            return
        except (OperationalError, ProgrammingError):  # another process made the same table between check and creation
            if attempt == 4:
                raise
            time.sleep(0.05)


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
