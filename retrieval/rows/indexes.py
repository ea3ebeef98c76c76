"""All indexes over rows of a state folder, with what they are on and from."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy.engine import Engine

from retrieval.errors import AlreadyExists, BadRequest, RetrievalError
from retrieval.rows import query as querying
from retrieval.rows import write as writing
from retrieval.rows.endpoints import SearchEndpoints
from retrieval.rows.rerank import Rerank
from retrieval.rows.schema import Spec
from retrieval.rows.store import RowIndex, RowStore
from retrieval.rows.tables import SourceTables
from retrieval.rows.write import Embed

log = logging.getLogger("smalti.retrieval")


class RowIndexes:
    """Indexes over rows, their endpoints, and the tables they sync from. Thread-safe; what is not a coroutine blocks.

    Parameters
    ----------
    engine: where the tables are.
    folder_rows: rows of an index over a folder, which may be a source as well.
    folder_stamp: what changes whenever such an index was synced; None where a name is none.
    """

    def __init__(
        self, engine: Engine, *, folder_rows: Callable[[str], Iterator[dict[str, Any]]], folder_stamp: Callable[[str], Any]
    ) -> None:
        self.endpoints = SearchEndpoints(engine)
        self.tables = SourceTables(engine, folder_rows, folder_stamp)
        self.store = RowStore(engine)
        self._taken = folder_stamp
        self._running: set[asyncio.Task[None]] = set()

    def create(self, name: str, endpoint: str, spec: Spec, creator: str) -> RowIndex:
        """Raises AlreadyExists; NotFound for the endpoint or the source."""
        self.endpoints.get(endpoint)
        if spec.source:
            self.tables.rows(spec.source)
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

    def get(self, name: str) -> RowIndex:
        """Raises NotFound."""
        return self.store.get(name)

    def list(self) -> list[RowIndex]:
        return self.store.list()

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
        await writing.sync(self.store, self.tables, name, embed, caller)

    def start_sync(self, index: RowIndex, embed: Embed, caller: Any) -> None:
        """Begins a sync where none runs; how it goes and went is in the index's status. On the event loop."""

        async def work() -> None:
            try:
                await self.sync(index.name, embed, caller)
            except Exception as error:
                log.warning("sync of %s: %s", index.name, getattr(error, "message", None) or repr(error))

        if not self.store.begin(index.id):
            return
        task = asyncio.get_running_loop().create_task(work())
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def query(self, name: str, asked: Mapping[str, Any], embed: Embed, rerank: Rerank) -> dict[str, Any]:
        """See `retrieval.rows.query.query`; called behind the gateway."""
        await asyncio.to_thread(self._started, name)
        return await querying.query(self.store, name, asked, embed, rerank)

    def scan(self, name: str, count: int, after: str | None) -> dict[str, Any]:
        """See `retrieval.rows.query.scan`; called behind the gateway."""
        self._started(name)
        return querying.scan(self.store, name, count, after)

    def _started(self, name: str) -> None:
        endpoint = self.endpoints.get(self.store.get(name).endpoint)
        if endpoint.state != "ONLINE":
            raise RetrievalError(f"vector search endpoint {endpoint.name!r} is stopped: POST to its /start", 400, "INVALID_STATE")
