"""The endpoints API: create, update, tags, limits, notifications, logs, metrics, description, delete.

Creating needs CAN_MANAGE on `endpoint:*`, which an administrator has and may grant; whoever creates an endpoint gets
CAN_MANAGE on it. Source: https://docs.databricks.com/api/workspace/servingendpoints
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import orjson
from fastapi import APIRouter
from prometheus_client.metrics_core import GaugeMetricFamily
from starlette.requests import Request
from starlette.responses import Response

from governance.call import Caller, CallError, bad_request, not_found
from governance.grants import Grants
from governance.metrics import CONTENT_TYPE, Metrics
from governance.policies import AiGatewayConfig, Policies
from serving.described import described
from serving.endpoint import Endpoint, Endpoints
from serving.lifecycle import Lifecycle
from serving.protocols.request import describe, parse, take
from serving.routes import Identity, bearer, read_body
from serving.signature import Signature

MAX_BODY = 1 << 20
EVERY = "endpoint:*"
"""What creating endpoints needs CAN_MANAGE on."""


def router(
    lifecycle: Lifecycle,
    endpoints: Endpoints,
    identity: Identity,
    grants: Grants,
    policies: Policies,
    metrics: Metrics,
    *,
    policy: Callable[[Endpoint], Mapping[str, Any] | None],
    may_serve: Callable[[Caller, Any], None] = lambda who, config: None,
    signed: Callable[[str], Signature] = lambda endpoint: Signature(),
) -> APIRouter:
    """Routes of the life cycle.

    Parameters
    ----------
    policy: gives the `ai_gateway` policy that is in force.
    may_serve: raises `CallError` where the caller may not use what a config (as sent, unchecked) names. Blocking.
    signed: the signature of what an endpoint serves. Blocking.
    """
    routes = APIRouter()

    async def caller(http: Request) -> Caller:
        return await asyncio.to_thread(identity.authenticate, bearer(http.headers))

    async def body(http: Request) -> dict[str, Any]:
        raw = await read_body(http, MAX_BODY)
        return parse(raw or b"{}")

    async def known(http: Request, level: str = "CAN_MANAGE") -> tuple[Caller, Endpoint]:
        """Who asks, and the endpoint that the path names, which they hold `level` on."""
        who, name = await caller(http), http.path_params["name"]
        endpoint = endpoints.find(name)
        if endpoint is None:
            raise endpoints.missing(name, [each.name for each in endpoints if grants.level(who, f"endpoint:{each.name}")])
        grants.check(who, f"endpoint:{name}", level)
        return who, endpoint

    def shown(endpoint: Endpoint, level: str = "CAN_MANAGE") -> Response:
        return _json(endpoint.to_api(level, ai_gateway=policy(endpoint)))

    async def create(http: Request) -> Response:
        who = await caller(http)
        grants.check(who, EVERY, "CAN_MANAGE")
        wanted = await body(http)
        _objects(wanted, "rate_limits")
        for tag in _objects(wanted, "tags"):
            take(tag, "key", str, path="tags.", required=True)
        gateway = _policy(wanted)
        await asyncio.to_thread(may_serve, who, wanted.get("config"))
        endpoint = await lifecycle.create(wanted, who.name, admin=who.admin)
        await asyncio.to_thread(grants.grant, f"{who.kind}:{who.name}", f"endpoint:{endpoint.name}", "CAN_MANAGE", by=who)
        if gateway is not None:
            await asyncio.to_thread(policies.set, endpoint.name, gateway, by=who.name)
        return shown(endpoint)

    async def update(http: Request) -> Response:
        who, endpoint = await known(http)
        wanted = await body(http)
        if "/pt/" in http.url.path:
            wanted = take(wanted, "config", dict, required=True)
        await asyncio.to_thread(may_serve, who, wanted)
        return shown(await lifecycle.update(endpoint.name, wanted, admin=who.admin, by=who.name))

    async def delete(http: Request) -> Response:
        who, endpoint = await known(http)
        await lifecycle.delete(endpoint.name, by=who.name)
        await asyncio.to_thread(policies.forget, endpoint.name, by=who.name)
        await asyncio.to_thread(grants.forget, f"endpoint:{endpoint.name}", by=who.name)
        return _json({})

    async def tags(http: Request) -> Response:
        who, endpoint = await known(http)
        wanted = await body(http)
        held = {tag["key"]: tag for tag in lifecycle.get(endpoint.name).details.get("tags") or ()}
        gone = take(wanted, "delete_tags", list) or []
        held = {key: tag for key, tag in held.items() if key not in gone}
        held |= {take(tag, "key", str, path="add_tags.", required=True): tag for tag in _objects(wanted, "add_tags")}
        record = await lifecycle.change(endpoint.name, who.name, tags=list(held.values()))
        return _json({"tags": record.details["tags"]})

    async def notifications(http: Request) -> Response:
        who, endpoint = await known(http)
        wanted = take(await body(http), "email_notifications", dict) or {}
        await lifecycle.change(endpoint.name, who.name, email_notifications=wanted)
        return _json({"name": endpoint.name, "email_notifications": wanted})

    async def description(http: Request) -> Response:
        who, endpoint = await known(http)
        lifecycle.get(endpoint.name)
        told = take(await body(http), "description", str) or ""
        await lifecycle.change(endpoint.name, who.name, description=told)
        return shown(endpoint)

    async def telemetry(http: Request) -> Response:
        who, endpoint = await known(http)
        await lifecycle.change(endpoint.name, who.name, telemetry_config=take(await body(http), "telemetry_config", dict))
        return shown(endpoint)

    async def rate_limits(http: Request) -> Response:
        """The older way to say what the AI gateway's policy says."""
        who, endpoint = await known(http)
        wanted = _objects(await body(http), "rate_limits")
        config = _policy({"ai_gateway": {**(policy(endpoint) or {}), "rate_limits": wanted}})
        assert config is not None
        stored = await asyncio.to_thread(policies.set, endpoint.name, config, by=who.name)
        return _json({"rate_limits": stored.as_dict().get("rate_limits", [])})

    async def logs(http: Request) -> Response:
        entity = await _entity(http)
        return _json({"logs": _WITHIN if entity is None else await asyncio.to_thread(entity.logs)})

    async def build_logs(http: Request) -> Response:
        entity = await _entity(http)
        return _json({"logs": _WITHIN if entity is None else entity.build_logs()})

    async def _entity(http: Request) -> Any:
        """The entity that the path names; None where it runs within the server. Raises `CallError` (404)."""
        _, endpoint = await known(http)
        record, name = lifecycle.find(endpoint.name), http.path_params["entity"]
        served = {**record.coming, **record.entities} if record else {endpoint.served_name: None}
        if name not in served:
            told = ", ".join(served) or "none"
            raise not_found(f"Endpoint {endpoint.name!r} serves no entity {name!r}; it serves {told}.")
        return served[name]

    async def export(http: Request) -> Response:
        _, endpoint = await known(http, "CAN_VIEW")
        record = lifecycle.find(endpoint.name)
        ready = record.ready if record else endpoint.to_api()["state"]["ready"] == "READY"
        up = GaugeMetricFamily("smalti_endpoint_ready", "1 while every entity with traffic is ready.", labels=["endpoint"])
        up.add_metric([endpoint.name], float(ready))
        memory = "Bytes of memory that the entity's process holds."
        held = GaugeMetricFamily("smalti_entity_memory_bytes", memory, labels=["endpoint", "served_entity"])
        for name, entity in record.entities.items() if record else ():
            held.add_metric([endpoint.name, name], float(entity.memory))
        return Response(metrics.of(endpoint.name, [up, held]), media_type=CONTENT_TYPE)

    async def openapi(http: Request) -> Response:
        _, endpoint = await known(http, "CAN_VIEW")
        signature = await asyncio.to_thread(signed, endpoint.name)
        return _json(described(endpoint, str(http.base_url).rstrip("/"), signature))

    at = "/api/2.0/serving-endpoints"
    handlers: list[tuple[str, str, Callable[[Request], Awaitable[Response]]]] = [
        ("POST", "", create),
        ("POST", "/", create),  # as mlflow.deployments spells it
        ("POST", "/pt", create),  # provisioned throughput: its units are kept, and mean nothing here
        ("PUT", "/{name}/config", update),
        ("PUT", "/pt/{name}/config", update),
        ("DELETE", "/{name}", delete),
        ("PATCH", "/{name}/tags", tags),
        ("PATCH", "/{name}/notifications", notifications),
        ("PATCH", "/{name}/description", description),
        ("PATCH", "/{name}/telemetry-config", telemetry),
        ("PUT", "/{name}/rate-limits", rate_limits),
        ("GET", "/{name}/served-models/{entity}/logs", logs),
        ("GET", "/{name}/served-models/{entity}/build-logs", build_logs),
        ("GET", "/{name}/metrics", export),
        ("GET", "/{name}/openapi", openapi),
    ]
    for method, path, handler in handlers:
        routes.add_route(at + path, handler, methods=[method], include_in_schema=False)
    return routes


def _json(body: Any) -> Response:
    return Response(orjson.dumps(body), media_type="application/json")


def _objects(body: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    rows = take(body, key, list) or []
    for position, row in enumerate(rows):
        if not isinstance(row, dict):
            raise bad_request(f"Field '{key}[{position}]' must be an object, not {describe(row)}.", f"{key}[{position}]")
    return rows


def _policy(body: Mapping[str, Any]) -> AiGatewayConfig | None:
    """The gateway policy of a request, where it has one."""
    config = take(body, "ai_gateway", dict)
    if config is None and body.get("rate_limits"):
        config = {"rate_limits": body["rate_limits"]}
    if config is None:
        return None
    try:
        return AiGatewayConfig.parse(config)
    except ValueError as error:
        raise CallError(f"{error}.", status=400, code="BAD_REQUEST", param="ai_gateway") from None


_WITHIN = "This entity runs within the server; its log is the server's own.\n"
