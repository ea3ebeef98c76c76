"""Rows of a source table: JSONL, JSON, CSV or Parquet files, a Delta table, or a table of a database."""

from __future__ import annotations

import base64
import csv
import glob
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import date, time
from decimal import Decimal
from pathlib import Path
from typing import Any

from retrieval.errors import SourceError

MAX_ROWS = 5_000_000


def read_table(place: str) -> Iterator[dict[str, Any]]:
    """The rows of `place`: a file's path, a pattern of files as `shop/*.parquet`, a Delta table's folder, or
    `DATABASE_URL#TABLE` as SQLAlchemy writes URLs, `#SCHEMA.TABLE` of another schema.

    Values are JSON's: decimals are numbers, times ISO 8601, bytes base64, numbers that are not finite none. In CSV what reads as
    a number or a truth in every row of its column is one, and what is empty is none.

    Raises
    ------
    SourceError: it is missing, or cannot be read; a row at fault is named by its number.
    """
    for row in _read(place):
        yield {name: _plain(value) for name, value in row.items()}


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Decimal):
        return float(value) if value.is_finite() else None
    if isinstance(value, date | time):  # a datetime is a date
        return value.isoformat()
    if isinstance(value, bytes | bytearray | memoryview):
        return base64.b64encode(value).decode()
    if isinstance(value, list | tuple | set):
        return [_plain(each) for each in value]
    if isinstance(value, dict):
        return {str(name): _plain(each) for name, each in value.items()}
    return str(value)


