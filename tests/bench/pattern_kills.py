"""`kill -9` at every event of a run of each pattern: does the next turn work, and is no tool that finished run again?

`python -m tests.bench.pattern_kills [PATTERN …]` prints JSON: for each pattern at how many events its run was killed,
and what was wrong where. A run kills its own process as soon as it was told of an event; another process goes on with the thread.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import signal
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.tools import StructuredTool
from sqlalchemy import create_engine

from agents.agent import Agent
from agents.graphs import plan_execute, rag, react, router, supervisor, swarm
from agents.models import ScriptedModel
from agents.runtime import Runtime
from agents.tables import Threads
from retrieval.types import Passage

OWNER = "user:ann"
NEVER = -1


def calls(*made: tuple[str, dict[str, str]]) -> AIMessage:
    return AIMessage("Noting.", tool_calls=[{"name": n, "args": a, "id": f"{n}{i}"} for i, (n, a) in enumerate(made)])


NOTE = calls(("note", {"text": "one"}), ("note", {"text": "two"}))
SAID = "30 days of vacation [1]."
AGAIN = ["What was noted?", "It is noted [1]."]
TEAM = {"sales": swarm.Member("You sell."), "support": swarm.Member("You help.")}
PATTERNS: dict[str, tuple[Callable[..., Any], list[Any], list[Any], dict[str, Any]]] = {
    "rag": (rag.build, [NOTE, SAID], AGAIN, {}),
    "react": (react.build, [NOTE, SAID], AGAIN, {}),
    "supervisor": (supervisor.build, [NOTE, SAID], AGAIN, {}),
    "router": (router.build, [NOTE, SAID], AGAIN, {}),
    "swarm": (swarm.build, [calls((swarm.TRANSFER + "support", {})), NOTE, SAID], AGAIN, {"members": TEAM}),
    "plan_execute": (plan_execute.build, ["1. note\n2. sum up", NOTE, "noted", "all", SAID], ["1. go on", "on", "Fine."], {}),
}
"""Builder, what the model says in the run that is killed, and in the one after it, options."""


def agent(folder: Path, pattern: str, replies: list[Any]) -> Agent:
    async def note(text: str) -> str:
        """Write down."""
        with (folder / "notes").open("a") as notes:
            notes.write(f"{text}\n")
        return f"noted {text}"

    async def retrieve(query: str, *, k: int = 5) -> list[Passage]:
        return [Passage("p", "d", "i", "s.md", "S", (), "There are 30 days of vacation.", 0, 30, 0.9, 0.8, 1.0)]

    builder, _, _, options = PATTERNS[pattern]
    tool = StructuredTool.from_function(coroutine=note, name="note")
    return Agent("a", builder, ScriptedModel(replies=replies, delay=0.001), retrieve, tools=[tool], options=options)


def opened(folder: Path) -> Runtime:
    return Runtime(create_engine(f"sqlite:///{folder}/smalti.db"), folder / "checkpoints.db")


async def killed(folder: Path, pattern: str, at: int) -> None:
    """Run, and end with the event of this index; the number of events is left behind."""
    runtime, asked, told = opened(folder), [HumanMessage("Note it.")], 0
    answering = agent(folder, pattern, PATTERNS[pattern][1])
    async for _ in runtime.stream(answering, asked, thread_id="t", owner=OWNER, run_id="r1"):
        if told == at:
            os.kill(os.getpid(), signal.SIGKILL)
        told += 1
    await runtime.close()
    (folder / "events").write_text(str(told))


async def gone_on(folder: Path, pattern: str) -> None:
    """Raises AssertionError where the thread of a killed run cannot be used, or forgot something."""
    noted = (folder / "notes").read_text().split() if (folder / "notes").exists() else []
    runtime = opened(folder)
    assert [turn.text for turn in await runtime.turns("t", OWNER) if turn.role == "user"] == ["Note it."]
    revived = agent(folder, pattern, PATTERNS[pattern][2])
    state: Any = {}
    async for _, mode, chunk in runtime.stream(revived, [HumanMessage("And?")], thread_id="t", owner=OWNER, run_id="r2"):
        state = chunk if mode == "values" else state
    said = state["messages"]
    assert said[-1].content, "the next turn has an answer"
    model: Any = revived._arguments[0]
    for sent in (*model.calls, said):
        open_calls: set[str] = set()
        for message in sent:
            if message.type == "tool":
                open_calls.discard(message.tool_call_id)
                continue
            assert not open_calls, "a tool call without its result"
            open_calls = {call["id"] for call in getattr(message, "tool_calls", None) or ()}
        assert not open_calls, "a tool call without its result at the end"
    results = " ".join(message.content for message in said if message.type == "tool")
    assert all(f"noted {each}" in results for each in noted[:-1]), "a tool that finished is forgotten"
    assert (folder / "notes").read_text().split() == noted if noted else not (folder / "notes").exists(), "a tool ran again"
    assert len(noted) == len(set(noted)), "a tool ran twice"
    assert [turn.role for turn in await runtime.turns("t", OWNER)] == ["user", "assistant"] * 2
    await runtime.close()


def apart(work: Callable[[], Any], folder: Path) -> int:
    """In a process of its own; how it ended. What it raised is left behind."""
    if (child := os.fork()) == 0:
        status = 1
        try:
            asyncio.run(work())
            status = 0
        except BaseException:
            (folder / "wrong").write_text(traceback.format_exc())
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def every(pattern: str) -> dict[str, Any]:
    wrong: dict[int, str] = {}

    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        (place / "empty").mkdir()
        engine = create_engine(f"sqlite:///{place}/empty/smalti.db")
        Threads(engine)
        engine.dispose()
        shutil.copytree(place / "empty", place / "whole")
        asyncio.run(killed(place / "whole", pattern, NEVER))  # here: what it imports, none has to again
        events = int((place / "whole" / "events").read_text())
        for at in range(events):
            folder = shutil.copytree(place / "empty", place / str(at))
            ended = apart(lambda folder=folder, at=at: killed(folder, pattern, at), folder)
            assert ended == -signal.SIGKILL, (pattern, at, (folder / "wrong").read_text())
            if apart(lambda folder=folder: gone_on(folder, pattern), folder):
                wrong[at] = (folder / "wrong").read_text().strip().splitlines()[-1]
    return {"killed_at": events, "wrong": wrong}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("patterns", nargs="*", metavar="PATTERN", help=", ".join(PATTERNS))
    given = parser.parse_args().patterns or list(PATTERNS)
    print(json.dumps({name: every(name) for name in given}))


if __name__ == "__main__":
    main()
