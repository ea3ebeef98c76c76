"""What a tool came to is durable before the next one runs."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import StructuredTool

from agents.agent import Agent
from agents.graphs import react
from agents.kept import Kept
from agents.models import ScriptedModel
from agents.runtime import Runtime

pytestmark = pytest.mark.anyio

CALLS = AIMessage("", tool_calls=[{"name": "note", "args": {"text": t}, "id": t} for t in ("one", "two", "three")])


def rows(folder: Path) -> int:
    """As a process sees it that is started after a crash."""
    with sqlite3.connect(folder / "smalti.db") as connection:
        return connection.execute("SELECT COUNT(*) FROM tool_results").fetchone()[0]


async def test_each_result_is_committed_before_the_next_call(runtime: Runtime, tmp_path: Path) -> None:
    seen: list[int] = []

    async def note(text: str) -> str:
        """Write down."""
        seen.append(rows(tmp_path))
        return f"noted {text}"

    tool = StructuredTool.from_function(coroutine=note, name="note")
    agent = Agent("a", react.build, ScriptedModel(replies=[CALLS, "Noted."]), None, tools=[tool])
    async for _ in runtime.stream(agent, [HumanMessage("Note it.")], thread_id="t", owner="ann"):
        pass
    assert seen == [0, 1, 2]
    await runtime.delete("t", "ann")  # waits until the run is at rest
    assert rows(tmp_path) == 0, "the history holds them now"


async def test_a_call_that_was_made_is_not_made_again(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a graph that is gone on with at the node that ran its tools."""

    async def found(self: Kept, key: str) -> ToolMessage:
        return ToolMessage("from before", tool_call_id="one", name="note")

    monkeypatch.setattr(Kept, "find", found)

    async def note(text: str) -> str:
        """Write down."""
        raise AssertionError("made again")

    tool = StructuredTool.from_function(coroutine=note, name="note")
    once = AIMessage("", tool_calls=CALLS.tool_calls[:1])
    model = ScriptedModel(replies=[once, "Noted."])
    agent = Agent("a", react.build, model, None, tools=[tool])
    async for _ in runtime.stream(agent, [HumanMessage("Note it.")], thread_id="t", owner="ann"):
        pass
    assert [m.content for m in model.calls[-1] if m.type == "tool"] == ["from before"]
