"""Changing the rows of an index: upserts, deletions, and syncs with a source table; only text that is new is embedded."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np

from retrieval import words
from retrieval.errors import BadRequest
from retrieval.rows.schema import checked, infer
from retrieval.rows.store import RowIndex, RowStore, now
from retrieval.rows.tables import SourceTables, told
from retrieval.store import digest

Embed = Callable[[str, Sequence[str], Any], Awaitable[np.ndarray]]
"""`embed(endpoint, texts, caller)`: vectors by an embeddings endpoint on behalf of a caller, None for the call being answered."""

GROUP = 500
"""Rows that a sync embeds and writes at once."""
MAX_SKIPPED = 100
"""Rows that a report names with the reason; all are counted."""

Row = tuple[dict[str, Any], np.ndarray | None]
"""A row's columns, and its own vector where it brings one."""


async def upsert(store: RowStore, name: str, given: Sequence[Any], embed: Embed, caller: Any) -> dict[str, Any]:
    """Adds rows, or replaces those of the same key; what is wrong with a row keeps that row out alone.

    Gives Databricks' `{"status", "result": {"success_row_count", "failed_primary_keys"}}`, and why under `message`.
    """
    index = await asyncio.to_thread(_direct, store, name)
    good: dict[str, Row] = {}
    failed: list[str] = []
    why = ""
    for number, row in enumerate(given):
        try:
            key, body, vector = checked(index.spec, row)
        except ValueError as error:
            label = row.get(index.spec.primary_key) if isinstance(row, dict) else None
            failed.append(str(label if label is not None else number))
            why = why or f"row {failed[-1]} {error}"
        else:
            good[key] = body, vector
    await _write(store, index, good, embed, caller)
    succeeded = len(given) - len(failed)
    status = "SUCCESS" if not failed else "PARTIAL_SUCCESS" if succeeded else "FAILURE"
    answer = {"status": status, "result": {"success_row_count": succeeded, "failed_primary_keys": failed}}
    return answer | ({"message": why} if why else {})


def delete(store: RowStore, name: str, keys: Sequence[Any]) -> dict[str, Any]:
    """Removes rows by primary key; keys that are not there are passed over."""
    gone = store.remove(_direct(store, name).id, [str(key) for key in keys if "\x00" not in str(key)])
    return {"status": "SUCCESS", "result": {"success_row_count": gone, "failed_primary_keys": []}}


def _direct(store: RowStore, name: str) -> RowIndex:
    index = store.get(name)
    if index.spec.kind != "DIRECT_ACCESS":
        raise BadRequest(f"index {name} is synced from {index.spec.source}: change that, then POST to the index's /sync")
    return index


async def sync(store: RowStore, tables: SourceTables, known: RowIndex, embed: Embed, caller: Any) -> None:
    """After `store.begin`. Makes the index equal to its source; a failure is kept in the index's `error`, and raised.

    A row at fault is left out alone, and named in the report: `rows`, `added`, `changed`, `deleted`, `unchanged`, `embedded`,
    `seconds`, `read_ms` (when the source was read), `stamp` (of it then), `skipped_rows` and of these the first as `skipped`.
    """
    try:
        index = await asyncio.to_thread(store.get, known.name)  # another process may have synced it meanwhile
        await _sync(store, tables, index, embed, caller)
    except Exception as error:
        message = getattr(error, "message", None) or f"sync failed ({type(error).__name__}): see the log"
        await asyncio.to_thread(store.note, known.id, error=str(message))
        raise
    finally:
        await asyncio.to_thread(store.end, known.id)


