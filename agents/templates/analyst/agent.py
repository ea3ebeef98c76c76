"""{{name}}: answers questions about tables in SQL, and shows the query. Trusted questions need no language model."""

from __future__ import annotations

from langchain_core.messages import AIMessage
from langgraph.graph import END, START, StateGraph

from agents import AgentState, emit_delta
from agents.graphs import react

TRUSTED = {
    "How many orders are there?": "SELECT count(*) AS orders FROM orders",
    "What is the revenue of each country?": "SELECT country, sum(amount) AS revenue FROM orders GROUP BY 1 ORDER BY 2 DESC",
    "Which product sells best?": "SELECT product, count(*) AS sold FROM orders GROUP BY 1 ORDER BY 2 DESC LIMIT 1",
}
INSTRUCTIONS = "Answer from the tables: query them in SQL, then say what was found, and show the query and its table."


def trusted(question):
    """The trusted query whose question shares the most words with this one; None where less than half are shared."""
    words = set(question.lower().strip(" ?.!").split())
    shared = {known: len(words & set(known.lower().strip("?").split())) / len(known.split()) for known in TRUSTED}
    best = max(shared, key=shared.get)
    return TRUSTED[best] if shared[best] >= 0.5 else None


def build(model, retriever, *, tools=(), checkpointer=None, embed=None):
    """The agent's graph: a trusted query where there is one, else the model with its tools."""
    query = next(tool for tool in tools if tool.name == "query_tables")

    async def look_up(state: AgentState):
        sql = trusted(state["messages"][-1].text)
        text = await query.ainvoke({"sql": sql}) if sql else "I know no trusted query for this. Set SMALTI_CHAT_MODEL to ask freely."
        emit_delta(text)
        return {"messages": [AIMessage(text)], "mode": "extractive", "abstained": sql is None}

    graph = StateGraph(AgentState)
    graph.add_node("look_up", look_up)
    graph.add_edge("look_up", END)
    if model is None:
        graph.add_edge(START, "look_up")
    else:
        graph.add_node("ask", react.build(model, None, tools=tools, embed=embed, instructions=INSTRUCTIONS))
        graph.add_edge("ask", END)
        graph.add_conditional_edges(START, lambda state: "look_up" if trusted(state["messages"][-1].text) else "ask")
    return graph.compile(checkpointer=checkpointer)
