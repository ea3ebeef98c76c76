"""Memory across threads: found by meaning and by words, and by nobody but the user whom it is of."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langgraph.store.base import PutOp
from sqlalchemy import create_engine

from agents import Agent, Runtime, ScriptedModel
from agents import memory as memory_module
from agents.graphs import react
from agents.memory import Memory
from agents.run import whose
from agents.tools.memory import memory_tools
from tests.agents.conftest import embed
from tests.servers import postgres

pytestmark = pytest.mark.anyio

ME = ("memories",)


@pytest.fixture(params=["sqlite", "postgres"])
def memory(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Memory]:
    if request.param == "sqlite":
        yield Memory(create_engine(f"sqlite:///{tmp_path}/smalti.db"), embed)
        return
    with postgres() as url:
        engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
        yield Memory(engine, embed)
        engine.dispose()


async def test_it_is_found_by_meaning_and_by_nobody_else(memory: Memory) -> None:
    ann, bob = memory.of("ann"), memory.of("bob")
    await ann.aput(ME, "a", {"text": "Ann is allergic to peanuts."})
    await ann.aput(ME, "b", {"text": "Ann works in the Lisbon office.", "weight": 3})
    await ann.aput(("notes", "work"), "a", {"text": "The deadline is on Friday."}, index=False)
    best = (await ann.asearch(ME, query="allergies to peanuts"))[0]
    assert (best.key, best.namespace) == ("a", ME)
    assert best.score > 0.3
    assert [item.key for item in await ann.asearch(ME, filter={"weight": {"$gte": 3}})] == ["b"]
    with pytest.raises(ValueError, match="no comparison"):
        await ann.asearch(ME, filter={"weight": {"$near": 3}})
    assert (await ann.asearch((), query="deadline friday"))[0].namespace == ("notes", "work"), "by its words alone"
    assert await ann.alist_namespaces(prefix=("notes",)) == [("notes", "work")]
    assert await bob.asearch(()) == []
    assert await bob.aget(ME, "a") is None
    await bob.adelete(ME, "a")
    await bob.clear()
    assert await ann.count() == 3
    made = (await ann.aget(ME, "a")).created_at
    await ann.aput(ME, "a", {"text": "Ann is allergic to walnuts."})
    changed = await ann.aget(ME, "a")
    assert (changed.value["text"], changed.created_at) == ("Ann is allergic to walnuts.", made)
    assert await ann.clear() == 3
    assert await ann.asearch(()) == []


async def test_what_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Memory(create_engine(f"sqlite:///{tmp_path}/smalti.db"))
    monkeypatch.setattr(memory_module, "MAX_ITEMS", 2)
    ann = memory.of("ann")
    for key in "ab":
        await ann.aput(ME, key, {"text": key})
    for key, value, why in (("c", {}, "2 memories"), ("k" * 201, {}, "200 characters"), ("d", {"x": "y" * 70_000}, "64 KB")):
        with pytest.raises(ValueError, match=why):
            await ann.aput(ME, key, value)
    with pytest.raises(ValueError, match="no user"):
        await memory.asearch(())
    assert memory_module._indexed(PutOp(ME, "a", {"x": {"y": ["one", "two"]}, "z": 1}, ["x.y[*]"])) == "one\ntwo"


async def test_a_model_remembers_in_one_thread_and_recalls_in_another(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path}/smalti.db")
    runtime = Runtime(engine, tmp_path / "checkpoints.db", store=lambda: Memory(engine, embed))

    def calls(name: str, **given: Any) -> AIMessage:
        return AIMessage("", tool_calls=[{"name": name, "args": given, "id": f"call-{name}"}])

    async def ask(owner: str, thread: str | None, *replies: Any) -> list[str]:
        agent = Agent("a", react.build, ScriptedModel(replies=list(replies)), None, tools=memory_tools())
        state: dict[str, Any] = {}
        async for _, mode, chunk in runtime.stream(agent, [HumanMessage("Hello")], thread_id=thread, owner=owner):
            state = chunk if mode == "values" else state
        return [m.text for m in state["messages"] if isinstance(m, ToolMessage)]

    assert await ask("ann", "t1", calls("remember", text="Ann likes short answers."), "Noted.") == ["Remembered."]
    (found,) = await ask("ann", "t2", calls("recall", query="how does Ann like answers"), "Short.")
    assert "Ann likes short answers." in found
    (key,) = [item.key for item in await Memory(engine).of("ann").asearch(())]
    assert await ask("bob", "t3", calls("recall", query="Ann"), "No.") == ["Nothing is remembered about the user."]
    assert "no memory" not in (await ask("bob", None, calls("forget", key=key), "No."))[0]
    assert await Memory(engine).of("ann").count() == 1, "another user's run cannot forget it"
    assert await ask("ann", None, calls("forget", key=key), "Done.") == ["Forgotten."]
    assert whose.get() is None
    await runtime.close()
