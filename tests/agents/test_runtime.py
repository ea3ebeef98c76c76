from __future__ import annotations

import asyncio
import sqlite3
import warnings
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.tools import StructuredTool
from sqlalchemy import create_engine

from agents.agent import Agent
from agents.graphs import rag, supervisor
from agents.models import ScriptedModel
from agents.runtime import STOPPED, Runtime, ThreadBusy, ThreadNotFound

pytestmark = pytest.mark.anyio


@pytest.fixture
def agent(search: Any, embedder: Any) -> Agent:
    return Agent("assistant", supervisor.build, None, search, options={"embed": embedder, "unknown_option": 1})


async def ask(runtime: Runtime, agent: Agent, text: str, thread: str | None = "t1", owner: str = "ann", run: str = "r1") -> dict:
    parts = [p async for p in runtime.stream(agent, [HumanMessage(text)], thread_id=thread, owner=owner, run_id=run)]
    assert [p[1] for p in parts].count("values") == 1
    assert parts[-1][:2] == ((), "values")
    return parts[-1][2]


async def test_a_thread_remembers_and_belongs_to_its_owner(runtime: Runtime, agent: Agent, search: Any) -> None:
    await ask(runtime, agent, "How do I install the client?", run="r1")
    state = await ask(runtime, agent, "and how do I delete a table with it?", run="r2")
    assert "install the client" in search.queries[-1].lower()
    assert 'client.drop("orders")' in state["messages"][-1].content
    turns = await runtime.turns("t1", "ann")
    assert [(t.role, t.request_id) for t in turns] == [("user", "r1"), ("assistant", "r1"), ("user", "r2"), ("assistant", "r2")]
    assert turns[1].citations[0]["source"] == "handbook.md"
    assert turns[1].mode == "extractive"
    assert [t.title for t in await runtime.threads("ann")] == ["How do I install the client?"]
    assert await runtime.threads("bob") == []
    for call in (
        ask(runtime, agent, "hi", owner="bob"),
        runtime.turns("t1", "bob"),
        runtime.rename("t1", "bob", "x"),
        runtime.delete("t1", "bob"),
    ):
        with pytest.raises(ThreadNotFound):
            await call
    await runtime.rename("t1", "ann", "Client")
    assert (await runtime.thread("t1", "ann")).title == "Client"
    await runtime.delete("t1", "ann")
    with pytest.raises(ThreadNotFound):
        await runtime.turns("t1", "ann")
    state = await ask(runtime, agent, "How do I install the client?")
    assert len(state["messages"]) == 2


async def test_a_thread_survives_a_restart_without_warnings(
    tmp_path: Path, agent: Agent, caplog: pytest.LogCaptureFixture
) -> None:
    engine = create_engine(f"sqlite:///{tmp_path}/smalti.db")
    for run in ("r1", "r2"):
        runtime = Runtime(engine, tmp_path / "checkpoints.db")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            state = await ask(runtime, agent, "How many days of vacation do employees get?", run=run)
        await runtime.close()
    assert len(state["messages"]) == 4
    assert not [r for r in caplog.records if "deserial" in r.message.lower() or "unregistered" in r.message.lower()]
    engine.dispose()


async def test_without_a_thread_nothing_is_kept(runtime: Runtime, agent: Agent, tmp_path: Path) -> None:
    state = await ask(runtime, agent, "How many days of vacation do employees get?", thread=None)
    assert "30 days" in state["messages"][-1].content
    assert not (tmp_path / "checkpoints.db").exists()


async def test_a_resent_history_is_not_appended_twice(runtime: Runtime, agent: Agent) -> None:
    first = [HumanMessage("How many days of vacation do employees get?")]
    async for _ in runtime.stream(agent, first, thread_id="t", owner="ann"):
        pass
    resent = [*first, AIMessage("30 days"), HumanMessage("When do unused vacation days expire?")]
    parts = [p async for p in runtime.stream(agent, resent, thread_id="t", owner="ann")]
    texts = [m.content for m in parts[-1][2]["messages"] if m.type == "human"]
    assert texts == ["How many days of vacation do employees get?", "When do unused vacation days expire?"]
    with pytest.raises(ValueError, match="nothing new"):
        await anext(runtime.stream(agent, resent[:2], thread_id="t", owner="ann"))


