"""All indexes over rows of a state folder, with what they are on and from."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from sqlalchemy.engine import Engine

from retrieval.errors import AlreadyExists, BadRequest, RetrievalError
from retrieval.guard import FAILED, NOBODY, Groups, Guards
from retrieval.locks import Locks
from retrieval.memory import Snapshot
from retrieval.revisions import Revisions
from retrieval.rows import passages as as_passages
from retrieval.rows import query as querying
from retrieval.rows import write as writing
from retrieval.rows.endpoints import SearchEndpoints
from retrieval.rows.rerank import Rerank
from retrieval.rows.schema import Spec
from retrieval.rows.store import RowIndex, RowStore
from retrieval.rows.tables import SourceTables, told
from retrieval.rows.write import Embed
from retrieval.snapshots import Snapshots
from retrieval.types import Document, Passage

log = logging.getLogger("smalti.retrieval")


class RowIndexes:
    """Indexes over rows, their endpoints, and the tables they sync from. Thread-safe; what is not a coroutine blocks.

    Parameters
    ----------
    engine: where the tables are.
    guards: which rows a caller's groups may see.
    folder_rows: rows of an index over a folder, which may be a source as well.
    folder_stamp: what changes whenever such an index was synced; None where a name is none.
    snapshots: where what searches hold of large indexes outlives the process.
    locks, revisions: of the database, where other processes may use it.
    """

    def __init__(
        self,
        engine: Engine,
        guards: Guards,
        *,
        folder_rows: Callable[[str], Iterator[dict[str, Any]]],
        folder_stamp: Callable[[str], Any],
        snapshots: Snapshots | None = None,
        locks: Locks | None = None,
        revisions: Revisions | None = None,
    ) -> None:
        self.endpoints = SearchEndpoints(engine)
        self.tables = SourceTables(engine, folder_rows, folder_stamp)
        self.store = RowStore(engine, snapshots, locks, revisions)
        self.guards = guards
        self._taken = folder_stamp
        self._running: set[asyncio.Task[None]] = set()

    def create(self, name: str, endpoint: str, spec: Spec, creator: str) -> RowIndex:
        """Raises AlreadyExists; NotFound for the endpoint or the source."""
        self.endpoints.get(endpoint)
        if spec.source:
            self.tables.rows(spec.source)
            if self.guards.column(spec.source) is not None:
                raise BadRequest(f"index {spec.source} shows its rows by group: an index made from it would show them to all")
        if self._taken(name) is not None:
            raise AlreadyExists(f"index {name} exists already")
        return self.store.create(name, endpoint, spec, creator)

    def delete_endpoint(self, name: str) -> None:
        """Raises NotFound; BadRequest while it has indexes."""
        self.endpoints.get(name)
        having = [index.name for index in self.list() if index.endpoint == name]
        if having:
            raise BadRequest(f"vector search endpoint {name!r} has {len(having)} indexes, as {having[0]}: delete them first")
        self.endpoints.remove(name)

    def find(self, name: str) -> RowIndex | None:
        return self.store.find(name)

    def standing(self, name: str) -> RowIndex | None:
        """See `retrieval.rows.store.RowStore.standing`."""
        return self.store.standing(name)

    def get(self, name: str) -> RowIndex:
        """Raises NotFound."""
        return self.store.get(name)

    def list(self) -> list[RowIndex]:
        return self.store.list()

    def told(self, index: RowIndex, groups: Groups) -> tuple[RowIndex, int]:
        """An index and how many rows it has, as they are told to `groups`, who may see some of the rows alone."""
        if self.guards.open(index.name, groups):
            return index, self.store.count(index.id)
        rows = self.store.snapshot(index)
        seen = self.guards.mask(index.name, rows, groups)
        count = int((rows.alive if seen is None else rows.alive & seen).sum())
        return replace(index, error=FAILED if index.error else "", told=""), count

    def drop(self, name: str) -> None:
        """Raises NotFound."""
        self.store.drop(name)

    async def upsert(self, name: str, given: Sequence[Any], embed: Embed, caller: Any) -> dict[str, Any]:
        """See `retrieval.rows.write.upsert`."""
        await asyncio.to_thread(self._started, name)
        return await writing.upsert(self.store, name, given, embed, caller)

    def delete(self, name: str, keys: Sequence[Any]) -> dict[str, Any]:
        """Removes rows by primary key; keys that are not there are passed over."""
        self._started(name)
        return writing.delete(self.store, name, keys)

    async def sync(self, name: str, embed: Embed, caller: Any) -> None:
        """After `store.begin`; see `retrieval.rows.write.sync`."""
        await writing.sync(self.store, self.tables, await asyncio.to_thread(self.store.get, name), embed, caller)

    def synced(self, index: RowIndex, stamp: Any) -> bool:
        """Whether its last sync read the source as a stamp of `SourceTables.stamp` says that it is."""
        return (self.store.report(index.id) or {}).get("stamp") == told(stamp)

    async def start_sync(self, index: RowIndex, embed: Embed, caller: Any) -> None:
        """Begins a sync where none runs, here or in another process; how it goes and went is in the index's status."""
        begun = asyncio.get_running_loop().create_future()

        async def work() -> None:
            try:
                mine = await asyncio.to_thread(self.store.begin, index.id)
                if not begun.done():
                    begun.set_result(None)
                if mine:
                    await writing.sync(self.store, self.tables, index, embed, caller)
            except Exception as error:
                log.warning("sync of %s: %s", index.name, getattr(error, "message", None) or repr(error))
            finally:
                if not begun.done():
                    begun.set_result(None)

        task = asyncio.get_running_loop().create_task(work())
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        await begun

    async def query(
        self, name: str, asked: Mapping[str, Any], embed: Embed, rerank: Rerank, groups: Groups = NOBODY
    ) -> dict[str, Any]:
        """See `retrieval.rows.query.query`; called behind the gateway."""
        await asyncio.to_thread(self._started, name)
        return await querying.query(self.store, name, asked, embed, rerank, self._seen(name, groups))

    def scan(self, name: str, count: int, after: str | None, groups: Groups = NOBODY) -> dict[str, Any]:
        """See `retrieval.rows.query.scan`; called behind the gateway."""
        self._started(name)
        return querying.scan(self.store, name, count, after, self._seen(name, groups))

    async def passages(
        self,
        name: str,
        text: str,
        k: int,
        mode: str,
        filters: Mapping[str, Any] | str | None,
        embed: Embed,
        groups: Groups = NOBODY,
        diversity: float = 0.0,
    ) -> list[Passage]:
        """See `retrieval.rows.passages.search`; called behind the gateway."""
        await asyncio.to_thread(self._started, name)
        return await as_passages.search(self.store, name, text, k, mode, filters, embed, self._seen(name, groups), diversity)

    def document(self, name: str, key: str, groups: Groups = NOBODY) -> Document:
        """A row as a document. Raises NotFound, also where `groups` may not see it."""
        return as_passages.document(self.store, name, key, self._seen(name, groups))

    def _seen(self, name: str, groups: Groups) -> Callable[[Snapshot], np.ndarray | None]:
        return lambda rows: self.guards.mask(name, rows, groups)

    def _started(self, name: str) -> None:
        endpoint = self.endpoints.get(self.store.get(name).endpoint)
        if endpoint.state != "ONLINE":
            raise RetrievalError(f"vector search endpoint {endpoint.name!r} is stopped: POST to its /start", 400, "INVALID_STATE")
