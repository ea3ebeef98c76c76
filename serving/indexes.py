"""Managing indexes over HTTP, for owners: what the `smalti index` command calls. Queries are in `retrieval/routes.py`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import orjson
from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.responses import StreamingResponse

from governance.call import Caller, bad_request, forbidden
from governance.grants import Grants
from retrieval.chunk import Chunking
from retrieval.guard import FAILED
from retrieval.index import Indexes, IndexInfo, full_name
from retrieval.types import SyncReport

PREFIX = "/api/2.0/smalti/indexes"


class SyncRequest(BaseModel):
    """`path` declares the index, or gives it another folder or `chunking`; without it an existing one is brought up to date."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str
    path: str | None = None
    chunking: Chunking | None = None


def router(indexes: Indexes, grants: Grants, *, caller: Callable[..., Any]) -> APIRouter:
    """`GET` all or one, `POST` to add or sync (progress and report as JSON lines), `DELETE` to drop.

    Adding names a folder of the server, so it takes an administrator; syncing and dropping take CAN_MANAGE.
    """
    routes = APIRouter(prefix=PREFIX)

    def shown(info: IndexInfo, who: Caller) -> dict[str, Any]:
        if info.warning and not who.admin:  # it names a server of the house
            info = replace(info, warning="vectors are searched in memory, not by the vector store")
        return asdict(indexes.told(info, None if who.admin else who.groups))

    @routes.get("")
    async def list_all(who: Caller = Depends(caller)) -> dict[str, Any]:
        found = await asyncio.to_thread(indexes.list)
        mine = [each for each in found if grants.allowed(who, f"index:{each.name}", "CAN_VIEW")]
        return {"indexes": [await asyncio.to_thread(shown, each, who) for each in mine]}

    @routes.get("/{name}")
    async def one(name: str, who: Caller = Depends(caller)) -> dict[str, Any]:
        full = full_name(name)
        grants.check(who, f"index:{full}", "CAN_VIEW")
        return await asyncio.to_thread(lambda: shown(indexes.get(full), who))

    @routes.delete("/{name}")
    async def drop(name: str, who: Caller = Depends(caller)) -> dict[str, Any]:
        full = full_name(name)
        grants.check(who, f"index:{full}", "CAN_MANAGE")
        await asyncio.to_thread(indexes.drop, full)
        return {"name": full}

    @routes.post("")
    async def sync(request: Request, who: Caller = Depends(caller)) -> StreamingResponse:
        body = await _read(request)
        if body.path is not None:
            if not who.admin:
                raise forbidden("Only an administrator may index a folder of the server.")
            if not Path(body.path).is_absolute():
                raise bad_request("Field 'path' must be an absolute path on the server.", "path")
            name = (await asyncio.to_thread(indexes.add, body.name, Path(body.path), body.chunking)).name
        else:
            name = full_name(body.name)
            grants.check(who, f"index:{name}", "CAN_MANAGE")
            await asyncio.to_thread(indexes.get, name)
        whole = await asyncio.to_thread(indexes.guards.open, name, None if who.admin else who.groups)
        return StreamingResponse(_lines(indexes, name, whole), media_type="application/x-ndjson")

    @routes.get("/tables/all")
    async def tables(who: Caller = Depends(caller)) -> dict[str, Any]:
        if not who.admin:
            raise forbidden("Only an administrator may see the tables of the server.")
        return {"tables": await asyncio.to_thread(indexes.over_rows.tables.list)}

    @routes.post("/tables")
    async def add_table(request: Request, who: Caller = Depends(caller)) -> dict[str, Any]:
        """Declares a file or database table of the server as a source that Delta Sync indexes may name."""
        body = await _read(request)
        if not who.admin:
            raise forbidden("Only an administrator may declare a table of the server.")
        if body.path is None or not ("://" in body.path or Path(body.path).is_absolute()):
            raise bad_request("Field 'path' must be an absolute path on the server, or DATABASE_URL#TABLE.", "path")
        name = full_name(body.name)
        return {"name": name, "rows": await asyncio.to_thread(indexes.over_rows.tables.add, name, body.path)}

    return routes


async def _read(request: Request) -> SyncRequest:
    try:
        return SyncRequest.model_validate_json(await request.body())
    except ValidationError as error:
        problem = error.errors()[0]
        field = ".".join(str(part) for part in problem["loc"])
        raise bad_request(f"Field {field!r}: {problem['msg']}. Send {{'name': NAME, 'path': FOLDER}}.", field) from None


async def _lines(indexes: Indexes, name: str, whole: bool) -> AsyncIterator[bytes]:
    """A sync's progress and report; of an index that the caller may not see as a `whole` neither files nor counts are told."""
    told: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def progress(step: Any) -> None:
        if whole:
            loop.call_soon_threadsafe(told.put_nowait, asdict(step))

    work = asyncio.create_task(asyncio.to_thread(indexes.sync, name, progress))
    while not work.done() or not told.empty():
        next_told = asyncio.create_task(told.get())
        done, _ = await asyncio.wait({next_told, work}, return_when=asyncio.FIRST_COMPLETED)
        if next_told in done:
            yield orjson.dumps(next_told.result()) + b"\n"
        else:
            next_told.cancel()
    try:
        report = work.result()
        yield orjson.dumps({"report": asdict(report if whole else SyncReport(name, seconds=report.seconds))}) + b"\n"
    except Exception as error:
        yield orjson.dumps({"error": (str(error) or type(error).__name__) if whole else FAILED}) + b"\n"
