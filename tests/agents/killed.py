"""A process that answers on a thread with a tool, tells each part on a line, and is killed by whoever reads them."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.tools import StructuredTool
from sqlalchemy import create_engine

from agents.agent import Agent
from agents.graphs import rag, router
from agents.models import ScriptedModel
from agents.runtime import Runtime
from retrieval.types import Passage

BUILDERS = {"rag": rag.build, "router": router.build}
"""A graph of its own, and one that answers by a subgraph."""


def agent(folder: Path, *replies: object, pattern: str = "rag") -> Agent:
    async def note(text: str) -> str:
        """Write down."""
        with (folder / "notes").open("a") as notes:
            notes.write(f"{text}\n")
        return f"noted {text}"

    async def retrieve(query: str, *, k: int = 5) -> list[Passage]:
        return [Passage("p", "d", "i", "s.md", "S", (), "There are 30 days of vacation.", 0, 30, 0.9, 0.8, 1.0)]

    tool = StructuredTool.from_function(coroutine=note, name="note")
    return Agent("a", BUILDERS[pattern], ScriptedModel(replies=list(replies), delay=0.002), retrieve, tools=[tool])


CALLS = AIMessage("Noting.", tool_calls=[{"name": "note", "args": {"text": t}, "id": t} for t in ("one", "two")])


async def main(folder: Path, pattern: str) -> None:
    runtime = Runtime(create_engine(f"sqlite:///{folder}/smalti.db"), folder / "checkpoints.db")
    answering = agent(folder, CALLS, "There are 30 days of vacation [1].", pattern=pattern)
    async for _, mode, _chunk in runtime.stream(answering, [HumanMessage("Note it.")], thread_id="t", owner="ann", run_id="r1"):
        print(mode, flush=True)
    await asyncio.sleep(60)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
