"""Retrieval-augmented answers: find passages, then quote them (no model) or write from them (a model)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langgraph.graph import END, START, StateGraph

from agents.generate import HISTORY_TOKENS, QUIET, generate
from agents.history import questions, text_of
from agents.state import NOT_FOUND, AgentState, Embed, Reader, Reading, emit_citation, emit_delta, emit_step
from agents.toolrun import run_tools, wants_tools
from agents.verify import Verify, verify_node
from retrieval.types import Retriever

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel
    from langchain_core.tools import BaseTool
    from langgraph.checkpoint.base import BaseCheckpointSaver
    from langgraph.graph.state import CompiledStateGraph

MAX_QUERY = 2_000
"""Characters of a question that are searched for; of a longer one, its beginning and its end."""

RETRIEVED = 10
"""Passages found for a question: what a model writes from, and what an answer tells it was found."""

READ = 5
"""How many of them, the best, are read for quotations; reading costs time, and its calibration was made with so many."""

_LEANS = re.compile(
    r"^\W*(?:and|but|so|also|then|or|what about|how about|why not|what else|which one|the (?:first|second|last|other) one)\b"
    r"|\b(?:it|its|they|them|their|he|him|his|she|her|this|that|these|those|there|one|ones|same)\b",
    re.IGNORECASE,
)
_REWRITE = (
    "Rewrite the user's last question so that it can be understood without the conversation. Resolve pronouns; keep names, "
    "numbers and language. Reply with the question alone."
)


def leans(question: str) -> bool:
    """Is this a follow-up that needs the question before it: short, or with a pronoun that points back?"""
    words = question.split()
    return len(words) <= 2 or (len(words) <= 12 and bool(_LEANS.search(question)))


def clip(question: str) -> str:
    half = MAX_QUERY // 2
    return question if len(question) <= MAX_QUERY else f"{question[:half]} … {question[-half:]}"


async def understand(state: AgentState, model: BaseChatModel | None) -> tuple[str, str]:
    """(what to search for, the question before where this one leans on it). A rewrite is traced as a step."""
    asked = questions(state["messages"])
    question = clip(asked[-1]) if asked else ""
    if len(asked) < 2 or not leans(question):
        return question, ""
    before = clip(asked[-2])
    with emit_step("follow_up", "model" if model else "retrieval", inputs={"question": question, "previous": before}) as step:
        query = await _rewrite(state, model) if model else ""
        step.attributes["by"] = "model" if query else "concatenation"
        query = query or f"{before} {question}"
        step.outputs = {"query": query}
    return query, before


async def _rewrite(state: AgentState, model: BaseChatModel) -> str:
    turns = [
        f"{'User' if isinstance(m, HumanMessage) else 'Assistant'}: {text_of(m)[:600]}"
        for m in state["messages"]
        if isinstance(m, (HumanMessage, AIMessage)) and text_of(m).strip()
    ][-5:]
    try:
        reply = await model.ainvoke([SystemMessage(_REWRITE), HumanMessage("\n".join(turns))], config=QUIET)
    except Exception:  # the question can be searched for as it is; the answer's own call will tell of a broken model
        return ""
    return " ".join(text_of(reply).split())[:MAX_QUERY]


def nodes(
    model: BaseChatModel | None,
    retriever: Retriever,
    *,
    tools: Sequence[BaseTool] = (),
    reader: Reader | None = None,
    embed: Embed | None = None,
    k: int = RETRIEVED,
    history_tokens: int = HISTORY_TOKENS,
    verify: Verify | None = None,
) -> dict[str, Any]:
    """The nodes `retrieve`, `answer` and `tools`, with a verifier `verify` too, for graphs that hold more than this one."""
    if reader is None and model is None:
        from agents.extract import make_reader

        reader = make_reader(embed)

    async def retrieve(state: AgentState) -> dict[str, Any]:
        query, before = await understand(state, model)
        with emit_step("retrieval", "retrieval", inputs={"query": query, "k": k}) as step:
            documents = list(await retriever(query, k=k)) if query else []
            step.outputs = {
                "documents": [{"id": p.id, "source": p.source, "score": p.score, "similarity": p.similarity} for p in documents]
            }
        return {
            "documents": documents,
            "citations": [],
            "plan": [query, before],
            "abstained": False,
            "mode": "",
            "offset": 0,
            "supported": None,
        }

    async def extract(state: AgentState) -> dict[str, Any]:
        documents = state.get("documents") or []
        question = clip((questions(state["messages"]) or [""])[-1])
        before = (state.get("plan") or ["", ""])[1]
        with emit_step("answer", "answer", inputs={"question": question, "passages": len(documents)}) as step:
            assert reader is not None
            read = await reader(question, documents[:READ], context=before) if documents else Reading(NOT_FOUND, abstained=True)
            step.attributes |= {"support": round(read.support, 4), "abstained": read.abstained, "mode": "extractive"}
            step.outputs = {"text": read.text, "citations": len(read.citations)}
        at = 0
        for citation in read.citations:
            emit_delta(read.text[at : citation.text_end])
            emit_citation(citation)
            at = citation.text_end
        emit_delta(read.text[at:])
        return {
            "messages": [answer_message(read.text, "extractive", read.abstained, read.citations)],
            "citations": list(read.citations),
            "abstained": read.abstained,
            "mode": "extractive",
        }

    async def write(state: AgentState) -> dict[str, Any]:
        assert model is not None
        if not state.get("documents") and not tools:
            emit_delta(NOT_FOUND)
            return {"messages": [answer_message(NOT_FOUND, "generative", True)], "abstained": True, "mode": "generative"}
        return await generate(state, model, tools, embed, history_tokens)

    async def call_tools(state: AgentState) -> dict[str, Any]:
        return await run_tools(state, tools)

    made = {"retrieve": retrieve, "answer": extract if model is None else write, "tools": call_tools}
    return {**made, **({"verify": verify_node(verify)} if verify is not None else {})}


def answer_message(text: str, mode: str, abstained: bool = False, citations: Sequence[Any] = ()) -> AIMessage:
    """The answer as it is kept in a thread, with what the page needs to draw it again."""
    kept = [citation.to_dict() for citation in citations]
    return AIMessage(text, response_metadata={"mode": mode, "abstained": abstained, "citations": kept})


def add_nodes(graph: StateGraph, made: dict[str, Any], *, with_tools: bool) -> None:
    """Add the nodes and the edges between them; the caller leads to `retrieve`."""
    graph.add_node("retrieve", made["retrieve"])
    graph.add_node("answer", made["answer"])
    graph.add_edge("retrieve", "answer")
    end = END
    if "verify" in made:
        end = "verify"
        graph.add_node("verify", made["verify"])
        graph.add_edge("verify", END)
    if with_tools:
        graph.add_node("tools", made["tools"])
        graph.add_conditional_edges("answer", lambda state: "tools" if wants_tools(state) else end, ["tools", end])
        graph.add_edge("tools", "answer")
    else:
        graph.add_edge("answer", end)


def build(
    model: BaseChatModel | None,
    retriever: Retriever,
    *,
    tools: Sequence[BaseTool] = (),
    checkpointer: BaseCheckpointSaver | None = None,
    reader: Reader | None = None,
    embed: Embed | None = None,
    k: int = RETRIEVED,
    history_tokens: int = HISTORY_TOKENS,
    verify: Verify | None = None,
) -> CompiledStateGraph:
    """A graph that answers each question from the passages found for it.

    Parameters
    ----------
    model: None answers extractively, by `reader`.
    retriever: finds the passages.
    tools: offered to the model where it can call tools; without a model they are not used.
    checkpointer: keeps threads.
    reader: the extractive reader; None makes one over `embed`.
    embed: sentence embeddings, for the reader and for checking a model's citations.
    k: passages per question.
    history_tokens: budget of the conversation in the model's prompt, passages not counted.
    verify: asked whether the passages support the answer; one that they do not is said to be unconfirmed.
    """
    graph = StateGraph(AgentState)
    made = nodes(model, retriever, tools=tools, reader=reader, embed=embed, k=k, history_tokens=history_tokens, verify=verify)
    add_nodes(graph, made, with_tools=model is not None and bool(tools))
    graph.add_edge(START, "retrieve")
    return graph.compile(checkpointer=checkpointer, name="rag")
