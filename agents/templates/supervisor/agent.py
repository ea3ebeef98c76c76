"""{{name}}: a supervisor over agents. A classical router decides who answers; a language model is asked where it is unsure."""

from __future__ import annotations

from langchain_core.messages import AIMessage
from langgraph.graph import END, START, StateGraph

from agents import AgentState, emit_delta
from agents.graphs import rag, router as routing

SAYS = {
    "small_talk": "Hello! Ask me anything about the handbook.",
    "decline": "I only answer questions about the handbook.",
}
ABOUT = {"documents": "a question the handbook may answer", "small_talk": "a greeting or thanks", "decline": "anything else"}


def canned(name):
    """An agent that always says the same: a graph of one node."""

    async def say(state: AgentState):
        emit_delta(SAYS[name])
        return {"messages": [AIMessage(SAYS[name])], "mode": "canned", "abstained": name == "decline"}

    graph = StateGraph(AgentState)
    graph.add_node("say", say)
    graph.add_edge(START, "say")
    graph.add_edge("say", END)
    return graph.compile(name=name)


def build(model, retriever, *, tools=(), checkpointer=None, router=None, reader=None, embed=None):
    """The agent's graph: who answers, by the router's label. Add your own agents here."""
    documents = rag.build(model, retriever, tools=tools, reader=reader, embed=embed)
    agents = {"documents": documents, **{name: canned(name) for name in SAYS}}
    return routing.build(
        model, retriever, checkpointer=checkpointer, router=router, agents=agents, fallback="documents", about=ABOUT
    )
