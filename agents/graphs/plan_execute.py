"""Plan and execute: a model plans, works the steps off one by one with tools, then answers from what they came to."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, SystemMessage, ToolMessage
from langgraph.graph import END, START, StateGraph

from agents.generate import HISTORY_TOKENS, QUIET, bind, generate, needs_model, usage_of
from agents.history import calls_of, questions, settle, text_of
from agents.state import AgentState, Embed, emit_step, new_turn
from agents.toolrun import run_tools, wants_tools
from agents.tools.retrieve import with_retrieval
from retrieval.types import Retriever

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel
    from langchain_core.tools import BaseTool
    from langgraph.checkpoint.base import BaseCheckpointSaver
    from langgraph.graph.state import CompiledStateGraph

MAX_STEPS = 6
PLAN = (
    f"Split the user's question into the steps that answer it, at most {MAX_STEPS}, one on a line. A simple question is one step."
)
WORK = "Do this one step of a plan with the tools you have, and reply with what it came to, in a few sentences. Step: {step}"
ANSWER = (
    "Answer the user's question from these notes and the tool results above. Say plainly what they leave open.\n\nNotes:\n{notes}"
)

_BULLET = re.compile(r"^\s*(?:[-*•]|\(?\d+[.)])\s*")


def build(
    model: BaseChatModel | None,
    retriever: Retriever | None,
    *,
    tools: Sequence[BaseTool] = (),
    checkpointer: BaseCheckpointSaver | None = None,
    embed: Embed | None = None,
    history_tokens: int = HISTORY_TOKENS,
) -> CompiledStateGraph:
    """A graph that plans first. Parameters as for `react`; only the answer is streamed, the steps are traced.

    Raises
    ------
    ValueError: there is no model.
    """
    chat, offered = needs_model("plan_execute", model), with_retrieval(tools, retriever)
    worker = bind(chat, offered)

    async def plan(state: AgentState) -> dict[str, Any]:
        question = (questions(state["messages"]) or [""])[-1]
        with emit_step("plan", "model", inputs={"question": question[:2_000]}) as step:
            reply = await chat.ainvoke([SystemMessage(PLAN), *_conversation(state)], config=QUIET)
            lines = [_BULLET.sub("", line).strip() for line in text_of(reply).splitlines()]
            steps = [line for line in lines if line][:MAX_STEPS] or [question]
            step.attributes["usage"] = usage_of(reply)
            step.outputs = {"plan": steps}
        return {**new_turn(), "plan": steps}

    async def work(state: AgentState) -> dict[str, Any]:
        notes, steps = list(state.get("notes") or []), state.get("plan") or []
        doing = steps[len(notes)]
        done = "\n".join(f"- {note}" for note in notes)
        told = WORK.format(step=doing) + (f"\n\nEarlier steps came to:\n{done}" if notes else "")
        with emit_step("step", "model", inputs={"step": doing}) as step:
            reply = await worker.ainvoke([SystemMessage(told), *settle(_turn(state))], config=QUIET)
            step.attributes["usage"] = usage_of(reply)
            made = calls_of(reply)
            step.outputs = {"text": text_of(reply)[:2_000], "tool_calls": [call["name"] for call in made]}
        if made and _asked(state) < MAX_STEPS * 2:
            return {"messages": [AIMessage("", tool_calls=made, usage_metadata=reply.usage_metadata)]}
        return {"notes": [*notes, text_of(reply).strip() or "nothing"]}

    async def call_tools(state: AgentState) -> dict[str, Any]:
        return await run_tools(state, offered)

    async def answer(state: AgentState) -> dict[str, Any]:
        notes = "\n".join(f"- {step}: {note}" for step, note in zip(state["plan"], state["notes"], strict=False))  # type: ignore[typeddict-item]
        return await generate(state, chat, (), embed, history_tokens, ANSWER.format(notes=notes))

    def after(state: AgentState) -> str:
        if wants_tools(state):
            return "tools"
        return "work" if len(state.get("notes") or ()) < len(state.get("plan") or ()) else "answer"

    graph = StateGraph(AgentState)
    for name, node in {"plan": plan, "work": work, "tools": call_tools, "answer": answer}.items():
        graph.add_node(name, node)
    graph.add_edge(START, "plan")
    graph.add_edge("plan", "work")
    graph.add_conditional_edges("work", after, ["tools", "work", "answer"])
    graph.add_edge("tools", "work")
    graph.add_edge("answer", END)
    return graph.compile(checkpointer=checkpointer, name="plan_execute")


def _conversation(state: AgentState) -> list[AnyMessage]:
    """What was said, without the tools' part."""
    said = [m for m in state["messages"] if not isinstance(m, ToolMessage) and text_of(m).strip()]
    return [AIMessage(text_of(m)) if isinstance(m, AIMessage) else m for m in said][-8:]


def _turn(state: AgentState) -> list[AnyMessage]:
    """This turn: the user's message and the tools' part after it."""
    messages = list(state["messages"])
    last = max((i for i, m in enumerate(messages) if isinstance(m, HumanMessage)), default=0)
    return messages[last:]


def _asked(state: AgentState) -> int:
    return sum(isinstance(m, AIMessage) and bool(m.tool_calls) for m in _turn(state))
