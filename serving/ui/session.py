"""Signing in and out: a key becomes a cookie that holds a short-lived key of its own.

Authentication is the same everywhere: the cookie's key goes through `Identity.authenticate` on every request, so a revoked
key is out at once. API routes never read the cookie.
"""

from __future__ import annotations

import asyncio
import secrets
import threading
import time
from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote, urlsplit

from starlette.requests import HTTPConnection, Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from governance.call import Caller, CallError, bad_request
from serving.ui.plain import notice, page

if TYPE_CHECKING:
    from starlette.types import Scope

    from serving.ui.services import Identity, UiServices

COOKIE = "smalti_session"
FORM_LIMIT = 16_384
"""Bytes of a form that are read; a key is 47."""


class OneTimeCodes:
    """Codes that sign one caller in, once. Kept in memory: a restart forgets them and prints a new one.

    Parameters
    ----------
    ttl: seconds a code stays valid.
    """

    def __init__(self, ttl: float = 1800.0) -> None:
        self._ttl = ttl
        self._lock = threading.Lock()
        self._codes: dict[str, tuple[Caller, float]] = {}

    def issue(self, caller: Caller) -> str:
        """A new code for `caller`; `/signin?code=…` redeems it."""
        code = secrets.token_urlsafe(32)
        now = time.monotonic()
        with self._lock:
            self._codes = {known: entry for known, entry in self._codes.items() if entry[1] > now}
            self._codes[code] = (caller, now + self._ttl)
        return code

    def redeem(self, code: str) -> Caller | None:
        """The caller the code was issued for, the first time it is shown in time; else None."""
        with self._lock:
            caller, until = self._codes.pop(code, (None, 0.0))
        return caller if until > time.monotonic() else None


def local_path(target: str | None) -> str:
    """`target` if it is a path of this site, else `/`. Never another host: no scheme, `//`, `\\` or control characters."""
    if not target or not target.startswith("/") or len(target) > 2000 or any(c in "\\" or ord(c) < 32 for c in target):
        return "/"
    parts = urlsplit(target)
    return "/" if parts.scheme or parts.netloc or target.startswith("//") else target


def same_origin(connection: HTTPConnection) -> bool:
    """Whether a form or a socket comes from a page of this host, by `Origin`, or `Referer` where that is not sent."""
    origin = connection.headers.get("origin") or connection.headers.get("referer")
    return bool(origin) and urlsplit(origin or "").netloc == connection.headers.get("host")


async def signed_in(identity: Identity, scope: Scope, *, bearer: bool = False) -> tuple[Caller, str]:
    """The caller of this connection and the key it showed.

    Raises
    ------
    CallError: 401 when there is no key, or it is unknown, expired or revoked.
    """
    connection = HTTPConnection(scope)
    secret = connection.cookies.get(COOKIE)
    if bearer and (header := connection.headers.get("authorization", "")).lower().startswith("bearer "):
        secret = header[7:].strip()
    caller = await asyncio.to_thread(identity.authenticate, secret)
    return caller, secret or ""


def login_redirect(scope: Scope) -> Response:
    """To the sign-in page, and back here afterwards."""
    query = scope.get("query_string", b"").decode("latin-1")
    target = quote(scope["path"], safe="/:@") + (f"?{query}" if query else "")
    return RedirectResponse("/login" if target == "/" else f"/login?next={quote(target, safe='')}", 303)


def login_page(next_path: str, error: str = "", status: int = 200) -> Response:
    problem = f'<p class="problem" role="alert" id="problem">{escape(error)}</p>' if error else ""
    described = ' aria-invalid="true" aria-describedby="problem"' if error else ""
    return page(
        "Sign in – Smalti",
        '<main class="card"><img class="mark" src="/ui/logo.svg" alt="" width="48" height="48"><h1>Sign in to Smalti</h1>'
        "<p>Paste your access key. The first start printed the admin's; an admin makes more with <code>smalti keys</code>.</p>"
        f'{problem}<form method="post" action="/login"><input type="hidden" name="next" value="{escape(next_path)}">'
        '<label for="key">Access key</label>'
        f'<input id="key" name="key" type="password" autocomplete="current-password" spellcheck="false" autofocus required'
        f"{described}"
        ' placeholder="smk_…"><button class="button" type="submit">Sign in</button></form></main>',
        status=status,
    )


async def read_form(request: Request) -> Mapping[str, str]:
    """A small urlencoded form; the first value of each field."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > FORM_LIMIT:
            raise bad_request("the form is too large: paste the key only")
    return {name: values[0] for name, values in parse_qs(body.decode("utf-8", "replace")).items()}


def routes(services: UiServices) -> list[Route]:
    """`/login`, `/signin` and `/logout`."""
    identity = services.identity

    async def start(request: Request, caller: Caller, target: str) -> Response:
        ttl = services.session_ttl
        # groups belong to the name, so the session's key has them without being given any
        options: dict[str, Any] = {"kind": caller.kind, "admin": caller.admin, "ttl": ttl, "label": "session", "session": True}
        # signed in by a key, the session ends with it
        options["parent"] = caller.key_id
        try:
            _, secret = await asyncio.to_thread(identity.create_key, caller.name, by=caller.name, **options)
        except ValueError:  # revoked since it was shown
            return login_page("/", "This key is no longer in force. Sign in with another one.", 401)
        response = RedirectResponse(target, 303)
        secure = request.url.scheme == "https"
        response.set_cookie(COOKIE, secret, max_age=int(ttl), path="/", httponly=True, samesite="lax", secure=secure)
        return response

    async def login(request: Request) -> Response:
        if request.method != "POST":
            return login_page(local_path(request.query_params.get("next")))
        if not same_origin(request):
            return notice("Not from here", "This form was sent from another site, so it was refused.", status=403)
        try:
            form = await read_form(request)
            target = local_path(form.get("next"))
        except CallError as error:
            return login_page("/", error.message, error.status)
        key = form.get("key", "").strip()
        if not key:
            return login_page(target, "Paste a key first.", 400)
        try:
            caller = await asyncio.to_thread(identity.authenticate, key)
        except CallError:
            return login_page(
                target, "This key is not known here, has expired or was revoked. Check that all of it was copied.", 401
            )
        return await start(request, caller, target)

    async def signin(request: Request) -> Response:
        caller = services.codes.redeem(request.query_params.get("code", ""))
        if caller is None:
            text = (
                "A sign-in link works once and for half an hour. Sign in with your key instead, or restart Smalti for a new link."
            )
            return notice("This link has been used or has expired", text, status=410, action=("/login", "Sign in with a key"))
        return await start(request, caller, "/")

    async def logout(request: Request) -> Response:
        if not same_origin(request):
            return notice("Not from here", "This form was sent from another site, so it was refused.", status=403)
        try:
            caller, _ = await signed_in(identity, request.scope)
            if caller.key_id:
                await asyncio.to_thread(identity.revoke, caller.key_id, by=caller.name, session=True)
        except CallError:
            pass  # already out
        response = RedirectResponse("/login", 303)
        response.delete_cookie(COOKIE, path="/", httponly=True, samesite="lax")
        return response

    return [
        Route("/login", login, methods=["GET", "POST"]),
        Route("/signin", signin, methods=["GET"]),
        Route("/logout", logout, methods=["POST"]),
    ]
