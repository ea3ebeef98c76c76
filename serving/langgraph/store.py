"""LangGraph's server API: the store, which is what the caller is remembered by; nobody else's is reached.

Source: https://docs.langchain.com/langgraph-platform/server-api-ref
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response

from governance.call import Caller, bad_request, not_found
from serving.protocols.request import number, take

if TYPE_CHECKING:
    from agents.memory import Memory


class Store:
    """The handlers over the memory that `memory` gives; it is asked for at the first request."""

    def __init__(self, memory: Callable[[], Memory]) -> None:
        self._memory = memory

    async def _of(self, caller: Caller) -> Memory:
        return (await asyncio.to_thread(self._memory)).of(caller.principal)

    async def put(self, http: Request, caller: Caller, body: dict[str, Any]) -> Any:
        key, value = take(body, "key", str, required=True), take(body, "value", dict, required=True)
        index = body.get("index")
        if index is not None and index is not False and not _names(index):
            raise bad_request("Field 'index' must be false or an array of paths within the value.", "index")
        if body.get("ttl") is not None:
            raise bad_request("Field 'ttl' is not read: what is remembered stays until it is deleted.", "ttl")
        try:
            await (await self._of(caller)).aput(_namespace(body), key, value, index)
        except ValueError as error:
            raise bad_request(f"This is not remembered: {error}.", "value") from None
        return Response(status_code=204)

    async def get(self, http: Request, caller: Caller, body: dict[str, Any]) -> Any:
        asked = http.query_params
        if not asked.get("key"):
            raise bad_request("Missing query parameter 'key'.", "key")
        namespace = tuple(part for part in asked.get("namespace", "").split(".") if part)
        found = await (await self._of(caller)).aget(namespace, asked["key"])
        if found is None:
            raise not_found(f"Nothing of yours has the key {asked['key'][:80]!r} in the namespace {'.'.join(namespace)[:80]!r}.")
        return found.dict()

    async def delete(self, http: Request, caller: Caller, body: dict[str, Any]) -> Any:
        await (await self._of(caller)).adelete(_namespace(body), take(body, "key", str, required=True))
        return Response(status_code=204)

    async def search(self, http: Request, caller: Caller, body: dict[str, Any]) -> Any:
        asked: dict[str, Any] = {"query": take(body, "query", str), "filter": take(body, "filter", dict)}
        asked |= {"limit": number(body, "limit", 1, 1_000, kind=int) or 10}
        asked |= {"offset": number(body, "offset", 0, 1_000_000, kind=int) or 0}
        try:
            found = await (await self._of(caller)).asearch(_namespace(body, "namespace_prefix"), **asked)
        except ValueError as error:
            raise bad_request(f"Field 'filter' is not understood: {error}.", "filter") from None
        return {"items": [item.dict() for item in found]}

    async def namespaces(self, http: Request, caller: Caller, body: dict[str, Any]) -> Any:
        found = await (await self._of(caller)).alist_namespaces(
            prefix=_namespace(body, "prefix") or None,
            suffix=_namespace(body, "suffix") or None,
            max_depth=number(body, "max_depth", 1, 100, kind=int),
            limit=number(body, "limit", 1, 1_000, kind=int) or 100,
            offset=number(body, "offset", 0, 1_000_000, kind=int) or 0,
        )
        return {"namespaces": [list(each) for each in found]}

    async def clear(self, http: Request, caller: Caller, body: dict[str, Any]) -> Any:
        return {"deleted": await (await self._of(caller)).clear()}


def _names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _namespace(body: dict[str, Any], field: str = "namespace") -> tuple[str, ...]:
    given = take(body, field, list) or []
    if not _names(given):
        raise bad_request(f"Field {field!r} must be an array of strings.", field)
    return tuple(given)
