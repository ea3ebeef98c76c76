"""Adds the pages to a FastAPI app. NiceGUI is imported when the first page is asked for, or by `Pages.start`.

NiceGUI is one app per process, so it is set up once; each request carries the services it is to use.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from contextlib import AsyncExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import RedirectResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles

from governance.call import CallError
from serving.ui import document, report, session, uploads
from serving.ui.plain import SECURITY_HEADERS, app_csp
from serving.ui.services import SCOPE_KEY, UiServices

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

STATIC = Path(__file__).parent / "static"
_SECTIONS = ("endpoints", "journal", "indexes", "experiments", "finetuning", "evaluations", "review", "access")
PAGES = ("/", "/console", *(f"/console/{section}" for section in _SECTIONS))

_SCRIPT = re.compile(rb"<script(?=[\s>])")
_configured = False


def _configure() -> Any:
    """Import NiceGUI and our pages, once in a process. Blocking, about 1.6 s."""
    global _configured
    from fastapi import FastAPI as Shell
    from nicegui import core, ui

    if not _configured:
        core.app.add_middleware(PageHeaders)  # first, so innermost: it sees the page before it is compressed
        # NiceGUI mounts itself on an app and takes over all its unknown paths; the shell keeps ours free of that
        look: dict[str, Any] = {"title": "Smalti", "language": "en-US", "dark": None, "tailwind": False}
        ui.run_with(Shell(), **look, show_welcome_message=False, reconnect_timeout=10)
        from serving.ui import chat
        from serving.ui.console import pages

        chat.register()
        pages.register()
        _configured = True
    return core.app


class PageHeaders:
    """Gives NiceGUI's pages a Content-Security-Policy whose nonce is on each of their own script tags.

    The template's data is HTML-escaped by NiceGUI, so a `<script` in the page is always one of the template's.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        held: Message | None = None
        body = b""

        async def sending(message: Message) -> None:
            nonlocal held, body
            if message["type"] == "http.response.start":
                if MutableHeaders(raw=message["headers"]).get("content-type", "").startswith("text/html"):
                    held = message
                    return
            elif held is not None:
                body += message.get("body", b"")
                if message.get("more_body"):
                    return
                nonce = secrets.token_urlsafe(16)
                page = _SCRIPT.sub(f'<script nonce="{nonce}"'.encode(), body)
                headers = MutableHeaders(raw=held["headers"])
                headers.update({**SECURITY_HEADERS, "content-security-policy": app_csp(nonce), "content-length": str(len(page))})
                await send(held)
                message = {"type": "http.response.body", "body": page}
                held = None
            await send(message)

        await self.app(scope, receive, sending)


class Pages:
    """The NiceGUI pages as an ASGI app that starts itself.

    `await start()` after the server is ready makes the first page quick; without it the first request does it.
    `await stop()` belongs in the app's shutdown.
    """

    def __init__(self, services: UiServices) -> None:
        self._services = services
        self._lock = asyncio.Lock()
        self._stack: AsyncExitStack | None = None
        self._app: ASGIApp | None = None

    async def start(self) -> None:
        """Import NiceGUI in a thread and start it on this loop. Safe to call again."""
        async with self._lock:
            if self._app is None:
                app = await asyncio.to_thread(_configure)
                stack = AsyncExitStack()
                await stack.enter_async_context(app.router.lifespan_context(app))
                self._stack, self._app = stack, app

    async def stop(self) -> None:
        """End NiceGUI's tasks. Safe without `start`."""
        async with self._lock:
            self._app = None
            if self._stack is not None:
                await self._stack.aclose()
                self._stack = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        refused: Response | None = None
        if path in PAGES:
            try:
                caller, credential = await session.signed_in(self._services.identity, scope)
                scope[SCOPE_KEY] = (self._services, caller, credential)
            except CallError:
                refused = session.login_redirect(scope)
        elif (
            path.startswith("/_nicegui_ws")
            and HTTPConnection(scope).headers.get("origin")
            and not session.same_origin(HTTPConnection(scope))
        ):
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
                return
            refused = Response("This connection was opened by another site.", 403)
        if refused is not None:
            await refused(scope, receive, send)
            return
        await self.start()
        assert self._app is not None
        await self._app(scope, receive, send)


async def _favicon(_: Any) -> Response:
    return RedirectResponse("/ui/logo.svg", 308)


def mount(app: FastAPI, services: UiServices) -> Pages:
    """Add every page to `app`. Imports no NiceGUI, so it costs nothing before readiness.

    Returns
    -------
    Pages: `await pages.start()` once the server is ready (in a task), `await pages.stop()` at shutdown.
    """
    pages = Pages(services)
    nicegui = find_spec("nicegui")  # found, not imported
    assets = Path((nicegui and nicegui.origin) or "").parent / "static"
    app.router.routes.extend(
        [
            *session.routes(services),
            *document.routes(services),
            *report.routes(services),
            *uploads.routes(services),
            Route("/favicon.ico", _favicon, methods=["GET"]),
            Mount("/ui/nicegui", StaticFiles(directory=assets, check_dir=False)),
            Mount("/ui", StaticFiles(directory=STATIC)),
            *(Route(path, pages, methods=["GET"]) for path in PAGES),
            Route("/_nicegui/{path:path}", pages, methods=["GET"]),
            Route("/_nicegui_ws/{path:path}", pages, methods=["GET", "POST", "OPTIONS"]),
            WebSocketRoute("/_nicegui_ws/{path:path}", pages),
        ]
    )
    return pages
