"""Indexes over HTTP, in the words of Databricks Vector Search (https://docs.databricks.com/api/workspace/vectorsearchindexes)."""

from __future__ import annotations

import json
import threading
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from fastapi import APIRouter, Depends, Request

from retrieval.errors import BadRequest, NotFound
from retrieval.index import MAX_K, Indexes, IndexInfo, full_name

QUERY_TYPES = {"HYBRID": "hybrid", "ANN": "dense", "FULL_TEXT": "lexical"}
COLUMNS = ("id", "document_id", "source", "title", "heading", "text", "start", "end", "page", "similarity", "lexical")
FIELDS = {
    "columns": list,
    "query_text": str,
    "num_results": int,
    "query_type": str,
    "score_threshold": (int, float),
}
MAX_BODY = 1 << 20

Invoke = Callable[[Request, str, str, Mapping[str, Any]], Awaitable[Mapping[str, Any]]]


def router(
    indexes: Indexes,
    *,
    caller: Callable[..., Any],
    invoke: Invoke,
    visible: Callable[[Any, str], bool] | None = None,
    manage: Callable[[Any, str], None] | None = None,
) -> APIRouter:
    """The routes `/api/2.0/vector-search/indexes…`.

    Parameters
    ----------
    caller: a FastAPI dependency that gives who asks (`.name`, `.admin`), or raises.
    invoke: `invoke(request, index, task, payload)` runs a call through the gateway; every query goes by it, none past it.
    visible: whether a caller may see that an index exists; None lets admins alone see them.
    manage: raises unless the caller may change an index; None lets admins alone.

    The routes raise `RetrievalError`, which carries status and `error_code`; the application turns it into a response.
    """
    routes = APIRouter(tags=["vector search"])
    who = Depends(caller)

    def may_see(asking: Any, name: str) -> bool:
        return visible(asking, name) if visible is not None else bool(asking.admin)

    def seen(asking: Any, name: str) -> IndexInfo:
        full = full_name(name)
        # What one may not see does not exist, in the same words.
        if not may_see(asking, full):
            raise NotFound(f"index {full} does not exist, or you may not see it")
        try:
            return indexes.get(full)
        except NotFound:
            raise NotFound(f"index {full} does not exist, or you may not see it") from None

    @routes.get("/api/2.0/vector-search/indexes")
    def list_indexes(asking: Any = who) -> dict[str, Any]:
        return {"vector_indexes": [_summary(info) for info in indexes.list() if may_see(asking, info.name)]}

    @routes.get("/api/2.0/vector-search/indexes/{name}")
    def get_index(name: str, asking: Any = who) -> dict[str, Any]:
        return _described(seen(asking, name))

    @routes.post("/api/2.0/vector-search/indexes/{name}/query")
    async def query_index(name: str, request: Request) -> dict[str, Any]:
        full = full_name(name)
        body = _query(await _json(request))
        payload = {"query": body["query_text"], "k": body["num_results"], "mode": QUERY_TYPES[body["query_type"]]}
        found = await invoke(request, full, "search", payload)
        rows = [
            [*(passage[column] for column in body["columns"]), passage["score"]]
            for passage in found["passages"]
            if passage["score"] >= body["score_threshold"]
        ]
        names = [*body["columns"], "score"]
        return {
            "manifest": {"column_count": len(names), "columns": [{"name": column} for column in names]},
            "result": {"row_count": len(rows), "data_array": rows},
        }

    @routes.post("/api/2.0/vector-search/indexes/{name}/sync")
    def sync_index(name: str, asking: Any = who) -> dict[str, Any]:
        """Starts a sync and answers at once; the index's `status` tells how it goes and went."""
        info = seen(asking, name)
        if manage is not None:
            manage(asking, info.name)
        elif not asking.admin:
            raise NotFound(f"index {info.name} does not exist, or you may not change it")
        if info.status != "SYNCING":
            threading.Thread(target=indexes.sync_quietly, args=(info.name,), name=f"smalti-sync-{info.name}", daemon=True).start()
        return {}

    return routes


def _summary(info: IndexInfo) -> dict[str, Any]:
    return {"name": info.name, "endpoint_name": "smalti", "index_type": "DELTA_SYNC", "primary_key": "id", "creator": "smalti"}


def _described(info: IndexInfo) -> dict[str, Any]:
    if info.error:
        message = info.error
    elif info.status == "SYNCING":
        message = "The index is being brought up to date."
    elif info.synced_at is None:
        message = "The index has not been synced yet: POST to its /sync."
    else:
        message = f"{info.documents:,} documents in {info.chunks:,} passages; {len(info.skipped):,} files skipped."
    return {
        **_summary(info),
        "delta_sync_index_spec": {
            "source_table": info.path,
            "pipeline_type": "TRIGGERED",
            "embedding_source_columns": [{"name": "text", "embedding_model_endpoint_name": info.encoder.partition(":")[0]}],
        },
        "status": {
            "ready": info.ready,
            "detailed_state": info.status,
            "message": message,
            "indexed_row_count": info.chunks,
            "index_url": f"/api/2.0/vector-search/indexes/{info.name}",
            "documents": info.documents,
            "synced_at": info.synced_at,
            "skipped": [{"source": s.source, "reason": s.reason} for s in info.skipped],
        },
    }


async def _json(request: Request) -> dict[str, Any]:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MAX_BODY:
            raise BadRequest(f"the request is longer than {MAX_BODY:,} bytes: send a shorter query_text")
    try:
        value = json.loads(bytes(body) or b"{}")
    except (ValueError, RecursionError):
        raise BadRequest("the request's body is not valid JSON") from None
    if not isinstance(value, dict):
        raise BadRequest("the request's body must be a JSON object with query_text and columns")
    return value


def _query(body: dict[str, Any]) -> dict[str, Any]:
    """The query with its defaults, or BadRequest naming the field and what it accepts."""
    given = {key: value for key, value in body.items() if value is not None}
    for key, value in given.items():
        if key not in FIELDS:
            raise BadRequest(f"field {key!r} is not supported: a query takes {', '.join(FIELDS)}")
        if not isinstance(value, FIELDS[key]) or isinstance(value, bool):
            wanted = {list: "a list of column names", str: "a string", int: "a whole number"}.get(FIELDS[key], "a number")
            raise BadRequest(f"field {key!r} must be {wanted}")
    if not given.get("query_text", "").strip():
        raise BadRequest("field 'query_text' must be the text to search for")
    columns = given.get("columns") or ["id", "source", "text"]
    for column in columns:
        if column not in COLUMNS:
            raise BadRequest(f"unknown column {column!r}: accepted are {', '.join(COLUMNS)}")
    kind = given.get("query_type", "ANN").upper()
    if kind not in QUERY_TYPES:
        raise BadRequest(f"unknown query_type {given['query_type']!r}: accepted are {', '.join(QUERY_TYPES)}")
    count = given.get("num_results", 10)
    if not 1 <= count <= MAX_K:
        raise BadRequest(f"field 'num_results' must be between 1 and {MAX_K}, not {count}")
    threshold = given.get("score_threshold", float("-inf"))
    checked = {"columns": columns, "query_type": kind, "num_results": count, "score_threshold": threshold}
    return {"query_text": given["query_text"], **checked}
