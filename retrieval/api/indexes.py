"""Indexes and their rows over HTTP: https://docs.databricks.com/api/workspace/vectorsearchindexes.

`databricks-sdk` uses `/indexes…`, `databricks-vectorsearch` and `databricks-ai-search` `/endpoints/{e}/indexes…` as well.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Depends, Request

from retrieval import ask
from retrieval.api import shapes
from retrieval.api.access import MAX_UPSERT, Access, administrator, body_of, direct, groups_of
from retrieval.api.shapes import BUILT_IN, PREFIX
from retrieval.errors import BadRequest, NotFound
from retrieval.index import IndexInfo, full_name
from retrieval.rows import schema
from retrieval.rows.store import RowIndex

_TYPES = {"int": "INT", "integer": "INT", "short": "SHORT", "byte": "BYTE", "float": "FLOAT", "double": "DOUBLE"}
_TYPES |= {"boolean": "BOOLEAN", "date": "DATE", "timestamp": "TIMESTAMP", "decimal": "DECIMAL", "string": "STRING"}
_TYPES |= {"long": "LONG", "bigint": "LONG", "smallint": "SHORT", "tinyint": "BYTE", "real": "FLOAT"}


def router(access: Access) -> APIRouter:
    routes = APIRouter(tags=["vector search"])
    who = Depends(access.caller)

    @routes.get(PREFIX + "/indexes")
    @routes.get(PREFIX + "/endpoints/{endpoint_name}/indexes")
    def list_indexes(endpoint_name: str | None = None, asking: Any = who) -> dict[str, Any]:
        return {"vector_indexes": [shapes.summary(index) for index in visible(access, asking, endpoint_name)]}

    @routes.post(PREFIX + "/indexes")
    @routes.post(PREFIX + "/endpoints/{endpoint}/indexes")
    async def create_index(request: Request, endpoint: str | None = None, asking: Any = who) -> dict[str, Any]:
        body = await body_of(request)
        made = await create(access, asking, body.get("name"), endpoint or body.get("endpoint_name"), body)
        return await described(access, asking, made.name, request)

    @routes.get(PREFIX + "/indexes/{name}")
    @routes.get(PREFIX + "/endpoints/{endpoint}/indexes/{name}")
    async def get_index(request: Request, name: str, endpoint: str | None = None, asking: Any = who) -> dict[str, Any]:
        found = await asyncio.to_thread(on, access, asking, name, endpoint)
        return await described(access, asking, found.name, request)

    @routes.delete(PREFIX + "/indexes/{name}")
    @routes.delete(PREFIX + "/endpoints/{endpoint}/indexes/{name}")
    def delete_index(name: str, endpoint: str | None = None, asking: Any = who) -> dict[str, Any]:
        on(access, asking, name, endpoint)
        drop(access, asking, name)
        return {}

    @routes.patch(PREFIX + "/indexes/{name}")
    async def update_index(request: Request, name: str, asking: Any = who) -> dict[str, Any]:
        """`payload_logging_enabled`: every query is in the journal already, so only true can be had."""
        found = await asyncio.to_thread(access.managed, asking, name)
        if (await body_of(request)).get("payload_logging_enabled") is False:
            raise BadRequest("field 'payload_logging_enabled' cannot be false: the journal has every query")
        return await described(access, asking, found.name, request)

    @routes.patch(PREFIX + "/indexes/{name}/usage-policy")
    async def usage_policy(request: Request, name: str, asking: Any = who) -> dict[str, Any]:
        """Told back, so that clients go on; budgets are what limits spending here."""
        found = await asyncio.to_thread(access.managed, asking, name)
        policy = (await body_of(request)).get("usage_policy_id")
        if not isinstance(policy, str) or not policy:
            raise BadRequest("field 'usage_policy_id' must be a non-empty string")
        return {"name": found.name, "usage_policy_id": policy, "effective_usage_policy_id": policy}

    @routes.post(PREFIX + "/indexes/{name}/sync")
    @routes.post(PREFIX + "/endpoints/{endpoint}/indexes/{name}/sync")
    async def sync_index(name: str, asking: Any = who) -> dict[str, Any]:
        """Starts a sync and answers at once; the index's `status` tells how it goes and went."""
        await sync(access, asking, name)
        return {}

    @routes.post(PREFIX + "/indexes/{name}/upsert-data")
    @routes.post(PREFIX + "/endpoints/{endpoint}/indexes/{name}/upsert-data")
    async def upsert_data(request: Request, name: str, asking: Any = who) -> dict[str, Any]:
        return await upsert(access, asking, name, request)

    @routes.delete(PREFIX + "/indexes/{name}/delete-data")
    @routes.delete(PREFIX + "/endpoints/{endpoint}/indexes/{name}/delete-data")
    async def delete_data(request: Request, name: str, asking: Any = who) -> dict[str, Any]:
        repeated = request.query_params.getlist("primary_keys")
        return await remove(access, asking, name, repeated or (await body_of(request)).get("primary_keys"))

    @routes.get("/api/2.1/unity-catalog/tables/{name}")
    def as_table(name: str, asking: Any = who) -> dict[str, Any]:
        """An index as a Unity Catalog table: clients read from it which columns can be filtered by."""
        found = access.seen(asking, name)
        columns = {"id": "string", "source": "string", "title": "string", "heading": "string", "text": "string", "page": "int"}
        catalog, schema_name, short = found.name.split(".")
        if isinstance(found, RowIndex):
            columns = dict(found.spec.columns)
        return {
            "full_name": found.name,
            "name": short,
            "catalog_name": catalog,
            "schema_name": schema_name,
            "table_type": "MANAGED",
            "columns": [
                {"name": column, "type_text": kind, "type_name": _type(kind), "position": position, "nullable": True}
                for position, (column, kind) in enumerate(columns.items())
            ],
        }

    return routes


