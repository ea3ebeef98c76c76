"""What the pages are handed: the platform's rooms in the pages' own words, each with the signed-in caller's grants."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

import orjson
from fastapi import Request

from agents import Runtime, ThreadNotFound
from governance.call import Caller
from serving.console import Console
from serving.routes import bearer
from serving.ui.api import Api
from serving.ui.services import Row, Thread, ThreadMessage, UiServices
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
            waiting = (await self._runtime.thread(thread_id, owner)).waiting
        except ThreadNotFound:
            return None
        told = [ThreadMessage(turn.role, turn.text, turn.request_id or None, _response(turn)) for turn in turns]
        if waiting:  # what it asks a person is shown as an answer of its own
            asked = {"status": "completed", "custom_outputs": {"waiting": orjson.loads(waiting)["asks"]}}
            told.append(ThreadMessage("assistant", "", None, asked))
        return told

    async def rename(self, thread_id: str, owner: str, title: str) -> None:
        await self._runtime.rename(thread_id, owner, title)

    async def delete(self, thread_id: str, owner: str) -> None:
        await self._runtime.delete(thread_id, owner)


def _response(turn: Any) -> Row | None:
    if turn.role != "assistant":
        return None
    mode = turn.mode or ("generative" if turn.status == "completed" else "")  # of graphs that do not say, as when it was given
    outputs = {"mode": mode, "abstained": turn.abstained, "citations": list(turn.citations)}
    return {"status": turn.status, "custom_outputs": outputs}


def page_services(platform: Platform, api: Api) -> UiServices:
    """The services of the chat page and the console; `api` is the application that they are part of."""

    def may(who: Caller, securable: str, level: str = "CAN_QUERY") -> bool:
        return platform.grants.allowed(who, securable, level)

    async def agents(who: Caller) -> Sequence[str]:
        names = [each.name for each in platform.endpoints if each.call_task == "agent" and may(who, f"endpoint:{each.name}")]
        return sorted(names, key=lambda name: (name != platform.settings.main_agent, name))

    async def suggestions(who: Caller) -> Sequence[str]:
        return await asyncio.to_thread(platform.collection.titles, lambda name: may(who, f"index:{name}"))

    async def feedback(request_id: str, helpful: bool, comment: str | None, who: Caller) -> None:
        await platform.feedback(request_id, helpful, comment, who)

    return UiServices(
        dispatcher=platform.dispatcher,
        identity=platform.identity,
        codes=platform.codes,
        threads=_Threads(platform.runtime),
        agents=agents,
        suggestions=suggestions,
        feedback=feedback,
        console=Console(platform),
        api=api,
        files=platform.thread_files,
    )
