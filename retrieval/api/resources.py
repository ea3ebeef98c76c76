"""The same as resources: `/api/2.0/ai-search/workspaces/{w}/endpoints/{e}/indexes/{i}`, with verbs after a colon.

Source: https://docs.databricks.com/api/ai-search/v1 (what `WorkspaceClient.ai_search` speaks).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, Depends, Request

from retrieval import ask
from retrieval.api import endpoints, indexes, queries
from retrieval.api.access import Access, body_of
from retrieval.errors import BadRequest
from retrieval.index import full_name

ROOT = "/api/2.0/ai-search/workspaces/{workspace}/endpoints"
ONE = ROOT + "/{endpoint}/indexes/{name}"


def router(access: Access) -> APIRouter:
    routes = APIRouter(tags=["vector search"])
    who = Depends(access.caller)
    over = access.indexes.over_rows

    # Endpoints

    @routes.post(ROOT)
    async def create_endpoint(request: Request, workspace: str, endpoint_id: str = "", asking: Any = who) -> dict[str, Any]:
        body = await body_of(request)
        name = endpoint_id or str(body.get("name") or "").rpartition("/")[2]
        return _endpoint(workspace, await asyncio.to_thread(endpoints.create, access, asking, name, body))

    @routes.get(ROOT)
    def list_endpoints(workspace: str, asking: Any = who) -> dict[str, Any]:
        return {"endpoints": [_endpoint(workspace, each) for each in endpoints.everything(access, asking)]}

    @routes.get(ROOT + "/{endpoint}")
    def get_endpoint(workspace: str, endpoint: str, asking: Any = who) -> dict[str, Any]:
        return _endpoint(workspace, endpoints.show(access, asking, endpoint))

    @routes.patch(ROOT + "/{endpoint}")
    async def update_endpoint(
        request: Request, workspace: str, endpoint: str, update_mask: str = "", asking: Any = who
    ) -> dict[str, Any]:
        body = await body_of(request)
        named = {_snake(field) for field in update_mask.split(",") if field}
        wanted = endpoints.settings({key: value for key, value in body.items() if not named or key in named})
        stamp = {"updated_ms": time.time_ns() // 1_000_000, "updated_by": asking.name}
        await asyncio.to_thread(access.endpoint, asking, endpoint)
        await asyncio.to_thread(lambda: over.endpoints.change(endpoint, **wanted, **stamp))
        return _endpoint(workspace, await asyncio.to_thread(endpoints.show, access, asking, endpoint))

    @routes.delete(ROOT + "/{endpoint}")
    def delete_endpoint(endpoint: str, asking: Any = who) -> dict[str, Any]:
        access.endpoint(asking, endpoint)
        over.delete_endpoint(endpoint)
        return {}

    # Indexes

    async def shown(request: Request, asking: Any, workspace: str, name: str) -> dict[str, Any]:
        return _index(workspace, await indexes.described(access, asking, full_name(name), request))

    @routes.post(ROOT + "/{endpoint}/indexes")
    async def create_index(
        request: Request, workspace: str, endpoint: str, index_id: str = "", asking: Any = who
    ) -> dict[str, Any]:
        body = await body_of(request)
        name = index_id or str(body.get("name") or "").rpartition("/")[2]
        made = await indexes.create(access, asking, name, endpoint, _older(body))
        return await shown(request, asking, workspace, made.name)

    @routes.get(ROOT + "/{endpoint}/indexes")
    async def list_indexes(request: Request, workspace: str, endpoint: str, asking: Any = who) -> dict[str, Any]:
        found = await asyncio.to_thread(indexes.visible, access, asking, None if endpoint == "-" else endpoint)
        return {"indexes": [await shown(request, asking, workspace, index.name) for index in found]}

    @routes.post(ONE + ":query")
    async def query_index(request: Request, name: str) -> dict[str, Any]:
        body = await body_of(request)
        count = body.pop("page_size", None) or body.pop("max_results", None)
        body = {key: value for key, value in body.items() if key not in ("name", "max_results", "page_token")}
        answer = await queries.page(access, request, name, body | ({"num_results": count} if count else {}), 0, ask.MAX_RESULTS)
        answer.pop("next_page_token", None)
        return answer

    @routes.post(ONE + ":scan")
    async def scan_index(request: Request, name: str) -> dict[str, Any]:
        body = await body_of(request)
        asked = ask.scan({"num_results": body.get("page_size") or 100, "last_primary_key": body.get("page_token")})
        found = await access.invoke(request, full_name(name), "search", asked)
        more = {"next_page_token": str(found["last_primary_key"])} if len(found["data"]) == asked["count"] else {}
        return {"data": found["data"], **more}

    @routes.post(ONE + ":sync")
    async def sync_index(name: str, asking: Any = who) -> dict[str, Any]:
        await indexes.sync(access, asking, name)
        return {}

    @routes.post(ONE + ":upsertData")
    async def upsert_data(request: Request, name: str, asking: Any = who) -> dict[str, Any]:
        return await indexes.upsert(access, asking, name, request)

    @routes.post(ONE + ":removeData")
    async def remove_data(request: Request, name: str, asking: Any = who) -> dict[str, Any]:
        return await indexes.remove(access, asking, name, (await body_of(request)).get("primary_keys"))

    @routes.get(ONE)
    async def get_index(request: Request, workspace: str, endpoint: str, name: str, asking: Any = who) -> dict[str, Any]:
        found = await asyncio.to_thread(indexes.on, access, asking, name, endpoint)
        return await shown(request, asking, workspace, found.name)

    @routes.delete(ONE)
    def delete_index(endpoint: str, name: str, asking: Any = who) -> dict[str, Any]:
        indexes.on(access, asking, name, endpoint)
        indexes.drop(access, asking, name)
        return {}

    return routes


def _snake(field: str) -> str:
    return "".join("_" + letter.lower() if letter.isupper() else letter for letter in field.strip())


def _time(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _endpoint(workspace: str, shown: Mapping[str, Any]) -> dict[str, Any]:
    kept = ("id", "creator", "endpoint_type", "endpoint_status", "custom_tags", "budget_policy_id", "scaling_info")
    body = {key: shown[key] for key in kept if key in shown}
    if "creation_timestamp" in shown:
        body["create_time"] = _time(shown["creation_timestamp"])
        body["update_time"] = _time(shown["last_updated_timestamp"])
        body["last_updated_user"] = shown["last_updated_user"]
    if scaling := shown.get("scaling_info"):
        body["target_qps"] = scaling["requested_target_qps"]
    return {"name": f"workspaces/{workspace}/endpoints/{shown['name']}", "index_count": shown["num_indexes"], **body}


def _index(workspace: str, shown: Mapping[str, Any]) -> dict[str, Any]:
    parent = f"workspaces/{workspace}/endpoints/{shown['endpoint_name']}"
    kept = ("id", "creator", "primary_key", "index_type", "index_subtype", "status")
    body = {key: shown[key] for key in kept if key in shown}
    for kind in ("delta_sync_index_spec", "direct_access_index_spec"):
        if spec := shown.get(kind):
            body[kind] = _renamed(spec, "embedding_model_endpoint_name", "embedding_model_endpoint")
    return {"name": f"{parent}/indexes/{shown['name']}", "endpoint": parent, **body}


def _older(body: Mapping[str, Any]) -> dict[str, Any]:
    """A request to make an index in the names of the older API."""
    made = {key: value for key, value in body.items() if key not in ("name", "endpoint")}
    for kind in ("delta_sync_index_spec", "direct_access_index_spec"):
        if isinstance(spec := made.get(kind), dict):
            made[kind] = _renamed(spec, "embedding_model_endpoint", "embedding_model_endpoint_name")
    return made


def _renamed(spec: Mapping[str, Any], old: str, new: str) -> dict[str, Any]:
    columns = spec.get("embedding_source_columns")
    if not columns:
        return dict(spec)
    if not isinstance(columns, list) or not all(isinstance(each, dict) for each in columns):
        raise BadRequest("field 'embedding_source_columns' must be a list of objects")
    renamed = [{new if key == old else key: value for key, value in each.items()} for each in columns]
    return {**spec, "embedding_source_columns": renamed}
