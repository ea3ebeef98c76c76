"""The Conversations API of OpenAI's clients: a conversation is a thread, and what was said on it are its items.

What is said comes with the responses that name the conversation. Items that are added before the first of them are given to its
agent with it; later ones change the thread's state, by a call of its agent like any other.
Source: https://platform.openai.com/docs/api-reference/conversations
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import orjson
from fastapi import APIRouter
from starlette.requests import Request

from agents import Runtime, ThreadBusy, ThreadNotFound
from agents.tables import Thread
from governance.call import Call, Caller, CallError, bad_request, new_id, not_found
from serving.conversation_items import BeginningItems
from serving.dispatch import Dispatcher
from serving.engines.messages import items_to_langchain, langchain_to_items, text_of
from serving.protocols.request import parse, strings, take
from serving.protocols.responses import items as items_of
from serving.routes import bearer, read_body

_AT = "/v1/conversations"
_KINDS = ("message", "function_call", "function_call_output")


def router(
    runtime: Runtime, beginnings: BeginningItems, dispatcher: Dispatcher, authorize: Callable[[Request], Awaitable[Caller]]
) -> APIRouter:
    """Routes. `authorize` tells who asks, and raises `CallError`."""
    routes = APIRouter()

    async def told(thread: Thread) -> dict[str, Any]:
        tags = (await asyncio.to_thread(runtime.table.tags, [thread.id])).get(thread.id, {})
        texts = {key: value for key, value in tags.items() if isinstance(value, str)}
        return {"id": thread.id, "object": "conversation", "created_at": int(thread.created), "metadata": texts}

    async def of(who: Caller, http: Request) -> Thread:
        return await runtime.thread(http.path_params["conversation_id"], who.principal)

    async def create(who: Caller, http: Request, body: Mapping[str, Any]) -> Any:
        given = _given(body) if take(body, "items", list) else []
        made = await runtime.create(f"conv_{new_id()}", who.principal, strings(body, "metadata"))
        if given:
            await asyncio.to_thread(beginnings.add, made.id, given)
        return await told(made)

    async def get(who: Caller, http: Request, body: Mapping[str, Any]) -> Any:
        return await told(await of(who, http))

    async def update(who: Caller, http: Request, body: Mapping[str, Any]) -> Any:
        thread = await of(who, http)
        await asyncio.to_thread(runtime.table.tag, thread.id, strings(body, "metadata"))
        return await told(thread)

    async def delete(who: Caller, http: Request, body: Mapping[str, Any]) -> Any:
        thread_id = http.path_params["conversation_id"]
        await runtime.delete(thread_id, who.principal)
        return {"id": thread_id, "object": "conversation.deleted", "deleted": True}

    async def said(who: Caller, http: Request) -> list[tuple[dict[str, Any], str | None]]:
        """The items of the conversation, oldest first, and the id of the message each belongs to."""
        messages = await runtime.messages(http.path_params["conversation_id"], who.principal)
        begun = await asyncio.to_thread(beginnings.of, http.path_params["conversation_id"])
        if not messages:
            return [(_item(item, item["id"]), None) for item in begun]
        found: list[tuple[dict[str, Any], str | None]] = []
        for message in messages:
            for place, item in enumerate(langchain_to_items([message])):
                named = _id(message.id or str(len(found)), place)
                if begun and _same(begun[0], item):  # the items it began with keep their ids
                    named = begun.pop(0)["id"]
                found.append((_item(item, named), message.id))
        return found

    async def items(who: Caller, http: Request, body: Mapping[str, Any]) -> Any:
        query = http.query_params
        limit, order = query.get("limit", "20"), query.get("order", "desc")
        if not (limit.isascii() and limit.isdigit() and 1 <= int(limit) <= 100):
            raise bad_request("Field 'limit' must be a number from 1 to 100.", "limit")
        if order not in ("asc", "desc"):
            raise bad_request("Field 'order' must be asc or desc.", "order")
        found = [each for each, _ in await said(who, http)]
        found = found if order == "asc" else found[::-1]
        if after := query.get("after"):
            place = next((place for place, item in enumerate(found) if item["id"] == after), None)
            if place is None:
                raise bad_request(f"Field 'after' names {after[:80]!r}, which is no item of this conversation.", "after")
            found = found[place + 1 :]
        page = found[: int(limit)]
        return _listed(page, len(page) < len(found))

    async def add(who: Caller, http: Request, body: Mapping[str, Any]) -> Any:
        given, thread = _given(body), await of(who, http)
        if not thread.agent:
            made = await asyncio.to_thread(beginnings.add, thread.id, given)
            return _listed([_item(item, item["id"]) for item in made])
        named = new_id()
        messages = items_to_langchain({"input": given}, asks=False)
        for position, message in enumerate(messages):
            message.id = f"{named}:{position}"
        await changed(http, thread, [message.model_dump(exclude_none=True) for message in messages])
        listed = [
            (item, _id(message.id or "", k)) for message in messages for k, item in enumerate(langchain_to_items([message]))
        ]
        return _listed([_item(item, identifier) for item, identifier in listed])

    async def changed(http: Request, thread: Thread, messages: Sequence[Mapping[str, Any]]) -> None:
        """Change what was said, by a call of the thread's agent."""
        values = {"messages": [_plain(each) for each in messages]}
        item = {"type": "function_call_output", "call_id": "update_state", "output": orjson.dumps(values).decode()}
        on = {"state": None, "update": True, "as_node": "__end__"}
        payload = {"model": thread.agent, "input": [item], "conversation": {"id": thread.id}, "thread": on}
        await dispatcher.invoke(Call(thread.agent, "agent", payload, bearer(http.headers), thread_id=thread.id))

    async def found(who: Caller, http: Request) -> tuple[dict[str, Any], str | None]:
        wanted = http.path_params["item_id"]
        for each in await said(who, http):
            if each[0]["id"] == wanted:
                return each
        raise not_found(f"There is no item {wanted[:80]!r} in this conversation.")

    async def item(who: Caller, http: Request, body: Mapping[str, Any]) -> Any:
        return (await found(who, http))[0]

    async def remove(who: Caller, http: Request, body: Mapping[str, Any]) -> Any:
        thread = await of(who, http)
        each, message = await found(who, http)
        if message is not None:
            same = [other["id"] for other, of_message in await said(who, http) if of_message == message]
            if each["type"] != "message" or len(same) > 1:
                raise bad_request("An item of a tool's call cannot be deleted alone: delete the conversation.", "item_id")
            await changed(http, thread, [{"type": "remove", "content": "", "id": message}])
        await asyncio.to_thread(beginnings.remove, each["id"])
        return await told(thread)

    def route(method: str, path: str, work: Callable[[Caller, Request, Mapping[str, Any]], Awaitable[Any]]) -> None:
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

    route("POST", _AT, create)
    route("GET", _AT + "/{conversation_id}", get)
    route("POST", _AT + "/{conversation_id}", update)
    route("DELETE", _AT + "/{conversation_id}", delete)
    route("GET", _AT + "/{conversation_id}/items", items)
    route("POST", _AT + "/{conversation_id}/items", add)
    route("GET", _AT + "/{conversation_id}/items/{item_id}", item)
    route("DELETE", _AT + "/{conversation_id}/items/{item_id}", remove)
    return routes


