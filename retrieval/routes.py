"""Indexes over HTTP, in the words of Databricks Vector Search (https://docs.databricks.com/api/workspace/vectorsearchindexes).

Both of its clients are served: `databricks-sdk` posts to `/indexes…`, `databricks-vectorsearch` uses `/endpoints/{e}/indexes…`
and reads with GET and a JSON body.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from fastapi import APIRouter, Depends, Request

from retrieval import ask, schema
from retrieval.ask import QUERY_TYPES
from retrieval.errors import BadRequest, NotFound, RetrievalError
from retrieval.index import MAX_K, Indexes, IndexInfo, full_name
from retrieval.rows import RowIndex

log = logging.getLogger("smalti.retrieval")

PREFIX = "/api/2.0/vector-search"
BUILT_IN = "smalti"
"""The endpoint that indexes over folders are on."""
COLUMNS = ("id", "document_id", "source", "title", "heading", "text", "start", "end", "page", "similarity", "lexical")
MAX_BODY = 1 << 20
MAX_UPSERT = 64 << 20

Invoke = Callable[[Request, str, str, Mapping[str, Any]], Awaitable[Mapping[str, Any]]]


def router(
    indexes: Indexes,
    *,
    caller: Callable[..., Any],
    invoke: Invoke,
    visible: Callable[[Any, str], bool] | None = None,
    manage: Callable[[Any, str], None] | None = None,
) -> APIRouter:
    """The routes `/api/2.0/vector-search/…`.

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
    over = indexes.over_rows
    running: set[asyncio.Task[None]] = set()

    def may_see(asking: Any, name: str) -> bool:
        return visible(asking, name) if visible is not None else bool(asking.admin)

    def seen(asking: Any, name: str) -> IndexInfo | RowIndex:
        full = full_name(name)
        missing = NotFound(f"index {full} does not exist, or you may not see it")
        # What one may not see does not exist, in the same words.
        if not may_see(asking, full):
            raise missing
        found = over.find(full)
        if found is not None:
            return found
        try:
            return indexes.get(full)
        except NotFound:
            raise missing from None

    def managed(asking: Any, name: str) -> IndexInfo | RowIndex:
        found = seen(asking, name)
        if manage is not None:
            manage(asking, found.name)
        elif not asking.admin:
            raise NotFound(f"index {found.name} does not exist, or you may not change it")
        return found

    def administrator(asking: Any, what: str) -> None:
        if not asking.admin:
            raise RetrievalError(f"only an administrator may {what}", 403, "PERMISSION_DENIED")

    # Endpoints

    @routes.post(PREFIX + "/endpoints")
    async def create_endpoint(request: Request, asking: Any = who) -> dict[str, Any]:
        administrator(asking, "make a vector search endpoint")
        body = await _json(request)
        name, kind = body.get("name"), str(body.get("endpoint_type") or "STANDARD").upper()
        if not isinstance(name, str) or not 0 < len(name) <= 128 or not name.replace("-", "").replace("_", "").isalnum():
            raise BadRequest("field 'name' must be up to 128 letters, digits, - and _")
        if kind not in ("STANDARD", "STORAGE_OPTIMIZED"):
            raise BadRequest(f"field 'endpoint_type' must be STANDARD or STORAGE_OPTIMIZED, not {kind!r}")
        if name == BUILT_IN:
            raise RetrievalError(f"vector search endpoint {name!r} exists already", 409, "RESOURCE_ALREADY_EXISTS")
        return _endpoint(await asyncio.to_thread(over.create_endpoint, name, kind, asking.name), 0)

    @routes.get(PREFIX + "/endpoints")
    def list_endpoints(asking: Any = who) -> dict[str, Any]:
        counts: dict[str, int] = {}
        for index in over.list():
            counts[index.endpoint] = counts.get(index.endpoint, 0) + 1
        shown = [_endpoint(row, counts.get(row.name, 0)) for row in over.endpoints()]
        return {"endpoints": [*shown, _built_in(len(indexes.list()))]}

    @routes.get(PREFIX + "/endpoints/{endpoint}")
    def get_endpoint(endpoint: str, asking: Any = who) -> dict[str, Any]:
        if endpoint == BUILT_IN:
            return _built_in(len(indexes.list()))
        return _endpoint(over.endpoint(endpoint), sum(index.endpoint == endpoint for index in over.list()))

    @routes.delete(PREFIX + "/endpoints/{endpoint}")
    def delete_endpoint(endpoint: str, asking: Any = who) -> dict[str, Any]:
        administrator(asking, "delete a vector search endpoint")
        over.delete_endpoint(endpoint)
        return {}

    @routes.get("/api/2.0/permissions/vector-search-endpoints/{endpoint_id}/permissionLevels")
    def permission_levels(endpoint_id: str, asking: Any = who) -> dict[str, Any]:
        if endpoint_id != BUILT_IN and not any(row.id == endpoint_id for row in over.endpoints()):
            raise NotFound(f"vector search endpoint with id {endpoint_id!r} does not exist")
        told = {"CAN_USE": "Query the endpoint's indexes that are granted.", "CAN_MANAGE": "Make and delete its indexes."}
        return {"permission_levels": [{"permission_level": name, "description": words} for name, words in told.items()]}

    # Indexes

    @routes.get(PREFIX + "/indexes")
    @routes.get(PREFIX + "/endpoints/{endpoint_name}/indexes")
    def list_indexes(endpoint_name: str | None = None, asking: Any = who) -> dict[str, Any]:
        if endpoint_name not in (None, BUILT_IN):
            over.endpoint(endpoint_name)
        found = [
            *(_row_summary(index) for index in over.list() if may_see(asking, index.name)),
            *(_summary(info) for info in indexes.list() if may_see(asking, info.name)),
        ]
        return {"vector_indexes": [each for each in found if endpoint_name in (None, each["endpoint_name"])]}

    @routes.post(PREFIX + "/indexes")
    @routes.post(PREFIX + "/endpoints/{endpoint}/indexes")
    async def create_index(request: Request, endpoint: str | None = None, asking: Any = who) -> dict[str, Any]:
        body = await _json(request)
        if not isinstance(body.get("name"), str):
            raise BadRequest("field 'name' must be the index's full name, as main.default.docs")
        full = full_name(body["name"])
        if manage is not None:
            manage(asking, full)
        else:
            administrator(asking, f"make index {full}")
        spec = schema.read(body)
        if spec.source:
            administrator(asking, "make an index from a table of the server")
            spec = schema.replace(spec, source=full_name(spec.source))
        on = endpoint or body.get("endpoint_name")
        if not isinstance(on, str):
            raise BadRequest("field 'endpoint_name' must name a vector search endpoint")
        made = await asyncio.to_thread(over.create, full, on, spec, asking.name)
        if spec.source:
            start_sync(made, asking)
        return _row_described(await asyncio.to_thread(over.get, full), str(request.base_url))

    @routes.get(PREFIX + "/indexes/{name}")
    @routes.get(PREFIX + "/endpoints/{endpoint}/indexes/{name}")
    def get_index(request: Request, name: str, asking: Any = who) -> dict[str, Any]:
        found, base = seen(asking, name), str(request.base_url)
        return _row_described(found, base) if isinstance(found, RowIndex) else _described(found, base)

    @routes.delete(PREFIX + "/indexes/{name}")
    @routes.delete(PREFIX + "/endpoints/{endpoint}/indexes/{name}")
    def delete_index(name: str, asking: Any = who) -> dict[str, Any]:
        found = managed(asking, name)
        (over if isinstance(found, RowIndex) else indexes).drop(found.name)
        return {}

    @routes.post(PREFIX + "/indexes/{name}/sync")
    @routes.post(PREFIX + "/endpoints/{endpoint}/indexes/{name}/sync")
    async def sync_index(name: str, asking: Any = who) -> dict[str, Any]:
        """Starts a sync and answers at once; the index's `status` tells how it goes and went."""
        info = await asyncio.to_thread(managed, asking, name)
        if isinstance(info, RowIndex):
            if info.spec.kind != "DELTA_SYNC":
                raise BadRequest(f"index {info.name} is of type DIRECT_ACCESS: upsert and delete its rows instead")
            start_sync(info, asking)
        elif info.status != "SYNCING":
            threading.Thread(target=indexes.sync_quietly, args=(info.name,), name=f"smalti-sync-{info.name}", daemon=True).start()
        return {}

    def start_sync(index: RowIndex, asking: Any) -> None:
        async def work() -> None:
            try:
                await over.sync(index.name, indexes.embed, asking)
            except Exception as error:
                log.warning("sync of %s: %s", index.name, getattr(error, "message", None) or repr(error))

        if not over.begin(index.id):
            return
        task = asyncio.get_running_loop().create_task(work())
        running.add(task)
        task.add_done_callback(running.discard)

    # Rows

    @routes.post(PREFIX + "/indexes/{name}/upsert-data")
    @routes.post(PREFIX + "/endpoints/{endpoint}/indexes/{name}/upsert-data")
    async def upsert(request: Request, name: str, asking: Any = who) -> dict[str, Any]:
        found = await asyncio.to_thread(managed, asking, name)
        given = ask.inputs(await _json(request, MAX_UPSERT))
        return await over.upsert(direct(found).name, given, indexes.embed, asking)

    @routes.delete(PREFIX + "/indexes/{name}/delete-data")
    @routes.delete(PREFIX + "/endpoints/{endpoint}/indexes/{name}/delete-data")
    async def delete_data(request: Request, name: str, asking: Any = who) -> dict[str, Any]:
        found = await asyncio.to_thread(managed, asking, name)
        repeated = request.query_params.getlist("primary_keys")
        keys = ask.keys(repeated or (await _json(request)).get("primary_keys"))
        return await asyncio.to_thread(over.delete, direct(found).name, keys)

    def direct(found: IndexInfo | RowIndex) -> RowIndex:
        if not isinstance(found, RowIndex):
            raise BadRequest(f"index {found.name} follows its folder {found.path}: change the files there")
        return found

    @routes.api_route(PREFIX + "/indexes/{name}/query", methods=["GET", "POST"])
    @routes.api_route(PREFIX + "/endpoints/{endpoint}/indexes/{name}/query", methods=["GET", "POST"])
    async def query_index(request: Request, name: str) -> dict[str, Any]:
        return await page(request, full_name(name), ask.read(await _json(request)), 0)

    @routes.api_route(PREFIX + "/indexes/{name}/query-next-page", methods=["GET", "POST"])
    @routes.api_route(PREFIX + "/endpoints/{endpoint}/indexes/{name}/query-next-page", methods=["GET", "POST"])
    async def query_next_page(request: Request, name: str) -> dict[str, Any]:
        return await page(request, full_name(name), *ask.untoken(await _json(request)))

    async def page(request: Request, full: str, asked: dict[str, Any], offset: int) -> dict[str, Any]:
        began = time.perf_counter()
        count = min(ask.MAX_PAGE, asked["num_results"] - offset)
        if await asyncio.to_thread(over.find, full) is not None:
            payload = {**asked, "op": "query", "num_results": count, **({"offset": offset} if offset else {})}
            found = await invoke(request, full, "search", payload)
            names, rows = found["columns"], found["rows"]
        else:
            names, rows = await folder_page(request, full, asked, offset + count)
            rows = rows[offset:]
        answer: dict[str, Any] = {
            "manifest": {"column_count": len(names), "columns": [{"name": column} for column in names]},
            "result": {"row_count": len(rows), "data_array": rows},
        }
        if len(rows) == count and offset + count < asked["num_results"]:
            answer["next_page_token"] = ask.token(asked, offset + count)
        if asked.get("debug_level"):
            answer["debug_info"] = {"response_time": round((time.perf_counter() - began) * 1e3, 3)}
        return answer

    async def folder_page(request: Request, full: str, asked: dict[str, Any], count: int) -> tuple[list[str], list[list[Any]]]:
        if not asked.get("query_text"):
            raise BadRequest("field 'query_text' must be the text to search for: the index embeds questions itself")
        columns = asked.get("columns") or ["id", "source", "text"]
        for column in columns:
            if column not in COLUMNS:
                raise BadRequest(f"unknown column {column!r}: accepted are {', '.join(COLUMNS)}")
        payload = {"query": asked["query_text"], "k": min(count, MAX_K), "mode": QUERY_TYPES[asked["query_type"]]}
        payload |= {"filters": asked["filters"]} if asked.get("filters") else {}
        found = await invoke(request, full, "search", payload)
        least = asked.get("score_threshold", float("-inf"))
        kept = [passage for passage in found["passages"] if passage["score"] >= least]
        return [*columns, "score"], [[*(passage[column] for column in columns), passage["score"]] for passage in kept]

    @routes.api_route(PREFIX + "/indexes/{name}/scan", methods=["GET", "POST"])
    @routes.api_route(PREFIX + "/endpoints/{endpoint}/indexes/{name}/scan", methods=["GET", "POST"])
    async def scan_index(request: Request, name: str) -> dict[str, Any]:
        found = await invoke(request, full_name(name), "search", ask.scan(await _json(request)))
        entries = [{"fields": [{"key": key, "value": _value(value)} for key, value in row.items()]} for row in found["data"]]
        return {"data": entries, "last_primary_key": found["last_primary_key"]}

    return routes


