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
_KEY = "databricks_request_id"
_JSON = ("request", "response", "usage_context", "guardrail_verdicts")
"""Columns that hold JSON as text."""
_PAUSE = 32  # rows after which the background work makes way
_SQLITE = (
    f"INSERT INTO inference_table ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))})"
    f" ON CONFLICT ({_KEY}) DO UPDATE SET "
    + ", ".join(f"{name} = coalesce(excluded.{name}, {name})" for name in _COLUMNS if name != _KEY)
)


def take_in(connection: Connection, bodies: Sequence[bytes]) -> None:
    """Merge what the bodies say into the inference table and the hourly counts; later ones win."""
    rows = _rows(bodies)
    if not rows:
        return
    hourly.add(connection, rows)
    if connection.dialect.name == "sqlite":  # by the driver itself, which takes half the time
        values = [tuple(row.values()) for row in rows]
        for start in range(0, len(values), _PAUSE):
            connection.exec_driver_sql(_SQLITE, values[start : start + _PAUSE])
            _breathe()
        return
    statement = postgresql.insert(inference_table)
    key = inference_table.c.databricks_request_id
    merged = {c.name: func.coalesce(statement.excluded[c.name], c) for c in inference_table.columns if c is not key}
    connection.execute(statement.on_conflict_do_update(index_elements=[key], set_=merged), rows)


def _rows(bodies: Sequence[bytes]) -> list[dict[str, Any]]:
    """One row a call: what its frames say, put together."""
    rows: dict[str, dict[str, Any]] = {}
    for number, body in enumerate(bodies):
        if number % _PAUSE == 0:
            _breathe()
        try:
            columns = orjson.loads(body)
            request_id = columns[_KEY]
        except (ValueError, KeyError, TypeError):
            logger.error("a journal frame of %d bytes is whole but says nothing readable; it is passed over", len(body))
            continue
        for name in _JSON:
            if columns.get(name) is not None:
                columns[name] = orjson.dumps(columns[name]).decode()
        if isinstance(columns.get("request_time"), int):
            columns["request_time"] = iso(columns["request_time"])
        columns = storable(columns)
        row = rows.setdefault(request_id, dict.fromkeys(_COLUMNS))
        row.update({name: value for name, value in columns.items() if value is not None and name in row})
    return list(rows.values())


def _breathe() -> None:
    """Let the threads that answer calls have the interpreter: otherwise each of their writes waits for a switch interval."""
    time.sleep(0.0001)
