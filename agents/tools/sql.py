"""SQL over tables as a tool: DuckDB in memory, one SELECT at a time, with limits of rows, time and memory.

The tables' files are read once; then the engine may reach nothing outside itself, and its settings are locked
(https://duckdb.org/docs/stable/operations_manual/securing_duckdb/overview). A result names the query it is from.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from langchain_core.tools import BaseTool

MAX_ROWS = 200
TIMEOUT = 20.0
"""Seconds a query may take."""
MEMORY = "1GB"

_READERS = {".csv": "read_csv", ".tsv": "read_csv", ".parquet": "read_parquet", ".json": "read_json", ".jsonl": "read_json"}


class SqlError(Exception):
    """A query that is not run, or does not end; one line that a model can act on."""


@dataclass(frozen=True, slots=True)
class Table:
    """A query's result; `cut` where there were more rows."""

    query: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    cut: bool = False

    def to_dict(self) -> dict[str, Any]:
        rows = [
            [value if isinstance(value, (int, float, bool, str, type(None))) else str(value) for value in r] for r in self.rows
        ]
        return {"query": self.query, "columns": list(self.columns), "rows": rows, "cut": self.cut}


def render(table: Mapping[str, Any]) -> str:
    """A result as Markdown: its query, and its rows as a table."""
    head = "| " + " | ".join(table["columns"]) + " |\n|" + "---|" * len(table["columns"])
    lines = ["| " + " | ".join(_cell(value) for value in row) + " |" for row in table["rows"]]
    more = f"\n\nOnly the first {len(table['rows'])} rows are shown." if table["cut"] else ""
    return f"```sql\n{table['query']}\n```\n\n" + "\n".join([head, *lines]) + more


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return str("" if value is None else value).replace("|", "\\|").replace("\n", " ")[:200]


class Tables:
    """Files as tables. Blocking; thread-safe.

    Parameters
    ----------
    files: CSV, TSV, Parquet, JSON or JSON-lines files by table name.
    max_rows, timeout: bounds of a result, and of a query in seconds.

    Raises
    ------
    SqlError: a file cannot be read.
    """

    def __init__(self, files: Mapping[str, Path], *, max_rows: int = MAX_ROWS, timeout: float = TIMEOUT) -> None:
        import duckdb

        self._max_rows, self._timeout = max_rows, timeout
        limits: dict[str, Any] = {"memory_limit": MEMORY, "threads": 2, "max_temp_directory_size": "0KB"}
        self._database = duckdb.connect(":memory:", config=limits)
        for name, path in files.items():
            reader = _READERS.get(path.suffix.lower())
            if reader is None:
                raise SqlError(f"table {name}: {path} is no {', '.join(_READERS)} file")
            quoted = '"' + name.replace('"', '""') + '"'
            try:
                self._database.execute(f"CREATE TABLE {quoted} AS SELECT * FROM {reader}(?)", [str(path)])
            except duckdb.Error as error:
                raise SqlError(f"table {name}: {path} cannot be read: {str(error).splitlines()[0]}") from None
        for setting in ("enable_external_access = false", "autoinstall_known_extensions = false", "lock_configuration = true"):
            self._database.execute(f"SET {setting}")
        self.names = tuple(files)

    def describe(self) -> str:
        """Tables, columns and types, a line each, as a model reads them."""
        cursor = self._database.cursor()
        lines = []
        for name in self.names:
            quoted = '"' + name.replace('"', '""') + '"'
            columns = [f"{row[0]} {row[1]}" for row in cursor.execute(f"DESCRIBE {quoted}").fetchall()]
            lines.append(f"{name}({', '.join(columns)})")
        return "\n".join(lines)

    def query(self, sql: str) -> Table:
        """Run one SELECT. Raises SqlError."""
        import duckdb

        cursor = self._database.cursor()
        try:
            statements = cursor.extract_statements(sql)
        except duckdb.Error as error:
            raise SqlError(_said(error)) from None
        if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
            raise SqlError("only one SELECT at a time is run here; nothing can be written")
        late = threading.Event()

        def stop() -> None:
            late.set()
            cursor.interrupt()

        clock = threading.Timer(self._timeout, stop)
        clock.start()
        try:
            found = cursor.execute(statements[0])
            columns = tuple(str(column[0]) for column in found.description or ())
            rows = found.fetchmany(self._max_rows + 1)
        except duckdb.Error as error:
            if late.is_set():
                raise SqlError(f"the query did not end within {self._timeout:g} s and was stopped; ask for less") from None
            raise SqlError(_said(error)) from None
        finally:
            clock.cancel()
            cursor.close()
        return Table(sql.strip().rstrip(";"), columns, tuple(rows[: self._max_rows]), len(rows) > self._max_rows)


def _said(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])[:500]


def sql_tool(
    query: Callable[[str], Any], schema: str, *, name: str = "query_tables", description: str = "", **metadata: Any
) -> BaseTool:
    """The tool by which a model asks the tables.

    Parameters
    ----------
    query: runs SQL and gives `Table.to_dict()`; awaited.
    schema: what `Tables.describe` says.
    """
    from langchain_core.tools import StructuredTool

    async def run(sql: str) -> str:
        return render(await query(sql))

    told = f"{description or 'Ask these tables in SQL (DuckDB), one SELECT.'} Tables:\n{schema}"
    return StructuredTool.from_function(coroutine=run, name=name, description=told, metadata=metadata or None)


__all__: Sequence[str] = ["SqlError", "Table", "Tables", "render", "sql_tool"]
