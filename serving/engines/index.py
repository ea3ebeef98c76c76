"""The engine of a vector search index: tasks `search` and `document`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict
from typing import Any, Protocol

from governance.call import Call, CallError, Engine, Event, bad_request
from retrieval.errors import RetrievalError
from retrieval.guard import NOBODY
from retrieval.types import Document, Passage

MAX_K = 1000


class Searchable(Protocol):
    """What is needed of `retrieval.index.Indexes`."""

    async def asearch(
        self,
        name: str,
        query: str,
        *,
        k: int = 5,
        mode: str = "hybrid",
        filters: Mapping[str, Any] | str | None = None,
        groups: frozenset[str] | None = NOBODY,
        diversity: float = 0.0,
        merge: bool = False,
    ) -> list[Passage]: ...

    def document(self, name: str, document_id: str, groups: frozenset[str] | None = NOBODY) -> Document: ...

    async def answer(self, name: str, asked: Mapping[str, Any], groups: frozenset[str] | None = NOBODY) -> dict[str, Any]: ...


def index_engine(indexes: Searchable) -> Engine:
    """An engine over all indexes; `Call.endpoint` is the index's full name.

    `search` reads `{"query": str, "k": 1-1000, "mode": str, "filters": …, "diversity": 0-1,
    "merge": bool}` and gives `{"passages": [Passage.to_dict(), …]}`
    best first; with `op` it reads rows, as `Indexes.answer` says. Rows are those that the caller's groups may see, whatever
    the payload says. `document` reads `{"id": str}` and gives `{"document": …}`.
    """

    async def run(call: Call) -> AsyncIterator[Event]:
        try:
            yield Event("result", {"result": await _run(indexes, call)})
        except RetrievalError as error:
            raise refused(error) from error

    return run


def refused(error: RetrievalError) -> CallError:
    """What retrieval refused, in the words of a call."""
    return CallError(error.message, status=error.status, code=error.code)


def _groups(call: Call) -> frozenset[str] | None:
    """What the call's caller may see of rows that are shown by group; without a caller nothing."""
    if call.caller is None:
        return NOBODY
    return None if call.caller.admin else call.caller.groups


async def _run(indexes: Searchable, call: Call) -> dict[str, Any]:
    groups = _groups(call)
    if call.task == "document":
        document_id = call.payload.get("id")
        if not isinstance(document_id, str):
            raise bad_request("Field 'id' must be a document's id.", "id")
        document = await asyncio.to_thread(indexes.document, call.endpoint, document_id, groups)
        return {"document": asdict(document)}
    if call.payload.get("op"):
        return await indexes.answer(call.endpoint, call.payload, groups)
    query, k = call.payload.get("query"), call.payload.get("k", 5)
    if not isinstance(query, str) or not query.strip():
        raise bad_request("Field 'query' must be a text to search for.", "query")
    if not isinstance(k, int) or isinstance(k, bool) or not 1 <= k <= MAX_K:
        raise bad_request(f"Field 'k' must be an integer from 1 to {MAX_K}.", "k")
    diversity = call.payload.get("diversity", 0)
    if not isinstance(diversity, int | float) or isinstance(diversity, bool) or not 0 <= diversity <= 1:
        raise bad_request("Field 'diversity' must be a number from 0 to 1.", "diversity")
    more = {name: call.payload[name] for name in ("mode", "filters", "diversity", "merge") if call.payload.get(name)}
    passages = await indexes.asearch(call.endpoint, query, k=k, groups=groups, **more)
    return {"passages": [passage.to_dict() for passage in passages]}
