"""Threads as they stand: whose they are, what was said on them, and the states they went through."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from agents.branches import Branches, History
from agents.checkpoints import lacking, messages_of, open_saver
from agents.kept import Kept
from agents.run import Run, ThreadNotFound, asked
from agents.snapshot import Snapshot, snapshot_of
from agents.tables import Thread, Threads

if TYPE_CHECKING:
    from langchain_core.messages import BaseMessage
    from langgraph.graph.state import CompiledStateGraph
    from langgraph.store.base import BaseStore
    from sqlalchemy import Engine

    from agents.agent import Agent
    from agents.checkpoints import Saver
    from agents.history import Turn


class Conversations:
    """Keeps threads in the database and what was said on them in LangGraph's checkpoints.

    Parameters
    ----------
    engine: database of the thread table.
    checkpoints: file of the checkpoints (SQLite), or URL of the PostgreSQL database that holds them.
    types: classes beyond ours that agents keep in their state, allowed to be read back from a checkpoint.
    store: gives what is remembered across threads, handed to graphs that were compiled without a store of their own.
    """

    def __init__(
        self, engine: Engine, checkpoints: Path | str, *, types: Sequence[type] = (), store: Callable[[], BaseStore] | None = None
    ) -> None:
        self.table, self.branches, self._engine = Threads(engine), Branches(engine), engine
        self.store = store
        self._place, self._types = checkpoints, tuple(types)
        self._saver: Saver | None = None
        self._opening = asyncio.Lock()
        self._runs: dict[str, Run] = {}
        self.on_delete: list[Callable[[str, str], object]] = []
        """Called, in a thread, with the id and the owner of a thread that was deleted."""
        self.agents: dict[str, Agent | None] = {}
        """Those that answer on threads, by their endpoints' names; None for one that is made when it is first called."""

    async def open(self) -> Saver:
        """Open the checkpoints in the running loop; done by itself at the first threaded run."""
        async with self._opening:
            if self._saver is None:
                self._saver = await open_saver(self._place, self._types)
            return self._saver

    def _with_store(self, graph: CompiledStateGraph) -> CompiledStateGraph:
        if graph.store is None and self.store is not None:
            graph.store = self.store()
        return graph

    def _kept(self, saver: Saver, thread_id: str) -> Kept:
        return Kept(self._engine, thread_id, saver.serde)

    async def threads(self, owner: str, *, limit: int = 200) -> Sequence[Thread]:
        """The owner's threads, the last used first."""
        return await asyncio.to_thread(self.table.list, owner, limit)

    async def thread(self, thread_id: str, owner: str) -> Thread:
        """One thread; raises ThreadNotFound."""
        found = await asyncio.to_thread(self.table.find, thread_id, owner)
        if found is None:
            raise ThreadNotFound(f"there is no thread '{thread_id}' of yours")
        return found

    async def create(self, thread_id: str, owner: str, tags: Mapping[str, Any] | None = None) -> Thread:
        """A thread on which nothing was said yet, or the owner's one of this id; raises ThreadNotFound where it is another's."""
        found = await asyncio.to_thread(self.table.claim, thread_id, owner, title="", agent="")
        if found is None:
            raise ThreadNotFound(f"thread '{thread_id}' is not yours")
        if tags:
            await asyncio.to_thread(self.table.tag, thread_id, tags)
        return found

    def busy(self, thread_id: str) -> bool:
        """Whether a run is going on a thread."""
        run = self._runs.get(thread_id)
        return run is not None and not run.ending

    async def rested(self, thread_id: str) -> None:
        """Until no run goes on a thread."""
        while (run := self._runs.get(thread_id)) is not None:
            await run.over.wait()

    async def snapshot(self, thread_id: str, owner: str) -> Snapshot:
        """How a thread stands, once its last run is at rest; raises ThreadNotFound."""
        await self.thread(thread_id, owner)
        if (run := self._runs.get(thread_id)) is not None and run.ending:
            await run.over.wait()
        thread = await self.thread(thread_id, owner)
        return await snapshot_of(await self.open(), thread, asked(thread))

    async def history(self, thread_id: str, owner: str) -> History:
        """The states that a thread went through, the newest first, once its last run is at rest; raises ThreadNotFound."""
        thread = (await self.snapshot(thread_id, owner)).thread
        return await self.branches.history(await self.open(), thread_id, asked(thread))

    async def turns(self, thread_id: str, owner: str) -> list[Turn]:
        """What was said on a thread, oldest first; raises ThreadNotFound."""
        from agents.history import turns_of

        return turns_of(await self.messages(thread_id, owner))

    async def messages(self, thread_id: str, owner: str) -> list[BaseMessage]:
        """The same as messages, tools' calls and results among them."""
        thread = await self.thread(thread_id, owner)
        messages = await messages_of(await self.open(), thread_id)
        if thread.running:
            messages += lacking(messages, asked(thread))
        return messages

    async def _dangling(self, thread_id: str) -> None:
        """Note that tool calls stand there unanswered, so that a message that comes next finds a history which models accept."""
        await asyncio.to_thread(self.table.begin, thread_id, {"run_id": uuid4().hex, "messages": []})

    async def rename(self, thread_id: str, owner: str, title: str) -> None:
        """Give a thread another title; raises ThreadNotFound."""
        if not await asyncio.to_thread(self.table.rename, thread_id, owner, title):
            raise ThreadNotFound(f"there is no thread '{thread_id}' of yours")