def _endpoint(row: Any, count: int) -> dict[str, Any]:
    return {
        "name": row.name,
        "id": row.id,
        "creator": row.creator,
        "creation_timestamp": row.created_ms,
        "last_updated_timestamp": row.created_ms,
        "last_updated_user": row.creator,
        "endpoint_type": row.kind,
        "endpoint_status": {"state": "ONLINE", "message": ""},
        "num_indexes": count,
    }


def _built_in(count: int) -> dict[str, Any]:
    status = {"state": "ONLINE", "message": "Indexes over folders."}
    more = {"creator": "smalti", "endpoint_type": "STANDARD", "endpoint_status": status, "num_indexes": count}
    return {"name": BUILT_IN, "id": BUILT_IN, **more}


def _row_summary(index: RowIndex) -> dict[str, Any]:
    return {
        "name": index.name,
        "endpoint_name": index.endpoint,
        "index_type": index.spec.kind,
        "index_subtype": index.spec.subtype,
        "primary_key": index.spec.primary_key,
        "creator": index.creator,
    }


def _row_described(index: RowIndex, base: str) -> dict[str, Any]:
    spec = index.spec
    more: dict[str, Any] = {}
    if spec.vector:
        more["embedding_vector_columns"] = [{"name": spec.vector, "embedding_dimension": spec.dimension}]
    if spec.text:
        entry = {"name": spec.text, "embedding_model_endpoint_name": spec.model}
        other = {"model_endpoint_name_for_query": spec.query_model} if spec.query_model != spec.model else {}
        more["embedding_source_columns"] = [entry | other]
    if spec.kind == "DIRECT_ACCESS":
        described = {"direct_access_index_spec": {**more, "schema_json": json.dumps(dict(spec.columns))}}
        state, message = "ONLINE_DIRECT_ACCESS", f"{index.count:,} rows."
    else:
        pipeline = {"source_table": spec.source, "pipeline_type": spec.pipeline, "pipeline_id": f"smalti-{index.id}"}
        chosen = {"columns_to_sync": list(spec.chosen)} if spec.chosen else {}
        described = {"delta_sync_index_spec": {**pipeline, **more, **chosen}}
        if index.syncing:
            state = "ONLINE_TRIGGERED_UPDATE" if index.ready else "PROVISIONING_INITIAL_SNAPSHOT"
            message = "The index is being brought up to date."
        elif index.error:
            state, message = "ONLINE_PIPELINE_FAILED" if index.ready else "OFFLINE_FAILED", index.error
        else:
            state = "ONLINE_NO_PENDING_UPDATE" if index.ready else "PROVISIONING"
            message = f"{index.count:,} rows."
    return {
        **_row_summary(index),
        "id": f"smalti-{index.id}",
        **described,
        "status": {
            "ready": index.ready,
            "detailed_state": state,
            "message": message,
            "indexed_row_count": index.count,
            "index_url": f"{base.rstrip('/')}{PREFIX}/indexes/{index.name}",
        },
    }


