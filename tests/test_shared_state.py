"""Two servers with folders of their own share PostgreSQL and Redis: one takes over where the other was killed."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from tests import servers
from tests.live import Live, serving, wait_until

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    (folder := tmp_path / "docs").mkdir()
    (folder / "tiles.md").write_text("# Tiles\n\nA tessera is a small tile of glass. The workshop in Ravenna makes them.\n")
    return folder


def ask(live: Live, text: str, **more: Any) -> httpx.Response:
    with live.client() as client:
        return client.post("/v1/responses", json={"model": "assistant", "input": text, **more})


def checkpoints(database: str) -> list[int]:
    """How many each thread has."""
    with psycopg.connect(database) as connection:
        return [row[0] for row in connection.execute("SELECT count(*) FROM checkpoints GROUP BY thread_id").fetchall()]


def test_one_server_goes_on_where_another_was_killed(tmp_path: Path, docs: Path) -> None:
    (tmp_path / "redis").mkdir()
    with servers.postgres() as database, servers.redis(tmp_path / "redis") as redis:
        shared = {"SMALTI_DATABASE_URL": database, "SMALTI_REDIS_URL": redis}
        with serving(tmp_path / "one", docs, **shared) as one:
            limit = {"rate_limits": [{"key": "user", "calls": 3, "renewal_period": "minute"}]}
            with one.client() as client:
                client.put("/api/2.0/serving-endpoints/assistant/ai-gateway", json=limit).raise_for_status()
            began = time.monotonic()
            said = ask(one, "What is a tessera?", conversation="tiles")
            assert said.status_code == 200, said.text
            first = said.json()
            assert "small tile of glass" in said.text
            assert (one.home / "smalti.db").exists() is False
            one.kill()
        (tmp_path / "two").mkdir()
        shutil.copy(tmp_path / "one" / "pepper", tmp_path / "two" / "pepper")
        shutil.copytree(tmp_path / "one" / "journal", tmp_path / "two" / "journal", dirs_exist_ok=True)
        with serving(tmp_path / "two", docs, **shared) as two:
            went_on = ask(two, "Who makes them?", conversation="tiles")
            assert went_on.status_code == 200, went_on.text
            assert "Ravenna" in went_on.text
            # of a thread that rests its last checkpoint is kept; that comes after the answer
            wait_until(lambda: checkpoints(database) == [1], 60)
            with two.client() as client:
                kept = client.get(f"/v1/responses/{first['id']}")
                assert kept.json()["id"] == first["id"]
            assert ask(two, "What is a tessera?").status_code == 200
            refused = ask(two, "What is a tessera?")
            if time.monotonic() - began < 60:  # else the first call is a minute ago
                assert refused.status_code == 429, "a minute is one minute for both"
                assert "3 calls a minute" in refused.text
