"""Review queues over HTTP: `/api/2.0/smalti/reviews`.

Whoever may manage the endpoint makes its queues, fills them and sees all that was said; the reviewers it names judge. For all
others a queue is not there.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from evals import collect
from evals.review import Queue, Reviews, readable, reviews
from governance.call import Caller, bad_request, forbidden, not_found

MAX_BODY = 16 << 20
PREFIX = "/api/2.0/smalti/reviews"
JournalRows = Callable[[str, str | None], Iterable[Mapping[str, Any]]]
"""`rows(endpoint, since)`: of the inference table; blocking."""


def router(
    queues: Reviews, *, caller: Callable[..., Any], manages: Callable[[Caller, str], bool], rows: JournalRows
) -> APIRouter:
    """The routes.

    Parameters
    ----------
    caller: a FastAPI dependency that gives who asks. manages: whether they may manage an endpoint. rows: the journal's.
    """
    routes = APIRouter()

    def is_reviewer(who: Caller, queue: Queue) -> bool:
        return reviews(queue, {f"{who.kind}:{who.name}", *(f"group:{group}" for group in who.groups)})

    async def open_queue(name: str, who: Caller, *, manager: bool = False) -> tuple[Queue, bool]:
        """The queue, and whether the caller manages it. Raises `CallError`: 404 for who may not know of it, else 403."""
        queue = await asyncio.to_thread(queues.queue, name)
        managing = await asyncio.to_thread(manages, who, queue.endpoint)
        if not managing and not is_reviewer(who, queue):
            raise not_found(f"There is no review queue {name!r}.")
        if manager and not managing:
            raise forbidden(f"This takes CAN_MANAGE on endpoint {queue.endpoint!r}.")
        return queue, managing

    @routes.post(PREFIX, include_in_schema=False)
    async def create(request: Request, who: Caller = Depends(caller)) -> Any:
        queue = Queue.parse(await _body(request))
        if not await asyncio.to_thread(manages, who, queue.endpoint):
            raise forbidden(f"This takes CAN_MANAGE on endpoint {queue.endpoint!r}.")
        return await asyncio.to_thread(queues.create, queue, who.name)

    @routes.get(PREFIX, include_in_schema=False)
    async def listing(who: Caller = Depends(caller)) -> Any:
        def mine() -> list[dict[str, Any]]:
            found = []
            for each in queues.list():
                managing = manages(who, each["endpoint"])
                if managing or is_reviewer(who, queues.queue(each["name"])):
                    found.append({**_shown(each, who, managing), "manages": managing})
            return found

        return {"queues": await asyncio.to_thread(mine)}

    @routes.get(PREFIX + "/{name}", include_in_schema=False)
    async def get(name: str, who: Caller = Depends(caller)) -> Any:
        _, managing = await open_queue(name, who)
        return {**_shown(await asyncio.to_thread(queues.get, name), who, managing), "manages": managing}

    @routes.delete(PREFIX + "/{name}", include_in_schema=False)
    async def drop(name: str, who: Caller = Depends(caller)) -> Any:
        await open_queue(name, who, manager=True)
        await asyncio.to_thread(queues.drop, name)
        return {}

    @routes.post(PREFIX + "/{name}/items", include_in_schema=False)
    async def add(name: str, request: Request, who: Caller = Depends(caller)) -> Any:
        queue, _ = await open_queue(name, who, manager=True)
        body = await _body(request)
        if unknown := set(body) - {"items", "journal"}:
            raise bad_request(f"Field {sorted(unknown)[0]!r} is not known; send 'items' or 'journal'.", sorted(unknown)[0])
        if "items" in body:
            if not isinstance(body["items"], list):
                raise bad_request("Field 'items' must be a list of objects.", "items")
            return {"added": await asyncio.to_thread(queues.add, name, body["items"])}
        items = await asyncio.to_thread(_of_journal, rows, queue.endpoint, body.get("journal") or {})
        short = await asyncio.to_thread(readable, items)
        return {"added": await asyncio.to_thread(queues.add, name, short), "too_long": len(items) - len(short)}

    @routes.get(PREFIX + "/{name}/items", include_in_schema=False)
    async def items(name: str, state: str = "all", limit: int = 100, after: int = -1, who: Caller = Depends(caller)) -> Any:
        _, managing = await open_queue(name, who)
        if state not in ("all", "pending", "done"):
            raise bad_request("Parameter 'state' must be all, pending or done.", "state")
        limit = max(1, min(limit, 1000))
        found = await asyncio.to_thread(queues.items, name, who.name, state=state, everything=managing, limit=limit, after=after)
        return {"items": found, "next_after": found[-1]["position"] if len(found) == limit else None}

    @routes.get(PREFIX + "/{name}/next", include_in_schema=False)
    async def following(name: str, who: Caller = Depends(caller)) -> Any:
        await open_queue(name, who)
        return {"item": await asyncio.to_thread(queues.next, name, who.name)}

    @routes.post(PREFIX + "/{name}/items/{item}/labels", include_in_schema=False)
    async def label(name: str, item: str, request: Request, who: Caller = Depends(caller)) -> Any:
        await open_queue(name, who)
        body = await _body(request)
        values, comment = body.get("labels"), body.get("comment")
        if not isinstance(values, dict):
            raise bad_request("Field 'labels' must be an object of label and value.", "labels")
        if comment is not None and not isinstance(comment, str):
            raise bad_request("Field 'comment' must be a string.", "comment")
        await asyncio.to_thread(queues.label, name, item, who.name, values, comment)
        return {"item": await asyncio.to_thread(queues.next, name, who.name)}

    @routes.get(PREFIX + "/{name}/agreement", include_in_schema=False)
    async def agreement(name: str, who: Caller = Depends(caller)) -> Any:
        await open_queue(name, who, manager=True)
        return {"agreement": await asyncio.to_thread(queues.agreement, name)}

    @routes.get(PREFIX + "/{name}/dataset", include_in_schema=False)
    async def dataset(name: str, who: Caller = Depends(caller)) -> Response:
        await open_queue(name, who, manager=True)
        found, disputed = await asyncio.to_thread(queues.dataset, name)
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found)
        return Response(text, media_type="application/x-ndjson", headers={"x-smalti-disputed": str(disputed)})

    return routes


def _shown(queue: dict[str, Any], who: Caller, managing: bool) -> dict[str, Any]:
    """A queue without who else reviews it, for those who do not manage it."""
    if managing:
        return queue
    return {**queue, "reviewers": [], "reviews_by": {who.name: queue["reviews_by"].get(who.name, 0)}}


def _of_journal(rows: JournalRows, endpoint: str, given: Any) -> list[dict[str, Any]]:
    """The journal's answers that `{"since", "until", "match", "sample", "seed", "request_ids"}` choose."""
    known = {"since": str, "until": str, "match": str, "sample": int, "seed": int, "request_ids": list}
    if not isinstance(given, Mapping):
        raise bad_request("Field 'journal' must be an object.", "journal")
    for key, value in given.items():
        if key not in known or not isinstance(value, known[key]) or isinstance(value, bool):
            raise bad_request(f"Field 'journal' takes {', '.join(known)}; {key!r} is none of them, or of the wrong type.", key)
    wanted = set(map(str, given["request_ids"])) if "request_ids" in given else None
    try:
        found = rows(endpoint, given.get("since"))
        if wanted is not None:
            found = (row for row in found if row["databricks_request_id"] in wanted)
        made = collect.from_journal(
            found, until=given.get("until"), match=given.get("match"), sample=given.get("sample"), seed=given.get("seed", 0)
        )
    except ValueError as error:
        raise bad_request(f"Field 'journal': {error}.", "journal") from None
    return [{**row, "request_id": row["id"], "trace_id": f"tr-{row['id']}"} for row in made]


async def _body(request: Request) -> dict[str, Any]:
    """Raises `CallError` (400, 413)."""
    data = b""
    async for part in request.stream():
        data += part
        if len(data) > MAX_BODY:
            raise bad_request(f"The body has more than {MAX_BODY >> 20} MiB; send it in parts.")
    try:
        body = json.loads(data or b"{}")
    except (ValueError, RecursionError):
        raise bad_request("The body is not JSON.") from None
    if not isinstance(body, dict):
        raise bad_request("The body must be a JSON object.")
    return body
