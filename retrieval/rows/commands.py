"""What `smalti index` does with indexes over rows, by the calls that a client of the vector search API makes."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path
from typing import Any

import typer

SEARCH = "/api/2.0/vector-search"
TABLES = "tables"
"""The vector search endpoint of the indexes that `add` makes of tables."""
BUILT_IN = "smalti"
"""The endpoint that indexes over folders are on."""
COLUMNS = 4
"""Columns of a row that `query` shows; with --json all."""


def add(
    work: Any,
    name: str,
    place: str,
    *,
    key: str,
    text: str,
    columns: str | None = None,
    continuous: bool = False,
    encoder: str,
) -> dict[str, Any]:
    """A Delta Sync index over a table, or over the passages of a folder's index, synced; as the API describes it."""
    spec: dict[str, Any] = {
        "pipeline_type": "CONTINUOUS" if continuous else "TRIGGERED",
        "embedding_source_columns": [{"name": text, "embedding_model_endpoint_name": encoder}],
    }
    if columns:
        spec["columns_to_sync"] = [column.strip() for column in columns.split(",")]
    with work.connect() as client:
        spec["source_table"] = _folder(client, place) or declare(work, client, f"{name}_source", place)["name"]
        made = client.post(f"{SEARCH}/endpoints", json={"name": TABLES, "endpoint_type": "STANDARD"})
        if made.status_code != 409:
            work.check(made)
        body = {"name": name, "endpoint_name": TABLES, "primary_key": key, "index_type": "DELTA_SYNC"}
        made = client.post(f"{SEARCH}/indexes", json=body | {"delta_sync_index_spec": spec})
        if made.status_code != 409:
            work.check(made)
            return settled(work, client, name)
        there = work.check(client.get(f"{SEARCH}/indexes/{name}"))
        had = there.get("delta_sync_index_spec", {})
        if there["primary_key"] != key or any(had.get(what) != spec.get(what) for what in spec):
            raise typer.Exit(fail(f"{there['name']} exists already and is made otherwise: smalti index drop {name} first"))
        return sync(work, client, name)


def declare(work: Any, client: Any, name: str, place: str) -> dict[str, Any]:
    """A table of the server by the name that indexes give it."""
    path = place if "://" in place else str(Path(place).expanduser().resolve())
    return work.check(client.post("/api/2.0/smalti/indexes/tables", json={"name": name, "path": path}))


def _folder(client: Any, place: str) -> str | None:
    """The full name of an index over a folder that is named instead of a table."""
    if not re.fullmatch(r"\w+(\.\w+){0,2}", place) or Path(place).exists():
        return None
    found = client.get(f"/api/2.0/smalti/indexes/{place}")
    return found.json()["name"] if found.is_success else None


def sync(work: Any, client: Any, name: str) -> dict[str, Any]:
    """Bring an index up to date with its table; as the API describes it then."""
    work.check(client.post(f"{SEARCH}/indexes/{name}/sync"))
    return settled(work, client, name)


def settled(work: Any, client: Any, name: str) -> dict[str, Any]:
    """An index as the API describes it once it is not being synced."""
    said = ""
    while True:
        found = work.check(client.get(f"{SEARCH}/indexes/{name}"))
        state = found["status"]["detailed_state"]
        if state.endswith("FAILED"):
            raise typer.Exit(fail(found["status"]["message"]))
        if state == "ONLINE_NO_PENDING_UPDATE" or not state.endswith(("_UPDATE", "_SNAPSHOT", "PROVISIONING")):
            return found
        if (message := found["status"]["message"]) != said and sys.stderr.isatty():
            said = message
            typer.echo(said, err=True)
        time.sleep(0.1)


def listed(work: Any, client: Any) -> list[dict[str, Any]]:
    """All indexes over rows, in the fields that `smalti index list` shows."""
    names = [
        each["name"]
        for each in work.check(client.get(f"{SEARCH}/indexes"))["vector_indexes"]
        if each["endpoint_name"] != BUILT_IN
    ]
    rows = []
    for name in names:
        found = work.check(client.get(f"{SEARCH}/indexes/{name}"))
        status = found["status"]
        rows.append(
            {
                "name": name,
                "path": found.get("delta_sync_index_spec", {}).get("source_table", ""),
                "documents": status["indexed_row_count"],
                "chunks": status["indexed_row_count"],
                "status": status["detailed_state"].partition("_")[0],
                "skipped": status.get("skipped", []),
            }
        )
    return rows


def show(work: Any, found: dict[str, Any], as_json: bool) -> None:
    """Print how an index stands."""
    if as_json:
        work.print_json(found)
        return
    status = found["status"]
    report = status.get("last_sync") or {}
    print(f"{found['name']}: {status['indexed_row_count']:,} rows, {status['detailed_state']}. {status['message']}")
    if report:
        done = ", ".join(f"{report[what]:,} {what}" for what in ("added", "changed", "deleted", "unchanged", "embedded"))
        print(f"last sync: {done} in {report['seconds']:.1f} s; {report['skipped_rows']:,} rows skipped")
    if status.get("lag_seconds"):
        print(f"its table has been changed for {status['lag_seconds']:,.0f} s")
    for item in status.get("skipped", ()):
        print(f"skipped {item['reason']}")


def telling(index: dict[str, Any], row: dict[str, Any]) -> list[str]:
    """The columns of a row that a line has room for: its key, what is embedded of it, then the others."""
    spec = index.get("delta_sync_index_spec") or index.get("direct_access_index_spec") or {}
    first = [index["primary_key"], *(each["name"] for each in spec.get("embedding_source_columns") or ())]
    others = [column for column in row if column not in first and column != "score"]
    return [column for column in [*first, *others] if column in row][:COLUMNS]


def fail(message: str) -> int:
    typer.echo(message, err=True)
    return 1
