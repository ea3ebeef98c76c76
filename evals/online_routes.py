"""Online scorers over HTTP: `/api/2.0/smalti/monitors`, for whoever may manage the endpoint."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, Depends, FastAPI

from evals.online import Monitor, Online
from governance.call import Caller, not_found

PREFIX = "/api/2.0/smalti/monitors"


def router(online: Online, *, caller: Callable[..., Any], manages: Callable[[Caller, str], bool]) -> APIRouter:
    """The routes; the scoring begins and ends with the application.

    `caller`: a FastAPI dependency that gives who asks. `manages`: whether they may manage an endpoint.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        online.start()
        try:
            yield
        finally:
            await asyncio.to_thread(online.stop)

    routes = APIRouter(lifespan=lifespan)

    def told(monitor: Any) -> dict[str, Any]:
        return {**monitor.model_dump(exclude={"webhook"}), "webhook": monitor.webhook is not None}

    def find(endpoint: str, who: Caller) -> Monitor:
        monitor = online.monitors.get(endpoint)
        if monitor is None or not manages(who, endpoint):
            raise not_found(f"There is no monitor of endpoint {endpoint!r}; declare it under 'monitors' in smalti.yaml.")
        return monitor

    @routes.get(PREFIX, include_in_schema=False)
    async def listing(who: Caller = Depends(caller)) -> Any:
        def mine() -> list[dict[str, Any]]:
            found = [monitor for monitor in online.monitors.values() if manages(who, monitor.endpoint)]
            return [{**told(monitor), **online.store.status(monitor.endpoint)} for monitor in found]

        return {"monitors": await asyncio.to_thread(mine)}

    @routes.get(PREFIX + "/{endpoint}", include_in_schema=False)
    async def get(endpoint: str, who: Caller = Depends(caller)) -> Any:
        monitor = await asyncio.to_thread(find, endpoint, who)
        health = {
            "waiting": online.waiting,
            "dropped": online.dropped,
            "unassessed": online.unassessed,
            "problem": online.problem,
        }
        return {**told(monitor), **await asyncio.to_thread(online.store.status, endpoint), **health}

    @routes.get(PREFIX + "/{endpoint}/scores", include_in_schema=False)
    async def scores(endpoint: str, limit: int = 100, who: Caller = Depends(caller)) -> Any:
        await asyncio.to_thread(find, endpoint, who)
        return {"scores": await asyncio.to_thread(online.store.rows, endpoint, max(1, min(limit, 1000)))}

    @routes.post(PREFIX + "/{endpoint}/reference", include_in_schema=False)
    async def begin(endpoint: str, who: Caller = Depends(caller)) -> Any:
        """The next scored calls become the reference."""
        await asyncio.to_thread(find, endpoint, who)
        await asyncio.to_thread(online.store.begin, endpoint)
        return {}

    return routes
