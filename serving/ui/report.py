"""An evaluation's report as a page: the file that `smalti eval report` writes, for whoever is signed in and may see it."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from governance.call import CallError
from serving.ui.plain import SECURITY_HEADERS, notice
from serving.ui.session import login_redirect, signed_in

if TYPE_CHECKING:
    from serving.ui.services import UiServices


def report_url(evaluation: str) -> str:
    return f"/console/evaluations/{quote(evaluation, safe='')}/report"


def routes(services: UiServices) -> list[Route]:
    """`/console/evaluations/{id}/report`. The report brings a policy of its own, under which no script runs."""

    async def report(request: Request) -> Response:
        try:
            _, credential = await signed_in(services.identity, request.scope)
            at = f"/api/2.0/smalti/evaluations/{quote(request.path_params['evaluation'], safe='')}/report"
            found = await services.api.answer(credential, "GET", at)
        except CallError as error:
            if error.status == 401:
                return login_redirect(request.scope)
            return notice("The report cannot be shown", error.message, status=error.status, action=("/console", "To the console"))
        headers = {**SECURITY_HEADERS, "content-security-policy": found.headers["content-security-policy"]}
        return HTMLResponse(found.text, headers=headers)

    return [Route("/console/evaluations/{evaluation}/report", report, methods=["GET"])]
