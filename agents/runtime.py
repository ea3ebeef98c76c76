"""Runs: an agent answers on a thread, and whatever happens to the run the thread can be used again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from agents.agent import Agent
from agents.approvals import Decision, NotAsked, Waiting, run_of, waiting_of
from agents.checkpoints import STOPPED, close_saver, known, messages_of, open_saver, prune, settle
from agents.kept import Kept, kept
from agents.run import DONE, AgentChanged, Part, Run, RunLimit, ThreadBusy, ThreadNotFound, asked, parts, running, waits, whose
from agents.snapshot import Snapshot, snapshot_of
from agents.tables import MAX_ID, ONCE, Thread, Threads

if TYPE_CHECKING:
    from langchain_core.messages import BaseMessage
    from langchain_core.runnables import RunnableConfig
    from langgraph.graph.state import CompiledStateGraph
    from langgraph.store.base import BaseStore
    from sqlalchemy import Engine

    from agents.checkpoints import Saver
    from agents.history import Turn

__all__ = ["STOPPED", "Agent", "AgentChanged", "NotAsked", "Part", "RunLimit", "Runtime", "ThreadBusy", "ThreadNotFound"]

log = logging.getLogger(__name__)

NOT_APPROVED = "A person was asked to approve this call and said something else; it was not run."


class Runtime:
    """Executes agents; keeps threads in the database and what was said on them in LangGraph's checkpoints.

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
        self.table, self._engine = Threads(engine), engine
        self.store = store
        self._place, self._types = checkpoints, tuple(types)
        self._saver: Saver | None = None
        self._opening = asyncio.Lock()
        self._runs: dict[str, Run] = {}
        self.on_delete: list[Callable[[str, str], object]] = []
        """Called, in a thread, with the id and the owner of a thread that was deleted."""

    async def open(self) -> Saver:
        """Open the checkpoints in the running loop; done by itself at the first threaded run."""
        async with self._opening:
            if self._saver is None:
                self._saver = await open_saver(self._place, self._types)
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
            await close_saver(saver)

    async def stream(
        self,
        agent: Agent,
        messages: Sequence[BaseMessage],
        *,
        thread_id: str | None = None,
        owner: str = "",
        run_id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        decisions: Mapping[str, Decision] | None = None,
    ) -> AsyncGenerator[Part, None]:
        """Run an agent; yields LangGraph's stream parts, the final state last as `((), "values", state)`.

        Closing the generator, or cancelling the task that iterates it, stops the run. On a thread what was said until then
        is kept. A thread that does not exist is made; of a resent history only what is new is added to a thread that has one.
        A run that asks a person ends too: its final state holds `__interrupt__`, and `waiting` tells what is asked. A message
        on a thread that waits is an answer too: what was asked for is not done.

        Parameters
        ----------
        messages: what is said, at least one message, unless there are `decisions`.
        thread_id: None runs without a checkpoint, on `messages` alone.
        owner: caller that the thread belongs to.
        run_id: request id of this run; its messages can be found by it.
        metadata: kept with the checkpoint, handed to the graph's callbacks.
        decisions: what a person said to a run that asked, by the question's id; goes on with that run.

        Raises
        ------
        ThreadNotFound: the thread is another owner's.
        ThreadBusy: another run is going on it.
        NotAsked: a decision answers no open question of the owner's.
        AgentChanged: it does, but the agent's graph has changed since it was asked; what waited is dropped.
        RunLimit: the run took too long, or too many steps.
        ValueError: there is no message, or nothing new in a resent history.
        """
        if not messages and not decisions:
            raise ValueError("there is no message to answer; send at least one user message")
        run_id = run_id or uuid4().hex
        config: RunnableConfig = {
            "recursion_limit": agent.step_limit,
            "metadata": {**(metadata or {}), "request_id": run_id},
            "configurable": {"user_id": owner},
        }
        if decisions:
            thread_id = (await self.waiting(decisions, owner)).id
        elif thread_id is None and agent.asks:
            thread_id = f"{ONCE}{run_id}"
        if thread_id is None:
            yield (), "started", run_id
            outer = whose.get()
            whose.set(owner)
            try:
                async with aclosing(parts(agent, self._with_store(agent.graph), {"messages": list(messages)}, config)) as stream:
                    async for part in stream:
                        if part[1] == "values" and part[2].get("__interrupt__"):
                            raise ValueError("this agent asks a person something; name a conversation, so that it can go on")
                        yield part
            finally:
                whose.set(outer)
            return
        run = await self._begin(agent, list(messages), thread_id, owner, run_id, config, decisions)
        try:
            await asyncio.sleep(0)  # the task has begun: from now on it settles the thread however it ends
            while (part := await run.queue.get()) is not DONE:
                if isinstance(part, BaseException):
                    raise part
                yield part
        finally:
            self._stop(run)

    async def waiting(self, decisions: Mapping[str, Decision], owner: str) -> Thread:
        """The owner's thread on which these questions are open; raises NotAsked."""
        runs = {run_of(name) for name in decisions}
        run_id = runs.pop() if len(runs) == 1 else None
        thread = await asyncio.to_thread(self.table.waiting_for, run_id, owner) if run_id else None
        if thread is None:
            raise NotAsked(f"no run of yours waits for {', '.join(decisions)}; it was decided, or the conversation went on")
        return thread

    async def _begin(
        self,
        agent: Agent,
        messages: list[BaseMessage],
        thread_id: str,
        owner: str,
        run_id: str,
        config: RunnableConfig,
        decisions: Mapping[str, Decision] | None,
    ) -> Run:
        from langgraph.types import Command

        from agents.history import fresh, questions

        if not thread_id or len(thread_id) > MAX_ID:
            raise ThreadNotFound(f"a thread id has 1 to {MAX_ID} characters; this one has {len(thread_id)}")
        saver = await self.open()
        title = (questions(messages) or [""])[0]
        claim = (self.table.claim, thread_id, owner)
        thread = await asyncio.to_thread(*claim, title=title, agent=agent.name)
        while (going := self._runs.get(thread_id)) is not None and thread is not None:
            if not going.ending or going.task is None:
                raise ThreadBusy(f"thread '{thread_id}' is answering another message; wait for it or stop it first")
            await asyncio.wait([going.task])
            thread = None if thread_id in self._runs else await asyncio.to_thread(*claim, title=title, agent=agent.name)
        if thread is None:
            raise ThreadNotFound(f"there is no thread '{thread_id}' of yours; leave the id out to start a new one")
        if thread_id in self._runs:
            raise ThreadBusy(f"thread '{thread_id}' is answering another message; wait for it or stop it first")
        run = self._runs[thread_id] = Run(thread, run_id, [])  # no await between the check and this
        try:
            graph = self._with_store(agent.threaded(saver))
            here: RunnableConfig = {**config, "configurable": {"user_id": owner, "thread_id": thread_id}}
            if decisions:
                waiting = Waiting.from_json(thread.waiting or '{"run_id": "", "asks": []}')
                given: Any = Command(resume=waiting.resume(decisions))
                if not waits(await graph.aget_state(here, subgraphs=True)):
                    await self._recover(agent, saver, thread)
                    await self._rest(saver, run, agent)
                    raise AgentChanged(
                        f"{agent.name} was changed after it had asked this: the step that waited is no longer in its graph. "
                        "What it asked for was not done; ask it again"
                    )
            else:
                await self._recover(agent, saver, thread)
                new = fresh(messages) if await known(saver, thread_id) else list(messages)
                if not new:
                    raise ValueError("there is nothing new after the last assistant message; send a user message")
                # The ids tell later which run a message belongs to.
                run.new = [m.model_copy(update={"id": f"{run_id}:{i}"}) for i, m in enumerate(new)]
                given = {"messages": run.new}
            run.task = asyncio.create_task(self._execute(agent, graph, run, saver, given, here))
        except BaseException:
            del self._runs[thread_id]
            raise
        return run

    async def _recover(self, agent: Agent, saver: Saver, thread: Thread) -> None:
        """Settle a thread whose run was killed with its process, or waits for a person who said something else."""
        config: RunnableConfig = {"configurable": {"thread_id": thread.id}}
        keep = self._kept(saver, thread.id)
        if thread.running:
            await settle(agent.threaded(saver), saver, config, asked(thread), status="failed", results=await keep.all())
        elif thread.waiting:
            told = {"results": await keep.all(), "unanswered": NOT_APPROVED}
            await settle(agent.threaded(saver), saver, config, [], status="waiting", **told)
        else:
            return
        await keep.clear()

    def _with_store(self, graph: CompiledStateGraph) -> CompiledStateGraph:
        if graph.store is None and self.store is not None:
            graph.store = self.store()
        return graph

    def _kept(self, saver: Saver, thread_id: str) -> Kept:
        return Kept(self._engine, thread_id, saver.serde)

    def _stop(self, run: Run) -> None:
        if not run.ending:
            run.ending = True
            if run.task is not None:
                run.task.cancel()

    async def _execute(
        self, agent: Agent, graph: CompiledStateGraph, run: Run, saver: Saver, given: Any, config: RunnableConfig
    ) -> None:
        """One threaded run in its own task, so that stopping its reader never interrupts the settling of its thread."""
        kept.set(self._kept(saver, run.thread.id))  # for this task, and what it starts
        whose.set(run.thread.owner)
        outcome: Any = DONE
        noted = asyncio.ensure_future(asyncio.to_thread(self.table.begin, run.thread.id, running(run)))
        try:
            await asyncio.shield(noted)
            run.queue.put_nowait(((), "started", run.id))
            async with aclosing(parts(agent, graph, given, config)) as stream:
                async for part in stream:
                    await self._note(run, part, agent)
                    run.queue.put_nowait(part)
        except asyncio.CancelledError:
            await asyncio.wait([noted])  # a thread cannot be stopped, and must not note this after its end
            await self._settle(graph, saver, run, config, "cancelled")
        except Exception as error:
            outcome = error
            await self._settle(graph, saver, run, config, "failed")
        finally:
            run.ending = True
            run.queue.put_nowait(outcome)
            try:
                await self._rest(saver, run, agent)
            except Exception:
                log.exception("thread %s could not be brought to rest; the next run tries again", run.thread.id)
            finally:
                self._runs.pop(run.thread.id, None)

    async def _note(self, run: Run, part: Part, agent: Agent) -> None:
        _, mode, chunk = part
        if mode == "values":
            if interrupts := chunk.get("__interrupt__"):  # kept before anyone hears of it
                run.waiting = waiting_of(run.id, interrupts)
                await asyncio.to_thread(self.table.end, run.thread.id, agent.name, run.waiting.to_dict())
            run.ending = True
        elif mode == "custom" and isinstance(chunk, Mapping):
            run.said += str(chunk.get("delta") or "")
            if citation := chunk.get("citation"):
                run.citations.append(citation)
        elif mode == "messages" and isinstance(text := chunk[0].content, str):
            run.said += text

    async def _settle(self, graph: CompiledStateGraph, saver: Saver, run: Run, config: RunnableConfig, status: str) -> None:
        results = await self._kept(saver, run.thread.id).all()
        try:
            await settle(graph, saver, config, run.new, status=status, said=run.said, citations=run.citations, results=results)
        except Exception:
            log.exception("thread %s could not be settled after its run %s", run.thread.id, status)

    async def _rest(self, saver: Saver, run: Run, agent: Agent) -> None:
        if run.once and run.waiting is None:
            await self._kept(saver, run.thread.id).clear()
            await saver.adelete_thread(run.thread.id)
            await asyncio.to_thread(self.table.delete, run.thread.id, run.thread.owner)
            return
        await prune(saver, run.thread.id, waiting=run.waiting is not None)
        if run.waiting is None:
            await self._kept(saver, run.thread.id).clear()
            await asyncio.to_thread(self.table.end, run.thread.id, agent.name)

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

    async def snapshot(self, thread_id: str, owner: str) -> Snapshot:
        """How a thread stands, once its last run is at rest; raises ThreadNotFound."""
        await self.thread(thread_id, owner)
        if (run := self._runs.get(thread_id)) is not None and run.ending and run.task is not None:
            await asyncio.wait([run.task])
        return await snapshot_of(await self.open(), await self.thread(thread_id, owner))

    async def turns(self, thread_id: str, owner: str) -> list[Turn]:
        """What was said on a thread, oldest first; raises ThreadNotFound."""
        from agents.history import turns_of

        thread = await self.thread(thread_id, owner)
        messages = await messages_of(await self.open(), thread_id)
        if thread.running:
            there = {message.id for message in messages}
            messages += [message for message in asked(thread) if message.id not in there]
        return turns_of(messages)

    async def rename(self, thread_id: str, owner: str, title: str) -> None:
        """Give a thread another title; raises ThreadNotFound."""
        if not await asyncio.to_thread(self.table.rename, thread_id, owner, title):
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
        await self._kept(saver, thread_id).clear()
        await asyncio.to_thread(self.table.delete, thread_id, owner)
        for told in self.on_delete:
            await asyncio.to_thread(told, thread_id, owner)