async def test_one_run_at_a_time(runtime: Runtime, search: Any) -> None:
    slow = Agent("slow", rag.build, ScriptedModel(replies=["one two three four five", "again"], delay=0.05), search)
    stream = runtime.stream(slow, [HumanMessage("vacation days")], thread_id="t", owner="ann")
    assert (await anext(stream))[1] == "started"
    await anext(stream)
    with pytest.raises(ThreadBusy):
        await ask(runtime, slow, "second", thread="t")
    await stream.aclose()
    state = await ask(runtime, slow, "When do unused vacation days expire?", thread="t", run="r2")  # a stopped run is waited for
    assert state["messages"][-1].content == "again"


def counting(fail: bool = False) -> StructuredTool:
    async def count(of: str) -> str:
        """Count things."""
        await asyncio.sleep(0)
        if fail:
            raise RuntimeError("the counter is broken")
        return f"42 {of}"

    return StructuredTool.from_function(coroutine=count, name="count")


def calling(text: str = "Let me count.") -> AIMessage:
    return AIMessage(text, tool_calls=[{"name": "count", "args": {"of": "days"}, "id": "c1"}])


@pytest.mark.parametrize("stop_after", range(14))
async def test_cancelled_anywhere_the_next_turn_works(runtime: Runtime, search: Any, stop_after: int) -> None:
    model = ScriptedModel(replies=[calling(), "There are 30 days of vacation [1]."])
    agent = Agent("a", rag.build, model, search, tools=[counting()])
    seen: list[str] = []
    stream = runtime.stream(agent, [HumanMessage("How many vacation days?")], thread_id="t", owner="ann", run_id="r1")

    async def consume() -> None:
        async for _, mode, chunk in stream:
            seen.append(mode)
            if mode == "custom" and "delta" in chunk:
                said.append(chunk["delta"])
            if len(seen) > stop_after:
                asyncio.current_task().cancel()  # type: ignore[union-attr]
                await asyncio.sleep(0)

    said: list[str] = []
    task = asyncio.create_task(consume())
    await asyncio.wait([task])
    await stream.aclose()
    follow = ScriptedModel(replies=["Fine, 30 days [1]."] * 2)
    state = await ask(runtime, Agent("a", rag.build, follow, search), "and sick days of vacation?", thread="t", run="r2")
    assert state["messages"][-1].content.startswith("Fine")
    sent = follow.calls[-1]
    pending = None
    for message in sent:
        if pending:
            assert message.type == "tool"
        pending = getattr(message, "tool_calls", None)
    turns = await runtime.turns("t", "ann")
    assert [t.role for t in turns] == ["user", "assistant", "user", "assistant"]
    assert turns[0].text == "How many vacation days?"
    assert turns[1].text.startswith("".join(said).strip()[:10]) or turns[1].text.endswith(STOPPED)


async def test_a_run_cancelled_before_it_said_anything(runtime: Runtime, search: Any, agent: Agent) -> None:
    gate, entered = asyncio.Event(), asyncio.Event()

    async def hangs(query: str, *, k: int = 5) -> list:
        entered.set()
        await gate.wait()
        return []

    stuck = Agent("a", rag.build, None, hangs)
    task = asyncio.create_task(ask(runtime, stuck, "vacation?", thread="t"))
    await entered.wait()
    task.cancel()
    await asyncio.wait([task])
    await ask(runtime, agent, "How many days of vacation do employees get?", thread="t", run="r2")
    turns = await runtime.turns("t", "ann")
    assert [t.text for t in turns[:2]] == ["vacation?", STOPPED]
    assert turns[1].status == "cancelled"
    assert "30 days" in turns[3].text


