"""States that a thread went through, and branches from them: edited, asked again, taken back, copied."""

from __future__ import annotations

import asyncio
import operator
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from sqlalchemy import create_engine

from agents.agent import Agent
from agents.approvals import Decision
from agents.branches import Branch, Held, StateNotFound, derive
from agents.edits import NotAnUpdate
from agents.graphs import react
from agents.models import ScriptedModel
from agents.runtime import NotAsked, Runtime, ThreadBusy, ThreadNotFound
from tests.agents.test_approvals import Bank, paying
from tests.servers import postgres

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with postgres() as url:
        yield url


@pytest.fixture
async def runtime(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Runtime]:
    engine = create_engine(f"sqlite:///{tmp_path}/smalti.db")
    in_file = getattr(request, "param", "sqlite") == "sqlite"
    made = Runtime(engine, tmp_path / "checkpoints.db" if in_file else request.getfixturevalue("server"))
    yield made
    for thread in await made.threads("ann"):
        await made.delete(thread.id, "ann")
    await made.close()
    engine.dispose()


both = pytest.mark.parametrize("runtime", ["sqlite", "postgres"], indirect=True)


def echo() -> Agent:
    """Says what it is told and how often it has been told anything; `!wait` never ends."""
    from langgraph.graph import START, MessagesState, StateGraph

    answers = iter(range(100))

    def build(model: Any, retriever: Any, *, checkpointer: Any = None) -> Any:
        async def say(state: MessagesState) -> dict:
            asked = [m.text for m in state["messages"] if m.type == "human"]
            if asked[-1] == "!wait":
                await asyncio.Event().wait()
            return {"messages": [AIMessage(f"{'+'.join(asked)} #{next(answers)}")]}

        return StateGraph(MessagesState).add_node("say", say).add_edge(START, "say").compile(checkpointer=checkpointer)

    return Agent("echo", build, None, None)


async def ask(runtime: Runtime, agent: Agent, text: str = "", **more: Any) -> list[str]:
    said = [HumanMessage(text)] if text else []
    given = {"thread_id": "t", "owner": "ann", "again": not text} | more
    parts = [part async for part in runtime.stream(agent, said, **given)]
    return texts(parts[-1][2]["messages"])


def texts(messages: Any) -> list[str]:
    return [message.text for message in messages]


async def test_every_state_is_told_and_their_ids_stay(runtime: Runtime) -> None:
    agent = echo()
    await ask(runtime, agent, "a")
    before = await runtime.history("t", "ann")
    await ask(runtime, agent, "b")
    history = await runtime.history("t", "ann")
    assert [texts(state.messages) for state in history.states] == [
        ["a", "a #0", "b", "a+b #1"],
        ["a", "a #0", "b"],
        ["a", "a #0"],
        ["a"],
        [],
    ]
    assert [state.parent for state in history.states] == [*(state.id for state in history.states[1:]), None]
    assert {state.id for state in before.states} < {state.id for state in history.states}
    assert [state.open for state in history.states] == [False, True, False, True, False]
    with pytest.raises(ThreadNotFound):
        await runtime.history("t", "bob")


@both
async def test_edited_asked_again_and_gone_back_to(runtime: Runtime) -> None:
    agent = echo()
    await ask(runtime, agent, "a")
    await ask(runtime, agent, "b")
    first = await runtime.history("t", "ann")
    answered, _, after_a, asked_a, root = first.states
    assert await ask(runtime, agent, "c", state=after_a.id) == ["a", "a #0", "c", "a+c #2"]
    assert await ask(runtime, agent, state=asked_a.id) == ["a", "a #3"], "asked again"
    assert await ask(runtime, agent, "z", state=root.id) == ["z", "z #4"]
    assert await ask(runtime, agent, "d", state=answered.id) == ["a", "a #0", "b", "a+b #1", "d", "a+b+d #5"]
    history = await runtime.history("t", "ann")
    assert {state.id for state in first.states} <= {state.id for state in history.states}
    leaves = {state.id for state in history.states} - {state.parent for state in history.states}
    assert sorted(history.find(leaf).messages[-1].text for leaf in leaves) == ["a #3", "a+b+d #5", "a+c #2", "z #4"]
    assert [state.id for state in history.states] == sorted((state.id for state in history.states), reverse=True)
    assert history.head is history.states[0]
    assert asked_a.id == next(state.parent for state in history.states if texts(state.messages) == ["a", "a #3"])
    with pytest.raises(StateNotFound):
        await ask(runtime, agent, "x", state="nowhere")
    with pytest.raises(ValueError, match="nothing to answer"):
        await ask(runtime, agent)
    assert [turn.text for turn in await runtime.turns("t", "ann")][-2:] == ["d", "a+b+d #5"]


