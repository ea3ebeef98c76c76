"""The Databricks workspace's own paths: endpoints as objects, where to sign in, and the answer to every unknown path.

Source: https://docs.databricks.com/api/workspace/servingendpoints
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import Receive, Scope, Send

from governance.call import Caller, CallError
from serving.dispatch import Dispatcher
from serving.endpoint import Endpoint
from serving.errors import ORG_ID
from serving.routes import Grants, Identity, bearer

_NOT_THIS_WAY: dict[str, Any] = {"status": 405, "code": "METHOD_NOT_ALLOWED"}
_GROUPS = ("/v1", "/api", "/serving-endpoints", "/ai-gateway", "/oidc", "/.well-known")


def _json(body: Any) -> Response:
    return Response(orjson.dumps(body), media_type="application/json")


def router(
    dispatcher: Dispatcher,
    identity: Identity,
    grants: Grants,
    *,
    gateway_policy: Callable[[Endpoint], Mapping[str, Any] | None] = lambda endpoint: endpoint.ai_gateway,
) -> APIRouter:
    """Routes of the endpoints API and `/.well-known/databricks-config`.

    Parameters
    ----------
    dispatcher: holds the registry of endpoints.
    identity, grants: who asks, and what they may see.
    gateway_policy: an endpoint's `ai_gateway` policy in force.
    """
    routes = APIRouter()

    def described(caller: Caller, endpoint: Endpoint) -> dict[str, Any] | None:
        held = grants.level(caller, f"endpoint:{endpoint.name}")
        return None if held is None else endpoint.to_api(held, ai_gateway=gateway_policy(endpoint))

    def listing(secret: str | None) -> dict[str, Any]:
        caller = identity.authenticate(secret)
        return {"endpoints": [body for endpoint in dispatcher.endpoints if (body := described(caller, endpoint))]}

    def one(secret: str | None, name: str) -> dict[str, Any]:
        caller = identity.authenticate(secret)
        endpoint = dispatcher.endpoints.find(name)
        if endpoint is None:
            raise dispatcher.endpoints.missing(
                name, [each.name for each in dispatcher.endpoints if grants.level(caller, f"endpoint:{each.name}")]
            )
        body = described(caller, endpoint)
        if body is None:
            grants.check(caller, f"endpoint:{name}", "CAN_VIEW")
        return body or {}

    async def list_endpoints(request: Request) -> Response:
        return _json(await asyncio.to_thread(listing, bearer(request.headers)))

    async def get_endpoint(request: Request) -> Response:
        return _json(await asyncio.to_thread(one, bearer(request.headers), request.path_params["name"]))

    async def discovery(request: Request) -> Response:
        host = str(request.base_url).rstrip("/")
        return _json(
            {"oidc_endpoint": f"{host}/oidc", "workspace_id": ORG_ID, "account_id": "smalti", "cloud": "aws", "host": host}
        )

    for path in ("/api/2.0/serving-endpoints", "/api/2.0/serving-endpoints/"):  # mlflow.deployments sends the second
        routes.add_route(path, list_endpoints, methods=["GET"], include_in_schema=False)
    routes.add_route("/api/2.0/serving-endpoints/{name}", get_endpoint, methods=["GET"], include_in_schema=False)
    routes.add_route("/.well-known/databricks-config", discovery, methods=["GET"], include_in_schema=False)
    return routes


def fallback() -> APIRouter:
    """Answers for every API path nobody else answers; include it after all other API routers and before pages.

    Without it an unknown API path would reach the pages and be answered in HTML. 404 carries `ENDPOINT_NOT_FOUND`, which
    Databricks' clients need to fall back to older APIs, also where another method is answered: they know no 405. A slash at a
    path's end is passed over where the path without it is answered.
    """
    routes = APIRouter()

    async def unknown(request: Request) -> Response:
        if request.url.path.endswith("/") and request.method in ("GET", "POST"):
            return _WithoutSlash()
        path = request.url.path[:200]
        methods = _answered(request.app.router.routes, request.scope)
        if methods is not None:
            allowed = ", ".join(sorted(methods)) or "other methods"
            message = f"{path} does not answer {request.method}; it answers {allowed}."
            known = {"status": 404, "code": "ENDPOINT_NOT_FOUND"} if path.startswith("/api/") else _NOT_THIS_WAY
            raise CallError(message, **known)
        raise CallError(f"There is no API at {request.method} {path}. Check the path.", status=404, code="ENDPOINT_NOT_FOUND")

    every = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
    for prefix in _GROUPS:
        routes.add_route(prefix + "/{path:path}", unknown, methods=every, include_in_schema=False)
    return routes


class _WithoutSlash(Response):
    """What the same path without its last slash answers; nothing of the request has been read yet."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        bare = {**scope, "path": scope["path"].rstrip("/"), "raw_path": scope["raw_path"].rstrip(b"/")}
        await scope["app"].router(bare, receive, send)


def _answered(routes: Any, scope: Any) -> set[str] | None:
    """The methods that a path does answer, where it answers any; FastAPI keeps the routes of included routers inside."""
    found: set[str] | None = None
    for route in routes:
        if route.matches(scope)[0] == Match.PARTIAL:
            inner = getattr(getattr(route, "original_router", None), "routes", ())
            found = (found or set()) | set(getattr(route, "methods", None) or _answered(inner, scope) or ())
    return found
