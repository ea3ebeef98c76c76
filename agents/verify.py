"""Verifying: a classifier says whether the passages support an answer; an answer that they do not is said to be unconfirmed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from langchain_core.messages import AIMessage

from agents.history import text_of
from agents.state import AgentState, emit_delta
from retrieval.types import Passage

Verify = Callable[[str, Sequence[Passage]], Awaitable[bool]]
"""Whether passages support a text (`agents.tools.classical.verifier`)."""

UNCONFIRMED = "\n\n(A check did not find this answer in the passages. Read them before you rely on it.)"


def verify_node(verify: Verify) -> Callable[[AgentState], Awaitable[dict[str, Any]]]:
    """A node to stand after the answer: reads the answer and the passages it cites, or all where it cites none.

    Its verdict is `supported` in the state: None where there was nothing to verify, or the check itself failed.
    """

    async def check(state: AgentState) -> dict[str, Any]:
        last = state["messages"][-1]
        documents = list(state.get("documents") or [])
        if not isinstance(last, AIMessage) or last.tool_calls or state.get("abstained") or not documents:
            return {"supported": None}
        cited = {citation.passage_id for citation in state.get("citations") or ()}
        text = text_of(last)
        try:
            supported = await verify(text, [passage for passage in documents if passage.id in cited] or documents)
        except Exception:  # traced as a step that failed; a check must not cost the answer that it checks
            return {"supported": None}
        if supported:
            return {"supported": True}
        emit_delta(UNCONFIRMED)
        return {"supported": False, "messages": [last.model_copy(update={"content": text + UNCONFIRMED})]}

    return check
