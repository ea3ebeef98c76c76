"""Runs: an agent answers on a thread, and whatever happens to the run the thread can be used again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from agents.agent import Agent
from agents.tables import MAX_ID, Thread, Threads

if TYPE_CHECKING:
    from langchain_core.messages import BaseMessage
    from langchain_core.runnables import RunnableConfig
    from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
    from langgraph.graph.state import CompiledStateGraph
    from sqlalchemy import Engine

    from agents.history import Turn

log = logging.getLogger(__name__)

Part = tuple[tuple[str, ...], str, Any]
"""(namespace, mode, chunk) as LangGraph streams it with subgraphs: mode `custom`, `messages` or, once and last, `values`."""

STEP_LIMIT = 40
"""LangGraph supersteps after which a run ends with `GraphRecursionError`."""

STOPPED = "(stopped)"
"""What stands in a thread for the answer of a run that ended before it said anything."""


class ThreadNotFound(Exception):
    """There is no such thread, or it is another owner's."""


class ThreadBusy(Exception):
    """The thread has a run going; one at a time."""


@dataclass(slots=True)
class _Run:
    thread: Thread
    new: Sequence[BaseMessage]
    queue: asyncio.Queue[Any] = field(default_factory=asyncio.Queue)
    task: asyncio.Task[None] | None = None
    ending: bool = False
    """Its last part is out, or it was told to stop: the next run waits for it instead of failing."""
    said: str = ""
    citations: list[Mapping[str, Any]] = field(default_factory=list)


_DONE = object()


