"""`governance.intake` by SQLAlchemy, for PostgreSQL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Engine, delete, func, select, update
from sqlalchemy.dialects.postgresql import insert

from governance import counts
from governance.tables import hourly, inference_table, segments

_AT_ONCE = 400


class SqlStore:
    """A `governance.intake.Store` in PostgreSQL."""

    columns = tuple(column.name for column in inference_table.columns)

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def position(self, name: str) -> int:
        with self._engine.connect() as connection:
            return connection.execute(select(segments.c.position).where(segments.c.name == name)).scalar() or 0

    def take_in(self, name: str, old: int, new: int, rows: Sequence[dict[str, Any]], skipped: int) -> bool:
        with self._engine.begin() as connection:
            connection.execute(insert(segments).values(name=name, position=0, skipped=0).on_conflict_do_nothing())
            moved = connection.execute(
                update(segments)
                .where(segments.c.name == name, segments.c.position == old)
                .values(position=new, skipped=segments.c.skipped + skipped)
            )
            if moved.rowcount != 1:
                return False
            if rows:
                _count(connection, rows)
                _merge(connection, rows)
        return True

    def flushed(self) -> bool:
        return True  # as every commit is

    def forget(self, name: str) -> None:
        with self._engine.begin() as connection:
            connection.execute(delete(segments).where(segments.c.name == name))


def _count(connection: Connection, rows: Sequence[dict[str, Any]]) -> None:
    table, known = inference_table.c, {}
    for start in range(0, len(rows), _AT_ONCE):
        some = [row["databricks_request_id"] for row in rows[start : start + _AT_ONCE]]
        query = select(*(table[name] for name in counts.READ)).where(table.databricks_request_id.in_(some))
        known |= {row["databricks_request_id"]: row for row in connection.execute(query).mappings()}
    names = (*counts.KEYS, *counts.COUNTS)
    values: list[Mapping[str, Any]] = [dict(zip(names, row, strict=True)) for row in counts.added(rows, known)]
    if values:
        statement = insert(hourly)
        summed = {name: hourly.c[name] + statement.excluded[name] for name in counts.COUNTS}
        connection.execute(statement.on_conflict_do_update(index_elements=list(counts.KEYS), set_=summed), values)


def _merge(connection: Connection, rows: Sequence[dict[str, Any]]) -> None:
    statement = insert(inference_table)
    key = inference_table.c.databricks_request_id
    merged = {c.name: func.coalesce(statement.excluded[c.name], c) for c in inference_table.columns if c is not key}
    connection.execute(statement.on_conflict_do_update(index_elements=[key], set_=merged), rows)
