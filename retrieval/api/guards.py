"""Row-level access over HTTP: `/api/2.0/smalti/indexes/{name}/row-access`, for administrators."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Depends, Request

from retrieval.api.access import Access, administrator, body_of
from retrieval.errors import BadRequest
from retrieval.rows.store import RowIndex

PATH = "/api/2.0/smalti/indexes/{name}/row-access"
FOLDER = "folder"
"""The column that rules over an index of a folder: the first folder of a document's path is the group that may see it."""


def router(access: Access) -> APIRouter:
    routes = APIRouter(tags=["vector search"])
    who = Depends(access.caller)

    def named(asking: Any, name: str) -> str:
        found = access.seen(asking, name)
        administrator(asking, f"see or change which rows of index {found.name} groups may see")
        return found.name

    def change(asking: Any, full: str, column: str | None) -> None:
        before = access.indexes.guards.column(full)
        access.indexes.guards.set(full, column)
        if access.noted is not None:
            access.noted(asking, full, before, column)

    @routes.get(PATH)
    def get_row_access(name: str, asking: Any = who) -> dict[str, Any]:
        full = named(asking, name)
        return {"name": full, "column": access.indexes.guards.column(full)}

    @routes.put(PATH)
    async def set_row_access(request: Request, name: str, asking: Any = who) -> dict[str, Any]:
        """`{"column": "team"}`: a row is shown to the groups that this column names, and to administrators."""
        full = await asyncio.to_thread(named, asking, name)
        column = (await body_of(request)).get("column")
        await asyncio.to_thread(_check, access, full, column)
        await asyncio.to_thread(change, asking, full, column)
        return {"name": full, "column": column}

    @routes.delete(PATH)
    def delete_row_access(name: str, asking: Any = who) -> dict[str, Any]:
        full = named(asking, name)
        change(asking, full, None)
        return {"name": full, "column": None}

    return routes


def _check(access: Access, full: str, column: Any) -> None:
    over = access.indexes.over_rows
    index = over.find(full)
    known = [FOLDER] if index is None else list(index.spec.columns)
    if not isinstance(column, str) or (known and column not in known):
        raise BadRequest(f"field 'column' must be a column of index {full}: {', '.join(known)}")
    if isinstance(index, RowIndex) and column == index.spec.vector:
        raise BadRequest(f"field 'column' must name groups: {column!r} holds vectors")
    made = [each.name for each in over.list() if each.spec.source == full]
    if made:
        raise BadRequest(f"index {made[0]} is made from {full} and shows its rows to all who may query it: drop it first")
