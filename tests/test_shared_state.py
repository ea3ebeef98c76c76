"""Two servers with folders of their own share PostgreSQL, Redis and Chroma: what one does the other knows, and takes over."""

from __future__ import annotations

import os
import shutil
import signal
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


def test_two_servers_keep_one_set_of_indexes(tmp_path: Path, docs: Path) -> None:
    """By `smalti serve` on both, as a newcomer would; how searches ask Chroma is in tests/retrieval/test_shared_vectors.py."""

    def found(live: Live, text: str, key: str | None = None) -> list[str]:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        asked = {"query_text": text, "columns": ["source"], "num_results": 5}
        with live.client() as client:
            answer = client.post("/api/2.0/vector-search/indexes/main.default.docs/query", json=asked, headers=headers)
        return [row[0] for row in answer.json()["result"]["data_array"]] if answer.is_success else [str(answer.status_code)]

    def sync(live: Live) -> None:
        with live.client() as client:
            client.post("/api/2.0/smalti/indexes", json={"name": "docs"}).raise_for_status()

    with servers.postgres() as database, servers.chroma(tmp_path / "vectors") as (chroma, pid):
        shared = {"SMALTI_DATABASE_URL": database, "SMALTI_CHROMA_URL": chroma}
        with serving(tmp_path / "one", docs, **shared) as one:
            (tmp_path / "two").mkdir()
            shutil.copy(tmp_path / "one" / "pepper", tmp_path / "two" / "pepper")
            with serving(tmp_path / "two", docs, **shared) as two:
                assert (one.told["indexes"][0]["added"], two.told["indexes"][0]["unchanged"]) == (1, 1)
                (docs / "kiln.md").write_text("# Kiln\n\nThe kiln is fired with olive wood.\n")
                sync(one)
                wait_until(lambda: found(two, "what fires the kiln")[:1] == ["kiln.md"])
                (docs / "kiln.md").unlink()
                sync(two)
                assert "kiln.md" not in found(one, "what fires the kiln")
                with one.client() as client:
                    made = client.post("/api/2.0/smalti/keys", json={"name": "ann"})
                    key = made.json()["key"]
                    assert found(two, "tiles", key) == ["403"]
                    granted = {"access_control_list": [{"user_name": "ann", "permission_level": "CAN_QUERY"}]}
                    client.patch("/api/2.0/permissions/vector-search-indexes/main.default.docs", json=granted).raise_for_status()
                    assert found(two, "tiles", key) == ["tiles.md"]
                    client.put("/api/2.0/smalti/indexes/docs/row-access", json={"column": "folder"}).raise_for_status()
                    assert (found(one, "tiles", key), found(two, "tiles", key)) == ([], [])
                    os.kill(pid, signal.SIGKILL)
                    (docs / "tiles.md").write_text((docs / "tiles.md").read_text() + "\n## Colours\n\nCobalt makes glass blue.\n")
                    sync(one)
                    wait_until(lambda: "warning" in httpx.get(f"{one.url}/ready").json())
                    told = httpx.get(f"{one.url}/ready")
                    assert (told.status_code, chroma in told.text) == (200, False)
                    assert found(two, "tiles")[:1] == ["tiles.md"]
                    assert chroma in client.get("/api/2.0/smalti/indexes/docs").json()["warning"]
                    client.delete("/api/2.0/smalti/indexes/docs").raise_for_status()
                assert found(two, "tiles") == ["404"]
    assert not list(tmp_path.glob("*/chroma")), "no server keeps a Chroma of its own beside it"
