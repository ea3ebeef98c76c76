"""The paths that call endpoints, found by a look-up before the framework tries one route after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from starlette.requests import Request
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from governance.call import CallError
from serving.errors import error_response


class Direct:
    """An ASGI application: requests by POST to one of `routes` go to its endpoint, all others to `app`.

    The application has the same routes itself, for every other method and for whoever lists them. Of the layers around it only
    those that `around` puts on are around these endpoints too: each layer costs every call.
    """

    def __init__(self, app: ASGIApp, routes: Iterable[BaseRoute], around: Callable[[ASGIApp], ASGIApp] = lambda app: app) -> None:
        self._app, self._short = app, around(self._answer)
        posts = [route for route in routes if isinstance(route, Route) and route.methods == {"POST"}]
        self._exact = {route.path: route.endpoint for route in posts if not route.param_convertors}
        self._named = [route for route in posts if route.param_convertors]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        endpoint = self._find(scope) if scope["type"] == "http" and scope["method"] == "POST" else None
        if endpoint is None:
            await self._app(scope, receive, send)
            return
        scope["endpoint"] = endpoint
        await self._short(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            response = await scope["endpoint"](Request(scope, receive, send))
            await response(scope, receive, send)
        except CallError as error:
            await error_response(error, scope)(scope, receive, send)

    def _find(self, scope: Scope) -> Any:
        path = scope["path"]
        if (endpoint := self._exact.get(path)) is not None:
            scope["path_params"] = {}
            return endpoint
        for route in self._named:
            if match := route.path_regex.match(path):
                scope["path_params"] = match.groupdict()
                return route.endpoint
        return None
