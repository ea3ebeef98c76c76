"""The router: a classical model sends each message to one of several agents; a language model is asked where it is unsure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from langchain_core.messages import HumanMessage, SystemMessage
from langgraph.graph import END, START, StateGraph

from agents.generate import QUIET
from agents.graphs import rag
from agents.history import questions, text_of
from agents.state import AgentState, Embed, Reader, Route, Router, emit_step, new_turn
from retrieval.types import Retriever

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel
    from langchain_core.tools import BaseTool
    from langgraph.checkpoint.base import BaseCheckpointSaver
    from langgraph.graph.state import CompiledStateGraph


def build(
    model: BaseChatModel | None,
    retriever: Retriever,
    *,
    tools: Sequence[BaseTool] = (),
    checkpointer: BaseCheckpointSaver | None = None,
    router: Router | None = None,
    agents: Mapping[str, CompiledStateGraph] | None = None,
    fallback: str | None = None,
    about: Mapping[str, str] | None = None,
    reader: Reader | None = None,
    embed: Embed | None = None,
) -> CompiledStateGraph:
    """A graph that gives each message to one of `agents`.

    Parameters
    ----------
    model: asked where the router is not confident; None sends such a message to `fallback`.
    retriever, tools, reader, embed: for the agent that answers from documents where no `agents` are given.
    checkpointer: keeps threads.
    router: the classical router, whose labels are the names of `agents`; None sends every message to `fallback`.
    agents: compiled graphs by name; their tokens stream as if they were this graph's own.
    fallback: where a message goes that nobody can place; the first agent by default.
    about: what each agent is for, told to the model.

    Raises
    ------
    ValueError: `fallback` is none of the agents.
    """
    graphs = dict(agents or {"documents": rag.build(model, retriever, tools=tools, reader=reader, embed=embed)})
    default = fallback or next(iter(graphs))
    if default not in graphs:
        raise ValueError(f"the fallback '{default}' is none of the agents {', '.join(graphs)}")

    async def route(state: AgentState) -> dict[str, Any]:
        question = rag.clip((questions(state["messages"]) or [""])[-1])
        with emit_step("route", "route", inputs={"question": question}) as step:
            first = await router(question) if router is not None else Route(default, 1.0)
            label, by = first.label, "classifier"
            if not first.confident or label not in graphs:
                asked = await choose(model, question, graphs, about or {}) if model is not None else None
                label, by = (asked, "model") if asked else (default, "fallback")
            step.attributes |= {"label": label, "confidence": round(first.confidence, 4), "by": by, "classifier": first.label}
            step.outputs = {"label": label, "scores": {name: round(p, 4) for name, p in first.scores.items()}}
        return {**new_turn(), "route": Route(label, first.confidence, first.scores, first.confident)}

    graph = StateGraph(AgentState)
    graph.add_node("route", route)
    for name, member in graphs.items():
        graph.add_node(name, member)
        graph.add_edge(name, END)
    graph.add_edge(START, "route")
    graph.add_conditional_edges("route", _chosen, {name: name for name in graphs})
    return graph.compile(checkpointer=checkpointer, name="router")


def _chosen(state: AgentState) -> str:
    route = state.get("route")
    assert route is not None
    return route.label


async def choose(model: BaseChatModel, question: str, names: Mapping[str, Any], about: Mapping[str, str]) -> str | None:
    """The model's choice; None where it makes none, or fails: routing must not fail an answer."""
    lines = "\n".join(f"{name} - {about.get(name) or name.replace('_', ' ')}" for name in names)
    asked = [SystemMessage(f"Who should answer the user's message? Reply with one word:\n{lines}"), HumanMessage(question)]
    try:
        with emit_step("route_model", "model", inputs={"question": question}) as step:
            said = text_of(await model.ainvoke(asked, config=QUIET)).lower()
            step.outputs = {"text": said[:200]}
    except Exception:
        return None
    found = [name for name in names if name.lower() in said]
    return found[0] if len(found) == 1 else None
