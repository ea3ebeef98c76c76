"""What the pages are handed: the platform's rooms in the pages' own words, each with the signed-in caller's grants."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

from fastapi import Request

from agents import Runtime, ThreadNotFound
from governance.call import Caller
from serving.routes import bearer
from serving.ui.journal import reader
from serving.ui.services import ConsoleData, Row, Thread, ThreadMessage, UiServices
from serving.ui.session import COOKIE

if TYPE_CHECKING:
    from governance.identity import Identity
    from serving.platform import Platform


def authorize(identity: Identity) -> Callable[[Request], Awaitable[Caller]]:
    """Who a request is from, by its key or by its session cookie; for the pages of MLflow."""

    async def who(request: Request) -> Caller:
        secret = bearer(request.headers) or request.cookies.get(COOKIE)
        return await asyncio.to_thread(identity.authenticate, secret)

    return who


class _Threads:
    """The runtime's threads as the chat page lists and opens them."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    async def list(self, owner: str) -> Sequence[Thread]:
        found = await self._runtime.threads(owner)
        return [Thread(each.id, each.title, each.updated, each.agent) for each in found]

    async def messages(self, thread_id: str, owner: str) -> Sequence[ThreadMessage] | None:
        try:
            turns = await self._runtime.turns(thread_id, owner)
        except ThreadNotFound:
            return None
        return [ThreadMessage(turn.role, turn.text, turn.request_id or None, _response(turn)) for turn in turns]

    async def rename(self, thread_id: str, owner: str, title: str) -> None:
        await self._runtime.rename(thread_id, owner, title)

    async def delete(self, thread_id: str, owner: str) -> None:
        await self._runtime.delete(thread_id, owner)


def _response(turn: Any) -> Row | None:
    if turn.role != "assistant":
        return None
    outputs = {"mode": turn.mode, "abstained": turn.abstained, "citations": list(turn.citations)}
    return {"status": turn.status, "custom_outputs": outputs}


def page_services(platform: Platform) -> UiServices:
    """The services of the chat page and the console."""

    def may(who: Caller, securable: str, level: str = "CAN_QUERY") -> bool:
        return platform.grants.allowed(who, securable, level)

    async def agents(who: Caller) -> Sequence[str]:
        names = [each.name for each in platform.endpoints if each.call_task == "agent" and may(who, f"endpoint:{each.name}")]
        return sorted(names, key=lambda name: (name != "assistant", name))

    async def suggestions(who: Caller) -> Sequence[str]:
        return await asyncio.to_thread(platform.titles, lambda name: may(who, f"index:{name}"))

    async def feedback(request_id: str, helpful: bool, comment: str | None, who: Caller) -> None:
        await platform.feedback(request_id, helpful, comment, who)

    async def endpoints(who: Caller) -> Sequence[Row]:
        seen = [each for each in platform.endpoints if may(who, f"endpoint:{each.name}", "CAN_VIEW")]
        return [_endpoint_row(each.to_api()) for each in seen]

    async def indexes(who: Caller) -> Sequence[Row]:
        found = await asyncio.to_thread(platform.indexes.list)
        return [_index_row(each) for each in found if may(who, f"index:{each.name}", "CAN_VIEW")]

    async def keys(who: Caller) -> Sequence[Row]:
        listed = await asyncio.to_thread(platform.identity.list_keys) if who.admin else []
        return [_key_row(each) for each in listed]

    return UiServices(
        dispatcher=platform.dispatcher,
        identity=platform.identity,
        codes=platform.codes,
        threads=_Threads(platform.runtime),
        agents=agents,
        suggestions=suggestions,
        feedback=feedback,
        console=ConsoleData(journal=reader(platform.engine, platform.journal), endpoints=endpoints, indexes=indexes, keys=keys),
    )


def _endpoint_row(api: Row) -> Row:
    entities = (api.get("config") or api.get("pending_config") or {}).get("served_entities", ())
    return {
        "name": api["name"],
        "task": api["task"],
        "state": api["state"]["ready"],
        "description": api["description"],
        "entities": [entity.get("entity_name") or entity["name"] for entity in entities],
    }


def _index_row(info: Any) -> Row:
    return {
        "name": info.name,
        "source": info.path,
        "documents": info.documents,
        "chunks": info.chunks,
        "synced_at": info.synced_at,
        "skipped": [{"source": item.source, "reason": item.reason} for item in info.skipped],
    }


def _key_row(key: Any) -> Row:
    return {
        "id": key.id,
        "name": key.name,
        "kind": key.kind,
        "groups": list(key.groups),
        "admin": key.admin,
        "label": key.label,
        "created_at": key.created,
        "expires_at": key.expires,
        "revoked": key.revoked is not None,
    }
