"""Indexes over rows: Direct Access and Delta Sync, in the words of Databricks Vector Search, beside the indexes over folders.

The rows are kept in the database and searched in memory, exactly; what embeds text is handed in as `embed`.
"""

from __future__ import annotations

import asyncio
import bisect
import json
import threading
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import sqlalchemy as sa
from sqlalchemy.engine import Engine, Row
from sqlalchemy.exc import IntegrityError

from retrieval import filters as filtering
from retrieval import search as searching
from retrieval import words
from retrieval.errors import AlreadyExists, BadRequest, NotFound
from retrieval.memory import Memory, Record, Snapshot
from retrieval.schema import Spec, checked, infer, key_of
from retrieval.source import read_table
from retrieval.store import digest
from retrieval.tables import row_indexes, rows, search_endpoints, source_tables

Embed = Callable[[str, Sequence[str], Any], Awaitable[np.ndarray]]
"""`embed(endpoint, texts, caller)`: vectors by an embeddings endpoint on behalf of a caller, None for the call being answered."""

BATCH = 500
MODES = {"HYBRID": "hybrid", "ANN": "dense", "FULL_TEXT": "lexical"}


@dataclass(frozen=True, slots=True)
class RowIndex:
    """An index over rows and how it stands; times are Unix milliseconds."""

    id: int
    name: str
    endpoint: str
    creator: str
    spec: Spec
    created_ms: int
    synced_ms: int | None
    error: str
    count: int
    syncing: bool

    @property
    def ready(self) -> bool:
        return self.spec.kind == "DIRECT_ACCESS" or self.synced_ms is not None


class _Source:
    def __init__(self, engine: Engine, index_id: int) -> None:
        self._engine, self._id = engine, index_id

    def seqs(self) -> np.ndarray:
        with self._engine.connect() as db:
            found = db.execute(sa.select(rows.c.seq).where(rows.c.index_id == self._id).order_by(rows.c.seq))
            return np.fromiter((row[0] for row in found), np.int64)

    def records(self, after: int) -> Iterator[Record]:
        c = rows.c
        statement = sa.select(c.seq, c.key, c.vector, c.terms, c.body).where(c.index_id == self._id).order_by(c.seq).limit(4000)
        while True:
            with self._engine.connect() as db:
                page = db.execute(statement.where(c.seq > after)).all()
            if not page:
                return
            for row in page:
                yield Record(row.seq, row.key, row.vector, row.terms, json.loads(row.body))
            after = page[-1].seq


