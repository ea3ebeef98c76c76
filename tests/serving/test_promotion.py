"""Promoting a registered model: the experiment, the life cycle and the model are real, and the alias is written down."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from sqlalchemy import select

from governance.call import Caller, CallError
from governance.experiments import Spec
from governance.journal import Journal
from governance.pepper import load_pepper
from governance.tables import audit_log
from serving.endpoint import Endpoints
from serving.entities import Entities, Vault
from serving.experiments.live import Experiments
from serving.lifecycle import Lifecycle
from serving.registry import Registry
from serving.state import open_database
from serving.tables import metadata
from tests.serving.models import registry, small

ADMIN = Caller("admin", admin=True)


@pytest.mark.anyio
async def test_promote_sets_the_registry_alias_and_the_traffic_or_neither(tmp_path: Path) -> None:
    registry(tmp_path, small(tmp_path / "mlartifacts" / "small"))
    database = open_database(f"sqlite:///{tmp_path}/smalti.db")
    load_pepper(tmp_path / "pepper")
    metadata.create_all(database)
    written: list[tuple[str, str, str, str]] = []
    refusing = True

    async def alias(who: Caller, model: str, name: str, version: str) -> None:
        if refusing:
            raise CallError("You may not manage m.s.small.", status=403, code="PERMISSION_DENIED")
        written.append((who.name, model, name, version))

    lifecycle = Lifecycle(
        database,
        Endpoints(),
        Entities(tmp_path, Registry(tmp_path), Vault(database, tmp_path / "pepper")),
        url="http://127.0.0.1",
    )
    with Journal(database, tmp_path / "journal", interval=None) as journal:
        experiments = Experiments(database, journal, lifecycle, alias=alias)
        try:
            entities = [{"name": name, "entity_name": "m.s.small", "entity_version": "champion"} for name in "ab"]
            routes = [{"served_model_name": "a", "traffic_percentage": 100}, {"served_model_name": "b", "traffic_percentage": 0}]
            config = {"served_entities": entities, "traffic_config": {"routes": routes}}
            await lifecycle.create({"name": "e", "config": config}, "admin")
            record, deadline = lifecycle.get("e"), time.monotonic() + 90
            while record.updating or record.work is None or not record.work.done():
                assert time.monotonic() < deadline, "it is still being loaded"
                await asyncio.sleep(0.02)
            arms = [{"served_entity_name": name, "traffic_percentage": 50} for name in "ab"]
            spec = Spec.parse({"name": "x", "endpoint": "e", "arms": arms, "metric": "latency_ms", "alias": "live"})
            await experiments.create(spec, "admin")

            with pytest.raises(CallError, match="may not manage"):
                await experiments.promote("x", ADMIN, "b")
            assert (await experiments.get("x"))["state"] == "RUNNING", "who may not set the alias promotes nothing"
            refusing = False
            done = await experiments.promote("x", ADMIN, "b")
            assert written == [("admin", "m.s.small", "live", "1")], "the version that b serves"
            assert done["state"] == "PROMOTED"
            assert "set m.s.small@live to version 1" in done["reason"]
            assert lifecycle.get("e").config is not None
            told = (lifecycle.get("e").config or {})["traffic_config"]["routes"]
            assert [(route["served_entity_name"], route["traffic_percentage"]) for route in told] == [("b", 100)]
            with database.connect() as connection:
                assert "experiment.promote" in connection.execute(select(audit_log.c.action)).scalars().all()
        finally:
            await lifecycle.close()
    database.dispose()
