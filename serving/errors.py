"""Errors over HTTP: each face's own shape, always with a request id; and the middleware that gives the id."""

from __future__ import annotations

import logging
import math
import re
from typing import TYPE_CHECKING, Any

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from governance.call import CallError, new_id
from serving.protocols.errors import databricks_error, openai_error

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.requests import Request
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger("smalti.serving")

ORG_ID = "1"
"""The workspace's number; Databricks' clients read it from `x-databricks-org-id`."""

_ORG = (b"x-databricks-org-id", ORG_ID.encode())
_OPENAI = re.compile(r"/(v1|ai-gateway/\w+/v1|serving-endpoints/(chat|completions|responses|embeddings|models))(/|$)")
_DATABRICKS = re.compile(r"/(api|serving-endpoints|oidc|\.well-known)(/|$)")
_LANGGRAPH = re.compile(r"/(info|assistants|threads|runs|store)(/|$)")


def face(path: str) -> str | None:
    """Whose error shape a path has: `openai`, `databricks`, `langgraph` or None (pages)."""
    if _LANGGRAPH.match(path):
        return "langgraph"
    if _OPENAI.match(path):
        return "openai"
    return "databricks" if _DATABRICKS.match(path) else None


def request_id(scope: Scope) -> str:
    """The id of the request being answered; 32 hex digits, also its trace id and its row in the journal."""
    state = scope.setdefault("state", {})
    if (known := state.get("request_id")) is None:
        known = state["request_id"] = new_id()
    return known


def error_response(error: CallError, scope: Scope, *, path: str | None = None) -> Response:
    """The error in the shape of the path's face."""
    path = path or str(scope.get("path", ""))
    headers = {}
    if error.retry_after is not None:
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after)))
    status = error.status
    if face(path) == "openai":
        body = openai_error(error, request_id(scope))
    elif face(path) == "langgraph":
        body = {"detail": error.message, "code": error.code, "request_id": request_id(scope)}
    else:
        presented = any(key == b"authorization" for key, _ in scope.get("headers", ()))
        if status == 401 and presented and face(path) == "databricks":
            status = 403  # Databricks refuses a wrong token with 403; 401 is for none at all
            error = CallError(error.message, status=403, code="PERMISSION_DENIED")
        body = databricks_error(error, request_id(scope))
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    return Response(orjson.dumps(body), status, headers, "application/json")


async def _call_error(request: Request, error: Any) -> Response:
    return error_response(error, request.scope)


async def _http_error(request: Request, error: Any) -> Response:
    """Errors of the framework: unknown paths, wrong methods, bodies that FastAPI's own models refuse."""
    path, method = request.url.path, request.method
    if error.status_code == 404:
        message, code = f"There is no API at {method} {path[:200]}. Check the path.", "ENDPOINT_NOT_FOUND"
    elif error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another method")
        message, code = f"{path[:200]} does not answer {method}; it answers {allowed}.", "METHOD_NOT_ALLOWED"
    else:
        message, code = (
            str(error.detail),
            {400: "BAD_REQUEST", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED"}.get(error.status_code, "BAD_REQUEST"),
        )
    answer = error_response(CallError(message, status=error.status_code, code=code), request.scope)
    answer.headers.update(error.headers or {})
    return answer


async def _invalid(request: Request, error: Any) -> Response:
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"][1:]) or "body"
    wrong = CallError(f"Field {field!r}: {first['msg']}.", status=400, code="BAD_REQUEST", param=field)
    return error_response(wrong, request.scope)


class RequestIds:
    """Pure ASGI middleware: an id for every request, on every answer; and a clean 500 where everything else failed."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        identifier = request_id(scope)
        started = False

        async def sending(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                taken = {key.lower() for key, _ in message.get("headers", ())}
                extra = (pair for pair in identified(identifier) if pair[0] not in taken)
                headers = [*message.get("headers", ()), *extra]
                message = {**message, "headers": headers}
            await send(message)

        try:
            await self._app(scope, receive, sending)
        except Exception as error:
            if not is_gone(error, scope):
                if started:
                    raise
                await broken(scope)(scope, receive, sending)


def identified(identifier: str) -> tuple[tuple[bytes, bytes], ...]:
    """The headers that every answer has."""
    return (b"x-request-id", identifier.encode()), _ORG


def is_gone(error: Exception, scope: Scope) -> bool:
    """Whether a request failed because its client went before it was whole; any other reason is logged."""
    if isinstance(error, ClientDisconnect):
        log.debug("%s %s: the client went before its request was whole", scope.get("method"), scope.get("path"))
        return True
    log.error("%s %s failed (request %s)", scope.get("method"), scope.get("path"), request_id(scope), exc_info=error)
    return False


def broken(scope: Scope) -> Response:
    """The answer where the server itself failed."""
    return error_response(
        CallError(f"The server failed on this request. Its log has the reason under {request_id(scope)}."), scope
    )


def install(app: FastAPI) -> None:
    """Give an app these error shapes and request ids. Call it last: the middleware added last is the outermost."""
    from fastapi.exceptions import RequestValidationError

    app.add_exception_handler(CallError, _call_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_middleware(RequestIds)