class RowIndexes:
    """Endpoints, indexes over rows, and tables to sync from. Thread-safe; blocking but where said.

    Parameters
    ----------
    engine: where the tables are.
    taken: whether a name is an index over a folder.
    folder_rows: rows of an index over a folder, which may be a source as well.
    """

    def __init__(
        self, engine: Engine, *, taken: Callable[[str], bool], folder_rows: Callable[[str], Iterator[dict[str, Any]]]
    ) -> None:
        self._engine, self._taken, self._folder_rows = engine, taken, folder_rows
        self._lock = threading.Lock()
        self._memories: dict[int, tuple[Memory, int]] = {}
        self._syncing: set[int] = set()

    # Endpoints

    def create_endpoint(self, name: str, kind: str, creator: str) -> Row[Any]:
        """Raises AlreadyExists."""
        values = {"name": name, "id": str(uuid.uuid4()), "kind": kind, "creator": creator, "created_ms": _now()}
        try:
            with self._engine.begin() as db:
                db.execute(sa.insert(search_endpoints).values(values))
        except IntegrityError:
            raise AlreadyExists(f"vector search endpoint {name!r} exists already") from None
        return self.endpoint(name)

    def endpoint(self, name: str) -> Row[Any]:
        """Raises NotFound."""
        with self._engine.connect() as db:
            row = db.execute(sa.select(search_endpoints).where(search_endpoints.c.name == name)).first()
        if row is None:
            raise NotFound(f"vector search endpoint {name!r} does not exist: POST /api/2.0/vector-search/endpoints makes it")
        return row

    def endpoints(self) -> Sequence[Row[Any]]:
        with self._engine.connect() as db:
            return db.execute(sa.select(search_endpoints).order_by(search_endpoints.c.name)).all()

    def delete_endpoint(self, name: str) -> None:
        """Raises NotFound; BadRequest while it has indexes."""
        self.endpoint(name)
        having = [index.name for index in self.list() if index.endpoint == name]
        if having:
            raise BadRequest(f"vector search endpoint {name!r} has {len(having)} indexes, as {having[0]}: delete them first")
        with self._engine.begin() as db:
            db.execute(sa.delete(search_endpoints).where(search_endpoints.c.name == name))

    # Tables to sync from

    def add_table(self, name: str, place: str) -> int:
        """Declares a table: a JSONL, JSON, CSV or Parquet file, or `DATABASE_URL#TABLE`. Gives its count of rows.

        Raises
        ------
        SourceError: it cannot be read.
        """
        return declare_table(self._engine, name, place)

    def tables(self) -> list[dict[str, str]]:
        with self._engine.connect() as db:
            return [{"name": row.name, "place": row.place} for row in db.execute(sa.select(source_tables))]

    def _source(self, name: str) -> Iterator[dict[str, Any]]:
        place = next((table["place"] for table in self.tables() if table["name"] == name), None)
        if place is not None:
            return read_table(place)
        if self._taken(name):
            return self._folder_rows(name)
        raise NotFound(f"source table {name!r} does not exist: `smalti index table {name} FILE` declares it")

    # Indexes

    def create(self, name: str, endpoint: str, spec: Spec, creator: str) -> RowIndex:
        """Raises AlreadyExists; NotFound for the endpoint or the source."""
        self.endpoint(endpoint)
        if spec.source:
            self._source(spec.source)
        values = {"name": name, "endpoint": endpoint, "creator": creator, "spec": spec.dump(), "created_ms": _now(), "error": ""}
        try:
            if self._taken(name):
                raise AlreadyExists(f"index {name} exists already")
            with self._engine.begin() as db:
                db.execute(sa.insert(row_indexes).values(values))
        except IntegrityError:
            raise AlreadyExists(f"index {name} exists already") from None
        return self.get(name)

    def find(self, name: str) -> RowIndex | None:
        with self._engine.connect() as db:
            row = db.execute(sa.select(row_indexes).where(row_indexes.c.name == name)).first()
            return self._info(db, row) if row is not None else None

    def get(self, name: str) -> RowIndex:
        """Raises NotFound."""
        found = self.find(name)
        if found is None:
            raise NotFound(f"index {name} does not exist")
        return found

    def list(self) -> list[RowIndex]:
        with self._engine.connect() as db:
            return [self._info(db, row) for row in db.execute(sa.select(row_indexes).order_by(row_indexes.c.name)).all()]

    def _info(self, db: Any, row: Any) -> RowIndex:
        count = db.execute(sa.select(sa.func.count()).select_from(rows).where(rows.c.index_id == row.id)).scalar_one()
        times = row.created_ms, row.synced_ms
        spec, syncing = Spec.parse(row.spec), row.id in self._syncing
        return RowIndex(row.id, row.name, row.endpoint, row.creator, spec, *times, row.error, count, syncing)

    def drop(self, name: str) -> None:
        """Raises NotFound."""
        index = self.get(name)
        with self._engine.begin() as db:
            db.execute(sa.delete(rows).where(rows.c.index_id == index.id))
            db.execute(sa.delete(row_indexes).where(row_indexes.c.id == index.id))
        self._memories.pop(index.id, None)

    def _snapshot(self, index: RowIndex) -> Snapshot:
        with self._lock:
            found = self._memories.get(index.id)
            if found is None or found[1] != index.spec.dimension:
                memory = Memory(_Source(self._engine, index.id), index.spec.dimension, distance=True)
                found = self._memories[index.id] = memory, index.spec.dimension
        return found[0].snapshot()

    def _changed(self, index_id: int) -> None:
        """Brings what searches read up to date; who writes waits for it, who searches does not."""
        found = self._memories.get(index_id)
        if found is not None and found[0].loaded:
            found[0].refresh()

    # Rows

    async def upsert(self, name: str, given: Sequence[Any], embed: Embed, caller: Any) -> dict[str, Any]:
        """Adds rows, or replaces those of the same key; what is wrong with a row keeps that row out alone.

        Gives Databricks' `{"status", "result": {"success_row_count", "failed_primary_keys"}}`, and why under `message`.
        """
        index = await asyncio.to_thread(self.get, name)
        if index.spec.kind != "DIRECT_ACCESS":
            raise BadRequest(f"index {name} is synced from {index.spec.source}: change that, then POST to the index's /sync")
        good: dict[str, tuple[dict[str, Any], np.ndarray | None]] = {}
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
        await self._write(index, good, embed, caller)
        succeeded = len(given) - len(failed)
        status = "SUCCESS" if not failed else "PARTIAL_SUCCESS" if succeeded else "FAILURE"
        answer = {"status": status, "result": {"success_row_count": succeeded, "failed_primary_keys": failed}}
        return answer | ({"message": why} if why else {})

    async def _write(
        self, index: RowIndex, good: Mapping[str, tuple[dict[str, Any], np.ndarray | None]], embed: Embed, caller: Any
    ) -> int:
        spec = index.spec
        contents = {
            key: digest(spec.model, str(body.get(spec.text) or "")) if spec.text else "" for key, (body, _) in good.items()
        }
        known = await asyncio.to_thread(self._known, index.id, set(contents.values())) if spec.text else {}
        missing = list(dict.fromkeys(content for content in contents.values() if content not in known)) if spec.text else []
        texts = {contents[key]: str(body.get(spec.text) or "") for key, (body, _) in good.items()}
        for at in range(0, len(missing), 64):
            part = missing[at : at + 64]
            made = np.asarray(await embed(spec.model, [texts[content] for content in part], caller), np.float32)
            known.update(zip(part, (row.tobytes() for row in made), strict=True))
            index = await asyncio.to_thread(self._sized, index, made.shape[1])
        await asyncio.to_thread(self._put, index, good, contents, known)
        return len(missing)

    def _known(self, index_id: int, contents: set[str]) -> dict[str, bytes]:
        wanted, found = list(contents), {}
        with self._engine.connect() as db:
            for at in range(0, len(wanted), BATCH):
                part = sa.select(rows.c.content, rows.c.vector).where(
                    rows.c.index_id == index_id, rows.c.content.in_(wanted[at : at + BATCH])
                )
                found.update((row.content, row.vector) for row in db.execute(part) if row.vector)
        return found

    def _sized(self, index: RowIndex, dimension: int) -> RowIndex:
        if index.spec.dimension == dimension:
            return index
        if index.spec.dimension:
            raise BadRequest(
                f"endpoint {index.spec.model!r} gave {dimension} dimensions; index {index.name} has {index.spec.dimension}"
            )
        return self._respec(index, replace(index.spec, dimension=dimension))

    def _respec(self, index: RowIndex, spec: Spec) -> RowIndex:
        with self._engine.begin() as db:
            db.execute(sa.update(row_indexes).where(row_indexes.c.id == index.id).values(spec=spec.dump()))
        return replace(index, spec=spec)

    def _put(
        self,
        index: RowIndex,
        good: Mapping[str, tuple[dict[str, Any], np.ndarray | None]],
        contents: Mapping[str, str],
        known: Mapping[str, bytes],
    ) -> None:
        spec = index.spec
        values = []
        for key, (body, vector) in good.items():
            text = " ".join(str(body[name]) for name in spec.texts if body.get(name))
            values.append(
                {
                    "index_id": index.id,
                    "key": key,
                    "body": json.dumps(body, ensure_ascii=False),
                    "content": contents[key],
                    "vector": vector.tobytes() if vector is not None else known.get(contents[key]),
                    "terms": words.encode(text, key),
                }
            )
        with self._engine.begin() as db:
            keys = list(good)
            for at in range(0, len(keys), BATCH):
                db.execute(sa.delete(rows).where(rows.c.index_id == index.id, rows.c.key.in_(keys[at : at + BATCH])))
            if values:
                db.execute(sa.insert(rows), values)
        self._changed(index.id)

    def delete(self, name: str, keys: Sequence[Any]) -> dict[str, Any]:
        """Removes rows by primary key; keys that are not there are passed over."""
        index = self.get(name)
        if index.spec.kind != "DIRECT_ACCESS":
            raise BadRequest(f"index {name} is synced from {index.spec.source}: change that, then POST to the index's /sync")
        wanted, gone = [str(key) for key in keys], 0
        with self._engine.begin() as db:
            for at in range(0, len(wanted), BATCH):
                part = sa.delete(rows).where(rows.c.index_id == index.id, rows.c.key.in_(wanted[at : at + BATCH]))
                gone += db.execute(part).rowcount
        self._changed(index.id)
        return {"status": "SUCCESS", "result": {"success_row_count": gone, "failed_primary_keys": []}}

    def begin(self, index_id: int) -> bool:
        """Marks an index as syncing, so that its status says so at once; False where it is already."""
        with self._lock:
            if index_id in self._syncing:
                return False
            self._syncing.add(index_id)
            return True

    async def sync(self, name: str, embed: Embed, caller: Any) -> None:
        """After `begin`. Makes the index equal to its source, embedding what changed; a failure is kept in `get(name).error`."""
        index = await asyncio.to_thread(self.get, name)
        try:
            await self._sync(index, embed, caller)
        except Exception as error:
            message = getattr(error, "message", None) or f"sync failed ({type(error).__name__}): see the log"
            await asyncio.to_thread(self._note, index.id, {"error": str(message)})
            raise
        finally:
            self._syncing.discard(index.id)

    async def _sync(self, index: RowIndex, embed: Embed, caller: Any) -> None:
        spec = index.spec
        found = await asyncio.to_thread(lambda: list(self._source(spec.source)))
        keep = {*spec.chosen, spec.primary_key, spec.text, spec.vector} if spec.chosen else None
        found = [{name: value for name, value in row.items() if keep is None or name in keep} for row in found]
        columns = infer(found, spec.vector)
        for name in filter(None, (spec.primary_key, spec.text, spec.vector)) if found else ():
            if name not in columns:
                raise BadRequest(f"source table {spec.source} has no column {name!r}: it has {', '.join(columns)}")
        if columns != spec.columns and columns:
            index = await asyncio.to_thread(self._respec, index, replace(spec, columns=columns))
        wanted: dict[str, tuple[dict[str, Any], np.ndarray | None]] = {}
        for number, row in enumerate(found):
            for name, value in row.items():
                if columns[name] == "string" and value is not None and not isinstance(value, str):
                    row[name] = json.dumps(value, default=str) if isinstance(value, dict | list) else str(value)
            try:
                key, body, vector = checked(index.spec, row)
            except ValueError as error:
                raise BadRequest(f"row {number + 1} of {spec.source} {error}") from None
            wanted[key] = body, vector
        had = await asyncio.to_thread(self._bodies, index.id)
        changed = {
            key: (body, vector)
            for key, (body, vector) in wanted.items()
            if vector is not None or had.get(key) != json.dumps(body, ensure_ascii=False)
        }
        await self._write(index, changed, embed, caller)
        await asyncio.to_thread(self._remove, index.id, [key for key in had if key not in wanted])
        await asyncio.to_thread(self._note, index.id, {"error": "", "synced_ms": _now()})

    def _bodies(self, index_id: int) -> dict[str, str]:
        with self._engine.connect() as db:
            return {
                row.key: row.body for row in db.execute(sa.select(rows.c.key, rows.c.body).where(rows.c.index_id == index_id))
            }

    def _remove(self, index_id: int, keys: Sequence[str]) -> None:
        with self._engine.begin() as db:
            for at in range(0, len(keys), BATCH):
                db.execute(sa.delete(rows).where(rows.c.index_id == index_id, rows.c.key.in_(keys[at : at + BATCH])))
        self._changed(index_id)

    def _note(self, index_id: int, values: dict[str, Any]) -> None:
        with self._engine.begin() as db:
            db.execute(sa.update(row_indexes).where(row_indexes.c.id == index_id).values(values))

    # Reading; called behind the gateway

    async def query(self, name: str, asked: Mapping[str, Any], embed: Embed) -> dict[str, Any]:
        """Rows for a checked query (`retrieval.ask.read`): `{"columns", "rows", "more"}`; each row ends with its score.

        Raises
        ------
        BadRequest: the query does not fit the index.
        """
        index = await asyncio.to_thread(self.get, name)
        spec, mode = index.spec, MODES[asked["query_type"]]
        text, given = asked.get("query_text") or "", asked.get("query_vector")
        vector = None
        if mode != "lexical":
            if spec.subtype == "FULL_TEXT":
                raise BadRequest(f"index {name} has no vectors: query it with query_type FULL_TEXT")
            if given is not None:
                vector = np.asarray(given, np.float32)
                if spec.dimension and vector.shape != (spec.dimension,):
                    raise BadRequest(f"field 'query_vector' must hold {spec.dimension} numbers, not {len(given)}")
            elif spec.query_model and text:
                vector = np.asarray((await embed(spec.query_model, [text], None))[0], np.float32)
            else:
                raise BadRequest(f"index {name} has self-managed vectors: give query_vector, or query_type FULL_TEXT")
        if mode != "dense" and not text.strip():
            raise BadRequest(f"field 'query_text' must be the text to search for with query_type {asked['query_type']}")
        return await asyncio.to_thread(self._query, index, asked, mode, text, vector)

    def _query(self, index: RowIndex, asked: Mapping[str, Any], mode: str, text: str, vector: Any) -> dict[str, Any]:
        spec = index.spec
        columns = asked.get("columns") or [name for name in spec.columns if name != spec.vector]
        for column in columns:
            if spec.columns and column not in spec.columns:
                raise BadRequest(f"unknown column {column!r}: index {index.name} has {', '.join(spec.columns)}")
        snapshot = self._snapshot(index)
        mask = filtering.of(snapshot, asked["filters"], spec.shown) if asked.get("filters") else None
        offset, wanted = asked.get("offset", 0), asked["num_results"]
        hits = searching.search(
            snapshot, searching.tidy(text), vector if spec.dimension else None, offset + wanted, mode, mask=mask, collapse=False
        )
        threshold = asked.get("score_threshold")
        scored = [(hit.slot, hit.score) for hit in hits if threshold is None or hit.score >= threshold]
        for clause in reversed(asked.get("sort_columns") or []):
            column, _, order = clause.rpartition(" ")
            known = [each for each in scored if snapshot.fields[each[0]].get(column) is not None]
            known.sort(key=lambda each: snapshot.fields[each[0]][column], reverse=order.upper() == "DESC")
            scored = known + [each for each in scored if snapshot.fields[each[0]].get(column) is None]
        data = []
        for slot, score in scored[offset:]:
            body = snapshot.fields[slot]
            data.append([*(_shown(spec, snapshot, slot, body, column) for column in columns), score])
        return {"columns": [*columns, "score"], "rows": data}

    def scan(self, name: str, count: int, after: str | None) -> dict[str, Any]:
        """Rows in the order of their keys, after one: `{"data": [row, …], "last_primary_key"}`."""
        index = self.get(name)
        snapshot = self._snapshot(index)
        spec = index.spec
        order = snapshot.cache.get("order")
        if order is None:
            order = sorted((_sortable(snapshot.fields[i].get(spec.primary_key)), int(i)) for i in np.flatnonzero(snapshot.alive))
            snapshot.cache["order"] = order
        at = 0
        if after is not None:
            numeric = bool(order) and order[0][0][0] == 0
            try:
                mark = _sortable(float(after) if numeric else after)
            except ValueError:
                raise BadRequest("field 'last_primary_key' must be a primary key of the index") from None
            at = bisect.bisect_right(order, (mark, len(snapshot.keys)))
        taken = order[at : at + count]
        data = []
        for _, slot in taken:
            row = dict(snapshot.fields[slot])
            if spec.vector:
                row[spec.vector] = [float(x) for x in snapshot.matrix[slot]]
            data.append(row)
        last = key_of(snapshot.fields[taken[-1][1]][spec.primary_key]) if taken else None
        return {"data": data, "last_primary_key": last}


def _shown(spec: Spec, snapshot: Snapshot, slot: int, body: Mapping[str, Any], column: str) -> Any:
    if column == spec.vector:
        return [float(x) for x in snapshot.matrix[slot]]
    return body.get(column)


def _sortable(value: Any) -> tuple[int, Any]:
    return (0, value) if isinstance(value, int | float) else (1, str(value))


def _now() -> int:
    return time.time_ns() // 1_000_000


def declare_table(engine: Engine, name: str, place: str) -> int:
    """Declares a table to sync from, in the place of an older one of that name; gives its count of rows. Raises SourceError."""
    count = sum(1 for _ in read_table(place))
    with engine.begin() as db:
        db.execute(sa.delete(source_tables).where(source_tables.c.name == name))
        db.execute(sa.insert(source_tables).values(name=name, place=place))
    return count
