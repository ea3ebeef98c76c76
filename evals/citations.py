"""Whether an answer's citations are true: `--scorer evals.citations:Verified`, in the folder of the project that is evaluated.

Each quote must stand in its document, at the place that the citation names, and an answer that quotes must carry markers. A query
that an answer cites is run again, over the CSV files here, and must give the table that is shown. An answer without either is not
scored.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_MARKER = re.compile(r"\[(\d+)\]")
_QUERY = re.compile(r"```sql\n(.*?)\n```\n\n(\|.*)", re.DOTALL)


class Verified:
    """True where every citation of the answer stands; nothing is said where it abstained or used no source."""

    name = "verified"

    def run(self, *, outputs: Mapping[str, Any], **_: Any) -> bool | None:
        text = str(outputs["text"])
        if query := _QUERY.search(text):
            return _same(query[1], query[2])
        passages = list(outputs.get("passages") or ())
        marked = bool(_MARKER.search(text))
        if outputs.get("abstained") or not passages:
            return False if marked else None
        quoted = [passage for passage in passages if passage.get("quote")]
        return marked and bool(quoted) and all(map(_stands, quoted))


def _stands(passage: Mapping[str, Any]) -> bool:
    """The quote is in the passage's place in its document, under `docs/` here."""
    file = Path("docs", str(passage["source"]))
    if not file.is_file():
        return False
    return " ".join(str(passage["quote"]).split()) in " ".join(file.read_text("utf-8")[passage["start"] : passage["end"]].split())


def _same(sql: str, shown: str) -> bool:
    """The query gives the rows that are shown, in their order."""
    import duckdb

    with duckdb.connect(":memory:") as database:
        for file in Path().glob("*.csv"):
            database.execute(f'CREATE TABLE "{file.stem}" AS SELECT * FROM read_csv(?)', [str(file)])
        rows = database.execute(sql).fetchall()
    lines = [line for line in shown.splitlines() if line.startswith("|")][2:]
    told = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return told == [[f"{value:.6g}" if isinstance(value, float) else str(value) for value in row] for row in rows]
