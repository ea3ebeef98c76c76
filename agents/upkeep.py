"""Threads between runs: held by one run or change at a time, settled where one was left half-way, rid of what nobody needs."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from agents.agent import Agent
from agents.branches import State
from agents.checkpoints import copy, last_of, prune, settle, take_back, unfinished
from agents.conversations import Conversations
from agents.edits import apply, checked
from agents.run import NothingAsked, Run, Stood, ThreadBusy, ThreadNotFound, asked
from agents.tables import MAX_ID, Thread
from agents.values import lasting

if TYPE_CHECKING:
    from langchain_core.messages import BaseMessage
    from langchain_core.runnables import RunnableConfig

    from agents.checkpoints import Saver

NOT_APPROVED = "A person was asked to approve this call and said something else; it was not run."

T = TypeVar("T")


class Upkeep(Conversations):
    """Changes threads on which nothing runs; parameters as for `Conversations`.

    Whoever changes a thread holds it, so that no run begins there meanwhile, and does so to the end though who asked is gone.
    """

    # --- holding a thread ---

    async def _claim(self, thread_id: str, owner: str, run_id: str, messages: Sequence[BaseMessage], agent: Agent) -> Run:
        """The thread, made if there is none, held by this run and no other. Raises ThreadNotFound, ThreadBusy."""
        from agents.history import questions

        if not thread_id or len(thread_id) > MAX_ID:
            raise ThreadNotFound(f"a thread id has 1 to {MAX_ID} characters; this one has {len(thread_id)}")
        title = (questions(messages) or [""])[0]
        thread = await asyncio.to_thread(self.table.claim, thread_id, owner, title=title, agent=agent.name)
        if thread is None:
            raise ThreadNotFound(f"there is no thread '{thread_id}' of yours; leave the id out to start a new one")
        return await self._hold(thread, run_id)

    async def _hold(self, thread: Thread, run_id: str = "", *, ending: bool = False) -> Run:
        """Hold a thread once the run that ends there is at rest. Raises ThreadBusy, ThreadNotFound (deleted meanwhile).

        Parameters
        ----------
        ending: what comes meanwhile waits instead of being told that the thread is busy.
        """
        while (going := self._runs.get(thread.id)) is not None:
            if not going.ending:
                raise ThreadBusy(f"thread '{thread.id}' is answering another message; wait for it or stop it first")
            await going.over.wait()
        run = self._runs[thread.id] = Run(thread, run_id, [], ending=ending)  # no await between the check and this
        try:
            found = await asyncio.to_thread(self.table.find, thread.id, thread.owner)  # as the run before has left it
            if found is None:
                raise ThreadNotFound(f"there is no thread '{thread.id}' of yours; it was deleted")
        except BaseException:
            self._leave(run)
            raise
        run.thread = found
        return run

    def _leave(self, run: Run) -> None:
        """Have the next run take the thread."""
        self._runs.pop(run.thread.id, None)
        run.over.set()

    async def _whole(self, run: Run, change: Coroutine[Any, Any, T]) -> T:
        """Change a thread that is held, to the end though who asked is gone, and leave it."""

        async def changed() -> T:
            try:
                return await change
            finally:
                self._leave(run)

        run.task = task = asyncio.create_task(changed())
        return await asyncio.shield(task)

    def _stop(self, run: Run) -> None:
        if not run.ending:
            run.ending = True
            if run.begun and run.task is not None:
                run.task.cancel()

    async def halt(self, thread_id: str) -> None:
        """Stop what runs on a thread, until nothing does."""
        while (run := self._runs.get(thread_id)) is not None:
            self._stop(run)
            await run.over.wait()

    # --- where a thread stands ---

    async def _stands(self, saver: Saver, thread_id: str) -> Stood:
        return await last_of(saver, thread_id), await asyncio.to_thread(self.branches.left, thread_id)

    async def _take_back(self, saver: Saver, thread_id: str, stood: Stood) -> None:
        await take_back(saver, thread_id, stood[0])
        await asyncio.to_thread(self.branches.put, thread_id, stood[1])

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
        """Settle a thread whose run was killed with its process, or waits for a person who said something else.

        Both stay noted until the thread is at rest, so that whatever fails meanwhile is settled again.
        """
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

    async def _rest(self, saver: Saver, run: Run, agent: Agent) -> None:
        """Note that nothing runs, or what is waited for, and drop what is no longer needed then."""
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

    # --- changes from outside a run ---

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
        await self._whole(run, self._update(agent, saver, run, values, state, as_node))

    async def _update(
        self, agent: Agent, saver: Saver, run: Run, values: Mapping[str, Any], state: str | None, as_node: str | None
    ) -> None:
        graph, thread_id = agent.threaded(saver), run.thread.id
        target = await self._target(saver, run.thread, state, again=False)
        given = checked(graph, values, as_node, run.id)
        if target is not None or run.thread.running or as_node == "__end__":
            await self._recover(agent, saver, run.thread)
        stood = await self._stands(saver, thread_id)
        try:
            if target is not None:
                await self.branches.go_back(graph, saver, thread_id, target)
            before = (await self.branches.history(saver, thread_id)).head
            if values or as_node not in (None, "__end__"):
                await apply(graph, thread_id, given, as_node)
        except Exception:
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

    async def forget_branches(self, thread_id: str, owner: str) -> None:
        """Keep of a thread the branch alone on which it stands; raises ThreadNotFound."""
        thread = (await self.snapshot(thread_id, owner)).thread
        saver = await self.open()
        if self.busy(thread_id):  # its run drops what no branch needs when it ends
            return await asyncio.to_thread(self.branches.put, thread_id, ())
        run = await self._hold(thread, ending=True)

        async def forget() -> None:
            await asyncio.to_thread(self.branches.put, thread_id, ())
            await prune(saver, thread_id, waiting=run.thread.waiting is not None)

        await self._whole(run, forget())

    async def copy(self, thread_id: str, owner: str, to: str) -> Thread:
        """A thread of the owner's that has the same states. A question to a person is open in the first alone.

        Raises ThreadNotFound, and ThreadBusy where a run goes on.
        """
        run = await self._hold(await self.thread(thread_id, owner), ending=True)
        return await self._whole(run, self._copy(run.thread, to))

    async def _copy(self, thread: Thread, to: str) -> Thread:
        saver = await self.open()
        await copy(saver, thread.id, to)
        await asyncio.to_thread(self.branches.put, to, await asyncio.to_thread(self.branches.left, thread.id))
        await asyncio.to_thread(self.branches.values(saver, thread.id).copy, to)
        tags = (await asyncio.to_thread(self.table.tags, [thread.id])).get(thread.id)
        made = await asyncio.to_thread(self.table.claim, to, thread.owner, title=thread.title, agent=thread.agent)
        assert made is not None, "a new id is nobody's"
        if thread.waiting:
            await self._dangling(to)
        if tags:
            await asyncio.to_thread(self.table.tag, to, tags)
        return made

    async def delete(self, thread_id: str, owner: str) -> None:
        """Stop what runs on a thread and remove it; raises ThreadNotFound."""
        thread = await self.thread(thread_id, owner)
        saver = await self.open()
        await self.halt(thread_id)
        run = await self._hold(thread, ending=True)
        await self._whole(run, self._delete(saver, run.thread))

    async def _delete(self, saver: Saver, thread: Thread) -> None:
        await saver.adelete_thread(thread.id)
        await self._kept(saver, thread.id).clear()
        await asyncio.to_thread(self.branches.put, thread.id, ())
        await asyncio.to_thread(self.branches.values(saver, thread.id).delete)
        await asyncio.to_thread(self.table.delete, thread.id, thread.owner)
        for told in self.on_delete:
            await asyncio.to_thread(told, thread.id, thread.owner)