def _read(place: str) -> Iterator[dict[str, Any]]:
    if "://" in place:
        yield from _database(place)
        return
    path = Path(place).expanduser()
    if (path / "_delta_log").is_dir():
        yield from _delta(path)
        return
    if glob.has_magic(place) and not path.exists():
        for each in matching(place):
            yield from _read(str(each))
        return
    readers = {".jsonl": _lines, ".ndjson": _lines, ".json": _json, ".csv": _csv, ".tsv": _csv, ".parquet": _parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise SourceError(f"{path} is no table: give a {', '.join(readers)} file, a Delta table or DATABASE_URL#TABLE")
    if not path.is_file():
        raise SourceError(f"{path} does not exist: give the file that holds the table")
    number = 0
    try:
        for number, row in enumerate(reader(path), 1):
            if not isinstance(row, dict) or number > MAX_ROWS:
                raise ValueError("is no JSON object" if number <= MAX_ROWS else f"is past the limit of {MAX_ROWS:,} rows")
            yield row
    except UnicodeDecodeError as error:
        raise SourceError(f"{path} cannot be read near row {number + 1}: it is not UTF-8, save it as that") from error
    except (ValueError, OSError, RecursionError, csv.Error) as error:
        raise SourceError(f"{path} cannot be read near row {number + 1}: {str(error)[:200]}") from error


def matching(pattern: str) -> list[Path]:
    """Files that a pattern names, sorted. Raises SourceError where there are none."""
    found = sorted(Path(each) for each in glob.glob(str(Path(pattern).expanduser()), recursive=True))
    found = [each for each in found if each.is_file()]
    if not found:
        raise SourceError(f"no file is named as {pattern}: give the files that hold the table")
    return found


def stamp(place: str) -> Any:
    """What changes whenever the table may have, as far as files tell; None where they are not there or it is a database's."""
    path = Path(place).expanduser()
    try:
        if (log := path / "_delta_log").is_dir():
            # The last commit: beside it are checkpoints and `_last_checkpoint`, whose names sort after it.
            files = [max((each for each in log.iterdir() if COMMIT.fullmatch(each.name)), key=lambda each: each.name)]
        else:
            files = [path] if path.exists() or not glob.has_magic(place) else matching(place)
        found = [each.stat() for each in files]
    except (OSError, ValueError, SourceError):
        return None
    return tuple((each.st_mtime_ns, each.st_size, each.st_ino) for each in found)


COMMIT = re.compile(r"\d{20}\.json")


def _delta(path: Path) -> Iterator[dict[str, Any]]:
    try:
        import pyarrow
        from deltalake import DeltaTable, QueryBuilder
        from deltalake.exceptions import DeltaError
    except ImportError:
        raise SourceError("a Delta table is read by the package deltalake: install smalti[delta]") from None
    try:
        # By a query: the other way to read a table knows no deletion vectors.
        found: Any = QueryBuilder().register("t", DeltaTable(str(path))).execute("SELECT * FROM t")
        for batch in pyarrow.RecordBatchReader.from_stream(found):
            yield from batch.to_pylist()
    except (DeltaError, OSError, ValueError, ImportError) as error:
        raise SourceError(f"Delta table {path} cannot be read: {str(error)[:200]}") from error


def _lines(path: Path) -> Iterator[Any]:
    with path.open(encoding="utf-8-sig") as file:
        yield from (json.loads(line) for line in file if line.strip())


def _json(path: Path) -> Iterator[Any]:
    value = json.loads(path.read_text(encoding="utf-8-sig"))
    yield from value if isinstance(value, list) else [value]


CELL = 20_000_000
"""Characters of a cell of a CSV file, at most; Python's own limit is 131,072."""
# What begins with a zero, or has more digits than numbers tell apart, is a code.
_TYPES: Mapping[str, tuple[re.Pattern[str], Callable[[str], Any]]] = {
    "whole": (re.compile(r"-?(?:0|[1-9]\d{0,17})"), int),
    "number": (re.compile(r"-?(?:0|[1-9]\d{0,14})(?:\.\d{1,15})?(?:[eE][+-]?\d{1,2})?"), float),
    "truth": (re.compile(r"true|false", re.I), lambda text: text.lower() == "true"),
}


def _csv(path: Path) -> Iterator[Any]:
    kinds: dict[str, set[str]] = {}
    for row in _csv_texts(path):
        for name, text in row.items():
            left = kinds.setdefault(name, set(_TYPES))
            if left and text:
                left &= {kind for kind in left if isinstance(text, str) and _TYPES[kind][0].fullmatch(text)}
    read = {name: next((_TYPES[kind][1] for kind in _TYPES if kind in left), str) for name, left in kinds.items()}
    for row in _csv_texts(path):
        yield {name: (read[name](text) if isinstance(text, str) else text) if text else None for name, text in row.items()}


def _csv_texts(path: Path) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(CELL)
    with path.open(encoding="utf-8-sig", newline="") as file:
        header = file.readline()
        file.seek(0)
        delimiter = max(",;\t|", key=header.count)
        yield from csv.DictReader(file, restkey="_more", restval=None, delimiter=delimiter)


def _parquet(path: Path) -> Iterator[Any]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(2000):
            yield from batch.to_pylist()


def _database(place: str) -> Iterator[dict[str, Any]]:
    import sqlalchemy as sa
    from sqlalchemy.exc import NoSuchTableError, SQLAlchemyError

    url, _, table = place.rpartition("#")
    if not url:
        raise SourceError("a database table is written DATABASE_URL#TABLE, as sqlite:////data/shop.db#products")
    try:
        engine = sa.create_engine(url)
        try:
            with engine.connect() as db:
                found = _reflected(db, table)
                for row in db.execute(sa.select(found)).mappings():
                    yield dict(row)
        finally:
            engine.dispose()
    except NoSuchTableError:
        raise SourceError(f"{_where(url)} has no table {table!r}") from None
    except (SQLAlchemyError, ImportError, ValueError) as error:  # without its message, which may hold the password
        raise SourceError(f"table {table!r} of {_where(url)} cannot be read ({type(error).__name__})") from error


def _reflected(db: Any, name: str) -> Any:
    """A table or view by its name, or by its schema's and its own as `shop.items`. Raises NoSuchTableError."""
    import sqlalchemy as sa
    from sqlalchemy.exc import NoSuchTableError

    try:
        return sa.Table(name, sa.MetaData(), autoload_with=db)
    except NoSuchTableError:
        schema, _, table = name.partition(".")
        if not table:
            raise
        return sa.Table(table, sa.MetaData(), schema=schema, autoload_with=db)


def _where(url: str) -> str:
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        found = make_url(url)
    except (ArgumentError, ValueError):
        return "the database"
    return f"database {found.database!r}" + (f" at {found.host}" if found.host else "")
