"""Comments on model versions, and requests that one be moved to a stage, as databricks-sdk's `model_registry` has them.

Who may see a model comments on its versions and requests stages; who manages it approves and rejects. A request is there until it
is decided or withdrawn. Source: https://docs.databricks.com/api/workspace/modelregistry
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from fastapi import APIRouter
from sqlalchemy import Engine, delete, insert, select, update
from starlette.requests import Request
from starlette.responses import Response

from governance.call import Caller, CallError, bad_request, forbidden, new_id, not_found
from serving.protocols.request import take
from serving.tables import model_activities as table
from serving.tracking.access import ModelAccess, check_unscoped
from serving.tracking.server import MlflowServer
from serving.unity_catalog.registered import Authorize, answer, fields_of

STAGES = ("None", "Staging", "Production", "Archived")
_AT = "/api/2.0/mlflow"
_MOST = 64 * 1024  # characters of a comment


class Reviews:
    """Comments and open requests of one database. Blocking."""

    def __init__(self, database: Engine) -> None:
        self._database = database

    def add(self, who: Caller, model: str, version: str, comment: str, stage: str | None = None) -> Mapping[str, Any]:
        """A new comment, or a request for a stage. Raises `CallError` (409) where the caller has asked for that stage already."""
        if stage and any(row["creator"] == who.principal for row in self.requests(model, version, stage)):
            message = f"You have requested that version {version} of {model} be {stage} already."
            raise CallError(message, status=409, code="RESOURCE_ALREADY_EXISTS")
        now = time.time_ns() // 1_000_000
        row = {
            "id": new_id(), "model": model, "version": version, "creator": who.principal, "stage": stage,
            "comment": comment, "created": now, "updated": now,
        }  # fmt: skip
        with self._database.begin() as connection:
            connection.execute(insert(table).values(**row))
        return row

    def comment(self, identifier: str) -> dict[str, Any]:
        """Raises `CallError` (404)."""
        with self._database.connect() as connection:
            row = connection.execute(select(table).where(table.c.id == identifier, table.c.stage.is_(None))).first()
        if row is None:
            raise not_found(f"There is no comment {identifier[:80]!r}.")
        return dict(row._mapping)

    def requests(self, model: str, version: str, stage: str | None = None) -> list[dict[str, Any]]:
        """The open requests for a version, oldest first."""
        wanted = select(table).where(table.c.model == model, table.c.version == version, table.c.stage.is_not(None))
        wanted = wanted.where(table.c.stage == stage) if stage else wanted
        with self._database.connect() as connection:
            return [dict(row._mapping) for row in connection.execute(wanted.order_by(table.c.id))]

    def edit(self, row: Mapping[str, Any], comment: str) -> Mapping[str, Any]:
        changed = {"comment": comment, "updated": time.time_ns() // 1_000_000}
        with self._database.begin() as connection:
            connection.execute(update(table).where(table.c.id == row["id"]).values(**changed))
        return {**row, **changed}

    def remove(self, *identifiers: str) -> None:
        with self._database.begin() as connection:
            connection.execute(delete(table).where(table.c.id.in_(identifiers)))

    def follow(self, model: str, new: str | None) -> None:
        """A model has another name, or is gone."""
        of_it = table.c.model == model
        with self._database.begin() as connection:
            connection.execute(update(table).where(of_it).values(model=new) if new else delete(table).where(of_it))


def router(reviews: Reviews, server: MlflowServer, access: ModelAccess, authorize: Authorize) -> APIRouter:
    """Routes. `authorize` tells who asks, and raises `CallError`."""
    routes = APIRouter()

    async def version(who: Caller, fields: Mapping[str, Any], level: str = "CAN_VIEW") -> dict[str, Any]:
        """The version that a request names, once the caller may."""
        asked = {key: take(fields, key, str, required=True) for key in ("name", "version")}
        await asyncio.to_thread(access.check, who, asked["name"], level)
        return (await server.ask("GET", f"{_AT}/model-versions/get", asked))["model_version"]

    async def comment(who: Caller, fields: Mapping[str, Any]) -> Any:
        found, said = await version(who, fields), _said(fields, required=True)
        return {"comment": _comment(await asyncio.to_thread(reviews.add, who, found["name"], found["version"], said), who)}

    async def own(who: Caller, fields: Mapping[str, Any], *, or_manager: bool) -> dict[str, Any]:
        row = await asyncio.to_thread(reviews.comment, take(fields, "id", str, required=True))
        manages = or_manager and await asyncio.to_thread(access.allowed, who, row["model"], "CAN_MANAGE")
        if row["creator"] != who.principal and not manages:
            raise forbidden("A comment is changed by who wrote it; who manages the model may delete it.")
        return row

    async def edit(who: Caller, fields: Mapping[str, Any]) -> Any:
        row = await own(who, fields, or_manager=False)
        return {"comment": _comment(await asyncio.to_thread(reviews.edit, row, _said(fields, required=True)), who)}

    async def remove(who: Caller, fields: Mapping[str, Any]) -> Any:
        row = await own(who, fields, or_manager=True)
        await asyncio.to_thread(reviews.remove, row["id"])
        return {}

    async def ask(who: Caller, fields: Mapping[str, Any]) -> Any:
        found, stage, said = await version(who, fields), _stage(fields), _said(fields)
        row = await asyncio.to_thread(reviews.add, who, found["name"], found["version"], said, stage)
        return {"request": _request(row, who, await _manages(who, found["name"]))}

    async def _manages(who: Caller, name: str) -> bool:
        return await asyncio.to_thread(access.allowed, who, name, "CAN_MANAGE")

    async def listed(who: Caller, fields: Mapping[str, Any]) -> Any:
        found = await version(who, fields)
        rows = await asyncio.to_thread(reviews.requests, found["name"], found["version"])
        manages = await _manages(who, found["name"])
        return {"requests": [_request(row, who, manages) for row in rows]}

    async def open_for(found: Mapping[str, Any], stage: str, creator: str | None = None) -> list[dict[str, Any]]:
        rows = await asyncio.to_thread(reviews.requests, found["name"], found["version"], stage)
        if creator is not None:
            rows = [row for row in rows if row["creator"].partition(":")[2] == creator]
        if not rows:
            raise not_found(f"There is no open request that version {found['version']} of {found['name']} be {stage}.")
        return rows

    async def approve(who: Caller, fields: Mapping[str, Any]) -> Any:
        found, stage, said = await version(who, fields, "CAN_MANAGE"), _stage(fields), _said(fields)
        rows = await open_for(found, stage)
        asked = {"name": found["name"], "version": found["version"], "stage": stage}
        asked["archive_existing_versions"] = bool(take(fields, "archive_existing_versions", bool))
        await server.ask("POST", f"{_AT}/model-versions/transition-stage", asked)
        await asyncio.to_thread(reviews.remove, *(row["id"] for row in rows))
        return {"activity": _activity("APPROVED_REQUEST", who, found, stage, said)}

    async def reject(who: Caller, fields: Mapping[str, Any]) -> Any:
        found, stage, said = await version(who, fields, "CAN_MANAGE"), _stage(fields), _said(fields)
        rows = await open_for(found, stage)
        await asyncio.to_thread(reviews.remove, *(row["id"] for row in rows))
        return {"activity": _activity("REJECTED_REQUEST", who, found, stage, said)}

    async def withdraw(who: Caller, fields: Mapping[str, Any]) -> Any:
        found, stage, said = await version(who, fields), _stage(fields), _said(fields)
        rows = await open_for(found, stage, take(fields, "creator", str, required=True))
        if any(row["creator"] != who.principal for row in rows) and not await _manages(who, found["name"]):
            raise forbidden("A request is withdrawn by who made it, or by who manages the model.")
        await asyncio.to_thread(reviews.remove, *(row["id"] for row in rows))
        return {"activity": _activity("CANCELLED_REQUEST", who, found, stage, said)}

    def add(method: str, path: str, work: Callable[[Caller, Mapping[str, Any]], Awaitable[Any]]) -> None:
        async def handler(http: Request) -> Response:
            who = check_unscoped(await authorize(http))
            return answer(await work(who, await fields_of(http)))

        routes.add_route(f"{_AT}/{path}", handler, methods=[method], include_in_schema=False)

    for method, path, work in (
        ("POST", "comments/create", comment),
        ("PATCH", "comments/update", edit),
        ("DELETE", "comments/delete", remove),
        ("POST", "transition-requests/create", ask),
        ("GET", "transition-requests/list", listed),
        ("POST", "transition-requests/approve", approve),
        ("POST", "transition-requests/reject", reject),
        ("DELETE", "transition-requests/delete", withdraw),
    ):
        add(method, path, work)
    return routes


def _said(fields: Mapping[str, Any], *, required: bool = False) -> str:
    said = take(fields, "comment", str, required=required) or ""
    if len(said) > _MOST or (required and not said):
        raise bad_request(f"Field 'comment' is a text of up to {_MOST >> 10} K characters.", "comment")
    return said


def _stage(fields: Mapping[str, Any]) -> str:
    given = take(fields, "stage", str, required=True)
    for stage in STAGES:
        if stage.lower() == given.lower():
            return stage
    raise CallError(f"{given[:40]!r} is no stage: use {', '.join(STAGES)}.", status=400, code="INVALID_PARAMETER_VALUE")


def _told(row: Mapping[str, Any]) -> dict[str, Any]:
    about = {"creation_timestamp": row["created"], "last_updated_timestamp": row["updated"]}
    return {"id": row["id"], "user_id": row["creator"].partition(":")[2], "comment": row["comment"], **about}


def _comment(row: Mapping[str, Any], who: Caller) -> dict[str, Any]:
    own = row["creator"] == who.principal
    return {**_told(row), "available_actions": ["EDIT_COMMENT", "DELETE_COMMENT"] if own else []}


def _request(row: Mapping[str, Any], who: Caller, manages: bool) -> dict[str, Any]:
    may = ["APPROVE_TRANSITION_REQUEST", "REJECT_TRANSITION_REQUEST"] if manages else []
    may += ["CANCEL_TRANSITION_REQUEST"] if manages or row["creator"] == who.principal else []
    return {**_told(row), "activity_type": "REQUESTED_TRANSITION", "to_stage": row["stage"], "available_actions": may}


def _activity(kind: str, who: Caller, found: Mapping[str, Any], stage: str, said: str) -> dict[str, Any]:
    now = time.time_ns() // 1_000_000
    moved = {"from_stage": found.get("current_stage", "None"), "to_stage": stage}
    told = {"id": new_id(), "user_id": who.name, "creation_timestamp": now, "last_updated_timestamp": now}
    return {**told, "activity_type": kind, "comment": said, **moved}
