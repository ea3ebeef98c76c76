"""Frames' bodies become rows of the inference table, merged by call and counted by the hour, in the caller's transaction."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

import orjson
from sqlalchemy import Connection, func
from sqlalchemy.dialects import postgresql

from governance import hourly
from governance.frames import iso, storable
from governance.tables import inference_table

logger = logging.getLogger("smalti.journal")

_COLUMNS = tuple(column.name for column in inference_table.columns)
_EMPTY: dict[str, Any] = dict.fromkeys(_COLUMNS)
_KEY = "databricks_request_id"
_JSON = frozenset(("request", "response", "usage_context", "guardrail_verdicts"))
"""Columns that hold JSON as text."""
PAUSE = 32
"""Frames, or rows, after which ingestion makes way for the threads that answer calls."""
_SQLITE = (
    f"INSERT INTO inference_table ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))})"
    f" ON CONFLICT ({_KEY}) DO UPDATE SET "
    + ", ".join(f"{name} = coalesce(excluded.{name}, {name})" for name in _COLUMNS if name != _KEY)
)


def take_in(connection: Connection, rows: Sequence[dict[str, Any]], pause: int = PAUSE) -> None:
    """Merge what `read` gave into the inference table and the hourly counts; later ones win."""
    if not rows:
        return
    hourly.add(connection, rows)
    if connection.dialect.name == "sqlite":  # by the driver itself, which takes half the time
        values = [tuple(row.values()) for row in rows]
        for start in range(0, len(values), pause):
            connection.exec_driver_sql(_SQLITE, values[start : start + pause])
            _breathe()
        return
    statement = postgresql.insert(inference_table)
    key = inference_table.c.databricks_request_id
    merged = {c.name: func.coalesce(statement.excluded[c.name], c) for c in inference_table.columns if c is not key}
    connection.execute(statement.on_conflict_do_update(index_elements=[key], set_=merged), rows)


def read(bodies: Sequence[bytes], pause: int = PAUSE) -> list[dict[str, Any]]:
    """One row a call: what its frames say, put together, later ones over earlier ones."""
    rows: dict[str, dict[str, Any]] = {}
    for number, body in enumerate(bodies):
        if number % pause == 0:
            _breathe()
        try:
            columns = orjson.loads(body)
            request_id = columns[_KEY]
        except (ValueError, KeyError, TypeError):
            logger.error("a journal frame of %d bytes is whole but says nothing readable; it is passed over", len(body))
            continue
        row = rows.get(request_id)
        if row is None:
            row = rows[request_id] = _EMPTY.copy()
        for name, value in columns.items():
            if value is None or name not in row:
                continue
            if name in _JSON:
                row[name] = orjson.dumps(value).decode()
            elif type(value) is str:
                row[name] = value.replace("\x00", "\ufffd") if "\x00" in value else value
            elif name == "request_time" and isinstance(value, int):
                row[name] = iso(value)
            elif (told := storable(value)) is not None:
                row[name] = told
    return list(rows.values())


def _breathe() -> None:
    """Let the threads that answer calls have the interpreter: otherwise each of their writes waits for a switch interval."""
    time.sleep(0.0001)