async def test_a_failing_model_leaves_a_usable_thread(runtime: Runtime, search: Any, agent: Agent) -> None:
    failing = Agent("a", rag.build, ScriptedModel(replies=[ValueError("upstream answered 500")]), search)
    with pytest.raises(ValueError, match="upstream"):
        await ask(runtime, failing, "How many vacation days?", thread="t")
    state = await ask(runtime, agent, "How many days of vacation do employees get?", thread="t", run="r2")
    assert "30 days" in state["messages"][-1].content
    assert (await runtime.turns("t", "ann"))[1].status == "failed"


async def test_a_failing_tool_is_the_models_to_handle(runtime: Runtime, search: Any) -> None:
    model = ScriptedModel(replies=[calling(), "The counter failed, but there are 30 days of paid vacation a year [1]."])
    agent = Agent("a", rag.build, model, search, tools=[counting(fail=True)])
    state = await ask(runtime, agent, "How many vacation days?", thread="t")
    tool = next(m for m in state["messages"] if m.type == "tool")
    assert tool.status == "error"
    assert "the counter is broken" in tool.content
    assert state["messages"][-1].content.startswith("The counter failed")


async def test_a_graph_without_our_events_streams_its_models_tokens(runtime: Runtime) -> None:
    from langgraph.graph import START, MessagesState, StateGraph

    def build(model, retriever, *, tools=(), checkpointer=None):
        async def node(state: MessagesState) -> dict:
            return {"messages": [await model.ainvoke(state["messages"])]}

        return StateGraph(MessagesState).add_node("say", node).add_edge(START, "say").compile(checkpointer=checkpointer)

    agent = Agent("own", build, ScriptedModel(replies=["one two three", "four"]), None)
    parts = [p async for p in runtime.stream(agent, [HumanMessage("x")], thread_id="t", owner="ann")]
    assert "".join(p[2][0].content for p in parts if p[1] == "messages") == "one two three"
    await ask(runtime, agent, "y", thread="t")
    assert [t.text for t in await runtime.turns("t", "ann")] == ["x", "one two three", "y", "four"]


async def test_many_turns_stay_small(runtime: Runtime, agent: Agent, tmp_path: Path) -> None:
    texts = 0
    for turn in range(40):
        state = await ask(runtime, agent, "How many days of paid vacation do employees get a year?", thread="t", run=f"r{turn}")
        texts += 55 + len(state["messages"][-1].content)
    await runtime.close()
    with sqlite3.connect(tmp_path / "checkpoints.db") as connection:
        rows = connection.execute("SELECT COUNT(*), SUM(LENGTH(checkpoint)) FROM checkpoints").fetchone()
        assert connection.execute("SELECT COUNT(*) FROM writes").fetchone()[0] == 0
    connection.close()
    assert rows[0] == 1
    assert rows[1] < 20 * texts


async def test_what_a_builder_returns_is_looked_at(runtime: Runtime) -> None:
    from langgraph.graph import START, MessagesState, StateGraph

    async def say(state: MessagesState) -> dict:
        return {"messages": [AIMessage(f"turn {len(state['messages'])}")]}

    def graph() -> StateGraph:
        return StateGraph(MessagesState).add_node("say", say).add_edge(START, "say")

    for returned, named in ((None, "NoneType"), (graph(), "StateGraph")):
        with pytest.raises(TypeError, match=f"{named}, which is no compiled graph"):
            Agent("own", lambda model, retriever, returned=returned: returned, None, None)

    forgetful = Agent("own", lambda model, retriever, checkpointer=None: graph().compile(), None, None)
    await ask(runtime, forgetful, "x")
    assert (await ask(runtime, forgetful, "y", run="r2"))["messages"][-1].content == "turn 3"
    await ask(runtime, forgetful, "z", thread=None)

    def broken(model: Any, retriever: Any, *, checkpointer: Any = None) -> Any:
        if checkpointer is not None:
            raise RuntimeError("no graph on a thread")
        return graph().compile()

    with pytest.raises(RuntimeError, match="no graph on a thread"):
        await ask(runtime, Agent("own", broken, None, None), "x", thread="t2")
    assert (await ask(runtime, forgetful, "y", thread="t2"))["messages"][-1].content == "turn 1"
