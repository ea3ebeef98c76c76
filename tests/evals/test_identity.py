from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from evals.identity import identity


def endpoint(name: str, task: str = "llm/v1/chat", **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "task": task,
        "state": {"ready": "READY"},
        "last_updated_timestamp": 1,
        "config": {"model": name, **more},
    }


def agent(name: str, **more: Any) -> dict[str, Any]:
    entity = {"agent": {"builder": "agents.graphs.rag:build", "index": "main.default.docs", **more}}
    return {"name": name, "config": {"served_entities": [entity]}}


ENDPOINTS = [
    *map(endpoint, ("small", "large", "router")), *(endpoint(n, "agent/v1/responses") for n in ("desk", "clerk", "assistant")),
]  # fmt: skip
INDEXES = [{"name": "main.default.docs", "revision": "7-7"}, {"name": "main.default.law", "revision": "3-3"}]
SETTINGS = {"endpoints": [agent("desk", model="small"), agent("clerk", index="law", tools=[{"endpoint": "desk"}])], "port": 8000}


def change(of: list[dict[str, Any]], name: str, **more: Any) -> list[dict[str, Any]]:
    return [{**each, **more} if each["name"] == name else each for each in of]


def differ(endpoints: Any = ENDPOINTS, indexes: Any = INDEXES, settings: Any = SETTINGS) -> set[str]:
    """The endpoints that are asked again."""
    names = [each["name"] for each in ENDPOINTS]
    return {n for n in names if identity(n, endpoints, indexes, settings) != identity(n, ENDPOINTS, INDEXES, SETTINGS)}


def test_a_restart_asks_nothing_again() -> None:
    later = [{**each, "last_updated_timestamp": 2, "state": {"ready": "NOT_READY"}, "id": "x"} for each in ENDPOINTS]
    synced = [{**each, "synced_at": 9.0, "report": {"seconds": 1}} for each in INDEXES]
    assert differ(later, synced, {**SETTINGS, "port": 9000, "journal_fsync": True}) == set()


def test_only_what_depends_on_a_change_is_asked_again() -> None:
    assert differ(change(ENDPOINTS, "large", config={"model": "larger"})) == {"large", "assistant"}
    assert differ(change(ENDPOINTS, "small", config={"model": "tiny"})) == {"small", "desk", "clerk", "assistant"}
    assert differ(indexes=change(INDEXES, "main.default.law", revision="4-4")) == {"clerk", "assistant"}
    assert differ(indexes=change(INDEXES, "main.default.docs", revision="9-8")) == {"desk", "clerk", "assistant"}
    prompted = {**SETTINGS, "endpoints": [agent("desk", model="small", description="Be brief."), SETTINGS["endpoints"][1]]}
    assert differ(settings=prompted) == {"desk", "clerk", "assistant"}
    assert differ(settings={**SETTINGS, "chat_model": "openai:x"}) == {"desk", "clerk", "assistant"}


def test_an_agents_own_file_is_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "agent.py").write_text("PROMPT = 'a'")
    (tmp_path / "rows.jsonl").write_text("{}")
    own = {"endpoints": [agent("desk", builder="./agent.py:build"), agent("clerk")]}

    def told(name: str) -> dict[str, Any]:
        return identity(name, ENDPOINTS, INDEXES, own)

    before = [told(name) for name in ("desk", "clerk", "small")]
    (tmp_path / "rows.jsonl").write_text("{} ")
    assert told("desk") == before[0]
    (tmp_path / "agent.py").write_text("PROMPT = 'b'")
    assert told("desk") != before[0]
    assert [told(name) for name in ("clerk", "small")] == before[1:]
