"""What an agent's own tests need: documents in memory, and an answer in one call. No server, no weights, no network.

found = answer(build, "How long is the bridge?", documents={"bridge.md": "The bridge is 314 metres long."})
assert "314 metres" in found.text
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from agents.agent import Agent
from agents.text import coverage, terms, words
from retrieval.types import Passage, Retriever


@dataclass(frozen=True, slots=True)
class Answer:
    """What an agent answered: its text, the citations in it, the steps that led there, and the graph's final state."""

    text: str
    citations: Sequence[Mapping[str, Any]] = ()
    steps: Sequence[Mapping[str, Any]] = ()
    state: Mapping[str, Any] = field(default_factory=dict)

    @property
    def sources(self) -> list[str]:
        return [citation["source"] for citation in self.citations]


def shelf(documents: Mapping[str, str] | Path) -> Retriever:
    """A retriever over texts by name, or over a folder's Markdown and text files; it ranks sections by the words they share."""
    if isinstance(documents, Path):
        files = sorted(path for path in documents.rglob("*") if path.suffix in (".md", ".txt"))
        documents = {path.relative_to(documents).as_posix(): path.read_text("utf-8") for path in files}
    passages = [passage for source, text in documents.items() for passage in _cut(source, text)]

    async def search(query: str, *, k: int = 5) -> Sequence[Passage]:
        wanted = terms(query)
        found = []
        for passage in passages:
            share = coverage(wanted, terms(f"{passage.title} {' '.join(passage.heading)} {passage.text}"))
            found.append(replace(passage, score=share, similarity=0.2 + 0.6 * share, lexical=share * len(words(query))))
        return sorted(found, key=lambda passage: -passage.score)[:k]

    return search


def _cut(source: str, text: str) -> list[Passage]:
    starts = [0, *(at + 1 for at in range(len(text)) if text.startswith("\n#", at))]
    spans = [(a, b) for a, b in zip(starts, [*starts[1:], len(text)], strict=True) if text[a:b].strip()]
    passages = []
    for number, (start, end) in enumerate(spans):
        heading = text[start:end].split("\n", 1)[0].lstrip("# ").strip() if text[start] == "#" else ""
        passages.append(Passage(f"{source}:{number}", source, "test", source, source, (heading,), text[start:end], start, end))
    return passages


def answer(
    build: Callable[..., Any],
    question: str,
    *,
    model: Any = None,
    documents: Mapping[str, str] | Path = Path("docs"),
    tools: Sequence[Any] = (),
    **options: Any,
) -> Answer:
    """What the graph of `build` answers.

    Parameters
    ----------
    model: None for an extractive answer; `agents.ScriptedModel` for a scripted one.
    documents: texts by name, or a folder.
    options: further arguments of the builder, such as `router`.
    """
    from langchain_core.messages import HumanMessage

    from agents.runtime import Runtime

    async def run() -> Answer:
        from langgraph.store.memory import InMemoryStore
        from sqlalchemy import create_engine

        agent = Agent("test", build, model, shelf(documents), tools=tools, options=options)
        runtime = Runtime(create_engine("sqlite://"), Path("unused"), store=InMemoryStore)
        text, citations, steps, state = "", [], [], {}
        async for _, mode, chunk in runtime.stream(agent, [HumanMessage(question)]):
            if mode == "values":
                state = chunk
            elif mode == "messages":
                text += chunk[0].text
            elif mode == "custom":
                text += chunk.get("delta", "")
                citations += [chunk["citation"]] if "citation" in chunk else []
                steps += [chunk["step"]] if "step" in chunk else []
        if not text and state.get("messages"):
            text = state["messages"][-1].text
        return Answer(text, citations, steps, state)

    return asyncio.run(run())
