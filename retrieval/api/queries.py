"""Queries and scans over HTTP. All go through the gateway; GET with a JSON body is what `databricks-vectorsearch` sends."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request

from retrieval import ask
from retrieval.api import shapes
from retrieval.api.access import Access, body_of
from retrieval.api.shapes import PREFIX
from retrieval.index import full_name
from retrieval.rows import facets

_READ = ["GET", "POST"]


def router(access: Access) -> APIRouter:
    routes = APIRouter(tags=["vector search"])

    @routes.api_route(PREFIX + "/indexes/{name}/query", methods=_READ)
    @routes.api_route(PREFIX + "/endpoints/{endpoint}/indexes/{name}/query", methods=_READ)
    async def query_index(request: Request, name: str) -> dict[str, Any]:
        return await page(access, request, name, await body_of(request), 0)

    @routes.api_route(PREFIX + "/indexes/{name}/query-next-page", methods=_READ)
    @routes.api_route(PREFIX + "/endpoints/{endpoint}/indexes/{name}/query-next-page", methods=_READ)
    async def query_next_page(request: Request, name: str) -> dict[str, Any]:
        return await page(access, request, name, *ask.untoken(await body_of(request)))

    @routes.api_route(PREFIX + "/indexes/{name}/scan", methods=_READ)
    @routes.api_route(PREFIX + "/endpoints/{endpoint}/indexes/{name}/scan", methods=_READ)
    async def scan_index(request: Request, name: str) -> dict[str, Any]:
        found = await access.invoke(request, full_name(name), "search", ask.scan(await body_of(request)))
        entries = [
            {"fields": [{"key": key, "value": shapes.value(value)} for key, value in row.items()]} for row in found["data"]
        ]
        return {"data": entries, "last_primary_key": found["last_primary_key"]}

    return routes


async def page(
    access: Access, request: Request, name: str, body: Mapping[str, Any], offset: int, most: int = 0
) -> dict[str, Any]:
    """A page of the answer to a query, from `offset` on; `most` rows, `ask.MAX_PAGE` where that is 0."""
    began = time.perf_counter()
    full, asked = full_name(name), ask.read(body)
    count = min(most or ask.MAX_PAGE, asked["num_results"] - offset)
    payload = {**asked, "op": "query", "page": count, **({"offset": offset} if offset else {})}
    found = await access.invoke(request, full, "search", payload)
    names, rows = found["columns"], found["rows"]
    answer: dict[str, Any] = {
        "manifest": {"column_count": len(names), "columns": [{"name": column} for column in names]},
        "result": {"row_count": len(rows), "data_array": rows},
    }
    if "facets" in found:
        columns = [{"name": column} for column in facets.COLUMNS]
        answer["manifest"] |= {"facet_column_count": len(columns), "facet_columns": columns}
        answer["facet_result"] = {"facet_row_count": len(found["facets"]), "facet_array": found["facets"]}
    if len(rows) == count and offset + count < asked["num_results"]:
        answer["next_page_token"] = ask.token(body, offset + count)
    if asked.get("debug_level"):
        answer["debug_info"] = {"response_time": round((time.perf_counter() - began) * 1e3, 3), **found.get("debug", {})}
    return answer
