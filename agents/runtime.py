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
from agents.branches import State, StateNotFound
from agents.checkpoints import STOPPED, close_saver, known, last_of, messages_of, prune, settle, take_back, unfinished
from agents.conversations import Conversations
from agents.edits import NotAnUpdate, apply
from agents.kept import kept
from agents.run import (
    DONE,
    AgentChanged,
    NothingAsked,
    Part,
    Run,
    RunLimit,
    Stood,
    ThreadBusy,
    ThreadNotFound,
    asked,
    parts,
    running,
    waits,
    whose,
)
from agents.tables import MAX_ID, ONCE, Thread
from agents.values import lasting

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

NOT_APPROVED = "A person was asked to approve this call and said something else; it was not run."


class Runtime(Conversations):
    """Executes agents on threads; parameters as for `Conversations`."""

    async def close(self) -> None:
        """Stop what runs, leave its threads usable, close the checkpoints."""
        runs = list(self._runs.values())
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
        run = await self._claim(thread_id, owner, run_id, messages, agent)
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
            raise NotAsked(f"no run of yours waits for {', '.join(decisions)}; it was decided, or the conversation went on")
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
                if target is not None or not again:
                    await self._recover(agent, saver, run.thread)
                run.before = await self._stands(saver, run.thread.id)
                if target is not None:
                    await self.branches.go_back(graph, saver, run.thread.id, target)
                run.new = [] if again else await self._said(saver, run, messages)
                given = None if again else {"messages": run.new}
        except BaseException as error:
            try:
                if run.before:
                    await self._take_back(saver, run.thread.id, run.before)
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

    async def _said(self, saver: Saver, run: Run, messages: Sequence[BaseMessage]) -> list[BaseMessage]:
        """Of the messages those that the thread lacks, with ids that tell later which run they belong to; raises NothingAsked."""
        from agents.history import fresh, unanswered

        new = fresh(messages) if await known(saver, run.thread.id) else list(messages)
        if any(message.type == "tool" for message in new):
            new = unanswered(new, await messages_of(saver, run.thread.id))
        if not new:
            raise NothingAsked("there is nothing new after the last assistant message; send a user message")
        return [message.model_copy(update={"id": f"{run.id}:{i}"}) for i, message in enumerate(new)]

    async def _claim(self, thread_id: str, owner: str, run_id: str, messages: Sequence[BaseMessage], agent: Agent) -> Run:
        """The thread, made if there is none, with this run on it and no other. Raises ThreadNotFound, ThreadBusy."""
        from agents.history import questions

        if not thread_id or len(thread_id) > MAX_ID:
            raise ThreadNotFound(f"a thread id has 1 to {MAX_ID} characters; this one has {len(thread_id)}")
        title = (questions(messages) or [""])[0]
        claim = (self.table.claim, thread_id, owner)
        thread = await asyncio.to_thread(*claim, title=title, agent=agent.name)
        while (going := self._runs.get(thread_id)) is not None and thread is not None:
            if not going.ending:
                raise ThreadBusy(f"thread '{thread_id}' is answering another message; wait for it or stop it first")
            await going.over.wait()
            thread = None if thread_id in self._runs else await asyncio.to_thread(*claim, title=title, agent=agent.name)
        if thread is None:
            raise ThreadNotFound(f"there is no thread '{thread_id}' of yours; leave the id out to start a new one")
        if thread_id in self._runs:
            raise ThreadBusy(f"thread '{thread_id}' is answering another message; wait for it or stop it first")
        run = self._runs[thread_id] = Run(thread, run_id, [])  # no await between the check and this
        return run

    async def _target(self, saver: Saver, thread: Thread, state: str | None, again: bool) -> State | None:
        """The state to go back to; None where the thread goes on from where it stands. Raises StateNotFound, NothingAsked."""
        if state is None and not again:
            return None
        history = await self.branches.history(saver, thread.id, asked(thread))
        found = history.head if state is None else history.find(state)
        if not again:
            return None if found is history.head else found
        if found is None or not found.open:
            raise NothingAsked("there is nothing to answer in this state; name an earlier one, or send a message")
        if found is history.head:
            if thread.waiting:
                raise NothingAsked("a person is asked in this state; send the decision")
            if await unfinished(saver, thread.id):
                return None
        return history.asked(found)

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

    def _stop(self, run: Run) -> None:
        if not run.ending:
            run.ending = True
            if run.begun and run.task is not None:
                run.task.cancel()

    def _leave(self, run: Run) -> None:
        """Have the next run take the thread."""
        self._runs.pop(run.thread.id, None)
        run.over.set()

    async def _execute(
        self, agent: Agent, graph: CompiledStateGraph, run: Run, saver: Saver, given: Any, config: RunnableConfig
    ) -> None:
        """Answer, and settle the thread however that ends."""
        kept.set(self._kept(saver, run.thread.id))  # for this task, and what it starts
        whose.set(run.thread.owner)
        decided.set(run.decided)
        outcome: Any = DONE
        noted = asyncio.ensure_future(asyncio.to_thread(self.table.begin, run.thread.id, running(run)))
        run.begun = True
        try:
            if run.ending:
                raise asyncio.CancelledError
            await asyncio.shield(noted)
            run.queue.put_nowait(((), "started", run.id))
            async with aclosing(parts(agent, graph, given, config)) as stream:
                async for part in stream:
                    await self._note(run, part, agent)
                    run.queue.put_nowait(part)
        except asyncio.CancelledError:
            await asyncio.wait([noted])  # a thread cannot be stopped, and must not note this after its end
            if run.undone and run.before:
                await self._take_back(saver, run.thread.id, run.before)
            else:
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
                self._leave(run)

    async def _note(self, run: Run, part: Part, agent: Agent) -> None:
        _, mode, chunk = part
        if mode == "values":
            if interrupts := chunk.get("__interrupt__"):  # kept before anyone hears of it
                run.waiting = waiting_of(run.id, interrupts)
                await asyncio.to_thread(self.table.end, run.thread.id, agent.name, run.waiting.to_dict())
            run.ends_with = frozenset(chunk)
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
        if (names := lasting(agent.threaded(saver))) and (run.ends_with is None or not run.ends_with.isdisjoint(names)):
            await self.branches.note(agent.threaded(saver), saver, run.thread.id)
        kept_branches = await asyncio.to_thread(self.branches.kept, run.thread.id)
        await prune(saver, run.thread.id, waiting=run.waiting is not None, kept=kept_branches)
        if run.waiting is None:
            await self._kept(saver, run.thread.id).clear()
            await asyncio.to_thread(self.table.end, run.thread.id, agent.name)

    async def update(
        self,
        agent: Agent,
        values: Mapping[str, Any],
        thread_id: str,
        *,
        owner: str,
        run_id: str,
        state: str | None = None,
        as_node: str | None = None,
    ) -> None:
        """Write values into the state of a thread, or of an earlier state of it, from which it then goes on.

        A question to a person that is open there is no longer asked. `values` and `as_node` are those of `agents.edits.apply`.

        Raises
        ------
        ThreadNotFound, ThreadBusy, StateNotFound, NotAnUpdate.
        """
        saver = await self.open()
        run = await self._claim(thread_id, owner, run_id, (), agent)
        graph = agent.threaded(saver)
        try:
            target = await self._target(saver, run.thread, state, again=False)
            if target is not None or run.thread.running or as_node == "__end__":
                await self._recover(agent, saver, run.thread)
            stood = await self._stands(saver, thread_id)
            if target is not None:
                await self.branches.go_back(graph, saver, thread_id, target)
            before = (await self.branches.history(saver, thread_id)).head
            try:
                if values or as_node not in (None, "__end__"):
                    await apply(graph, thread_id, values, as_node, run_id)
            except NotAnUpdate:
                if target is not None:
                    await self._take_back(saver, thread_id, stood)
                    await self._rest(saver, run, agent)
                raise
            now = await self.branches.history(saver, thread_id)
            if before is not None and not now.has(before):  # messages were replaced or removed: as it was, it stays a branch
                await asyncio.to_thread(self.branches.leave, thread_id, before, "-")
            await self._rest(saver, run, agent)
            if (head := now.head) is not None and head.open and head.messages[-1].type == "ai":
                await self._dangling(thread_id)
        finally:
            self._leave(run)

    async def _take_back(self, saver: Saver, thread_id: str, stood: Stood) -> None:
        await take_back(saver, thread_id, stood[0])
        await asyncio.to_thread(self.branches.put, thread_id, stood[1])

    async def _stands(self, saver: Saver, thread_id: str) -> Stood:
        return await last_of(saver, thread_id), await asyncio.to_thread(self.branches.left, thread_id)

    async def halt(self, thread_id: str) -> None:
        """Stop what runs on a thread."""
        if run := self._runs.get(thread_id):
            self._stop(run)
            await self.rested(thread_id)

    def undo(self, thread_id: str, run_id: str) -> bool:
        """Have a run, once it is stopped, leave its thread as it was before; whether it goes on here and can."""
        run = self._runs.get(thread_id)
        if run is None or run.id != run_id or run.ending or run.before is None:
            return False
        run.undone = True
        return True

    async def forget_branches(self, thread_id: str, owner: str) -> None:
        """Keep of a thread the branch alone on which it stands; raises ThreadNotFound."""
        found = await self.snapshot(thread_id, owner)
        await asyncio.to_thread(self.branches.put, thread_id, ())
        if not self.busy(thread_id):
            await prune(await self.open(), thread_id, waiting=found.waiting is not None)

    async def delete(self, thread_id: str, owner: str) -> None:
        """Stop what runs on a thread and remove it; raises ThreadNotFound."""
        await self.thread(thread_id, owner)
        await self.halt(thread_id)
        saver = await self.open()
        await saver.adelete_thread(thread_id)
        await self._kept(saver, thread_id).clear()
        await asyncio.to_thread(self.branches.put, thread_id, ())
        await asyncio.to_thread(self.branches.values(saver, thread_id).delete)
        await asyncio.to_thread(self.table.delete, thread_id, owner)
        for told in self.on_delete:
            await asyncio.to_thread(told, thread_id, owner)
