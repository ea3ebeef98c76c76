"""The Conversations API of OpenAI's clients: a conversation is a thread, and what was said on it are its items.

What is said comes with the responses that name the conversation; here it is begun, read and deleted.
Source: https://platform.openai.com/docs/api-reference/conversations
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request

from agents import Runtime, ThreadBusy, ThreadNotFound
from agents.tables import Thread
from governance.call import Caller, CallError, bad_request, new_id, not_found
from serving.engines.messages import langchain_to_items
from serving.protocols.request import parse, strings, take
from serving.routes import read_body

_AT = "/v1/conversations"


def router(runtime: Runtime, authorize: Callable[[Request], Awaitable[Caller]]) -> APIRouter:
    """Routes. `authorize` tells who asks, and raises `CallError`."""
    routes = APIRouter()

    async def told(thread: Thread) -> dict[str, Any]:
        tags = (await asyncio.to_thread(runtime.table.tags, [thread.id])).get(thread.id, {})
        texts = {key: value for key, value in tags.items() if isinstance(value, str)}
        return {"id": thread.id, "object": "conversation", "created_at": int(thread.created), "metadata": texts}

    async def create(who: Caller, http: Request, body: Mapping[str, Any]) -> Any:
        if take(body, "items", list):
            raise bad_request("Field 'items' must be empty: send them as the first response's 'input'.", "items")
        return await told(await runtime.create(f"conv_{new_id()}", who.principal, strings(body, "metadata")))

    async def get(who: Caller, http: Request, body: Mapping[str, Any]) -> Any:
        return await told(await runtime.thread(http.path_params["conversation_id"], who.principal))

    async def update(who: Caller, http: Request, body: Mapping[str, Any]) -> Any:
        thread = await runtime.thread(http.path_params["conversation_id"], who.principal)
        await asyncio.to_thread(runtime.table.tag, thread.id, strings(body, "metadata"))
        return await told(thread)

    async def delete(who: Caller, http: Request, body: Mapping[str, Any]) -> Any:
        thread_id = http.path_params["conversation_id"]
        await runtime.delete(thread_id, who.principal)
        return {"id": thread_id, "object": "conversation.deleted", "deleted": True}

    async def said(who: Caller, http: Request) -> list[dict[str, Any]]:
        """The items of the conversation, oldest first."""
        messages = await runtime.messages(http.path_params["conversation_id"], who.principal)
        return [_item(item, f"item_{place}") for place, item in enumerate(langchain_to_items(messages))]

    async def items(who: Caller, http: Request, body: Mapping[str, Any]) -> Any:
        query = http.query_params
        limit, order = query.get("limit", "20"), query.get("order", "desc")
        if not (limit.isascii() and limit.isdigit() and 1 <= int(limit) <= 100):
            raise bad_request("Field 'limit' must be a number from 1 to 100.", "limit")
        if order not in ("asc", "desc"):
            raise bad_request("Field 'order' must be asc or desc.", "order")
        found = await said(who, http)
        found = found if order == "asc" else found[::-1]
        if after := query.get("after"):
            place = next((place for place, item in enumerate(found) if item["id"] == after), None)
            if place is None:
                raise bad_request(f"Field 'after' names {after[:80]!r}, which is no item of this conversation.", "after")
            found = found[place + 1 :]
        page = found[: int(limit)]
        ends = {"first_id": page[0]["id"], "last_id": page[-1]["id"]} if page else {"first_id": None, "last_id": None}
        return {"object": "list", "data": page, "has_more": len(page) < len(found), **ends}

    async def item(who: Caller, http: Request, body: Mapping[str, Any]) -> Any:
        wanted = http.path_params["item_id"]
        for each in await said(who, http):
            if each["id"] == wanted:
                return each
        raise not_found(f"There is no item {wanted[:80]!r} in this conversation.")

    def add(method: str, path: str, work: Callable[[Caller, Request, Mapping[str, Any]], Awaitable[Any]]) -> None:
        async def handler(http: Request) -> Any:
            who = await authorize(http)
            raw = await read_body(http, 1 << 20) if method == "POST" else b""
            try:
                return await work(who, http, parse(raw) if raw.strip() else {})
            except ThreadNotFound:
                name = http.path_params.get("conversation_id", "")
                raise not_found(f"There is no conversation {name[:128]!r} of yours.") from None
            except ThreadBusy as error:
                raise CallError(str(error), status=409, code="RESOURCE_CONFLICT", retry_after=1) from None

        routes.add_api_route(path, handler, methods=[method], include_in_schema=False)

    add("POST", _AT, create)
    add("GET", _AT + "/{conversation_id}", get)
    add("POST", _AT + "/{conversation_id}", update)
    add("DELETE", _AT + "/{conversation_id}", delete)
    add("GET", _AT + "/{conversation_id}/items", items)
    add("GET", _AT + "/{conversation_id}/items/{item_id}", item)
    return routes


def _item(item: Mapping[str, Any], identifier: str) -> dict[str, Any]:
    """An item as the API tells it, its text in parts."""
    told = {"id": identifier, "status": "completed", **item}
    if item["type"] == "message":
        answer = item["role"] == "assistant"
        part = {"type": "output_text", "annotations": []} if answer else {"type": "input_text"}
        told["content"] = [{**part, "text": item["content"]}]
    return told
