"""`kill -9` in a run: the history is one that every provider accepts, no finished tool is forgotten, the next turn works."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from langchain_core.messages import HumanMessage
from sqlalchemy import create_engine

from agents.runtime import Runtime
from tests.agents.killed import agent
from tests.live import ROOT


def run_and_kill(command: list[str], after: int) -> None:
    """Kill the process when it has told `after` lines."""
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for _ in range(after):
        assert process.stdout.readline()
    process.kill()
    process.wait(10)
    process.stdout.close()


@pytest.mark.anyio
@pytest.mark.timeout(120)
@pytest.mark.parametrize(("pattern", "after"), [("rag", 1), ("rag", 5), ("rag", 9), ("router", 13)])
async def test_the_next_turn_works(tmp_path: Path, pattern: str, after: int) -> None:
    command = [sys.executable, "-m", "tests.agents.killed", str(tmp_path), pattern]
    run_and_kill(command, after)
    notes = (tmp_path / "notes").read_text().split() if (tmp_path / "notes").exists() else []
    engine = create_engine(f"sqlite:///{tmp_path}/smalti.db")
    runtime = Runtime(engine, tmp_path / "checkpoints.db")
    assert next(turn.text for turn in await runtime.turns("t", "ann")) == "Note it."
    revived = agent(tmp_path, "What was noted?", "It is noted [1].", pattern=pattern)
    parts = [p async for p in runtime.stream(revived, [HumanMessage("And?")], thread_id="t", owner="ann", run_id="r2")]
    assert parts[-1][2]["messages"][-1].content
    sent = revived._arguments[0].calls[-1]
    unanswered: set[str] = set()
    for message in sent:
        if message.type == "tool":
            unanswered.discard(message.tool_call_id)
        else:
            assert not unanswered
            unanswered = {call["id"] for call in getattr(message, "tool_calls", None) or ()}
    told = " ".join(m.content for m in sent if m.type == "tool")
    assert all(f"noted {note}" in told for note in notes[:-1]), "all but the one that was being kept"
    assert (tmp_path / "notes").exists() == bool(notes)
    assert len(notes) == len(set(notes))
    assert [turn.role for turn in await runtime.turns("t", "ann")] == ["user", "assistant"] * 2
    await runtime.close()
    engine.dispose()
