"""What survives: `kill -9` under load loses no record, `kill -9` while indexing loses no document, old state is upgraded."""

from __future__ import annotations

import json
import random
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

from tests.bench.answers import journal, killed
from tests.live import ROOT, environment, serving, smalti, start, stop


def test_every_acknowledged_answer_has_its_row_after_kill_9(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "sea.md").write_text("# Sea\n\nThe sea is salty because rivers carry minerals into it.\n")
    live = start(tmp_path / "home", docs)
    told, live, acknowledged = killed(live, docs, ["Why is the sea salty?", "hello", "What is the capital of Peru?"], 3)
    stop(live)
    rows = journal(tmp_path / "home")  # raises where a row is there twice
    assert told["restarted"] == 3
    assert acknowledged
    assert [each for each in acknowledged if rows.get(each) != 200] == []


def test_killed_while_indexing_it_goes_on_where_it_was(tmp_path: Path) -> None:
    docs, home = tmp_path / "docs", tmp_path / "home"
    docs.mkdir()
    rng = random.Random(3)
    words = [p.stem for p in sorted((ROOT / "agents").rglob("*.py"))] + ["harbour", "lantern", "orchard", "glacier", "meadow"]
    for number in range(300):
        text = "\n\n".join(f"The {rng.choice(words)} of note {number} has {rng.randint(2, 9999)} parts." for _ in range(4))
        (docs / f"note{number:03}.md").write_text(f"# Note {number}\n\n{text}\n")
    command = [sys.executable, "-m", "app", "serve", "--docs", str(docs), "--port", "0"]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment(home), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as first:
        database = home / "smalti.db"
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and first.poll() is None and stored(database) < 5:
            time.sleep(0.01)
        first.kill()
    assert 0 < stored(database) <= 300
    with serving(home, docs) as live, live.client() as client:
        report = live.told["indexes"][0]
        assert report["added"] + report["unchanged"] == 300
        assert stored(database) == 300
        query = {"columns": ["id", "source"], "query_text": "Note 299", "num_results": 5, "query_type": "FULL_TEXT"}
        found = client.post("/api/2.0/vector-search/indexes/main.default.docs/query", json=query).json()
    assert "note299.md" in {row[1] for row in found["result"]["data_array"]}


def stored(database: Path) -> int:
    if not database.exists():
        return 0
    try:
        with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
            return connection.execute("SELECT count(*) FROM vector_documents").fetchone()[0]
    except sqlite3.Error:
        return 0
    finally:
        if "connection" in locals():
            connection.close()


def test_state_of_an_older_schema_is_upgraded_and_of_a_newer_one_refused(tmp_path: Path) -> None:
    from serving.state import SCHEMA_VERSION

    home = tmp_path / "home"
    made = json.loads(smalti("keys", "create", "alice", "--json", home=home).stdout)
    connection = sqlite3.connect(home / "smalti.db")
    connection.execute("ALTER TABLE api_keys DROP COLUMN label")
    connection.execute("UPDATE smalti_schema SET version = 0")
    connection.commit()
    listed = json.loads(smalti("keys", "list", "--json", home=home).stdout)
    assert made["id"] in {row["id"] for row in listed}
    assert (home / "smalti.db.v0.bak").exists()

    connection.execute("UPDATE smalti_schema SET version = ?", (SCHEMA_VERSION + 5,))
    connection.commit()
    connection.close()
    refused = smalti("serve", "--docs", str(ROOT / "docs"), "--port", "0", home=home)
    assert refused.returncode == 2
    assert "Upgrade Smalti" in refused.stderr