def _value(value: Any) -> dict[str, Any]:
    """A value as protobuf's JSON writes one of any type."""
    if isinstance(value, bool):
        return {"bool_value": value}
    if isinstance(value, int | float):
        return {"number_value": value}
    if isinstance(value, list | tuple):
        return {"list_value": {"values": [_value(each) for each in value]}}
    return {"string_value": value} if value is not None else {"null_value": "NULL_VALUE"}


def _summary(info: IndexInfo) -> dict[str, Any]:
    return {"name": info.name, "endpoint_name": BUILT_IN, "index_type": "DELTA_SYNC", "primary_key": "id", "creator": "smalti"}


def _described(info: IndexInfo, base: str) -> dict[str, Any]:
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
            "index_url": f"{base.rstrip('/')}{PREFIX}/indexes/{info.name}",
            "documents": info.documents,
            "synced_at": info.synced_at,
            "skipped": [{"source": s.source, "reason": s.reason} for s in info.skipped],
        },
    }


async def _json(request: Request, most: int = MAX_BODY) -> dict[str, Any]:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > most:
            raise BadRequest(f"the request is longer than {most:,} bytes: send less at once")
    try:
        value = json.loads(bytes(body) or b"{}")
    except (ValueError, RecursionError):
        raise BadRequest("the request's body is not valid JSON") from None
    if not isinstance(value, dict):
        raise BadRequest("the request's body must be a JSON object with query_text and columns")
    return value
