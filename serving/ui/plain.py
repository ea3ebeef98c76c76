"""Pages that are plain HTML (sign-in, documents, errors) and the security headers of all pages."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from starlette.responses import HTMLResponse

PLAIN_CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
    "form-action 'self'; frame-ancestors 'self'; base-uri 'none'"
)
"""Plain pages need nothing but our own files."""


def app_csp(nonce: str) -> str:
    """The policy of a NiceGUI page: scripts only from us or with this answer's nonce, so injected markup cannot run.

    Vue compiles templates in the browser, which needs 'unsafe-eval'; Vue and Quasar set styles, which needs
    'unsafe-inline' for styles. No other host is ever allowed.
    """
    return (
        f"default-src 'none'; script-src 'self' 'nonce-{nonce}' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data:; font-src 'self' data:; connect-src 'self'; frame-src 'self'; manifest-src 'self'; "
        "form-action 'self'; frame-ancestors 'self'; base-uri 'none'; object-src 'none'"
    )


SECURITY_HEADERS: Mapping[str, str] = {
    "x-content-type-options": "nosniff",
    # not `no-referrer`: browsers then send `Origin: null` with our own forms, and the origin check would refuse them
    "referrer-policy": "same-origin",
    "cache-control": "no-store",
}

HEAD = (
    '<link rel="icon" href="/ui/logo.svg" type="image/svg+xml"><link rel="stylesheet" href="/ui/smalti.css">'
    '<script src="/ui/theme.js"></script>'
)


def page(title: str, body: str, *, status: int = 200, kind: str = "plain", script: str | None = None) -> HTMLResponse:
    """A whole plain page; `body` is HTML, `title` is text."""
    tail = f'<script src="/ui/{script}" defer></script>' if script else ""
    html = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{escape(title)}</title><link rel="stylesheet" href="/ui/nicegui/fonts.css">{HEAD}{tail}</head>'
        f'<body class="{kind}">{body}</body></html>'
    )
    return HTMLResponse(html, status, headers={**SECURITY_HEADERS, "content-security-policy": PLAIN_CSP})


def notice(title: str, text: str, *, status: int, action: tuple[str, str] = ("/", "Back to the chat")) -> HTMLResponse:
    """A page that says in words what is wrong and where to go."""
    href, label = action
    return page(
        f"{title} – Smalti",
        f'<main class="card"><img class="mark" src="/ui/logo.svg" alt="" width="40" height="40"><h1>{escape(title)}</h1>'
        f'<p>{escape(text)}</p><p><a class="button" href="{escape(href)}">{escape(label)}</a></p></main>',
        status=status,
    )
