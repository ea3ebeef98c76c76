"""Memory as tools: a model remembers what a user told it, across threads, and recalls and forgets it."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import uuid4

from langchain_core.runnables import RunnableConfig

if TYPE_CHECKING:
    from langchain_core.tools import BaseTool

NAMESPACE = ("memories",)
RECALLED = 8


def memory_tools() -> list[BaseTool]:
    """The tools `remember`, `recall` and `forget`, over the store of the run that uses them."""
    from langchain_core.tools import StructuredTool
    from langgraph.config import get_store

    async def remember(text: str, config: RunnableConfig) -> str:
        """Remember a fact about the user, or a wish of theirs, for other conversations: one short sentence."""
        key = (config.get("metadata") or {}).get("idempotency_key") or uuid4().hex
        await get_store().aput(NAMESPACE, str(key)[:12], {"text": text})
        return "Remembered."

    async def recall(query: str) -> str:
        """Look up what is remembered about the user from other conversations."""
        found = await get_store().asearch(NAMESPACE, query=query, limit=RECALLED)
        lines = [f"- {item.value.get('text')} (key {item.key}, {item.updated_at:%Y-%m-%d})" for item in found]
        return "\n".join(lines) or "Nothing is remembered about the user."

    async def forget(key: str) -> str:
        """Forget one thing about the user, by the key that `recall` gave."""
        if await get_store().aget(NAMESPACE, key) is None:
            return f"There is nothing with the key {key!r}; recall gives the keys."
        await get_store().adelete(NAMESPACE, key)
        return "Forgotten."

    return [StructuredTool.from_function(coroutine=each) for each in (remember, recall, forget)]
