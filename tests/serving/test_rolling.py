"""Updates, failures and crashes under load: no request notices. The life cycle itself, with real model processes."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from governance.call import Call, CallError
from governance.pepper import load_pepper
from serving.endpoint import Endpoints
from serving.entities import Entities, Vault
from serving.lifecycle import Lifecycle, Record
from serving.registry import Registry
from serving.state import open_database
from tests.serving.models import registry, small

pytestmark = pytest.mark.anyio


@pytest.fixture
async def lifecycle(tmp_path: Path) -> AsyncIterator[Lifecycle]:
    model = small(tmp_path / "mlartifacts" / "small")
    registry(tmp_path, model)
    database = open_database(f"sqlite:///{tmp_path}/smalti.db")
    load_pepper(tmp_path / "pepper")
    entities = Entities(tmp_path, Registry(tmp_path), Vault(database, tmp_path / "pepper"), idle=0.2)
    from serving.tables import metadata

    metadata.create_all(database)
    made = Lifecycle(database, Endpoints(), entities, url="http://127.0.0.1")
    yield made
    await made.close()
    database.dispose()


def config(**fields: Any) -> dict[str, Any]:
    return {"served_entities": [{"name": "a", "entity_name": "m.s.small", "entity_version": "champion", **fields}]}


async def ask(record: Record, word: str = "hello") -> str:
    call = Call("e", "predict", {"dataframe_records": [{"word": word}]}, request_id=os.urandom(16).hex())
    events = [event async for event in record.answer(call)]
    assert events[-1].data["served_entity_name"] == "a"
    return events[-1].data["result"]["predictions"][0]


async def settled(record: Record, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while record.updating or record.work is None or not record.work.done():
        assert time.monotonic() < deadline, "it is still being updated"
        await asyncio.sleep(0.02)


@asynccontextmanager
async def load(record: Record, clients: int = 8) -> AsyncIterator[Counter[str]]:
    """Clients that ask all the time; the answers by the process that gave them. A failure of any is raised at the end."""
    answers: Counter[str] = Counter()
    going = True

    async def client() -> None:
        while going:
            answers[await ask(record)] += 1

    tasks = [asyncio.create_task(client()) for _ in range(clients)]
    try:
        yield answers
    finally:
        going = False
        await asyncio.gather(*tasks)


async def more(answers: Counter[str], seconds: float = 60) -> None:
    """Wait until some more calls were answered."""
    enough, deadline = answers.total() + 50, time.monotonic() + seconds
    while answers.total() < enough:
        assert time.monotonic() < deadline, "calls are no longer answered"
        await asyncio.sleep(0.01)


async def test_updates_and_crashes_under_load_fail_no_call(lifecycle: Lifecycle) -> None:
    await lifecycle.create({"name": "e", "config": config()}, "admin")
    record = lifecycle.get("e")
    with pytest.raises(CallError, match="not ready"):
        await ask(record)
    await settled(record)
    first = await ask(record)
    async with load(record) as answers:
        await more(answers)
        await lifecycle.update("e", config(environment_vars={"GENERATION": "2"}))
        await settled(record)
        await more(answers)
        second = await ask(record)
        assert (set(answers), record.config_version) == ({first, second}, 2)

        await lifecycle.update("e", config(environment_vars={"LOAD": "raise"}))
        await settled(record)
        assert "the weights are of another shape" in str(record.failure)
        shown = record.live("")
        assert shown["state"] == {"ready": "READY", "config_update": "UPDATE_FAILED"}
        assert shown["pending_config"]["served_entities"][0]["state"]["deployment"] == "DEPLOYMENT_FAILED"
        await more(answers)
        assert set(answers) == {first, second}

        os.kill(int(second), signal.SIGKILL)
        await more(answers)
        assert len(answers) == 3
    assert not Path(f"/proc/{first}").exists()  # what was replaced is gone


async def test_two_processes_scale_to_zero_and_come_back(lifecycle: Lifecycle) -> None:
    await lifecycle.create({"name": "e", "config": config(workload_size="Medium", scale_to_zero_enabled=True)}, "admin")
    record = lifecycle.get("e")
    await settled(record)
    entity = record.entities["a"]
    assert entity.build_logs().count("ready after start 1") == 2
    deadline = time.monotonic() + 30
    while entity.memory:
        assert time.monotonic() < deadline, "it holds its memory"
        await asyncio.sleep(0.02)
    assert entity.state[0] == "READY"
    assert record.ready
    assert int(await ask(record))
    await lifecycle.delete("e")
    with pytest.raises(CallError):
        lifecycle.get("e")
