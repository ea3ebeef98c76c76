"""The rows of indexes: kept in the database, and in memory for those who search them."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import IntegrityError

from retrieval.chunk_reads import numbers, one_state
from retrieval.errors import AlreadyExists, BadRequest, NotFound
from retrieval.locks import ROWS as SYNCED_ROWS
from retrieval.locks import Locks
from retrieval.memory import Memory, Page, Snapshot
from retrieval.revisions import ROWS, Revisions, dropped, raised, shared
from retrieval.rows.schema import Spec
from retrieval.snapshots import Snapshots
from retrieval.tables import row_indexes, row_reports, rows

_Found = TypeVar("_Found")
BATCH = 500


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
    syncing: bool
    told: str = ""
    """How far a sync that runs is."""

    @property
    def ready(self) -> bool:
        return self.spec.kind == "DIRECT_ACCESS" or self.synced_ms is not None


class _Source:
    def __init__(self, engine: Engine, index_id: int, db: Connection | None = None) -> None:
        self._engine, self._id, self._db = engine, index_id, db

    def _reading(self) -> AbstractContextManager[Connection]:
        return self._engine.connect() if self._db is None else nullcontext(self._db)

    @contextmanager
    def frozen(self) -> Iterator[_Source]:
        with one_state(self._engine) as db:
            yield _Source(self._engine, self._id, db)

    def seqs(self) -> np.ndarray:
        with self._reading() as db:
            return numbers(db, rows, self._id)

    def pages(self, after: int) -> Iterator[Page]:
        c = rows.c
        statement = sa.select(c.seq, c.key, c.vector, c.terms, c.body).where(c.index_id == self._id).order_by(c.seq).limit(BATCH)
        while True:
            with self._reading() as db:
                page = db.execute(statement.where(c.seq > after)).all()
            if not page:
                return
            seqs, keys, vectors, terms, bodies = zip(*page, strict=True)
            yield Page(seqs, keys, vectors, terms, [json.loads(body) for body in bodies])
            after = page[-1].seq


class RowStore:
    """Indexes over rows, and their rows. Thread-safe; blocking."""

    def __init__(
        self,
        engine: Engine,
        snapshots: Snapshots | None = None,
        locks: Locks | None = None,
        revisions: Revisions | None = None,
    ) -> None:
        self._engine, self._snapshots = engine, snapshots or Snapshots(engine, None)
        self._locks = locks or Locks(engine)
        self._revisions = revisions or Revisions(engine, lambda *_: None)
        self._lock = threading.Lock()
        self._memories: dict[int, tuple[Memory, int]] = {}
        self._syncing: dict[int, str] = {}

    # Indexes

    def create(self, name: str, endpoint: str, spec: Spec, creator: str) -> RowIndex:
        """Raises AlreadyExists."""
        values = {"name": name, "endpoint": endpoint, "creator": creator, "spec": spec.dump(), "created_ms": now(), "error": ""}
        try:
            with self._engine.begin() as db:
                db.execute(sa.insert(row_indexes).values(values))
        except IntegrityError:
            raise AlreadyExists(f"index {name} exists already") from None
        return self.get(name)

    def find(self, name: str) -> RowIndex | None:
        with self._engine.connect() as db:
            row = db.execute(sa.select(row_indexes).where(row_indexes.c.name == name)).first()
        return self._info(row) if row is not None else None

    def get(self, name: str) -> RowIndex:
        """Raises NotFound."""
        found = self.find(name)
        if found is None:
            raise NotFound(f"index {name} does not exist")
        return found

    def standing(self, name: str) -> RowIndex | None:
        """An index and how it stands, whichever process syncs it; None where there is none."""
        found = self.find(name)
        return found and replace(found, syncing=found.syncing or found.id in self.syncing())

    def list(self) -> list[RowIndex]:
        """All, and how they stand, whichever process syncs them."""
        syncing = self.syncing()
        with self._engine.connect() as db:
            return [self._info(row, syncing) for row in db.execute(sa.select(row_indexes).order_by(row_indexes.c.name))]

    def _info(self, row: Any, syncing: set[int] | None = None) -> RowIndex:
        times = row.created_ms, row.synced_ms
        spec, told = Spec.parse(row.spec), self._syncing.get(row.id)
        runs = told is not None or row.id in (syncing or ())
        return RowIndex(row.id, row.name, row.endpoint, row.creator, spec, *times, row.error, runs, told or "")

    def count(self, index_id: int) -> int:
        """How many rows an index has."""
        with self._engine.connect() as db:
            return db.execute(sa.select(sa.func.count()).select_from(rows).where(rows.c.index_id == index_id)).scalar_one()

    def drop(self, name: str) -> None:
        """Raises NotFound."""
        index = self.get(name)
        self.forget(index.id)
        with self._engine.begin() as db:
            dropped(db, ROWS, index.id)
            db.execute(sa.delete(rows).where(rows.c.index_id == index.id))
            db.execute(sa.delete(row_reports).where(row_reports.c.index_id == index.id))
            db.execute(sa.delete(row_indexes).where(row_indexes.c.id == index.id))
        self.forget(index.id)

    def forget(self, index_id: int) -> None:
        """Of an index that is dropped."""
        self._snapshots.remove(ROWS, index_id)
        self._memories.pop(index_id, None)

    def respec(self, index: RowIndex, spec: Spec) -> RowIndex:
        with self._engine.begin() as db:
            db.execute(sa.update(row_indexes).where(row_indexes.c.id == index.id).values(spec=spec.dump()))
        return replace(index, spec=spec)

    def sized(self, index: RowIndex, dimension: int) -> RowIndex:
        """The index with its vectors' dimension; learnt from the first. Raises BadRequest where a later one differs."""
        if index.spec.dimension == dimension:
            return index
        if index.spec.dimension:
            raise BadRequest(
                f"endpoint {index.spec.model!r} gave {dimension} dimensions; index {index.name} has {index.spec.dimension}"
            )
        return self.respec(index, replace(index.spec, dimension=dimension))

    def note(self, index_id: int, **values: Any) -> None:
        """Stores how a sync went: `error`, `synced_ms`."""
        with self._engine.begin() as db:
            db.execute(sa.update(row_indexes).where(row_indexes.c.id == index_id).values(values))

    def reported(self, index_id: int, report: Mapping[str, Any]) -> None:
        """Stores what a sync did, in place of what the one before it did, and that it went well."""
        with self._engine.begin() as db:
            db.execute(sa.delete(row_reports).where(row_reports.c.index_id == index_id))
            db.execute(sa.insert(row_reports).values(index_id=index_id, report=json.dumps(dict(report))))
            db.execute(sa.update(row_indexes).where(row_indexes.c.id == index_id).values(error="", synced_ms=now()))

    def report(self, index_id: int) -> dict[str, Any] | None:
        """What the last sync did: see `retrieval.rows.write.sync`; None before the first."""
        with self._engine.connect() as db:
            found = db.execute(sa.select(row_reports.c.report).where(row_reports.c.index_id == index_id)).scalar()
        return json.loads(found) if found else None

    def begin(self, index_id: int) -> bool:
        """Marks an index as syncing, so that its status says so at once; False where it is already, here or elsewhere."""
        if not self._locks.take(SYNCED_ROWS, index_id):
            return False
        self._syncing[index_id] = ""
        return True

    def told(self, index_id: int, how_far: str) -> None:
        """Notes how far the sync that runs is."""
        self._syncing[index_id] = how_far

    def end(self, index_id: int) -> None:
        if self._syncing.pop(index_id, None) is not None:
            self._locks.leave(SYNCED_ROWS, index_id)

    def syncing(self) -> set[int]:
        """Indexes that are being synced, here or in another process."""
        return self._locks.held(SYNCED_ROWS)

    # Rows

    def snapshot(self, index: RowIndex) -> Snapshot:
        """What searches read."""
        return self._memory(index.id, index.spec.dimension).snapshot()

    def read(self, index: RowIndex, look: Callable[[Snapshot], tuple[_Found, Sequence[int]]]) -> _Found:
        """What `look` finds in what searches read, and the slots of the rows it shows: looked for anew where another process has
        taken one of these away or changed it, which this one is about to hear."""
        for last in (False, False, True):
            present = self.snapshot(index)
            found, slots = look(present)
            if last or not shared(self._engine) or self._there(present.seqs[list(slots)].tolist()):
                return found
            self.changed(index.id)
        raise AssertionError

    def _there(self, seqs: Sequence[int]) -> bool:
        with self._engine.connect() as db:
            for at in range(0, len(seqs), BATCH):
                part = sa.select(sa.func.count()).select_from(rows).where(rows.c.seq.in_(seqs[at : at + BATCH]))
                if db.execute(part).scalar_one() < len(seqs[at : at + BATCH]):
                    return False
        return True

    def _memory(self, index_id: int, dimension: int) -> Memory:
        with self._lock:
            found = self._memories.get(index_id)
            # One that was read before the first vector told how long they are is read anew, never the other way round.
            if found is None or found[1] < dimension:
                source, kept = _Source(self._engine, index_id), self._snapshots.of(ROWS, index_id)
                memory = Memory(source, dimension, distance=True, kept=kept)
                found = self._memories[index_id] = memory, dimension
        return found[0]

    def changed(self, index_id: int) -> None:
        """Brings what searches read up to date; who writes waits for it, who searches does not."""
        kept = self._snapshots.of(ROWS, index_id)
        if index_id not in self._memories and not (kept is not None and kept.there):
            return
        with self._engine.connect() as db:
            spec = db.execute(sa.select(row_indexes.c.spec).where(row_indexes.c.id == index_id)).scalar()
        memory = self._memory(index_id, Spec.parse(spec).dimension) if spec else None
        # A file may hold rows that are gone now, also of an index that nobody has searched yet.
        if memory is not None and (memory.loaded or (kept is not None and kept.there)):
            with self._revisions.taking(ROWS, index_id):
                memory.refresh()

    def known(self, index_id: int, contents: set[str]) -> dict[str, bytes]:
        """Vectors that rows have already, by the hash of what was embedded."""
        wanted, found = list(contents), {}
        with self._engine.connect() as db:
            for at in range(0, len(wanted), BATCH):
                part = sa.select(rows.c.content, rows.c.vector).where(
                    rows.c.index_id == index_id, rows.c.content.in_(wanted[at : at + BATCH])
                )
                found.update((row.content, row.vector) for row in db.execute(part) if row.vector)
        return found

    def bodies(self, index_id: int) -> dict[str, str]:
        """Every row's columns as JSON, by key."""
        wanted = sa.select(rows.c.key, rows.c.body).where(rows.c.index_id == index_id)
        with self._engine.connect() as db:
            return {row.key: row.body for row in db.execute(wanted)}

    def put(self, index_id: int, values: Sequence[Mapping[str, Any]]) -> None:
        """Writes rows, in the place of those of the same keys, in one transaction."""
        keys = [value["key"] for value in values]
        with self._engine.begin() as db:
            raised(db, ROWS, index_id)
            for at in range(0, len(keys), BATCH):
                db.execute(sa.delete(rows).where(rows.c.index_id == index_id, rows.c.key.in_(keys[at : at + BATCH])))
            if values:
                db.execute(sa.insert(rows), [{"index_id": index_id, **value} for value in values])
        self.changed(index_id)

    def remove(self, index_id: int, keys: Sequence[str]) -> int:
        """Removes rows; gives how many were there."""
        gone = 0
        with self._engine.begin() as db:
            raised(db, ROWS, index_id)
            for at in range(0, len(keys), BATCH):
                part = sa.delete(rows).where(rows.c.index_id == index_id, rows.c.key.in_(keys[at : at + BATCH]))
                gone += db.execute(part).rowcount
        self.changed(index_id)
        return gone


def now() -> int:
    return time.time_ns() // 1_000_000
