"""`/api/2.0/mlflow/registry-webhooks/…`, as databricks-sdk's `model_registry` asks for it.

Source: https://docs.databricks.com/api/workspace/modelregistry
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from serving.protocols.request import take
from serving.tracking.access import check_unscoped
from serving.tracking.webhooks import Webhooks
from serving.unity_catalog.registered import Authorize, answer, fields_of

_AT = "/api/2.0/mlflow/registry-webhooks"
_PAGE = 100


def router(webhooks: Webhooks, authorize: Authorize) -> APIRouter:
    """Routes. `authorize` tells who asks, and raises `CallError`."""
    routes = APIRouter()

    def at(method: str, path: str) -> Callable[[Callable[..., object]], None]:
        """A route for `work(who, fields)`, which blocks."""

        def add(work: Callable[..., object]) -> None:
            async def handler(http: Request) -> Response:
                who, fields = check_unscoped(await authorize(http)), await fields_of(http)
                return answer(await asyncio.to_thread(work, who, fields))

            routes.add_route(f"{_AT}/{path}", handler, methods=[method], include_in_schema=False)

        return add

    at("POST", "create")(lambda who, fields: {"webhook": webhooks.create(who, fields)})
    at("PATCH", "update")(lambda who, fields: {"webhook": webhooks.update(who, fields)})
    at("DELETE", "delete")(lambda who, fields: webhooks.remove(who, fields.get("id")) or {})
    at("POST", "test")(lambda who, fields: webhooks.test(who, fields.get("id"), take(fields, "event", str)))

    async def listed(http: Request) -> Response:
        who, query = check_unscoped(await authorize(http)), http.query_params
        rows = await asyncio.to_thread(webhooks.list, who, query.get("model_name"), query.getlist("events"))
        size, start = (query.get(key, "") for key in ("max_results", "page_token"))
        most = min(int(size), _PAGE) if size.isdecimal() and len(size) < 9 and int(size) else _PAGE
        begin = int(start) if start.isdecimal() and len(start) < 9 else 0
        token = str(begin + most) if len(rows) > begin + most else None
        return answer({"webhooks": rows[begin : begin + most], "next_page_token": token})

    routes.add_route(f"{_AT}/list", listed, methods=["GET"], include_in_schema=False)
    return routes
