"""The desk: a classical router over three agents, which quote documents, look up a table, and ask a classifier."""

from __future__ import annotations

import json
import re

from langchain_core.messages import AIMessage
from langgraph.graph import END, START, StateGraph

from agents import AgentState, emit_delta
from agents.graphs import rag
from agents.graphs import router as routing

MEASURES = (
    (r"how many|number of|\bcount\b", "count(*) AS orders"),
    (r"average|mean|typical", "round(avg(amount), 2) AS average"),
    (r"largest|biggest|highest|most expensive|maximum", "max(amount) AS largest"),
    (r"smallest|lowest|cheapest|minimum", "min(amount) AS smallest"),
    (r"revenue|total|sum|turnover|worth|sales|spen[dt]|amount", "sum(amount) AS revenue"),
)
FILTERS = {
    "country": ("Germany", "France", "Spain", "Italy", "Poland"),
    "product": ("kettle", "lamp", "chair", "desk", "clock"),
    "status": ("returned", "delivered", "cancelled"),
    "month": ("January", "February", "March", "April"),
}
NOT_KNOWN = "I do not know how to look that up in the orders."


def to_sql(question: str) -> str | None:
    """The query that a question about orders means; None where it names nothing that the table holds."""
    asked = question.lower()
    group = next((name for name in FILTERS if re.search(rf"\b(?:by|per|each|every|which) {name}\b", asked)), None)
    measure = next((sql for words, sql in MEASURES if re.search(words, asked)), None)
    found = {n: [v for v in values if re.search(rf"\b{v.lower()}s?\b", asked)] for n, values in FILTERS.items()}
    if measure is None or not (group or any(found.values()) or "order" in asked):
        return None
    wanted = [f"{name} IN ({', '.join(repr(v) for v in values)})" for name, values in found.items() if values]
    where = f" WHERE {' AND '.join(wanted)}" if wanted else ""
    if group is None:
        return f"SELECT {measure} FROM orders{where}"
    return f"SELECT {group}, {measure} FROM orders{where} GROUP BY 1 ORDER BY 2 DESC"


def one(name, answer):
    """A graph of one node that answers from the question."""

    async def node(state: AgentState):
        text, known = await answer(state["messages"][-1].text)
        emit_delta(text)
        return {"messages": [AIMessage(text)], "mode": "extractive", "abstained": not known}

    graph = StateGraph(AgentState)
    graph.add_node("answer", node)
    graph.add_edge(START, "answer")
    graph.add_edge("answer", END)
    return graph.compile(name=name)


def build(model, retriever, *, tools=(), checkpointer=None, router=None, reader=None, embed=None, **_):
    """The graph: `documents`, `table` and `ticket`, by the router's label."""
    by_name = {tool.name: tool for tool in tools}

    async def table(question):
        sql = to_sql(question)
        return (await by_name["query_tables"].ainvoke({"sql": sql}), True) if sql else (NOT_KNOWN, False)

    async def ticket(question):
        said = re.search(r"[\"“](.+)[\"”]", question)
        found = json.loads(await by_name["triage"].ainvoke({"text": said[1] if said else question}))[0]
        return f"This is for the {found['label']} team (confidence {found['confidence']:.2f}).", True

    agents = {
        "documents": rag.build(model, retriever, reader=reader, embed=embed),
        "table": one("table", table),
        "ticket": one("ticket", ticket),
    }
    return routing.build(model, retriever, checkpointer=checkpointer, router=router, agents=agents, fallback="documents")
