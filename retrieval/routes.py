"""Indexes over HTTP; see `retrieval.api`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter

from retrieval.api import endpoints, guards, metrics, queries, resources
from retrieval.api import indexes as indexing
from retrieval.api.access import Access, Invoke
from retrieval.index import Indexes


def router(
    indexes: Indexes,
    *,
    caller: Callable[..., Any],
    invoke: Invoke,
    visible: Callable[[Any, str], bool] | None = None,
    manage: Callable[[Any, str], None] | None = None,
    manage_endpoint: Callable[[Any, str], None] | None = None,
    noted: Callable[[Any, str, Any, Any], None] | None = None,
    calls: metrics.Calls = lambda indexes, since, until: (),
) -> APIRouter:
    """The routes `/api/2.0/vector-search/…` and `/api/2.0/ai-search/…`.

    Parameters
    ----------
    caller: a FastAPI dependency that gives who asks (`.name`, `.admin`), or raises.
    invoke: `invoke(request, index, task, payload)` runs a call through the gateway; every query goes by it, none past it.
    visible: whether a caller may see that an index exists; None lets admins alone see them.
    manage: raises unless the caller may change an index; None lets admins alone.
    manage_endpoint: raises unless the caller may make or change a vector search endpoint; None lets admins alone.
    noted: told who changed the column by which groups see rows of an index, of which one, and the column before and after.
    calls: the queries that went through the gateway, see `retrieval.api.metrics`.

    The routes raise `RetrievalError`, which carries status and `error_code`; the application turns it into a response.
    """
    access = Access(indexes, caller, invoke, visible, manage, manage_endpoint, noted)
    routes = APIRouter()
    for part in (endpoints, indexing, queries, resources, guards):
        routes.include_router(part.router(access))
    routes.include_router(metrics.router(access, calls))
    return routes
