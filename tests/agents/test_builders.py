"""The builders beside rag and supervisor, alone and within each other, on threads and stopped anywhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.tools import StructuredTool

from agents.agent import Agent
from agents.graphs import plan_execute, rag, react, router, supervisor, swarm
from agents.models import ScriptedModel
from agents.runtime import RunLimit, Runtime
from agents.state import Route

pytestmark = pytest.mark.anyio

QUESTION = "How many days of paid vacation do employees get?"


def calls(*named: tuple[str, dict], text: str = "") -> AIMessage:
    return AIMessage(text, tool_calls=[{"name": n, "args": a, "id": f"{n}{i}"} for i, (n, a) in enumerate(named)])


def weather() -> StructuredTool:
    def look(city: str) -> str:
        """The weather."""
        return f"rain in {city}"

    return StructuredTool.from_function(look, name="weather")


async def run(runtime: Runtime, agent: Agent, text: str, thread: str | None = "t") -> tuple[dict, str, list[dict]]:
    parts = [p async for p in runtime.stream(agent, [HumanMessage(text)], thread_id=thread, owner="ann")]
    custom = [chunk for _, mode, chunk in parts if mode == "custom"]
    said = "".join(chunk.get("delta", "") for chunk in custom)
    return parts[-1][2], said, [chunk["step"] for chunk in custom if "step" in chunk]


async def test_react_calls_tools_until_it_can_answer_and_cites_what_it_found(runtime: Runtime, search: Any) -> None:
    model = ScriptedModel(
        replies=[
            calls(("weather", {"city": "Rome"}), ("search_documents", {"query": "vacation days"})),
            "It rains. Employees get 30 days of paid vacation a year [1].",
            "You are welcome.",
        ]
    )
    agent = Agent("a", react.build, model, search, tools=[weather()])
    state, said, steps = await run(runtime, agent, QUESTION)
    assert said == state["messages"][-1].content
    assert said.endswith("[1].")
    assert state["citations"][0].quote.startswith("Employees get 30 days")
    assert [s["name"] for s in steps if s["kind"] == "tool"] == ["weather", "search_documents"]
    state, said, _ = await run(runtime, agent, "thanks")
    assert (state["documents"], said) == ([], "You are welcome."), "a turn inherits no passages"


@pytest.mark.parametrize("builder", [react.build, swarm.build, plan_execute.build])
def test_without_a_model_they_say_so(builder: Callable, search: Any) -> None:
    with pytest.raises(ValueError, match="model"):
        builder(None, search)


async def test_a_call_with_broken_arguments_is_told_to_the_model(runtime: Runtime, search: Any) -> None:
    wrong = AIMessage(
        "", invalid_tool_calls=[{"name": "weather", "args": "{bad json}", "id": "w1", "error": "", "type": "invalid_tool_call"}]
    )
    for builder, replies in (
        (react.build, [wrong, calls(("weather", {"city": "Rome"})), "It rains."]),
        (plan_execute.build, ["1. look", wrong, calls(("weather", {"city": "Rome"})), "rain", "It rains."]),
    ):
        model = ScriptedModel(replies=list(replies))
        asking = StructuredTool.from_function(lambda city: f"rain in {city}", name="weather", description="w")
        state, said, _ = await run(
            runtime, Agent("a", builder, model, None, tools=[asking]), "And the weather?", builder.__module__
        )
        assert said == "It rains."
        told = [message.content for message in state["messages"] if message.type == "tool"]
        assert "not a JSON object; it was not called" in told[0]
        assert told[1] == "rain in Rome"


async def test_plan_execute_works_the_plan_off(runtime: Runtime, search: Any) -> None:
    model = ScriptedModel(
        replies=[
            "1. Look up the vacation days\n2. Look up the weather",
            calls(("search_documents", {"query": "vacation days"})),
            "30 days [1]",
            calls(("weather", {"city": "Rome"})),
            "rain",
            "Employees get 30 days of paid vacation a year [1]. It rains.",
        ]
    )
    agent = Agent("a", plan_execute.build, model, search, tools=[weather()])
    state, said, steps = await run(runtime, agent, QUESTION)
    assert said == "Employees get 30 days of paid vacation a year [1]. It rains."
    assert state["notes"] == ["30 days [1]", "rain"]
    assert next(s for s in steps if s["name"] == "plan")["outputs"]["plan"][1] == "Look up the weather"
    assert [turn.text for turn in await runtime.turns("t", "ann")] == [QUESTION, said]


def team() -> dict[str, swarm.Member]:
    return {
        "sales": swarm.Member("You sell.", "prices"),
        "support": swarm.Member("You help.", "broken things", tools=[weather()]),
    }


async def test_a_swarm_hands_over_and_remembers_who_speaks(runtime: Runtime) -> None:
    model = ScriptedModel(
        replies=[calls(("transfer_to_support", {}), text="One moment."), "Turn it off and on.", "Still support here."]
    )
    agent = Agent("a", swarm.build, model, None, options={"members": team()})
    state, said, steps = await run(runtime, agent, "It is broken.")
    assert said == "One moment.\n\nTurn it off and on."
    assert state["active"] == "support"
    assert [tool.name for tool in model.bound] == ["weather", "transfer_to_sales"]
    assert next(s for s in steps if s["name"] == "hand_over")["outputs"] == {"to": "support"}
    await run(runtime, agent, "And now?")
    assert model.calls[-1][0].content.startswith("You are support.")


async def test_a_circle_of_hand_overs_ends(runtime: Runtime) -> None:
    replies = [calls((f"transfer_to_{'support' if i % 2 == 0 else 'sales'}", {})) for i in range(40)]
    agent = Agent("a", swarm.build, ScriptedModel(replies=replies), None, options={"members": team()}, step_limit=8)
    with pytest.raises(RunLimit, match="8 steps"):
        await run(runtime, agent, "It is broken.")
    agent = Agent("a", swarm.build, ScriptedModel(replies=[*replies[:6], "I give up."]), None, options={"members": team()})
    _, said, _ = await run(runtime, agent, "And now?")
    assert said == "I give up."


def route_to(label: str, confident: bool = True) -> Callable:
    async def route(text: str) -> Route:
        return Route(label, 0.9 if confident else 0.3, {label: 0.9}, confident)

    return route


async def test_a_router_over_agents_streams_from_any_depth(runtime: Runtime, search: Any, embedder: Callable) -> None:
    model = ScriptedModel(replies=["Employees get 30 days of paid vacation a year [1]."])
    inner = router.build(None, search, router=route_to("docs"), agents={"docs": rag.build(model, search, embed=embedder)})
    agents = {"quotes": rag.build(None, search, embed=embedder), "deep": inner}
    agent = Agent("a", router.build, None, search, options={"router": route_to("deep"), "agents": agents})
    state, said, steps = await run(runtime, agent, QUESTION)
    assert said == "Employees get 30 days of paid vacation a year [1]." == state["messages"][-1].content
    assert [s["outputs"]["label"] for s in steps if s["name"] == "route"] == ["deep", "docs"]
    assert [turn.text for turn in await runtime.turns("t", "ann")] == [QUESTION, said]


async def test_an_unsure_router_asks_the_model_else_falls_back(runtime: Runtime, search: Any, embedder: Callable) -> None:
    agents = {"quotes": rag.build(None, search, embed=embedder), "other": rag.build(None, search, embed=embedder)}
    for model, by, label in (
        (None, "fallback", "quotes"),
        (ScriptedModel(replies=["other"]), "model", "other"),
        (ScriptedModel(replies=["no idea"]), "fallback", "quotes"),
        (ScriptedModel(replies=[ValueError("down")]), "fallback", "quotes"),
    ):
        options = {"router": route_to("other", confident=False), "agents": agents}
        _, said, steps = await run(runtime, Agent("a", router.build, model, search, options=options), QUESTION, None)
        step = next(s for s in steps if s["name"] == "route")
        assert (step["attributes"]["by"], step["attributes"]["label"]) == (by, label)
        assert "30 days" in said
    with pytest.raises(ValueError, match="none of the agents"):
        router.build(None, search, agents=agents, fallback="nobody")


RAIN = ("weather", {"city": "Rome"})
TWICE = [calls(RAIN, ("weather", {"city": "Oslo"}), text="Looking."), "It rains [1]."]
LATER = ["What else is there about it?", "Fine."]
SCRIPTS: dict[str, tuple[Callable, list[Any], list[str]]] = {
    "rag": (rag.build, TWICE, LATER),
    "supervisor": (supervisor.build, TWICE, LATER),
    "router": (router.build, TWICE, LATER),
    "react": (react.build, TWICE, ["Fine."]),
    "swarm": (swarm.build, [calls(("transfer_to_support", {})), *TWICE], ["Fine."]),
    "plan_execute": (plan_execute.build, ["1. a\n2. b", *TWICE, "b", "It rains."], ["1. go on", "noted", "Fine."]),
}
"""Builder, what its model says in the run that is stopped, and in the one after it."""


@pytest.mark.parametrize("name", SCRIPTS)
async def test_stopped_at_every_event_the_next_turn_works(runtime: Runtime, search: Any, name: str) -> None:
    builder, replies, later = SCRIPTS[name]
    looked: list[str] = []

    async def weather(city: str) -> str:
        """The weather."""
        looked.append(city)
        return f"rain in {city}"

    tools = [StructuredTool.from_function(coroutine=weather)]
    members = {"sales": swarm.Member("You sell."), "support": swarm.Member("You help.", tools=tools)}
    options = {"members": members} if name == "swarm" else {}
    stop_after, complete = 0, False
    while not complete:
        stop_after += 1
        looked.clear()
        thread = f"t{stop_after}"
        agent = Agent(name, builder, ScriptedModel(replies=list(replies)), search, tools=tools, options=options)
        stream = runtime.stream(agent, [HumanMessage(QUESTION)], thread_id=thread, owner="ann", run_id="r1")
        seen, complete = 0, True
        async for _ in stream:
            seen += 1
            if seen == stop_after:
                complete = False
                break
        await stream.aclose()
        model = ScriptedModel(replies=list(later))
        follow = Agent(name, builder, model, search, tools=tools, options=options)
        state, said, _ = await run(runtime, follow, "And now tell me more about all of it please", thread)
        assert said.endswith("Fine.")
        unanswered: set[str] = set()
        for message in model.calls[-1]:
            if message.type == "tool":
                unanswered.discard(message.tool_call_id)
            else:
                assert not unanswered, "a provider would refuse this history"
                unanswered = {call["id"] for call in getattr(message, "tool_calls", None) or ()}
        assert looked in ([], ["Rome"], ["Rome", "Oslo"]), "a tool ran again"
        told = " ".join(message.text for message in state["messages"] if message.type == "tool")
        assert all(f"rain in {city}" in told for city in looked), "a tool that finished is forgotten"
        assert [turn.role for turn in await runtime.turns(thread, "ann")] == ["user", "assistant"] * 2
    assert looked == ["Rome", "Oslo"]
    assert stop_after > 6
