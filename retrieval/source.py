"""Rows of a source table: a JSONL, JSON, CSV or Parquet file, or a table of a database."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from retrieval.errors import SourceError

MAX_ROWS = 5_000_000


def read_table(place: str) -> Iterator[dict[str, Any]]:
    """The rows of `place`: a file's path, or `DATABASE_URL#TABLE` as SQLAlchemy writes URLs.

    Raises
    ------
    SourceError: it is missing, or cannot be read; a row at fault is named by its number.
    """
    if "://" in place:
        yield from _database(place)
        return
    path = Path(place).expanduser()
    readers = {".jsonl": _lines, ".ndjson": _lines, ".json": _json, ".csv": _csv, ".parquet": _parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise SourceError(f"{path} is no table: give a {', '.join(readers)} file or DATABASE_URL#TABLE")
    if not path.is_file():
        raise SourceError(f"{path} does not exist: give the file that holds the table")
    number = 0
    try:
        for number, row in enumerate(reader(path), 1):
            if not isinstance(row, dict) or number > MAX_ROWS:
                raise ValueError("is no JSON object" if number <= MAX_ROWS else f"is past the limit of {MAX_ROWS:,} rows")
            yield row
    except (ValueError, OSError, RecursionError, csv.Error) as error:
        raise SourceError(f"{path} cannot be read near row {number + 1}: {str(error)[:200]}") from error


def _lines(path: Path) -> Iterator[Any]:
    with path.open(encoding="utf-8") as file:
        yield from (json.loads(line) for line in file if line.strip())


def _json(path: Path) -> Iterator[Any]:
    value = json.loads(path.read_text(encoding="utf-8"))
    yield from value if isinstance(value, list) else [value]


def _csv(path: Path) -> Iterator[Any]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        yield from csv.DictReader(file, restkey="_more", restval=None)


def _parquet(path: Path) -> Iterator[Any]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(2000):
            yield from batch.to_pylist()


def _database(place: str) -> Iterator[dict[str, Any]]:
    import sqlalchemy as sa
    from sqlalchemy.exc import SQLAlchemyError

    url, _, table = place.rpartition("#")
    if not url:
        raise SourceError("a database table is written DATABASE_URL#TABLE, as sqlite:////data/shop.db#products")
    try:
        engine = sa.create_engine(url)
        try:
            with engine.connect() as db:
                found = sa.Table(table, sa.MetaData(), autoload_with=db)
                for row in db.execute(sa.select(found)).mappings():
                    yield {name: value.isoformat() if hasattr(value, "isoformat") else value for name, value in row.items()}
        finally:
            engine.dispose()
    except (SQLAlchemyError, ImportError) as error:
        raise SourceError(
            f"table {table!r} of {sa.engine.make_url(url).host or 'the database'} cannot be read ({type(error).__name__})"
        ) from error