async def test_updated(runtime: Runtime) -> None:
    agent = echo()
    await ask(runtime, agent, "a")
    mine = {"thread_id": "t", "owner": "ann"}
    answer = (await runtime.snapshot("t", "ann")).values["messages"][-1]
    await runtime.update(agent, {"messages": [{**answer, "content": "better"}]}, run_id="u1", **mine)
    assert texts((await runtime.history("t", "ann")).states[0].messages) == ["a", "better"], "an id that is there is replaced"
    await runtime.update(agent, {"messages": {"role": "user", "content": "b"}}, run_id="u2", as_node="__start__", **mine)
    assert (await runtime.snapshot("t", "ann")).next == ("say",)
    assert await ask(runtime, agent) == ["a", "better", "b", "a+b #1"]
    root = (await runtime.history("t", "ann")).states[-1]
    await runtime.update(agent, {"messages": ("user", "new")}, run_id="u3", state=root.id, **mine)
    assert await ask(runtime, agent) == ["new", "new #2"]
    for values, node in (({"nothing": 1}, None), ({"messages": [1]}, None), ({"messages": "x"}, "nowhere")):
        with pytest.raises(NotAnUpdate):
            await runtime.update(agent, values, run_id="u4", as_node=node, **mine)
    with pytest.raises(ThreadNotFound):
        await runtime.update(agent, {"messages": "x"}, run_id="u5", thread_id="t", owner="bob")


@both
@pytest.mark.parametrize("state", [None, "root"])
async def test_taken_back_as_if_it_had_never_been(runtime: Runtime, state: str | None) -> None:
    agent = echo()
    await ask(runtime, agent, "a")
    history = await runtime.history("t", "ann")
    where = {"state": history.states[-1].id} if state else {}
    running = asyncio.create_task(ask(runtime, agent, "!wait", run_id="r9", **where))
    while not runtime.undo("t", "r9"):
        await asyncio.wait([running], timeout=0.01)
    assert not runtime.undo("t", "another")
    with pytest.raises(ThreadBusy):
        await runtime.update(agent, {"messages": "x"}, run_id="u", thread_id="t", owner="ann")
    running.cancel()
    await asyncio.wait([running])
    await runtime.snapshot("t", "ann")
    assert [s.id for s in (await runtime.history("t", "ann")).states] == [s.id for s in history.states]
    assert await ask(runtime, agent, "b") == ["a", "a #0", "b", "a+b #1"]


