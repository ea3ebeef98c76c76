"""`GET /openapi.json`: what this server answers, drawn from its routes, with an example of each body.

Generated clients, API explorers and fuzzers read it. It needs a key, as everything but the pages' sign-in does.
https://spec.openapis.org/oas/v3.1.0
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterator, Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from serving.errors import face

if TYPE_CHECKING:
    from fastapi import FastAPI

_SAID = [{"role": "user", "content": "What is a tessera?"}]
_FOUND = {"columns": ["id"], "query_text": "tessera", "num_results": 2, "query_type": "HYBRID"}
_RUN = {"assistant_id": "assistant", "input": {"messages": _SAID}, "if_not_exists": "create"}
_SERVED = {"served_entities": [{"entity_name": "main.default.m", "entity_version": "1"}]}
_EXAMPLES: Mapping[str, Mapping[str, Any]] = {  # by what a path ends with; the longest end counts
    "/chat/completions": {"model": "assistant", "messages": _SAID},
    "/completions": {"model": "assistant", "prompt": "A tessera is"},
    "/responses": {"model": "assistant", "input": "What is a tessera?"},
    "/embeddings": {"model": "all-minilm-l6-v2", "input": ["A tessera is a tile."]},
    "/invocations": {"messages": _SAID},
    "/smalti/keys": {"name": "ann", "kind": "user", "groups": ["staff"], "ttl": 3600},
    "/groups": {"groups": ["staff"]},
    "/ai-gateway": {"rate_limits": [{"calls": 60, "key": "user", "renewal_period": "minute"}]},
    "/serving-endpoints": {
        "name": "mine",
        "config": {"served_entities": [{"entity_name": "main.default.m", "entity_version": "1"}]},
    },
    "/config": {"served_entities": [{"entity_name": "main.default.m", "entity_version": "2"}]},
    "/query": _FOUND,
    ":query": _FOUND,
    "/scan": {"num_results": 10},
    ":scan": {"num_results": 10},
    "/upsert-data": {"inputs_json": '[{"id": 1, "text": "A tessera is a tile."}]'},
    "/feedback": {"request_id": "resp_…", "name": "thumb", "value": True},
    "/threads/{thread_id}/runs": _RUN,
    "/runs/stream": _RUN,
    "/runs/wait": _RUN,
    "/oidc/v1/token": {"grant_type": "client_credentials"},
}
_CODES: Mapping[str, Any] = {"error_code": {"type": "string"}, "message": {"type": "string"}, "details": {"type": "array"}}
_ERRORS: Mapping[str, Mapping[str, Any]] = {
    "openai": {"type": "object", "required": ["error"], "properties": {"error": {"type": "object"}}},
    "databricks": {"type": "object", "properties": _CODES},
    "langgraph": {"type": "object", "required": ["detail"], "properties": {"detail": {}}},
}


def describe(app: FastAPI) -> dict[str, Any]:
    """An OpenAPI 3.1 document of every route of the APIs; pages and what only answers "unknown" are left out."""
    paths: dict[str, dict[str, Any]] = {}
    for method, path, handler in _routes(app.router):
        kind = face(path)
        if kind is None or handler.__name__ == "unknown" or path.endswith("/"):  # a slash more names the same thing
            continue
        plain = re.sub(r"\{(\w+):\w+\}", r"{\1}", path)
        paths.setdefault(plain, {})[method.lower()] = _operation(method, plain, handler, kind)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Smalti", "version": version("smalti")},
        "paths": dict(sorted(paths.items())),
        "components": {
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
            "schemas": {f"{kind}_error": schema for kind, schema in _ERRORS.items()},
        },
        "security": [{"bearer": []}],
    }


def add(app: FastAPI, caller: Callable[[Request], Awaitable[Any]]) -> None:
    """Serve the description to whoever has a key; drawn when first asked for."""
    drawn: list[bytes] = []

    async def description(http: Request) -> Response:
        await caller(http)
        if not drawn:
            drawn.append(orjson.dumps(describe(app)))
        return Response(drawn[0], media_type="application/json")

    app.add_api_route("/openapi.json", description, methods=["GET"], include_in_schema=False)


def _routes(router: Any) -> Iterator[tuple[str, str, Callable[..., Any]]]:
    for route in router.routes:
        if included := getattr(route, "original_router", None):
            yield from _routes(included)
        elif isinstance(route, Route) or hasattr(route, "methods"):
            for method in sorted(route.methods or ()):
                if method not in ("HEAD", "OPTIONS"):
                    yield method, route.path, route.endpoint


def _operation(method: str, path: str, handler: Callable[..., Any], kind: str) -> dict[str, Any]:
    error = {"application/json": {"schema": {"$ref": f"#/components/schemas/{kind}_error"}}}
    named = [
        {"name": each, "in": "path", "required": True, "schema": {"type": "string"}} for each in re.findall(r"\{(\w+)\}", path)
    ]
    described: dict[str, Any] = {
        "operationId": f"{method.lower()}{re.sub(r'[^a-zA-Z0-9]+', '_', path)}".rstrip("_"),
        "summary": f"{method} {path}",
        "tags": [kind],
        "parameters": named,
        "responses": {"2XX": {"description": "The answer."}, "default": {"description": "What is wrong.", "content": error}},
    }
    told = " ".join((getattr(handler, "__doc__", None) or "").split("\n\n")[0].split())
    if told:
        described["description"] = told
    if method in ("POST", "PUT", "PATCH"):
        fitting = max((end for end in _EXAMPLES if path.endswith(end)), key=len, default=None)
        media: dict[str, Any] = {"schema": {"type": "object"}}
        if fitting:
            media["example"] = _EXAMPLES[fitting]
        as_form = path.endswith("/token")
        described["requestBody"] = {"content": {"application/x-www-form-urlencoded" if as_form else "application/json": media}}
    return described
