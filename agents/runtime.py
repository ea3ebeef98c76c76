"""Runs: an agent answers on a thread, and whatever happens to the run the thread can be used again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from agents.agent import Agent
from agents.approvals import Decision, NotAsked, Waiting, decided, run_of, waiting_of
from agents.branches import StateNotFound
from agents.checkpoints import STOPPED, close_saver, known, messages_of, settle
from agents.edits import NotAnUpdate
from agents.kept import committed, kept
from agents.run import (
    DONE,
    AgentChanged,
    NothingAsked,
    Part,
    Run,
    RunLimit,
    ThreadBusy,
    ThreadNotFound,
    parts,
    running,
    waits,
    whose,
)
from agents.tables import ONCE, Thread
from agents.upkeep import Upkeep

if TYPE_CHECKING:
    from langchain_core.messages import BaseMessage
    from langchain_core.runnables import RunnableConfig
    from langgraph.graph.state import CompiledStateGraph

    from agents.checkpoints import Saver

__all__ = [
    "STOPPED",
    "Agent",
    "AgentChanged",
    "NotAnUpdate",
    "NotAsked",
    "NothingAsked",
    "Part",
    "RunLimit",
    "Runtime",
    "StateNotFound",
    "ThreadBusy",
    "ThreadNotFound",
]

log = logging.getLogger(__name__)

DECIDED = "no run of yours waits for {}; it was decided, or the conversation went on"
NOTHING_NEW = "there is nothing new after the last assistant message; send a user message"


class Runtime(Upkeep):
    """Executes agents on threads; parameters as for `Conversations`."""

    async def close(self) -> None:
        """Stop what runs, leave its threads usable, close the checkpoints."""
        while runs := list(self._runs.values()):
            for run in runs:
                self._stop(run)
            for run in runs:
                await run.over.wait()
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
        state: str | None = None,
        again: bool = False,
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
        state: of the thread's `history`, where to go on from; what came after it stays as a branch. None is where it stands.
        again: nothing is said; what stands there last is answered, anew if it was before.

        Raises
        ------
        ThreadNotFound: the thread is another owner's.
        StateNotFound: it has no such state.
        ThreadBusy: another run is going on it.
        NotAsked: a decision answers no open question of the owner's.
        AgentChanged: it does, but the agent's graph has changed since it was asked; what waited is dropped.
        RunLimit: the run took too long, or too many steps.
        NothingAsked: there is no message, or nothing new in a resent history, or nothing to answer again.
        """
        if not messages and not decisions and not (again and thread_id):
            raise NothingAsked("there is no message to answer; send at least one user message")
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
        saver = await self.open()
        try:
            run = await self._claim(thread_id, owner, run_id, messages, agent)
        except ThreadNotFound:
            if decisions:  # the run that was decided before has ended, and its thread with it
                raise NotAsked(DECIDED.format(", ".join(decisions))) from None
            raise
        run.resumes = bool(decisions)
        run.task = asyncio.create_task(self._perform(agent, run, saver, messages, config, decisions, state, again))
        try:
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
            raise NotAsked(DECIDED.format(", ".join(decisions)))
        return thread

    async def _perform(
        self,
        agent: Agent,
        run: Run,
        saver: Saver,
        messages: Sequence[BaseMessage],
        config: RunnableConfig,
        decisions: Mapping[str, Decision] | None,
        state: str | None,
        again: bool,
    ) -> None:
        """One threaded run in its own task, so that stopping its reader never leaves its thread half way."""
        here: RunnableConfig = {**config, "configurable": {"user_id": run.thread.owner, "thread_id": run.thread.id}}
        try:
            graph = self._with_store(agent.threaded(saver))
            target = await self._target(saver, run.thread, state, again)
            if decisions:
                if target is not None:
                    raise NotAsked("the state that is named asks nobody; the thread has gone on since")
                given: Any = await self._resumed(agent, graph, run, saver, decisions, here)
            else:
                new = [] if again else await self._new(saver, run, messages)
                if target is not None or not again:
                    await self._recover(agent, saver, run.thread)
                run.before = await self._stands(saver, run.thread.id)
                if target is not None:
                    await self.branches.go_back(graph, saver, run.thread.id, target)
                run.new = [] if again else await self._said(saver, run, new)
                given = None if again else {"messages": run.new}
        except BaseException as error:
            try:
                if run.before:
                    await self._take_back(saver, run.thread.id, run.before)
            except Exception:
                log.exception("thread %s could not be taken back to where it stood", run.thread.id)
            finally:
                self._leave(run)
                run.queue.put_nowait(error)
        else:
            await self._execute(agent, graph, run, saver, given, here)

    async def _resumed(
        self,
        agent: Agent,
        graph: CompiledStateGraph,
        run: Run,
        saver: Saver,
        decisions: Mapping[str, Decision],
        config: RunnableConfig,
    ) -> Any:
        """What hands a person's decisions to the steps that wait for them; raises NotAsked, AgentChanged."""
        from langgraph.types import Command

        waiting = Waiting.from_json(run.thread.waiting or '{"run_id": "", "asks": []}')
        resume = waiting.resume(decisions)
        run.decided = waiting.of_calls(decisions)
        if not waits(await graph.aget_state(config, subgraphs=True)):
            await self._recover(agent, saver, run.thread)
            await self._rest(saver, run, agent)
            raise AgentChanged(
                f"{agent.name} was changed after it had asked this: the step that waited is no longer in its graph. "
                "What it asked for was not done; ask it again"
            )
        return Command(resume=resume)

    async def _new(self, saver: Saver, run: Run, messages: Sequence[BaseMessage]) -> list[BaseMessage]:
        """Of a resent history what comes last; raises NothingAsked, before a question that is open is dropped for it."""
        from agents.history import fresh

        new = fresh(messages) if run.thread.running or await known(saver, run.thread.id) else list(messages)
        if not new:
            raise NothingAsked(NOTHING_NEW)
        return new

    async def _said(self, saver: Saver, run: Run, new: Sequence[BaseMessage]) -> list[BaseMessage]:
        """Of the messages those that the thread lacks, with ids that tell later which run they belong to; raises NothingAsked."""
        from agents.history import unanswered

        if any(message.type == "tool" for message in new):
            new = unanswered(new, await messages_of(saver, run.thread.id))
        if not new:
            raise NothingAsked(NOTHING_NEW)
        return [message.model_copy(update={"id": f"{run.id}:{i}"}) for i, message in enumerate(new)]

    async def _execute(
        self, agent: Agent, graph: CompiledStateGraph, run: Run, saver: Saver, given: Any, config: RunnableConfig
    ) -> None:
        """Answer, and settle the thread however that ends."""
        kept.set(self._kept(saver, run.thread.id))  # for this task, and what it starts
        whose.set(run.thread.owner)
        decided.set(run.decided)
        outcome: Any = DONE
        settled = False
        try:
            await committed(self.table.begin, run.thread.id, running(run))
            run.begun = True
            if run.ending:
                raise asyncio.CancelledError
            run.queue.put_nowait(((), "started", run.id))
            async with aclosing(parts(agent, graph, given, config)) as stream:
                async for part in stream:
                    await self._note(run, part, agent)
                    run.queue.put_nowait(part)
            settled = True
        except asyncio.CancelledError:
            settled = await self._settled(graph, saver, run, config, "cancelled")
        except Exception as error:
            outcome = error
            settled = await self._settled(graph, saver, run, config, "failed")
        finally:
            run.ending = True
            run.queue.put_nowait(outcome)
            try:
                if settled:  # else it stays noted as going on, and the next run settles it
                    await self._rest(saver, run, agent)
            except Exception:
                log.exception("thread %s could not be brought to rest; the next run tries again", run.thread.id)
            finally:
                self._leave(run)

    async def _note(self, run: Run, part: Part, agent: Agent) -> None:
        _, mode, chunk = part
        if mode == "values":
            run.ending = True  # its checkpoint is written: what stops it now comes too late
            run.ends_with = frozenset(chunk)
            if interrupts := chunk.get("__interrupt__"):  # kept before anyone hears of it
                waiting = waiting_of(run.id, interrupts)
                await committed(self.table.end, run.thread.id, agent.name, waiting.to_dict())
                run.waiting = waiting
        elif mode == "custom" and isinstance(chunk, Mapping):
            run.said += str(chunk.get("delta") or "")
            if citation := chunk.get("citation"):
                run.citations.append(citation)
        elif mode == "messages" and isinstance(text := chunk[0].content, str):
            run.said += text

    async def _settled(self, graph: CompiledStateGraph, saver: Saver, run: Run, config: RunnableConfig, status: str) -> bool:
        """Bring the thread of a run that did not finish to a state that the next turn can use; whether that could be done."""
        try:
            if run.undone and run.before:
                await self._take_back(saver, run.thread.id, run.before)
                return True
            told = {"said": run.said, "citations": run.citations, "results": await self._kept(saver, run.thread.id).all()}
            await settle(graph, saver, config, run.new, status=status, **told)
        except Exception:
            log.exception("thread %s could not be settled after its run %s; the next run tries again", run.thread.id, status)
            return False
        return True

    def undo(self, thread_id: str, run_id: str) -> bool:
        """Have a run, once it is stopped, leave its thread as it was before; whether it goes on here and can."""
        run = self._runs.get(thread_id)
        if run is None or run.id != run_id or run.ending or run.resumes:
            return False
        run.undone = True
        return True