@pytest.mark.parametrize("undone", [True, False])
async def test_stopped_on_the_way_to_an_earlier_state(runtime: Runtime, undone: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = echo()
    await ask(runtime, agent, "a")
    history = await runtime.history("t", "ann")
    there, go_on, go_back = asyncio.Event(), asyncio.Event(), runtime.branches.go_back

    async def slowly(*args: Any) -> None:
        await go_back(*args)
        there.set()
        await go_on.wait()

    monkeypatch.setattr(runtime.branches, "go_back", slowly)
    running = asyncio.create_task(ask(runtime, agent, "b", run_id="r9", state=history.states[-1].id))
    await there.wait()
    assert not undone or runtime.undo("t", "r9")
    running.cancel()
    await asyncio.wait([running])
    resting = asyncio.create_task(runtime.history("t", "ann"))
    await asyncio.sleep(0.05)
    assert not resting.done()
    go_on.set()
    states = (await resting).states
    if undone:
        assert [state.id for state in states] == [state.id for state in history.states]
        assert await ask(runtime, agent, "c") == ["a", "a #0", "c", "a+c #1"]
    else:
        assert texts(states[0].messages)[0] == "b", "what was said is kept"
        assert (await ask(runtime, agent, "c"))[-1] == "b+c #1"


async def test_a_run_that_cannot_begin_leaves_its_thread_where_it_stood(runtime: Runtime) -> None:
    agent = echo()
    await ask(runtime, agent, "a")
    history = await runtime.history("t", "ann")
    parts = runtime.stream(agent, [AIMessage("made up")], thread_id="t", owner="ann", state=history.states[1].id)
    with pytest.raises(ValueError, match="nothing new"):
        await anext(parts)
    assert (await runtime.history("t", "ann")).head == history.head
    assert await ask(runtime, agent, "b") == ["a", "a #0", "b", "a+b #1"]


@both
async def test_what_a_graph_keeps_beside_its_messages_is_gone_back_to(runtime: Runtime) -> None:
    from langgraph.graph import START, MessagesState, StateGraph

    class Counting(MessagesState, total=False):
        turns: int
        names: Annotated[list[str], operator.add]

    def build(model: Any, retriever: Any, *, checkpointer: Any = None) -> Any:
        async def count(state: Counting) -> dict:
            turns, said = state.get("turns", 0) + 1, state["messages"][-1].text
            return {"messages": [AIMessage(f"{turns} {state.get('names')}")], "turns": turns, "names": [said]}

        return StateGraph(Counting).add_node("count", count).add_edge(START, "count").compile(checkpointer=checkpointer)

    agent = Agent("counting", build, None, None)
    for text in ("a", "b", "c"):
        await ask(runtime, agent, text)
    first = (await runtime.history("t", "ann")).states
    assert texts(first[0].messages)[-1] == "3 ['a', 'b']"
    assert (await ask(runtime, agent, "d", state=first[4].id))[-1] == "2 ['a']"
    assert (await ask(runtime, agent, state=first[1].id))[-1] == "3 ['a', 'b']"
    assert (await ask(runtime, agent, "e", state=first[-1].id))[-1] == "1 []"
    assert (await ask(runtime, agent, "f", state=first[0].id))[-1] == "4 ['a', 'b', 'c']"
    await runtime.copy("t", "ann", "t2")
    assert (await ask(runtime, agent, "g", state=first[2].id, thread_id="t2"))[-1] == "3 ['a', 'b']"


@both
async def test_copied_with_its_branches(runtime: Runtime) -> None:
    agent = echo()
    await ask(runtime, agent, "a")
    await ask(runtime, agent, state=(await runtime.history("t", "ann")).states[1].id)
    with pytest.raises(ThreadNotFound):
        await runtime.copy("t", "bob", "t2")
    await runtime.copy("t", "ann", "t2")
    await runtime.delete("t", "ann")
    copied = await runtime.history("t2", "ann")
    assert [texts(state.messages) for state in copied.states] == [["a", "a #1"], ["a", "a #0"], ["a"], []]
    assert await ask(runtime, agent, "b", thread_id="t2", state=copied.states[1].id) == ["a", "a #0", "b", "a+b #2"]


async def test_one_who_is_asked_and_goes_another_way(runtime: Runtime) -> None:
    bank = Bank()
    model = ScriptedModel(replies=[paying(5), paying(6), "Paid.", "All right."])
    agent = Agent("a", react.build, model, None, tools=[bank.tool()])
    more = {"thread_id": "t", "owner": "ann"}

    async def run(text: str = "", **given: Any) -> Any:
        said = [HumanMessage(text)] if text else []
        return [part async for part in runtime.stream(agent, said, **more, **given)][-1][2]

    await run("pay", run_id="r1")
    asked, question, root = (await runtime.history("t", "ann")).states
    await run(again=True, state=question.id, run_id="r2")
    history = await runtime.history("t", "ann")
    assert history.find(question.id).parent == root.id
    with pytest.raises(NotAsked):
        await run(decisions={"mcpr_r1_0": None}, run_id="r3")  # type: ignore[dict-item]
    waiting = (await runtime.snapshot("t", "ann")).waiting
    assert waiting is not None
    with pytest.raises(NotAsked, match="gone on"):
        await run(decisions={waiting.asks[0].id: Decision()}, state=asked.id, run_id="r3")
    state = await run(decisions={waiting.asks[0].id: Decision()}, run_id="r3")
    assert [amount for amount, _ in bank.transfers] == [6]
    assert state["messages"][-1].text == "Paid."
    result = next(m for m in state["messages"] if m.type == "tool")
    at_result = next(s for s in (await runtime.history("t", "ann")).states if s.messages and s.messages[-1].id == result.id)
    state = await run(again=True, state=at_result.id, run_id="r4")
    assert state["messages"][-1].text == "All right."
    assert len(bank.transfers) == 1, "what was done is not done again"


async def test_an_invented_result_of_a_call_that_was_stopped_is_left_out(runtime: Runtime, search: Any) -> None:
    agent = Agent("a", react.build, ScriptedModel(replies=[paying(5), "Well then."]), None, tools=[Bank().tool()])
    more: dict[str, Any] = {"thread_id": "t", "owner": "ann"}
    [part async for part in runtime.stream(agent, [HumanMessage("pay")], **more)]
    invented = [ToolMessage("Successfully handled tool call.", tool_call_id="c0"), HumanMessage("no")]
    [part async for part in runtime.stream(agent, invented, **more)]
    said = (await runtime.history("t", "ann")).states[0].messages
    assert "Successfully" not in str(said)
    assert "said something else" in str(said)


def test_branches_of_branches_sort_by_age_and_keep_their_ids() -> None:
    def chain(names: str) -> Held:
        return Held(names, [HumanMessage(name, id=name) for name in names])

    def leaf(names: str) -> str:
        return chain(names).keys[-1]

    one = derive(chain("abc"), [])
    two = derive(chain("abx"), [(Branch(0, "abc", leaf("abc")), chain("abc"))])
    left = [(Branch(0, "", leaf("abc")), None), (Branch(1, "abx", leaf("abx")), chain("abx"))]
    three = derive(chain("abcd"), left)
    lost = derive(chain("abx"), [(Branch(0, "", leaf("abc")), None)])
    assert {s.id for s in one.states} < {s.id for s in two.states} < {s.id for s in three.states}
    assert ["".join(texts(s.messages)) for s in three.states] == ["abcd", "abx", "abc", "ab", "a", ""]
    assert lost.find(one.states[-1].id).depth == 0, "found by what was said, however many branches are gone"
    assert derive(None, []).states == ()
