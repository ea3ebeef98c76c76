"""The inference table as files that Spark, DuckDB and pandas read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson

from governance.frames import moment
from governance.tables import inference_table

_BATCH = 2_000


class ExportError(Exception):
    """The rows cannot be written; the message says why and what to do."""


def parquet(rows: Iterable[Mapping[str, Any]], path: Path) -> int:
    """Write one Parquet file, whole or not at all; gives the number of rows. Raises `ExportError`."""
    import pyarrow.parquet as writer

    partial, count = path.with_name(path.name + ".partial"), 0
    try:
        with writer.ParquetWriter(partial, _schema(), compression="zstd") as file:
            for batch in _batches(rows):
                file.write_batch(batch)
                count += batch.num_rows
        partial.replace(path)
    except OSError as error:
        raise ExportError(f"{path} cannot be written: {error}") from None
    finally:
        partial.unlink(missing_ok=True)
    return count


def delta(rows: Iterable[Mapping[str, Any]], folder: Path) -> int:
    """Replace a Delta table by the rows; gives their number. Raises `ExportError` where `deltalake` is not installed."""
    try:
        import deltalake  # pyright: ignore[reportMissingImports] - an extra
        from deltalake.exceptions import DeltaError  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ExportError("Delta tables need a package that is not installed: pip install 'smalti[delta]'") from None
    import pyarrow

    count = 0

    def counted() -> Iterator[Any]:
        nonlocal count
        for batch in _batches(rows):
            count += batch.num_rows
            yield batch

    try:
        stream = pyarrow.RecordBatchReader.from_batches(_schema(), counted())
        deltalake.write_deltalake(str(folder), stream, mode="overwrite", schema_mode="overwrite")
    except (OSError, DeltaError) as error:
        raise ExportError(f"{folder} cannot be written: {error}") from None
    return count


def _schema() -> Any:
    import pyarrow

    kinds = {"Integer": pyarrow.int32(), "BigInteger": pyarrow.int64(), "Float": pyarrow.float64()}
    times = {"request_time": pyarrow.timestamp("us", tz="UTC")}
    return pyarrow.schema(
        [
            (column.name, times.get(column.name) or kinds.get(type(column.type).__name__, pyarrow.string()))
            for column in inference_table.columns
        ]
    )


def _batches(rows: Iterable[Mapping[str, Any]]) -> Iterator[Any]:
    import pyarrow

    held: list[dict[str, Any]] = []
    for row in rows:
        held.append(
            {name: orjson.dumps(value).decode() if isinstance(value, dict | list) else value for name, value in row.items()}
            | {"request_time": moment(row["request_time"])}
        )
        if len(held) == _BATCH:
            yield pyarrow.RecordBatch.from_pylist(held, schema=_schema())
            held = []
    if held:
        yield pyarrow.RecordBatch.from_pylist(held, schema=_schema())
