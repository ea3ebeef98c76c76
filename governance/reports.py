"""What owners read over HTTP: the audit log, the usage table, and metrics for Prometheus."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from sqlalchemy import Engine
from starlette.responses import Response

from governance import audit
from governance.call import Caller, bad_request, forbidden, unauthenticated
from governance.identity import Identity
from governance.journal import Journal
from governance.metrics import CONTENT_TYPE, Metrics
from governance.usage import BY, usage


def router(
    engine: Engine,
    identity: Identity,
    journal: Journal,
    metrics: Metrics,
    *,
    caller: Callable[..., Any],
    scrape_key: str | None = None,
) -> APIRouter:
    """Routes of the reports; all need an admin's key, and `/metrics` takes `scrape_key` too.

    Parameters
    ----------
    caller: FastAPI dependency that gives the authenticated `Caller`, or raises `CallError` 401.
    scrape_key: a bearer token that opens `/metrics` and nothing else.
    """
    routes = APIRouter(tags=["governance"])
    who_asks = Depends(caller)

    @routes.get("/api/2.0/smalti/audit")
    def read_audit(
        who: Caller = who_asks,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        subject: str | None = None,
        since: str | None = None,
        sessions: bool = False,
    ) -> dict[str, Any]:
        _admin(who)
        try:
            return {"entries": audit.entries(engine, limit=limit, subject=subject, since=since, sessions=sessions)}
        except ValueError as error:
            raise bad_request(str(error), "since") from None

    @routes.get("/api/2.0/smalti/usage")
    def read_usage(
        who: Caller = who_asks, by: str = ",".join(BY), since: str | None = None, until: str | None = None
    ) -> dict[str, Any]:
        _admin(who)
        journal.ingest()
        try:
            return {"rows": usage(engine, by=[name for name in by.split(",") if name], since=since, until=until)}
        except ValueError as error:
            raise bad_request(str(error), "by") from None

    @routes.get("/metrics", include_in_schema=False)
    def scrape(request: Request) -> Response:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise unauthenticated("metrics need an admin's key, or the one set as metrics_key, as 'Authorization: Bearer ...'")
        if scrape_key is None or not hmac.compare_digest(token.strip().encode(), scrape_key.encode()):
            _admin(identity.authenticate(token))
        return Response(metrics.exposition(), media_type=CONTENT_TYPE)

    return routes


def _admin(who: Caller) -> None:
    if not who.admin:
        raise forbidden(f"{who.kind}:{who.name} is no admin: this is for admins")
