"""Deployments of agents as `databricks-agents` has them.

`agents.deploy` makes the endpoint by the API of endpoints, then tells of it here. Nothing of its own is kept: a deployment is a
served entity of an endpoint that answers as an agent.

Source: https://docs.databricks.com/aws/en/generative-ai/agent-framework/deploy-agent
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from governance.call import Caller, not_found
from governance.grants import Grants
from serving.endpoint import Endpoint, Endpoints
from serving.protocols.request import parse, take
from serving.routes import Identity, bearer, read_body

_AT = "/api/2.0/agents/deployments"


def router(endpoints: Endpoints, identity: Identity, grants: Grants) -> APIRouter:
    """The routes; who may see an endpoint sees its deployments."""
    routes = APIRouter()

    async def caller(http: Request) -> Caller:
        return await asyncio.to_thread(identity.authenticate, bearer(http.headers))

    def seen(who: Caller, host: str, model: str | None, version: str | None) -> list[dict[str, Any]]:
        return [
            each
            for endpoint in endpoints
            if endpoint.call_task == "agent" and grants.level(who, f"endpoint:{endpoint.name}")
            for each in _deployments(endpoint, host)
            if model in (None, each["model_name"]) and version in (None, each["model_version"])
        ]

    async def deployed(http: Request) -> Response:
        """`POST`: what `agents.deploy` made. Raises `CallError` (404) where the endpoint serves no such version."""
        who, wanted = await caller(http), parse(await read_body(http, 1 << 16))
        name, model = (take(wanted, key, str, required=True) for key in ("endpoint_name", "model_name"))
        version = str(wanted.get("model_version"))
        grants.check(who, f"endpoint:{name}", "CAN_VIEW")
        found = [each for each in seen(who, _host(http), model, version) if each["endpoint_name"] == name]
        if not found:
            raise not_found(f"Endpoint {name!r} serves no version {version[:20]} of agent {model!r}: create or update it first.")
        return _json({"deployed_chain": found[0]})

    async def listed(http: Request) -> Response:
        asked = http.path_params
        return _json({"chain_deployments": seen(await caller(http), _host(http), asked.get("model"), asked.get("version"))})

    async def artifacts(http: Request) -> Response:
        await caller(http)
        return _json({})  # traces to review stand in review queues (`serving.ui.console.review`)

    async def deleted(http: Request) -> Response:
        """The client takes the entity, or the whole endpoint, out of the API of endpoints by itself."""
        await caller(http)
        return _json({})

    async def to_chat(http: Request) -> Response:
        return RedirectResponse(f"/?{urlencode({'agent': http.query_params.get('endpoint', '')})}", 307)

    async def to_page(http: Request) -> Response:
        return RedirectResponse(f"/console/endpoints?{urlencode({'name': http.path_params['name']})}", 307)

    routes.add_route("/ml/review-v2/chat", to_chat, methods=["GET"], include_in_schema=False)
    for path in ("/ml/endpoints/{name}", "/ml/endpoints/{name}/"):  # where the client tells people to look
        routes.add_route(path, to_page, methods=["GET"], include_in_schema=False)
    routes.add_route(_AT, deployed, methods=["POST"], include_in_schema=False)
    routes.add_route(_AT, listed, methods=["GET"], include_in_schema=False)
    routes.add_route(_AT + "/{model}/artifacts", artifacts, methods=["GET"], include_in_schema=False)
    for path in (_AT + "/{model}", _AT + "/{model}/versions/{version}"):
        routes.add_route(path, listed, methods=["GET"], include_in_schema=False)
        routes.add_route(path, deleted, methods=["DELETE"], include_in_schema=False)
    return routes


def _deployments(endpoint: Endpoint, host: str) -> Iterator[dict[str, Any]]:
    """What an endpoint serves, and what it is about to, in the client's fields."""
    told, known = endpoint.to_api(), set[str]()
    for config in (told.get("pending_config"), told["config"]):
        for entity in (config or {}).get("served_entities", ()):
            name = entity["name"]
            if "entity_version" not in entity or name in known:
                continue
            known.add(name)
            yield {
                "model_name": entity["entity_name"],
                "model_version": str(entity["entity_version"]),
                "endpoint_name": endpoint.name,
                "served_entity_name": name,
                "query_endpoint": f"{host}/serving-endpoints/{endpoint.name}/served-models/{name}/invocations",
                "review_app_url": f"{host}/ml/review-v2/chat?{urlencode({'endpoint': endpoint.name})}",
            }


def _host(http: Request) -> str:
    return str(http.base_url).rstrip("/")


def _json(body: Any) -> Response:
    return Response(orjson.dumps(body), media_type="application/json")
