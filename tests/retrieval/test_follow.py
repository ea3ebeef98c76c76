"""Delta Sync indexes that follow their tables."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from retrieval import Indexes
from retrieval.rows.follow import Follower
from retrieval.rows.schema import Spec
from tests.retrieval.conftest import Who

pytestmark = pytest.mark.anyio
NAME = "main.default.things"


def write(table: Path, count: int) -> None:
    table.write_text("\n".join(json.dumps({"id": i, "text": f"row {i}"}) for i in range(count)))


@pytest.fixture
def table(tmp_path: Path, indexes: Indexes) -> Path:
    table = tmp_path / "docs.jsonl"
    write(table, 3)
    indexes.over_rows.tables.add("main.default.source", str(table))
    indexes.over_rows.endpoints.create("e", "STANDARD", "root")
    return table


def make(indexes: Indexes, pipeline: str) -> None:
    spec = Spec("id", "DELTA_SYNC", "FULL_TEXT", source="main.default.source", pipeline=pipeline)
    indexes.over_rows.create(NAME, "e", spec, "root")


async def settled(indexes: Indexes) -> int:
    over = indexes.over_rows
    for _ in range(500):
        index = await asyncio.to_thread(over.get, NAME)
        if not index.syncing:
            return over.store.count(index.id)
        await asyncio.sleep(0.02)
    raise AssertionError("the sync does not end")


def follower(indexes: Indexes, who: Any = lambda name: Who(name, True)) -> Follower:
    return Follower(indexes.over_rows, indexes.embed, who)


async def test_a_continuous_index_follows_its_table(indexes: Indexes, table: Path) -> None:
    make(indexes, "CONTINUOUS")
    follows = follower(indexes)
    assert await follows.look() == [NAME]
    assert await settled(indexes) == 3
    assert await follows.look() == [], "what did not change is not read"
    write(table, 5)
    assert await follows.look() == [NAME]
    assert await settled(indexes) == 5


async def test_a_triggered_index_waits_to_be_told_but_its_first_sync_is_finished(indexes: Indexes, table: Path) -> None:
    make(indexes, "TRIGGERED")
    follows = follower(indexes)
    assert await follows.look() == [NAME], "as after a server that was killed before the first sync ended"
    assert await settled(indexes) == 3
    write(table, 5)
    assert await follows.look() == []


async def test_a_failed_sync_is_tried_again(indexes: Indexes, table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(indexes, "CONTINUOUS")
    follows = follower(indexes)
    text = table.read_text()
    table.write_text("{")
    await follows.look()
    await settled(indexes)
    assert "near row 1" in indexes.over_rows.get(NAME).error
    assert await follows.look() == []
    monkeypatch.setattr("retrieval.rows.follow.AGAIN", 0.0)
    assert await follows.look() == [NAME]
    await settled(indexes)
    table.write_text(text)
    await follows.look()
    assert await settled(indexes) == 3
    assert indexes.over_rows.get(NAME).error == ""


async def test_nobody_syncs_for_a_maker_who_is_gone(indexes: Indexes, table: Path) -> None:
    make(indexes, "CONTINUOUS")
    assert await follower(indexes, lambda name: None).look() == []
    assert indexes.over_rows.get(NAME).synced_ms is None


async def test_a_folder_may_be_a_source(indexes: Indexes, table: Path, folder: Path) -> None:
    indexes.add("source_docs", folder)
    indexes.sync("source_docs")
    spec = Spec("id", "DELTA_SYNC", "FULL_TEXT", source="main.default.source_docs", pipeline="CONTINUOUS")
    indexes.over_rows.create(NAME, "e", spec, "root")
    follows = follower(indexes)
    await follows.look()
    assert await settled(indexes) == 5
    (folder / "glass.md").unlink()
    indexes.sync("source_docs")
    assert await follows.look() == [NAME]
    assert await settled(indexes) == 3