class Runtime:
    """Executes agents; keeps threads in the database and what was said on them in LangGraph's checkpoints.

    Parameters
    ----------
    engine: database of the thread table.
    checkpoints: file of the checkpoints (SQLite).
    types: classes beyond ours that agents keep in their state, allowed to be read back from a checkpoint.
    """

    def __init__(self, engine: Engine, checkpoints: Path, *, types: Sequence[type] = ()) -> None:
        self._threads = Threads(engine)
        self._file, self._types = Path(checkpoints), tuple(types)
        self._saver: AsyncSqliteSaver | None = None
        self._opening = asyncio.Lock()
        self._runs: dict[str, _Run] = {}

    async def open(self) -> AsyncSqliteSaver:
        """Open the checkpoints in the running loop; done by itself at the first threaded run."""
        async with self._opening:
            if self._saver is None:
                import aiosqlite
                from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

                from agents.serde import CompactSerializer

                self._file.parent.mkdir(parents=True, exist_ok=True)
                connection = await aiosqlite.connect(self._file, timeout=30)
                await connection.execute("PRAGMA journal_mode=WAL")
                await connection.execute("PRAGMA synchronous=NORMAL")
                await connection.execute("PRAGMA journal_size_limit=1048576")
                ours = [("retrieval.types", "Passage"), ("agents.state", "Citation"), ("agents.state", "Route")]
                allowed = [*ours, *((t.__module__, t.__qualname__) for t in self._types)]
                saver = AsyncSqliteSaver(connection, serde=CompactSerializer(allowed_msgpack_modules=allowed))
                await saver.setup()
                self._saver = saver
            return self._saver

    async def close(self) -> None:
        """Stop what runs, leave its threads usable, close the checkpoints."""
        tasks = [run.task for run in self._runs.values() if run.task is not None]
        for run in list(self._runs.values()):
            self._stop(run)
        if tasks:
            await asyncio.wait(tasks)
        if self._saver is not None:
            saver, self._saver = self._saver, None
            await saver.conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            await saver.conn.close()

    async def stream(
        self,
        agent: Agent,
        messages: Sequence[BaseMessage],
        *,
        thread_id: str | None = None,
        owner: str = "",
        run_id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> AsyncGenerator[Part, None]:
        """Run an agent; yields LangGraph's stream parts, the final state last as `((), "values", state)`.

        Closing the generator, or cancelling the task that iterates it, stops the run. On a thread what was said until then
        is kept. A thread that does not exist is made; of a resent history only what is new is added to a thread that has one.

        Parameters
        ----------
        messages: what is said, at least one message.
        thread_id: None runs without a checkpoint, on `messages` alone.
        owner: caller that the thread belongs to.
        run_id: request id of this run; its messages can be found by it.
        metadata: kept with the checkpoint, handed to the graph's callbacks.

        Raises
        ------
        ThreadNotFound: the thread is another owner's.
        ThreadBusy: another run is going on it.
        ValueError: there is no message, or nothing new in a resent history.
        """
        if not messages:
            raise ValueError("there is no message to answer; send at least one user message")
        run_id = run_id or uuid4().hex
        config: RunnableConfig = {"recursion_limit": STEP_LIMIT, "metadata": {**(metadata or {}), "request_id": run_id}}
        if thread_id is None:
            async with aclosing(self._parts(agent.graph, agent.modes, list(messages), config)) as parts:
                async for part in parts:
                    yield part
            return
        run = await self._begin(agent, list(messages), thread_id, owner, run_id, config)
        try:
            await asyncio.sleep(0)  # the task has begun: from now on it settles the thread however it ends
            while (part := await run.queue.get()) is not _DONE:
                if isinstance(part, BaseException):
                    raise part
                yield part
        finally:
            self._stop(run)

    async def _begin(
        self, agent: Agent, messages: list[BaseMessage], thread_id: str, owner: str, run_id: str, config: RunnableConfig
    ) -> _Run:
        from agents.history import fresh, questions

        if not thread_id or len(thread_id) > MAX_ID:
            raise ThreadNotFound(f"a thread id has 1 to {MAX_ID} characters; this one has {len(thread_id)}")
        saver = await self.open()
        title = (questions(messages) or [""])[0]
        thread = await asyncio.to_thread(self._threads.claim, thread_id, owner, title=title, agent=agent.name)
        if thread is None:
            raise ThreadNotFound(f"there is no thread '{thread_id}' of yours; leave the id out to start a new one")
        while (going := self._runs.get(thread_id)) is not None:
            if not going.ending or going.task is None:
                raise ThreadBusy(f"thread '{thread_id}' is answering another message; wait for it or stop it first")
            await asyncio.wait([going.task])
        run = _Run(thread, [])
        self._runs[thread_id] = run  # from here on until the task is done, with no await between check and claim
        try:
            async with saver.conn.execute("SELECT 1 FROM checkpoints WHERE thread_id = ? LIMIT 1", (thread_id,)) as rows:
                known = await rows.fetchone() is not None
            new = fresh(messages) if known else list(messages)
            if not new:
                raise ValueError("there is nothing new after the last assistant message; send a user message")
            # The ids tell later which run a message belongs to.
            run.new = [m.model_copy(update={"id": f"{run_id}:{i}"}) for i, m in enumerate(new)]
            run.task = asyncio.create_task(self._execute(agent, run, saver, {**config, "configurable": {"thread_id": thread_id}}))
        except BaseException:
            del self._runs[thread_id]
            raise
        return run

    def _stop(self, run: _Run) -> None:
        if not run.ending:
            run.ending = True
            if run.task is not None:
                run.task.cancel()

    async def _parts(
        self, graph: CompiledStateGraph, modes: list[str], messages: Sequence[BaseMessage], config: RunnableConfig
    ) -> AsyncGenerator[Part, None]:
        from langchain_core.messages import AIMessageChunk

        final: Part | None = None
        durability: Any = {"durability": "exit"} if graph.checkpointer else {}
        stream = graph.astream({"messages": list(messages)}, config, stream_mode=modes, subgraphs=True, **durability)  # type: ignore[arg-type]
        async with aclosing(stream) as parts:  # type: ignore[type-var]
            async for part in parts:
                namespace, mode, chunk = part  # type: ignore[misc]
                if mode == "values":
                    final = ((), "values", chunk) if not namespace else final
                elif mode != "messages" or isinstance(chunk[0], AIMessageChunk):
                    yield namespace, mode, chunk  # type: ignore[misc]
        if final is not None:  # only now is the checkpoint written
            yield final

    async def _execute(self, agent: Agent, run: _Run, saver: AsyncSqliteSaver, config: RunnableConfig) -> None:
        """One threaded run in its own task, so that stopping its reader never interrupts the settling of its thread."""
        graph = agent.threaded(saver)
        outcome: Any = _DONE
        try:
            async with aclosing(self._parts(graph, agent.modes, run.new, config)) as parts:
                async for part in parts:
                    self._note(run, part)
                    run.queue.put_nowait(part)
        except asyncio.CancelledError:
            await self._settle(graph, saver, run, config, "cancelled")
        except Exception as error:
            outcome = error
            await self._settle(graph, saver, run, config, "failed")
        finally:
            run.ending = True
            run.queue.put_nowait(outcome)
            try:
                await self._prune(saver, run.thread.id)
                await asyncio.to_thread(self._threads.touch, run.thread.id, agent.name)
            except Exception:
                log.exception("thread %s: old checkpoints could not be removed; the next run tries again", run.thread.id)
            finally:
                self._runs.pop(run.thread.id, None)

    @staticmethod
    def _note(run: _Run, part: Part) -> None:
        _, mode, chunk = part
        run.ending = mode == "values"
        if mode == "custom" and isinstance(chunk, Mapping):
            run.said += str(chunk.get("delta") or "")
            if citation := chunk.get("citation"):
                run.citations.append(citation)
        elif mode == "messages" and isinstance(text := chunk[0].content, str):
            run.said += text

    async def _settle(
        self, graph: CompiledStateGraph, saver: AsyncSqliteSaver, run: _Run, config: RunnableConfig, status: str
    ) -> None:
        """Bring the thread of a run that did not finish to a state that the next turn can use."""
        try:
            await self._complete(graph, saver, run, config, status)
        except Exception:
            log.exception("thread %s could not be settled after its run %s", run.thread.id, status)

    async def _complete(
        self, graph: CompiledStateGraph, saver: AsyncSqliteSaver, run: _Run, config: RunnableConfig, status: str
    ) -> None:
        from langchain_core.messages import AIMessage

        from agents.history import settle

        if "messages" not in graph.channels:
            return
        saved = await saver.aget_tuple(config)
        values = saved.checkpoint["channel_values"] if saved else {}
        messages = list(values.get("messages") or [])
        there = {m.id for m in messages}
        missing = [m for m in run.new if m.id not in there]
        messages += missing
        last = messages[-1]
        if isinstance(last, AIMessage) and not last.tool_calls:  # stopped after its answer was complete
            return
        settled = settle(messages)
        extra = [*missing, *(m for m in settled if m not in messages)]
        said = run.said[int(values.get("offset") or 0) :]
        extra.append(
            AIMessage(
                (said.strip() and said) or STOPPED,
                response_metadata={"mode": "", "abstained": False, "status": status, "citations": run.citations},
            )
        )
        await graph.aupdate_state(config, {"messages": extra}, as_node="__start__")

    @staticmethod
    async def _prune(saver: AsyncSqliteSaver, thread_id: str) -> None:
        """Keep a thread's last checkpoint alone: it holds all that was said."""
        last = "(SELECT MAX(checkpoint_id) FROM checkpoints WHERE thread_id = ? AND checkpoint_ns = '')"
        async with saver.lock:
            for table in ("checkpoints", "writes"):
                await saver.conn.execute(
                    f"DELETE FROM {table} WHERE thread_id = ? AND checkpoint_ns = '' AND checkpoint_id < {last}",
                    (thread_id, thread_id),
                )
            await saver.conn.commit()

    async def threads(self, owner: str, *, limit: int = 200) -> Sequence[Thread]:
        """The owner's threads, the last used first."""
        return await asyncio.to_thread(self._threads.list, owner, limit)

    async def thread(self, thread_id: str, owner: str) -> Thread:
        """One thread; raises ThreadNotFound."""
        found = await asyncio.to_thread(self._threads.find, thread_id, owner)
        if found is None:
            raise ThreadNotFound(f"there is no thread '{thread_id}' of yours")
        return found

    async def turns(self, thread_id: str, owner: str) -> list[Turn]:
        """What was said on a thread, oldest first; raises ThreadNotFound."""
        from agents.history import turns_of

        await self.thread(thread_id, owner)
        saver = await self.open()
        saved = await saver.aget_tuple({"configurable": {"thread_id": thread_id}})
        return turns_of(list(saved.checkpoint["channel_values"].get("messages") or [])) if saved else []

    async def rename(self, thread_id: str, owner: str, title: str) -> None:
        """Give a thread another title; raises ThreadNotFound."""
        if not await asyncio.to_thread(self._threads.rename, thread_id, owner, title):
            raise ThreadNotFound(f"there is no thread '{thread_id}' of yours")

    async def delete(self, thread_id: str, owner: str) -> None:
        """Stop what runs on a thread and remove it; raises ThreadNotFound."""
        await self.thread(thread_id, owner)
        if run := self._runs.get(thread_id):
            self._stop(run)
            if run.task is not None:
                await asyncio.wait([run.task])
        saver = await self.open()
        await saver.adelete_thread(thread_id)
        await asyncio.to_thread(self._threads.delete, thread_id, owner)
