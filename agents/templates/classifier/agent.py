"""{{name}}: sorts messages with a classical model, and asks a language model, or a person, where it is not sure."""

from __future__ import annotations

from langchain_core.messages import AIMessage
from langgraph.graph import END, START, StateGraph

from agents import AgentState, emit_delta, emit_step
from agents.graphs.router import choose

LABELS = {"billing": "invoices and payments", "technical": "errors and outages", "sales": "prices and orders"}


def build(model, retriever, *, tools=(), checkpointer=None, router=None):
    """The agent's graph: one node that classifies. `router` is the classifier that was trained from labels.jsonl."""

    async def classify(state: AgentState):
        text = state["messages"][-1].text
        with emit_step("classify", "model", inputs={"text": text}) as step:
            found = await router(text)
            label, by = (found.label, "classifier") if found.confident else (None, "person")
            if label is None and model is not None:
                label = await choose(model, text, LABELS, LABELS)
                by = "model" if label else "person"
            step.attributes |= {"label": label, "confidence": round(found.confidence, 4), "by": by}
        said = label or "unsure: a person should look at this"
        emit_delta(said)
        return {"messages": [AIMessage(said)], "route": found, "mode": "canned", "abstained": label is None}

    graph = StateGraph(AgentState)
    graph.add_node("classify", classify)
    graph.add_edge(START, "classify")
    graph.add_edge("classify", END)
    return graph.compile(checkpointer=checkpointer)
