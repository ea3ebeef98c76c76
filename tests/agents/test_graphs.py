from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage

from agents.graphs import rag, supervisor
from agents.models import ScriptedModel
from agents.state import NOT_FOUND, Route
from agents.tools.retrieve import retrieve_tool

pytestmark = pytest.mark.anyio


async def run(graph: Any, *messages: Any) -> tuple[dict, list[dict]]:
    """The final state, and what the nodes emitted."""
    state, emitted = {}, []
    async for mode, chunk in graph.astream({"messages": list(messages)}, stream_mode=["custom", "values"]):
        if mode == "values":
            state = chunk
        else:
            emitted.append(chunk)
    assert "".join(e.get("delta", "") for e in emitted).endswith(state["messages"][-1].content)
    for step in (e["step"] for e in emitted if "step" in e):
        assert 0 < step["start_ns"] <= step["end_ns"]
        assert step["status"] == "OK" or step["kind"] == "tool"
    return state, emitted


def steps(emitted: list[dict], kind: str) -> list[dict]:
    return [e["step"] for e in emitted if "step" in e and e["step"]["kind"] == kind]


def router(label: str, confidence: float = 0.95) -> Callable:
    async def route(text: str) -> Route:
        return Route(label, confidence, {label: confidence}, confident=confidence >= 0.5)

    return route


QUESTION = "How many days of paid vacation do employees get?"


async def test_extractive_answer(search: Any, embedder: Callable) -> None:
    state, emitted = await run(rag.build(None, search, embed=embedder, k=2), HumanMessage(QUESTION))
    assert state["mode"] == "extractive"
    assert state["abstained"] is False
    assert "30 days" in state["messages"][-1].content
    assert len(state["documents"]) == 2
    citations = [e["citation"] for e in emitted if "citation" in e]
    assert [c.to_dict() for c in state["citations"]] == citations != []
    shown = "".join(e.get("delta", "") for e in emitted)
    assert all(shown[c["text_start"] : c["text_end"]] == f"[{c['number']}]" for c in citations)
    assert steps(emitted, "retrieval")[0]["outputs"]["documents"][0]["source"] == "handbook.md"
    assert "support" in steps(emitted, "answer")[0]["attributes"]


async def test_nothing_found_is_said(embedder: Callable) -> None:
    async def nothing(query: str, *, k: int = 5) -> list:
        return []

    for model in (None, ScriptedModel()):
        state, _ = await run(rag.build(model, nothing, embed=embedder), HumanMessage(QUESTION))
        assert state["messages"][-1].content == NOT_FOUND
        assert state["abstained"] is True
        assert state["citations"] == []


async def test_generative_answer_keeps_only_supported_citations(search: Any, embedder: Callable) -> None:
    model = ScriptedModel(replies=["Employees get 30 days of paid vacation a year [1]. Cats sleep a lot [1]. See [9]."])
    state, emitted = await run(rag.build(model, search, embed=embedder), HumanMessage(QUESTION))
    assert state["messages"][-1].content == "Employees get 30 days of paid vacation a year [1]. Cats sleep a lot. See."
    assert state["mode"] == "generative"
    assert [c.quote for c in state["citations"]] == ["Employees get 30 days of paid vacation a year."]
    assert len([e for e in emitted if "delta" in e]) > 5
    assert "[1] Handbook > Vacation (handbook.md)" in model.calls[0][0].content


async def test_a_model_that_does_not_know_abstains(search: Any) -> None:
    for said in (NOT_FOUND, "The passages do not mention the price.", "I don’t know."):
        state, _ = await run(rag.build(ScriptedModel(replies=[said]), search), HumanMessage(QUESTION))
        assert state["abstained"] is True
    state, _ = await run(
        rag.build(ScriptedModel(replies=["Unused days do not stay: 30 days [1]."]), search),
        HumanMessage(QUESTION),
    )
    assert state["abstained"] is False


async def test_tools_add_passages_that_can_be_cited(search: Any) -> None:
    async def two(query: str, *, k: int = 5) -> list:
        return [p for p in search.passages if p.heading[0] == ("Tools" if query == "table" else "Vacation")]

    call = AIMessage("I will look. ", tool_calls=[{"name": "search_documents", "args": {"query": "table"}, "id": "1"}])
    model = ScriptedModel(replies=[call, "A deleted table can be restored for seven days [2]."])
    graph = rag.build(model, two, tools=[retrieve_tool(two)])
    state, emitted = await run(graph, HumanMessage("For how long can vacation tables be restored?"))
    assert state["messages"][-1].content.endswith("[2].")
    assert [p.heading for p in state["documents"]] == [("Vacation",), ("Tools",)]
    assert state["citations"][0].quote == "A deleted table can be restored for seven days."
    shown = "".join(e.get("delta", "") for e in emitted)
    assert shown[state["citations"][0].text_start : state["citations"][0].text_end] == "[2]"
    tool = next(m for m in state["messages"] if m.type == "tool")
    assert tool.content.startswith("[2] Handbook > Tools")
    assert steps(emitted, "tool")[0]["name"] == "search_documents"
    assert [t.name for t in model.bound] == ["search_documents"]


