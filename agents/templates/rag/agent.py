"""{{name}}: answers from the documents in docs/, with citations. Without a language model it quotes; with one it writes."""

from __future__ import annotations

from agents.graphs import rag


def build(model, retriever, *, tools=(), checkpointer=None, reader=None, embed=None):
    """The agent's graph.

    model: the chat model, or None for quotations.
    retriever: `await retriever(query, k=5)` finds passages.
    tools: what smalti.yaml declares. checkpointer: keeps conversations.
    """
    return rag.build(model, retriever, tools=tools, checkpointer=checkpointer, reader=reader, embed=embed, k=8)
