"""Retrieval as a tool: a model asks for passages, and may cite them by their numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from retrieval.types import Passage, Retriever

if TYPE_CHECKING:
    from langchain_core.tools import BaseTool


def render(passages: Sequence[Passage], first: int = 1) -> str:
    """Numbered passages as a model reads them; numbers count from `first`."""
    blocks = []
    for number, passage in enumerate(passages, first):
        place = " > ".join(dict.fromkeys([passage.title, *passage.heading]))
        blocks.append(f"[{number}] {place} ({passage.source})\n{passage.text}")
    return "\n\n".join(blocks) or "No passages found."


def retrieve_tool(
    retriever: Retriever, *, k: int = 5, name: str = "search_documents", description: str | None = None
) -> BaseTool:
    """A LangChain tool that searches.

    The tool's artifact is the list of passages; our graphs add it to the passages that may be cited and number it after
    those already shown.
    """
    from langchain_core.tools import StructuredTool

    async def search(query: str) -> tuple[str, list[Passage]]:
        """Search the documents for passages about a query."""
        passages = list(await retriever(query, k=k))
        return render(passages), passages

    return StructuredTool.from_function(
        coroutine=search,
        name=name,
        description=description or "Search the documents. Ask in a few precise words; returns numbered passages to cite.",
        response_format="content_and_artifact",
    )


def with_retrieval(tools: Sequence[BaseTool], retriever: Retriever | None) -> list[BaseTool]:
    """The tools, and the search of `retriever` where there is one."""
    return [*tools, *([retrieve_tool(retriever)] if retriever is not None else [])]