async def test_tool_rounds_end(search: Any) -> None:
    call = AIMessage("", tool_calls=[{"name": "nope", "args": {}, "id": "1"}])
    replies = [call.model_copy(update={"tool_calls": [{**call.tool_calls[0], "id": str(i)}]}) for i in range(9)]
    state, _ = await run(rag.build(ScriptedModel(replies=replies), search, tools=[retrieve_tool(search)]), HumanMessage(QUESTION))
    errors = [m for m in state["messages"] if m.type == "tool"]
    assert len(errors) == 6
    assert "There is no tool 'nope'" in errors[0].content
    assert state["messages"][-1].content == NOT_FOUND


async def test_a_model_without_tools_answers_without_them(search: Any) -> None:
    model = ScriptedModel(replies=["30 days of paid vacation [1]."], supports_tools=False)
    state, _ = await run(rag.build(model, search, tools=[retrieve_tool(search)]), HumanMessage(QUESTION))
    assert state["messages"][-1].content == "30 days of paid vacation [1]."


async def test_follow_ups_are_searched_with_the_question_before(search: Any) -> None:
    history = [HumanMessage("How do I install the client?"), AIMessage("With pip."), HumanMessage("and how do I configure it?")]
    _, emitted = await run(rag.build(None, search), *history)
    assert search.queries[-1] == "How do I install the client? and how do I configure it?"
    assert next(s for s in steps(emitted, "retrieval") if s["name"] == "follow_up")["attributes"] == {"by": "concatenation"}
    model = ScriptedModel(replies=["How do I configure the client?", "From `acme.toml` [1]."])
    await run(rag.build(model, search), *history)
    assert search.queries[-1] == "How do I configure the client?"
    await run(
        rag.build(None, search),
        *history[:2],
        HumanMessage("How many days of paid vacation do full time employees get each year?"),
    )
    assert search.queries[-1].startswith("How many days")


@pytest.mark.parametrize(
    ("label", "says"), [("small_talk", "I answer questions about the documents"), ("decline", "I can't help with that")]
)
async def test_the_supervisor_routes(search: Any, label: str, says: str) -> None:
    state, emitted = await run(supervisor.build(None, search, router=router(label)), HumanMessage("Hello"))
    assert says in state["messages"][-1].content
    assert state["mode"] == "canned"
    assert search.queries == []
    step = steps(emitted, "route")[0]
    assert step["attributes"]["label"] == label
    assert step["attributes"]["confidence"] == 0.95


async def test_what_small_talk_is_answered_with() -> None:
    assert "welcome" in supervisor.reply_to("Thanks a lot!")
    assert "Goodbye" in supervisor.reply_to("bye")
    assert "assistant" in supervisor.reply_to("What can you do?")
    assert "Hello" in supervisor.reply_to("Hi")


async def test_an_unsure_router_falls_back_to_documents_or_asks_the_model(search: Any, embedder: Callable) -> None:
    unsure = router("decline", 0.4)
    state, emitted = await run(supervisor.build(None, search, router=unsure, embed=embedder), HumanMessage(QUESTION))
    assert state["route"].label == "documents"
    assert steps(emitted, "route")[0]["attributes"]["by"] == "fallback"
    model = ScriptedModel(replies=["small_talk"])
    state, emitted = await run(supervisor.build(model, search, router=unsure), HumanMessage("hm hello you"))
    assert state["route"].label == "small_talk"
    assert steps(emitted, "route")[0]["attributes"]["by"] == "model"
    broken = ScriptedModel(replies=[ValueError("down"), "30 days of paid vacation [1]."])
    graph = supervisor.build(broken, search, router=unsure)
    state = await graph.ainvoke({"messages": [HumanMessage(QUESTION)]})
    assert state["route"].label == "documents"


async def test_a_turn_does_not_inherit_the_one_before(search: Any, embedder: Callable) -> None:
    from langgraph.checkpoint.memory import InMemorySaver

    async def route(text: str) -> Route:
        return Route("small_talk" if text == "thanks" else "documents", 0.9)

    graph = supervisor.build(None, search, router=route, embed=embedder, checkpointer=InMemorySaver())
    config: Any = {"configurable": {"thread_id": "t"}}
    first = await graph.ainvoke({"messages": [HumanMessage(QUESTION)]}, config)
    assert first["citations"]
    second = await graph.ainvoke({"messages": [HumanMessage("thanks")]}, config)
    assert (second["documents"], second["citations"], second["mode"]) == ([], [], "canned")


async def test_long_questions_and_histories(search: Any, embedder: Callable) -> None:
    history = [m for i in range(2_500) for m in (HumanMessage(f"question {i}"), AIMessage(f"answer {i}"))]
    graph = supervisor.build(None, search, router=router("documents"), embed=embedder)
    await asyncio.wait_for(run(graph, *history, HumanMessage(QUESTION + " x" * 50_000)), 100)
    assert len(search.queries[-1]) < 2_100
    model = ScriptedModel(replies=["30 days of paid vacation [1]."])
    await run(rag.build(model, search), *history, HumanMessage(QUESTION))
    assert sum(len(m.content) for m in model.calls[0]) < 60_000
