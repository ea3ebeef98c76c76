"""A stored document with one passage marked: what a citation opens. Plain HTML; the document's text is only ever text."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from governance.call import Call, CallError
from serving.ui.plain import notice, page
from serving.ui.session import login_redirect, signed_in

if TYPE_CHECKING:
    from serving.ui.services import UiServices


def document_url(index: str, document_id: str, start: int | None = None, end: int | None = None) -> str:
    """The local address of a document, with a passage to mark (characters of its text)."""
    span = f"?start={start}&end={end}" if start is not None and end is not None else ""
    return f"/documents/{quote(index, safe='')}/{quote(document_id, safe='')}{span}"


def span(start: str | None, end: str | None, length: int) -> tuple[int, int] | None:
    """The passage asked for, clamped to the text; None where none was asked for or nothing is left of it."""
    try:
        first, last = (min(max(int(value or ""), 0), length) for value in (start, end))
    except ValueError:
        return None
    return (first, last) if first < last else None


def document_page(document: dict[str, Any], passage: tuple[int, int] | None) -> Response:
    text = str(document.get("text", ""))
    title = str(document.get("title") or document.get("source") or document.get("id"))
    shown, jump = escape(text), ""
    if passage is not None:
        first, last = passage
        shown = f'{escape(text[:first])}<mark id="passage" tabindex="-1">{escape(text[first:last])}</mark>{escape(text[last:])}'
        jump = '<a class="button quiet" href="#passage">Go to the passage</a>'
    words = len(text.split())
    return page(
        f"{title} – Smalti",
        '<header class="bar"><a class="home" href="/" target="_top" aria-label="Smalti, to the chat">'
        '<img src="/ui/logo.svg" alt="" width="26" height="26"></a>'
        f'<div class="names"><h1>{escape(title)}</h1><p><span>{escape(str(document.get("source", "")))}</span>'
        f'<span class="dot">{escape(_where(str(document.get("index", ""))))}</span>'
        f'<span class="dot">{words:,} words</span></p></div>{jump}</header>'
        f'<main><article class="text" lang="" dir="auto">{shown}</article></main>',
        kind="document",
        script="document.js",
    )


def _where(index: str) -> str:
    return "handed to a conversation" if index.startswith("main.threads.") else index


def routes(services: UiServices) -> list[Route]:
    """`/documents/{index}/{document_id}?start=S&end=E`."""

    async def document(request: Request) -> Response:
        html = "text/html" in request.headers.get("accept", "")
        index, document_id = request.path_params["index"], request.path_params["document_id"]
        try:
            _, credential = await signed_in(services.identity, request.scope, bearer=True)
            call = Call(endpoint=index, task="document", payload={"id": document_id}, credential=credential)
            found = dict((await services.dispatcher.invoke(call))["document"])
        except CallError as error:
            if not html:
                body = {"error_code": error.code, "message": error.message}
                return JSONResponse(body, error.status, headers={"www-authenticate": "Bearer"} if error.status == 401 else None)
            if error.status == 401:
                return login_redirect(request.scope)
            titles = {403: "Not yours to read", 404: "No such document", 429: "Too many requests"}
            return notice(titles.get(error.status, "The document cannot be shown"), error.message, status=error.status)
        found = {"index": index, "id": document_id, **found}
        length = len(str(found.get("text", "")))
        return document_page(found, span(request.query_params.get("start"), request.query_params.get("end"), length))

    return [Route("/documents/{index}/{document_id:path}", document, methods=["GET"])]
