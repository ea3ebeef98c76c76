"""`/api/2.0/smalti/experiments`: live experiments over HTTP, for whoever has CAN_MANAGE on the endpoint."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Depends
from starlette.requests import Request

from governance.call import Caller, bad_request
from governance.experiments import Spec
from governance.grants import Grants
from serving.experiments.live import Experiments
from serving.protocols.request import parse, take
from serving.routes import read_body

_MAX = 65_536


def router(experiments: Experiments, grants: Grants, caller: Callable[..., Any]) -> APIRouter:
    """Routes. `caller`: a FastAPI dependency that gives who asks."""
    routes = APIRouter()
    at = "/api/2.0/smalti/experiments"

    def manage(who: Caller, endpoint: str) -> None:
        grants.check(who, f"endpoint:{endpoint}", "CAN_MANAGE")

    async def body(http: Request) -> dict[str, Any]:
        return parse(await read_body(http, _MAX) or b"{}")

    @routes.post(at, include_in_schema=False)
    async def create(http: Request, who: Caller = Depends(caller)) -> Any:
        spec = Spec.parse(await body(http))
        await asyncio.to_thread(manage, who, spec.endpoint)
        return await experiments.create(spec, who.name)

    @routes.get(at, include_in_schema=False)
    async def listing(endpoint: str | None = None, who: Caller = Depends(caller)) -> Any:
        found = await experiments.list(endpoint)
        return {"experiments": [each for each in found if grants.allowed(who, f"endpoint:{each['endpoint']}", "CAN_MANAGE")]}

    @routes.get(at + "/{name}", include_in_schema=False)
    async def get(name: str, who: Caller = Depends(caller)) -> Any:
        manage(who, await experiments.endpoint_of(name))
        return await experiments.get(name)

    @routes.post(at + "/{name}/promote", include_in_schema=False)
    async def promote(name: str, http: Request, who: Caller = Depends(caller)) -> Any:
        manage(who, await experiments.endpoint_of(name))
        return await experiments.promote(name, who, take(await body(http), "served_entity_name", str))

    @routes.post(at + "/{name}/rollback", include_in_schema=False)
    async def rollback(name: str, http: Request, who: Caller = Depends(caller)) -> Any:
        manage(who, await experiments.endpoint_of(name))
        return await experiments.rollback(name, who.name, take(await body(http), "reason", str))

    @routes.post(at + "/{name}/events", include_in_schema=False)
    async def event(name: str, http: Request, who: Caller = Depends(caller)) -> Any:
        endpoint = await experiments.endpoint_of(name)
        grants.check(who, f"endpoint:{endpoint}", "CAN_QUERY")
        manager = grants.allowed(who, f"endpoint:{endpoint}", "CAN_MANAGE")
        given = await body(http)
        request_id, metric = take(given, "request_id", str, required=True), take(given, "metric", str, required=True)
        value = given.get("value")
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise bad_request("Field 'value' must be a number.", "value")
        if not 0 < len(metric) <= 64:
            raise bad_request("Field 'metric' must have 1 to 64 characters.", "metric")
        await experiments.event(name, request_id, metric, float(value), who, manager=manager)
        return {}

    return routes