def _given(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The items of a request, as an agent reads them. Raises `CallError` (400)."""
    take(body, "items", list, required=True)
    found = []
    for position, item in enumerate(items_of({"input": body["items"]}, "items")):
        if item["type"] not in _KINDS:
            raise bad_request(f"Field 'items[{position}].type' must be one of {', '.join(_KINDS)}.", f"items[{position}].type")
        if item["type"] == "message":
            if not isinstance(item["content"], str) and any(part["type"] != "input_text" for part in item["content"]):
                raise bad_request(f"Field 'items[{position}]' holds an image; conversations keep text.", f"items[{position}]")
            item["content"] = text_of(item["content"])
        found.append(item)
    items_to_langchain({"input": found}, asks=False)
    return found


def _same(begun: Mapping[str, Any], item: Mapping[str, Any]) -> bool:
    """Whether an item is one that the conversation began with. What developers say, agents are told as the system's."""
    role = {"developer": "system"}
    return all(role.get(value, value) == item.get(key) for key, value in begun.items() if key not in ("id", "arguments"))


def _id(message: str, place: int) -> str:
    """The id of a message's item, which stays when others are deleted."""
    return f"item_{hashlib.sha256(f'{message}/{place}'.encode()).hexdigest()[:32]}"


def _plain(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message as LangChain reads it again."""
    return {key: value for key, value in message.items() if key in ("type", "content", "id", "tool_calls", "tool_call_id")}


def _listed(page: Sequence[Mapping[str, Any]], more: bool = False) -> dict[str, Any]:
    ends = {"first_id": page[0]["id"], "last_id": page[-1]["id"]} if page else {"first_id": None, "last_id": None}
    return {"object": "list", "data": page, "has_more": more, **ends}


def _item(item: Mapping[str, Any], identifier: str) -> dict[str, Any]:
    """An item as the API tells it, its text in parts."""
    told = {"status": "completed", **item, "id": identifier}
    if item["type"] == "message":
        answer = item["role"] == "assistant"
        part = {"type": "output_text", "annotations": []} if answer else {"type": "input_text"}
        told["content"] = [{**part, "text": item["content"]}]
    return told
