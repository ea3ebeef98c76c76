"""Connections over HTTP: `w.connections`, and `w.serving_endpoints.http_request`, which asks a service through one.

Sources: https://docs.databricks.com/api/workspace/connections and
https://docs.databricks.com/aws/en/query-federation/http
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from governance.call import Call, Caller, bad_request
from governance.policies import Policies
from serving.connections.registry import Connections
from serving.dispatch import Dispatcher
from serving.engines import service
from serving.errors import request_id
from serving.protocols.request import describe, parse, strings, take
from serving.routes import bearer, read_body

_AT = "/api/2.1/unity-catalog/connections"
_MAX = 2 << 20


def router(
    connections: Connections, dispatcher: Dispatcher, policies: Policies, authorize: Callable[[Request], Awaitable[Caller]]
) -> APIRouter:
    """Routes. `authorize` tells who asks, and raises `CallError`."""
    routes = APIRouter()

    @routes.post(_AT, include_in_schema=False)
    async def create(http: Request) -> Any:
        who, body = await authorize(http), parse(await read_body(http, _MAX))
        if take(body, "connection_type", str, required=True) != "HTTP":
            raise bad_request("Connections here are of type HTTP: a service that is asked with http_request.", "connection_type")
        _unknown(body, "environment_settings", "parent", "secrets")
        name, options = take(body, "name", str, required=True), strings(body, "options")
        given = {"comment": take(body, "comment", str), "properties": strings(body, "properties")}
        return (await asyncio.to_thread(lambda: connections.create(who, name, options, **given))).to_api()

    @routes.get(_AT, include_in_schema=False)
    async def listed(http: Request) -> Any:
        found = await asyncio.to_thread(connections.list, await authorize(http))
        size, after = http.query_params.get("max_results", "0"), http.query_params.get("page_token", "")
        if not (size.isascii() and size.isdigit() and len(size) < 9):
            raise bad_request("Field 'max_results' is a number from 0.", "max_results")
        rest = [each for each in found if each.name > after]
        page = rest[: int(size) or 1000]
        more = {"next_page_token": page[-1].name} if len(page) < len(rest) else {}
        return {"connections": [each.to_api() for each in page], **more}

    @routes.get(_AT + "/{name}", include_in_schema=False)
    async def get(http: Request, name: str) -> Any:
        return (await asyncio.to_thread(connections.get, await authorize(http), name)).to_api()

    @routes.patch(_AT + "/{name}", include_in_schema=False)
    async def update(http: Request, name: str) -> Any:
        who, body = await authorize(http), parse(await read_body(http, _MAX))
        _unknown(body, "environment_settings", "secrets")
        options = strings(body, "options")
        given = {"new_name": take(body, "new_name", str), "owner": take(body, "owner", str)}
        return (await asyncio.to_thread(lambda: connections.update(who, name, options, **given))).to_api()

    @routes.delete(_AT + "/{name}", include_in_schema=False)
    async def delete(http: Request, name: str) -> Any:
        who = await authorize(http)
        await asyncio.to_thread(connections.delete, who, name)
        await asyncio.to_thread(policies.forget, f"connection:{name}", by=who.name)
        return {}

    @routes.post("/api/2.0/external-function", include_in_schema=False)
    async def ask(http: Request) -> Response:
        """The service's own answer: its status where that is 2xx, its body, and few of its headers."""
        await authorize(http)
        body = parse(await read_body(http, _MAX))
        name = take(body, "connection_name", str, required=True)
        payload = {key: body[key] for key in ("method", "path") if body.get(key) is not None}
        payload |= {key: value for key in ("headers", "params", "json") if (value := _decoded(body, key)) is not None}
        service.check(payload)
        call = Call(f"connection:{name}", "http", payload, bearer(http.headers), request_id=request_id(http.scope))
        result = await dispatcher.invoke(call)
        # what comes from elsewhere is no page of this server's
        guard = {"x-content-type-options": "nosniff", "content-security-policy": "sandbox"}
        return Response(service.body_of(result), result["status_code"], {**result["headers"], **guard})

    return routes


def _decoded(body: Mapping[str, Any], key: str) -> Any:
    """A field that clients send as JSON within a text. Raises `CallError` (400)."""
    value = body.get(key)
    if isinstance(value, str):
        try:
            value = orjson.loads(value)
        except orjson.JSONDecodeError:
            raise bad_request(f"Field {key!r} must be JSON, as text or as it is.", key) from None
    if value is not None and key != "json" and not isinstance(value, dict):
        raise bad_request(f"Field {key!r} must be an object, not {describe(value)}.", key)
    return value


def _unknown(body: Mapping[str, Any], *keys: str) -> None:
    for key in keys:
        if body.get(key):
            raise bad_request(f"Field {key!r} means nothing here: an HTTP connection has 'options' alone.", key)
