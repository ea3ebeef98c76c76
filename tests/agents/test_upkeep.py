"""Threads between runs: what comes while one is changed, deleted or brought to rest, and what could not be."""

from __future__ import annotations

import asyncio
import threading
from typing import Annotated, Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage

from agents.agent import Agent
from agents.approvals import Decision, Waiting
from agents.graphs import react
from agents.models import ScriptedModel
from agents.runtime import NothingAsked, Runtime, ThreadNotFound
from tests.agents.test_approvals import Bank, paying
from tests.agents.test_branches import ask, echo

pytestmark = pytest.mark.anyio


async def test_a_message_that_comes_while_its_thread_is_deleted_finds_none(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = echo()
    await ask(runtime, agent, "a")
    reached, go_on = threading.Event(), threading.Event()

    def slowly(thread_id: str, owner: str) -> None:
        reached.set()
        go_on.wait(30)

    runtime.on_delete.append(slowly)
    monkeypatch.setattr(runtime.table, "delete", lambda *of, delete=runtime.table.delete: (slowly(*of), delete(*of)))
    deleting = asyncio.create_task(runtime.delete("t", "ann"))
    await asyncio.to_thread(reached.wait, 30)
    asking = asyncio.create_task(ask(runtime, agent, "b"))
    again = asyncio.create_task(runtime.delete("t", "ann"))
    await asyncio.sleep(0.05)
    assert not asking.done()
    deleting.cancel()  # who asked is gone; it is done to the end all the same
    go_on.set()
    with pytest.raises(ThreadNotFound):
        await asking
    with pytest.raises(ThreadNotFound):
        await again
    assert await runtime.threads("ann") == []
    assert await ask(runtime, agent, "c") == ["c", "c #1"]


async def test_what_could_not_be_settled_is_settled_by_the_next_run(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    bank = Bank()
    tool = bank.tool()
    tool.metadata = {}
    begun = asyncio.Event()

    async def never(**arguments: Any) -> str:
        begun.set()
        await asyncio.Event().wait()
        return ""

    tool.func, tool.coroutine = None, never
    agent = Agent("a", react.build, ScriptedModel(replies=[paying(5), "Hello."]), None, tools=[tool])
    running = asyncio.create_task(ask(runtime, agent, "pay"))
    await begun.wait()

    async def full(*_: Any, **__: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("agents.runtime.settle", full)
    running.cancel()
    await asyncio.wait([running])
    await runtime.rested("t")
    assert (await runtime.thread("t", "ann")).running, "it is known that the thread is not at rest"
    monkeypatch.undo()
    said = await ask(runtime, agent, "hi")
    assert said[0] == "pay"
    assert said[-2:] == ["hi", "Hello."]
    assert "did not finish" in " ".join(said)


async def test_nothing_new_does_not_drop_what_a_person_is_asked(runtime: Runtime) -> None:
    bank = Bank()
    agent = Agent("a", react.build, ScriptedModel(replies=[paying(5), "Paid."]), None, tools=[bank.tool()])
    await ask(runtime, agent, "pay", run_id="r1")
    with pytest.raises(NothingAsked):
        _ = [p async for p in runtime.stream(agent, [HumanMessage("pay"), AIMessage("x")], thread_id="t", owner="ann")]
    waiting = (await runtime.thread("t", "ann")).waiting
    assert waiting
    (question,) = Waiting.from_json(waiting).asks
    _ = [p async for p in runtime.stream(agent, [], owner="ann", run_id="r2", decisions={question.id: Decision()})]
    assert [amount for amount, _ in bank.transfers] == [5]


async def test_a_run_is_undone_though_it_has_not_begun(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = echo()
    await ask(runtime, agent, "a")
    there, go_on, stands = asyncio.Event(), asyncio.Event(), runtime._stands

    async def slowly(*args: Any) -> Any:
        there.set()
        await go_on.wait()
        return await stands(*args)

    monkeypatch.setattr(runtime, "_stands", slowly)
    running = asyncio.create_task(ask(runtime, agent, "b", run_id="r9"))
    await there.wait()
    assert runtime.undo("t", "r9")
    running.cancel()
    await asyncio.wait([running])
    go_on.set()
    assert await ask(runtime, agent, "c") == ["a", "a #0", "c", "a+c #1"]


async def test_a_value_may_bear_a_nodes_name_and_langgraphs_own_are_not_told(runtime: Runtime) -> None:
    from langgraph.graph import START, MessagesState, StateGraph

    class State(MessagesState):
        total: Annotated[int, lambda a, b: a + b]

    def total(state: State) -> dict:
        return {"messages": [("ai", f"{state['total']}")]}

    def build(model: Any, retriever: Any, *, checkpointer: Any = None) -> Any:
        graph = StateGraph(State)
        graph.add_node("one", lambda state: {"total": 1})
        graph.add_node("two", lambda state: {"total": 1})
        graph.add_node("total", total)
        graph.add_edge(START, "one")
        graph.add_edge(START, "two")
        graph.add_edge(["one", "two"], "total")
        return graph.compile(checkpointer=checkpointer)

    agent = Agent("a", build, None, None)
    assert await ask(runtime, agent, "count") == ["count", "2"]
    assert set((await runtime.snapshot("t", "ann")).values) == {"messages", "total"}
    await runtime.update(agent, {"total": 40}, "t", owner="ann", run_id="u1")
    assert (await runtime.snapshot("t", "ann")).values["total"] == 42
    assert (await ask(runtime, agent, "count"))[-1] == "44"