async def _sync(store: RowStore, tables: SourceTables, index: RowIndex, embed: Embed, caller: Any) -> None:
    spec, began, read_ms = index.spec, time.monotonic(), now()
    stamp = await asyncio.to_thread(lambda: told(tables.stamp(spec.source)))
    found = await asyncio.to_thread(lambda: list(tables.rows(spec.source)))
    keep = {*spec.chosen, spec.primary_key, spec.text, spec.vector} if spec.chosen else None
    found = [{name: value for name, value in row.items() if keep is None or name in keep} for row in found]
    for row in found:
        if isinstance(given := row.get(spec.vector), str):  # CSV and databases without lists hold vectors as JSON
            with suppress(ValueError, RecursionError):
                row[spec.vector] = json.loads(given)
    columns = infer(found, spec.vector)
    if spec.vector in columns:  # also where a row holds something else, and is skipped
        columns[spec.vector] = "array<float>"
    for name in filter(None, (spec.primary_key, spec.text, spec.vector)) if found else ():
        if name not in columns:
            raise BadRequest(f"source table {spec.source} has no column {name!r}: it has {', '.join(columns)}")
    if columns != spec.columns and columns:
        index = await asyncio.to_thread(store.respec, index, replace(spec, columns=columns))
    wanted: dict[str, Row] = {}
    skipped: list[dict[str, str]] = []
    for number, row in enumerate(found, 1):
        for name, value in row.items():
            if columns[name] == "string" and value is not None and not isinstance(value, str):
                row[name] = json.dumps(value, default=str) if isinstance(value, dict | list) else str(value)
        try:
            key, body, vector = checked(index.spec, row)
            if key in wanted:
                raise ValueError(f"has the primary key {key[:80]!r} of a row before it")
        except ValueError as error:
            skipped.append({"source": f"row {number}", "reason": f"row {number} {error}"})
        else:
            wanted[key] = body, vector
    if found and not wanted:
        raise BadRequest(f"no row of {spec.source} can be indexed: {skipped[0]['reason']}")
    had = await asyncio.to_thread(store.bodies, index.id)
    changed = {
        key: (body, vector)
        for key, (body, vector) in wanted.items()
        if vector is not None or had.get(key) != json.dumps(body, ensure_ascii=False)
    }
    embedded = 0
    for at in range(0, len(changed), GROUP):  # what is written stays, should the sync be killed: the next one goes on from there
        store.told(index.id, f"{at:,} of {len(changed):,} changed rows are in.")
        embedded += await _write(store, index, dict(islice(changed.items(), at, at + GROUP)), embed, caller)
        index = await asyncio.to_thread(store.get, index.name)
    gone = [key for key in had if key not in wanted]
    await asyncio.to_thread(store.remove, index.id, gone)
    added = sum(key not in had for key in changed)
    report = {
        "rows": len(wanted),
        "added": added,
        "changed": len(changed) - added,
        "deleted": len(gone),
        "unchanged": len(wanted) - len(changed),
        "embedded": embedded,
        "seconds": round(time.monotonic() - began, 3),
        "read_ms": read_ms,
        "stamp": stamp,
        "skipped_rows": len(skipped),
        "skipped": skipped[:MAX_SKIPPED],
    }
    await asyncio.to_thread(store.reported, index.id, report)


async def _write(store: RowStore, index: RowIndex, good: Mapping[str, Row], embed: Embed, caller: Any) -> int:
    """Gives how many texts were embedded."""
    spec = index.spec
    texts = {key: str(body.get(spec.text) or "") for key, (body, _) in good.items()} if spec.text else {}
    contents = {key: digest(spec.model, text) for key, text in texts.items()}
    known = await asyncio.to_thread(store.known, index.id, set(contents.values())) if texts else {}
    missing = list({content: texts[key] for key, content in contents.items() if content not in known}.items())
    for at in range(0, len(missing), 64):
        part = dict(missing[at : at + 64])
        made = np.asarray(await embed(spec.model, list(part.values()), caller), np.float32)
        known.update(zip(part, (row.tobytes() for row in made), strict=True))
        index = await asyncio.to_thread(store.sized, index, made.shape[1])

    def put() -> None:
        values = []
        for key, (body, vector) in good.items():
            text = " ".join(str(body[name]) for name in spec.texts if body.get(name))
            content = contents.get(key, "")
            values.append(
                {
                    "key": key,
                    "body": json.dumps(body, ensure_ascii=False),
                    "content": content,
                    "vector": vector.tobytes() if vector is not None else known.get(content),
                    "terms": words.encode(text, key),
                }
            )
        store.put(index.id, values)

    await asyncio.to_thread(put)
    return len(missing)
