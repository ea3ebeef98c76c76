"""A run that asks a person: approved, edited, rejected, forgotten; and no completed tool runs a second time."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import StructuredTool
from langgraph.graph import START, StateGraph
from sqlalchemy import create_engine

from agents.agent import Agent
from agents.approvals import Decision, NotAsked, Waiting, waiting_of
from agents.graphs import rag, router
from agents.history import settle
from agents.models import ScriptedModel
from agents.runtime import AgentChanged, RunLimit, Runtime
from agents.state import AgentState

pytestmark = pytest.mark.anyio


class Bank:
    """A tool with effects: every transfer is written down with its key."""

    def __init__(self) -> None:
        self.transfers: list[tuple[int, str]] = []

    def tool(self, *, approval: bool = True, **metadata: Any) -> StructuredTool:
        async def transfer(amount: int, config: RunnableConfig) -> str:
            """Transfer money."""
            self.transfers.append((amount, config["metadata"]["idempotency_key"]))
            return f"transferred {amount}"

        return StructuredTool.from_function(coroutine=transfer, name="transfer", metadata={"approval": approval, **metadata})


def paying(*amounts: int) -> AIMessage:
    calls = [{"name": "transfer", "args": {"amount": amount}, "id": f"c{i}"} for i, amount in enumerate(amounts)]
    return AIMessage("I will pay.", tool_calls=calls)


async def ask(runtime: Runtime, agent: Agent, text: str = "", *, run: str, thread: str | None = "t", **more: Any) -> dict:
    said = [HumanMessage(text)] if text else []
    parts = [p async for p in runtime.stream(agent, said, thread_id=thread, owner="ann", run_id=run, **more)]
    return parts[-1][2]


def asked(state: dict, run: str) -> Waiting:
    return waiting_of(run, state["__interrupt__"])


@pytest.mark.parametrize("thread", ["t", None])
async def test_nothing_runs_before_it_is_approved_and_then_once(runtime: Runtime, search: Any, thread: str | None) -> None:
    bank = Bank()
    agent = Agent("a", rag.build, ScriptedModel(replies=[paying(5), "Paid [1]."]), search, tools=[bank.tool()])
    state = await ask(runtime, agent, "pay 5 vacation days", run="r1", thread=thread)
    (question,) = asked(state, "r1").asks
    assert (question.id, question.name, question.arguments) == ("mcpr_r1_0", "transfer", {"amount": 5})
    assert bank.transfers == []
    with pytest.raises(NotAsked):
        await ask(runtime, agent, run="r2", decisions={"mcpr_other_0": Decision()})
    with pytest.raises(NotAsked):
        [p async for p in runtime.stream(agent, [], owner="bob", decisions={question.id: Decision()})]
    state = await ask(runtime, agent, run="r2", decisions={question.id: Decision()})
    assert [amount for amount, _ in bank.transfers] == [5]
    assert "Paid" in state["messages"][-1].content
    with pytest.raises(NotAsked):
        await ask(runtime, agent, run="r3", decisions={question.id: Decision()})
    assert len(bank.transfers) == 1
    assert [t.id for t in await runtime.threads("ann")] == (["t"] if thread else [])


def one_step(model: Any, retriever: Any, *, tools: Any = (), checkpointer: Any = None) -> Any:
    """What became of an agent that asked: a graph without the step that did."""

    async def say(state: AgentState) -> dict[str, Any]:
        return {"messages": [await model.ainvoke(settle(state["messages"]))]}

    return StateGraph(AgentState).add_node("say", say).add_edge(START, "say").compile(checkpointer=checkpointer)


@pytest.mark.parametrize("thread", ["t", None])
@pytest.mark.parametrize("builder", [rag.build, router.build])
@pytest.mark.parametrize("approve", [True, False])
async def test_an_answer_to_a_graph_that_has_changed_since_is_refused(
    runtime: Runtime, search: Any, builder: Any, thread: str | None, approve: bool
) -> None:
    bank = Bank()
    before = Agent("a", builder, ScriptedModel(replies=[paying(5)]), search, tools=[bank.tool()])
    await ask(runtime, before, "pay 5 vacation days", run="r1", thread=thread)
    model = ScriptedModel(replies=["There are 30 days."])
    after = Agent("a", one_step, model, search, tools=[bank.tool()])
    with pytest.raises(AgentChanged, match="not done"):
        await ask(runtime, after, run="r2", decisions={"mcpr_r1_0": Decision(approve=approve)})
    assert bank.transfers == []
    with pytest.raises(NotAsked):
        await ask(runtime, after, run="r3", decisions={"mcpr_r1_0": Decision()})
    if thread:
        assert (await ask(runtime, after, "how many days?", run="r4"))["messages"][-1].content == "There are 30 days."
        assert [m.type for m in model.calls[-1]] == ["human", "ai", "tool", "ai", "human"]
    assert [t.id for t in await runtime.threads("ann")] == (["t"] if thread else [])


async def test_a_no_holds_though_the_tool_asks_no_more(runtime: Runtime, search: Any) -> None:
    bank = Bank()
    model = ScriptedModel(replies=[paying(5), "Nothing was paid.", paying(6), "Six were paid."])
    await ask(runtime, Agent("a", rag.build, model, search, tools=[bank.tool()]), "pay 5 vacation days", run="r1")
    changed = Agent("a", rag.build, model, search, tools=[bank.tool(approval=False)])
    await ask(runtime, changed, run="r2", decisions={"mcpr_r1_0": Decision(approve=False)})
    assert bank.transfers == []
    await ask(runtime, changed, "pay 6 vacation days", run="r3")
    assert [amount for amount, _ in bank.transfers] == [6], "it was said of one call"


async def test_edited_and_rejected(runtime: Runtime, search: Any) -> None:
    bank = Bank()
    model = ScriptedModel(replies=[paying(5, 7), "One was paid [1]."])
    agent = Agent("a", rag.build, model, search, tools=[bank.tool()])
    waiting = asked(await ask(runtime, agent, "pay vacation", run="r1"), "r1")
    with pytest.raises(NotAsked, match="decide all"):
        await ask(runtime, agent, run="r2", decisions={"mcpr_r1_0": Decision()})
    decisions = {"mcpr_r1_0": Decision(arguments={"amount": 4}), "mcpr_r1_1": Decision(approve=False, reason="too much")}
    assert [each.id for each in waiting.asks] == list(decisions)
    await ask(runtime, agent, run="r2", decisions=decisions)
    assert [amount for amount, _ in bank.transfers] == [4]
    told = [m for m in model.calls[-1] if m.type in ("ai", "tool")]
    assert told[0].tool_calls[0]["args"] == {"amount": 4}, "the history says what was run"
    assert "too much" in told[-1].content


async def test_an_approval_that_never_comes(runtime: Runtime, search: Any) -> None:
    bank = Bank()
    model = ScriptedModel(replies=[paying(5), "There are 30 days of vacation [1]."])
    agent = Agent("a", rag.build, model, search, tools=[bank.tool()])
    await ask(runtime, agent, "pay vacation", run="r1")
    state = await ask(runtime, agent, "never mind, how many vacation days?", run="r2")
    assert "30 days" in state["messages"][-1].content
    assert bank.transfers == []
    assert any("said something else" in m.content for m in model.calls[-1] if m.type == "tool")
    with pytest.raises(NotAsked):
        await ask(runtime, agent, run="r3", decisions={"mcpr_r1_0": Decision()})


async def test_it_waits_over_a_restart(runtime: Runtime, search: Any, tmp_path: Path) -> None:
    bank = Bank()
    agent = Agent("a", rag.build, ScriptedModel(replies=[paying(5), "Paid [1]."]), search, tools=[bank.tool()])
    await ask(runtime, agent, "pay vacation", run="r1")
    await runtime.close()
    engine = create_engine(f"sqlite:///{tmp_path}/smalti.db")
    revived = Runtime(engine, tmp_path / "checkpoints.db")
    state = await ask(revived, agent, run="r2", decisions={"mcpr_r1_0": Decision()})
    assert "Paid" in state["messages"][-1].content
    assert len(bank.transfers) == 1
    await revived.close()
    engine.dispose()


async def test_a_developers_own_question(runtime: Runtime) -> None:
    from langgraph.graph import START, MessagesState, StateGraph
    from langgraph.types import interrupt

    def build(model: Any, retriever: Any, *, checkpointer: Any = None) -> Any:
        async def node(state: MessagesState) -> dict:
            return {"messages": [AIMessage(f"You chose {interrupt({'choose': ['red', 'blue']})}.")]}

        inner = StateGraph(MessagesState).add_node("ask", node).add_edge(START, "ask").compile()
        return StateGraph(MessagesState).add_node("sub", inner).add_edge(START, "sub").compile(checkpointer=checkpointer)

    agent = Agent("own", build, None, None)
    (question,) = asked(await ask(runtime, agent, "paint", run="r1"), "r1").asks
    assert (question.approval, question.arguments) == (False, {"choose": ["red", "blue"]})
    state = await ask(runtime, agent, run="r2", decisions={question.id: Decision(answer="blue")})
    assert state["messages"][-1].content == "You chose blue."
    with pytest.raises(ValueError, match="name a conversation"):
        await ask(runtime, agent, "paint", run="r3", thread=None)


@pytest.mark.parametrize("stop_after", range(1, 16))
async def test_stopped_anywhere_a_finished_call_is_never_run_again(runtime: Runtime, search: Any, stop_after: int) -> None:
    """Cancelled at an event, then approved again if it still waits: each transfer happens at most once."""
    bank = Bank()
    model = ScriptedModel(replies=[paying(5, 7), "Paid [1].", "Done [1].", "Done [1]."])
    agent = Agent("a", rag.build, model, search, tools=[bank.tool()])
    await ask(runtime, agent, "pay vacation", run="r1")
    decisions = {"mcpr_r1_0": Decision(), "mcpr_r1_1": Decision()}
    stream = runtime.stream(agent, [], owner="ann", run_id="r2", decisions=decisions)
    seen = 0
    async for _ in stream:
        seen += 1
        if seen == stop_after:
            break
    await stream.aclose()
    state = await ask(runtime, agent, "and now?", run="r3")
    assert state["messages"][-1].type == "ai"
    keys = [key for _, key in bank.transfers]
    assert len(set(keys)) == len(keys) <= 2
    open_calls: set[str] = set()
    for message in model.calls[-1]:
        if message.type == "tool":
            open_calls.discard(message.tool_call_id)
            continue
        assert not open_calls, "a provider would refuse this history"
        open_calls = {call["id"] for call in getattr(message, "tool_calls", None) or ()}
    ran = {str(amount) for amount, _ in bank.transfers}
    told = " ".join(m.content for m in model.calls[-1] if m.type == "tool")
    assert all(f"transferred {amount}" in told for amount in ran), "a finished call's result is in the history"


async def test_tools_that_hang_say_too_much_or_are_stopped(runtime: Runtime, search: Any) -> None:
    begun, cancelled = asyncio.Event(), asyncio.Event()

    async def hang() -> str:
        """Hang."""
        begun.set()
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return ""

    async def shout() -> str:
        """Say 50 MB."""
        return "x" * 50_000_000

    tools = [
        StructuredTool.from_function(coroutine=hang, name="hang", metadata={"timeout": 0.05}),
        StructuredTool.from_function(coroutine=shout, name="shout"),
    ]
    calls = [{"name": name, "args": {}, "id": name} for name in ("hang", "shout")]
    model = ScriptedModel(replies=[AIMessage("", tool_calls=calls), "There are 30 days of paid vacation a year [1]."])
    state = await ask(runtime, Agent("a", rag.build, model, search, tools=tools), "vacation days?", run="r1")
    told = {m.name: m.content for m in state["messages"] if m.type == "tool"}
    assert "did not finish within 0.05 s" in told["hang"]
    assert cancelled.is_set()
    assert "had 50000000 characters" in told["shout"]
    assert len(told["shout"]) < 50_000

    slow = [StructuredTool.from_function(coroutine=hang, name="hang")]
    begun.clear()
    cancelled.clear()
    model = ScriptedModel(replies=[AIMessage("", tool_calls=calls[:1]), "ok"])
    stream = runtime.stream(Agent("b", rag.build, model, search, tools=slow), [HumanMessage("vacation?")], thread_id="u")
    parts = asyncio.create_task(_drain(stream))
    await begun.wait()
    parts.cancel()
    await asyncio.wait([parts])
    await asyncio.wait_for(cancelled.wait(), 60)


async def _drain(stream: Any) -> None:
    async for _ in stream:
        pass


async def test_time_and_steps_are_bounded(runtime: Runtime) -> None:
    from langgraph.graph import START, MessagesState, StateGraph

    def circle(model: Any, retriever: Any, *, checkpointer: Any = None) -> Any:
        async def turn(state: MessagesState) -> dict:
            await asyncio.sleep(model or 0)
            return {}

        graph = StateGraph(MessagesState).add_node("a", turn).add_node("b", turn)
        return graph.add_edge(START, "a").add_edge("a", "b").add_edge("b", "a").compile(checkpointer=checkpointer)

    for thread in ("t", None):
        with pytest.raises(RunLimit, match="7 steps"):
            await ask(runtime, Agent("c", circle, None, None, step_limit=7), "go", run="r1", thread=thread)
        with pytest.raises(RunLimit, match=r"within 0\.1 s"):
            await ask(runtime, Agent("c", circle, 30, None, timeout=0.1), "go", run="r2", thread=thread)