def _type(kind: str) -> str:
    return "ARRAY" if kind.startswith("array<") else _TYPES.get(kind.partition("(")[0], "STRING")


def visible(access: Access, asking: Any, endpoint: str | None) -> list[RowIndex | IndexInfo]:
    """The indexes that the caller may see, of one endpoint or of all. Raises NotFound for the endpoint. Blocking."""
    over = access.indexes.over_rows
    if endpoint not in (None, BUILT_IN):
        over.endpoints.get(endpoint)
    rows = [index for index in over.list() if endpoint in (None, index.endpoint)]
    folders = access.indexes.list() if endpoint in (None, BUILT_IN) else []
    return [index for index in (*rows, *folders) if access.may_see(asking, index.name)]


def on(access: Access, asking: Any, name: str, endpoint: str | None) -> RowIndex | IndexInfo:
    """An index that the caller may see, on the endpoint that the path names where it names one. Blocking."""
    found = access.seen(asking, name)
    where = found.endpoint if isinstance(found, RowIndex) else BUILT_IN
    if endpoint not in (None, where):
        raise NotFound(f"index {found.name} is not on endpoint {endpoint!r}: it is on {where!r}")
    return found


async def described(access: Access, asking: Any, name: str, request: Request) -> dict[str, Any]:
    """An index as it is told of to who asks: of rows that they may not see nothing, not even how many there are."""

    def read() -> dict[str, Any]:
        over, groups, base = access.indexes.over_rows, groups_of(asking), str(request.base_url)
        index = over.standing(name)
        if index is None:
            info = access.indexes.told(access.indexes.get(name), groups)
            shown = shapes.described(info, info.chunks, base)
        else:
            index, count = over.told(index, groups)
            shown = shapes.described(index, count, base)
            if index.spec.source:
                report = over.store.report(index.id) or {}
                report.pop("stamp", None)
                lag = over.tables.behind(index.spec.source, report.get("read_ms"))
                shown["status"] |= {
                    "skipped": report.pop("skipped", []),
                    **({"last_sync": report} if report else {}),
                    **({"lag_seconds": round(lag, 1)} if lag is not None else {}),
                }
        if not access.indexes.guards.open(name, groups):
            for counted in ("skipped", "last_sync"):
                shown["status"].pop(counted, None)
        return shown

    return await asyncio.to_thread(read)


async def create(access: Access, asking: Any, name: Any, endpoint: Any, body: Mapping[str, Any]) -> RowIndex:
    """Makes an index of a request, and starts its first sync."""
    over = access.indexes.over_rows
    if not isinstance(name, str):
        raise BadRequest("field 'name' must be the index's full name, as main.default.docs")
    full = full_name(name)
    access.may_make(asking, full)
    spec = schema.read(body)
    if spec.source:
        administrator(asking, "make an index from a table of the server")
        spec = replace(spec, source=full_name(spec.source))
    if not isinstance(endpoint, str):
        raise BadRequest("field 'endpoint_name' must name a vector search endpoint")
    made = await asyncio.to_thread(over.create, full, endpoint, spec, asking.name)
    if spec.source:
        await over.start_sync(made, access.indexes.embed, asking)
    return made


def drop(access: Access, asking: Any, name: str) -> None:
    """Blocking."""
    found = access.managed(asking, name)
    (access.indexes.over_rows if isinstance(found, RowIndex) else access.indexes).drop(found.name)


async def sync(access: Access, asking: Any, name: str) -> None:
    info = await asyncio.to_thread(access.managed, asking, name)
    if not isinstance(info, RowIndex):
        access.start_folder_sync(info)
    elif info.spec.kind != "DELTA_SYNC":
        raise BadRequest(f"index {info.name} is of type DIRECT_ACCESS: upsert and delete its rows instead")
    else:
        await access.indexes.over_rows.start_sync(info, access.indexes.embed, asking)


async def upsert(access: Access, asking: Any, name: str, request: Request) -> dict[str, Any]:
    found = await asyncio.to_thread(access.managed, asking, name)
    given = ask.inputs(await body_of(request, MAX_UPSERT))
    return await access.indexes.over_rows.upsert(direct(found).name, given, access.indexes.embed, asking)


async def remove(access: Access, asking: Any, name: str, given: Any) -> dict[str, Any]:
    found = await asyncio.to_thread(access.managed, asking, name)
    return await asyncio.to_thread(access.indexes.over_rows.delete, direct(found).name, ask.keys(given))
