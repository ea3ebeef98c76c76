"""Source tables: files and database tables of the server, by the names that Delta Sync indexes give them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from retrieval.errors import NotFound
from retrieval.source import read_table, stamp
from retrieval.store import digest
from retrieval.tables import source_tables

POLL_SECONDS = 60
"""How often a database's table is read for changes; of a file only its time and size are looked at."""


class SourceTables:
    """The declared tables. Thread-safe; blocking.

    Parameters
    ----------
    folder_rows: rows of an index over a folder, which may be a source as well; raises NotFound.
    folder_stamp: what changes whenever such an index was synced, None where there is no such index.
    """

    def __init__(
        self,
        engine: Engine,
        folder_rows: Callable[[str], Iterator[dict[str, Any]]] | None = None,
        folder_stamp: Callable[[str], Any] = lambda name: None,
    ) -> None:
        self._engine, self._folder_rows, self._folder_stamp = engine, folder_rows, folder_stamp

    def add(self, name: str, place: str) -> int:
        """Declares a table, in the place of an older one: JSONL, JSON, CSV or Parquet files, a Delta table, or
        `DATABASE_URL#TABLE`. Gives its count of rows.

        Raises
        ------
        SourceError: it cannot be read.
        """
        count = sum(1 for _ in read_table(place))
        with self._engine.begin() as db:
            db.execute(sa.delete(source_tables).where(source_tables.c.name == name))
            db.execute(sa.insert(source_tables).values(name=name, place=place))
        return count

    def list(self) -> list[dict[str, str]]:
        with self._engine.connect() as db:
            return [{"name": row.name, "place": row.place} for row in db.execute(sa.select(source_tables))]

    def place(self, name: str) -> str | None:
        """Where a declared table is."""
        return next((table["place"] for table in self.list() if table["name"] == name), None)

    def rows(self, name: str) -> Iterator[dict[str, Any]]:
        """Raises NotFound at once, SourceError while reading."""
        place = self.place(name)
        if place is not None:
            return read_table(place)
        if self._folder_rows is not None and self._folder_stamp(name) is not None:
            return self._folder_rows(name)
        raise NotFound(f"source table {name!r} does not exist: `smalti index table {name} FILE` declares it")

    def stamp(self, name: str) -> Any:
        """What changes whenever the table may have."""
        place = self.place(name)
        if place is None:
            return self._folder_stamp(name)
        if "://" in place:
            return int(time.time() // POLL_SECONDS)
        return stamp(place)

    def behind(self, name: str, read_ms: int | None) -> float | None:
        """Seconds for which a table has had changes that who read it at `read_ms` did not see; 0 where it has none.

        Of files their times tell, of an index over a folder its last sync. A database does not tell when it changed: of its
        table it is the seconds since it was read, which no missed change is older than. None for what is gone or was never read.
        """
        place = self.place(name)
        if place is not None and "://" in place:
            return max(time.time() - read_ms / 1000, 0.0) if read_ms is not None else None
        if place is None:
            changed = self._folder_stamp(name)
        else:
            found = stamp(place)
            changed = max(each[0] for each in found) / 1e9 if found else None
        if not changed:
            return None
        return 0.0 if read_ms is not None and changed * 1000 <= read_ms else max(time.time() - changed, 0.0)


def told(stamp: Any) -> str:
    """A stamp as text that is kept."""
    return digest(repr(stamp))
