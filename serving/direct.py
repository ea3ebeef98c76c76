"""The paths that call endpoints, found by a look-up before the framework tries one route after the other."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from starlette.requests import Request
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from governance.call import CallError
from serving.compress import Compressed, reads_gzip
from serving.errors import broken, error_response, is_gone
from serving.outgoing import KEY, Outgoing

_KEPT, _SHORT = 512, 256
"""Paths whose endpoint is remembered, and characters of one that is."""


class Direct:
    """An ASGI application: requests by POST to one of `routes` go to its endpoint, all others to `app`.

    The application has the same routes itself, for every other method and for whoever lists them. Each layer around an
    application costs every call, so what the layers do for answers of calls is done here in one: request ids, packing, errors in
    the face's shape and `x-smalti-budget-warning`.

    Parameters
    ----------
    warnings: soft budgets that calls found used up, by request id.
    """

    def __init__(self, app: ASGIApp, routes: Iterable[BaseRoute], warnings: dict[str, str] | None = None) -> None:
        self._app, self._warnings = app, warnings if warnings is not None else {}
        self._packed = Compressed(self._answer)
        posts = [route for route in routes if isinstance(route, Route) and route.methods == {"POST"}]
        self._exact = {route.path: route.endpoint for route in posts if not route.param_convertors}
        self._named = [route for route in posts if route.param_convertors]
        self._found = lru_cache(_KEPT)(self._match)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        endpoint = self._find(scope) if scope["type"] == "http" and scope["method"] == "POST" else None
        if endpoint is None:
            await self._app(scope, receive, send)
            return
        scope["endpoint"] = endpoint
        out = Outgoing(scope, send, self._warnings)
        try:
            await (self._packed if reads_gzip(scope) else self._answer)(scope, receive, out)
        except Exception as error:
            if not is_gone(error, scope):
                if out.started:
                    raise
                await broken(scope)(scope, receive, out)
        finally:
            scope.pop(KEY, None)  # no ring of objects is left to the collector

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            response = await scope["endpoint"](Request(scope, receive, send))
            await response(scope, receive, send)
        except CallError as error:
            await error_response(error, scope)(scope, receive, send)

    def _find(self, scope: Scope) -> Any:
        path = scope["path"]
        endpoint, names = self._found(path) if len(path) <= _SHORT else self._match(path)
        if endpoint is not None:
            scope["path_params"] = names.copy()
        return endpoint

    def _match(self, path: str) -> tuple[Any, dict[str, str]]:
        if (endpoint := self._exact.get(path)) is not None:
            return endpoint, {}
        for route in self._named:
            if match := route.path_regex.match(path):
                return route.endpoint, match.groupdict()
        return None, {}
