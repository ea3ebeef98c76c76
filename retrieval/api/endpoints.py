"""Vector search endpoints over HTTP: https://docs.databricks.com/api/workspace/vectorsearchendpoints."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Depends, Request

from retrieval.api import shapes
from retrieval.api.access import Access, body_of
from retrieval.api.shapes import BUILT_IN, PREFIX
from retrieval.errors import AlreadyExists, BadRequest

KINDS = ("STANDARD", "STORAGE_OPTIMIZED")


def router(access: Access) -> APIRouter:
    routes = APIRouter(tags=["vector search"])
    who = Depends(access.caller)
    over = access.indexes.over_rows

    async def changed(asking: Any, name: str, **details: Any) -> dict[str, Any]:
        await asyncio.to_thread(access.endpoint, asking, name)
        stamp = {"updated_ms": time.time_ns() // 1_000_000, "updated_by": asking.name}
        await asyncio.to_thread(lambda: over.endpoints.change(name, **details, **stamp))
        return await asyncio.to_thread(show, access, asking, name)

    @routes.post(PREFIX + "/endpoints")
    async def create_endpoint(request: Request, asking: Any = who) -> dict[str, Any]:
        body = await body_of(request)
        return await asyncio.to_thread(create, access, asking, body.get("name"), body)

    @routes.get(PREFIX + "/endpoints")
    def list_endpoints(asking: Any = who) -> dict[str, Any]:
        return {"endpoints": everything(access, asking)}

    @routes.get(PREFIX + "/endpoints/{endpoint}")
    def get_endpoint(endpoint: str, asking: Any = who) -> dict[str, Any]:
        return show(access, asking, endpoint)

    @routes.delete(PREFIX + "/endpoints/{endpoint}")
    def delete_endpoint(endpoint: str, asking: Any = who) -> dict[str, Any]:
        access.endpoint(asking, endpoint)
        over.delete_endpoint(endpoint)
        return {}

    @routes.patch(PREFIX + "/endpoints/{endpoint}")
    async def update_endpoint(request: Request, endpoint: str, asking: Any = who) -> dict[str, Any]:
        return await changed(asking, endpoint, **settings(await body_of(request)))

    @routes.post(PREFIX + "/endpoints/{endpoint}/stop")
    async def stop_endpoint(endpoint: str, asking: Any = who) -> dict[str, Any]:
        """Its indexes stay, and refuse queries and changes until it is started."""
        return await changed(asking, endpoint, stopped=True)

    @routes.post(PREFIX + "/endpoints/{endpoint}/start")
    async def start_endpoint(endpoint: str, asking: Any = who) -> dict[str, Any]:
        return await changed(asking, endpoint, stopped=None)

    @routes.patch(PREFIX + "/endpoints/{endpoint}/budget-policy")
    async def budget_policy(request: Request, endpoint: str, asking: Any = who) -> dict[str, Any]:
        policy = (await body_of(request)).get("budget_policy_id")
        await changed(asking, endpoint, **settings({"budget_policy_id": policy}))
        return {"budget_policy_id": policy, "effective_budget_policy_id": policy}

    @routes.patch(PREFIX + "/endpoints/{endpoint}/tags")
    async def tags(request: Request, endpoint: str, asking: Any = who) -> dict[str, Any]:
        given = settings({"custom_tags": (await body_of(request)).get("custom_tags") or []})
        await changed(asking, endpoint, **given)
        return {"name": endpoint, **given}

    return routes


def create(access: Access, asking: Any, name: Any, body: Mapping[str, Any]) -> dict[str, Any]:
    """Makes an endpoint of a checked request. Blocking."""
    access.may_change_endpoint(asking, str(name))
    kind = str(body.get("endpoint_type") or "STANDARD").upper()
    if not isinstance(name, str) or not 0 < len(name) <= 128 or not name.replace("-", "").replace("_", "").isalnum():
        raise BadRequest("field 'name' must be up to 128 letters, digits, - and _")
    if kind not in KINDS:
        raise BadRequest(f"field 'endpoint_type' must be {' or '.join(KINDS)}, not {kind!r}")
    if name == BUILT_IN:
        raise AlreadyExists(f"vector search endpoint {name!r} exists already")
    access.indexes.over_rows.endpoints.create(name, kind, asking.name, settings(body))
    return show(access, asking, name)


def settings(body: Mapping[str, Any]) -> dict[str, Any]:
    """The settings in a request, checked; they are kept and shown, and reserve nothing."""
    given: dict[str, Any] = {}
    if (qps := body.get("target_qps")) is not None:
        if not isinstance(qps, int) or isinstance(qps, bool) or not (qps == -1 or qps > 0):
            raise BadRequest("field 'target_qps' must be a positive whole number, or -1 for the default")
        given["target_qps"] = qps if qps > 0 else None
    if (policy := body.get("budget_policy_id") or body.get("usage_policy_id")) is not None:
        if not isinstance(policy, str):
            raise BadRequest("field 'budget_policy_id' must be a string")
        given["budget_policy_id"] = policy
    if (tags := body.get("custom_tags")) is not None:
        if not isinstance(tags, list) or not all(isinstance(tag, dict) and isinstance(tag.get("key"), str) for tag in tags):
            raise BadRequest("field 'custom_tags' must be a list of objects with 'key' and 'value'")
        given["custom_tags"] = tags
    return given


def show(access: Access, asking: Any, name: str) -> dict[str, Any]:
    """One endpoint, with how many indexes the caller may see on it. Raises NotFound. Blocking."""
    over = access.indexes.over_rows
    if name == BUILT_IN:
        return shapes.built_in(_seen(access, asking)[BUILT_IN])
    return shapes.endpoint(over.endpoints.get(name), _seen(access, asking)[name])


def everything(access: Access, asking: Any) -> list[dict[str, Any]]:
    """All endpoints. Blocking."""
    counts = _seen(access, asking)
    shown = [shapes.endpoint(found, counts[found.name]) for found in access.indexes.over_rows.endpoints.list()]
    return [*shown, shapes.built_in(counts[BUILT_IN])]


def _seen(access: Access, asking: Any) -> Counter[str]:
    """How many indexes that the caller may see each endpoint has."""
    rows = [(index.endpoint, index.name) for index in access.indexes.over_rows.list()]
    folders = [(BUILT_IN, index.name) for index in access.indexes.list()]
    return Counter(endpoint for endpoint, name in (*rows, *folders) if access.may_see(asking, name))
