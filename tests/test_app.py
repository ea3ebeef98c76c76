"""The program as its user meets it: the commands, what a start prints, what it refuses and how it says so."""

from __future__ import annotations

import contextlib
import json
import shlex
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI

from serving.cli import Workspace
from tests.live import KEY, Live, environment, serving, smalti, start, stop

HANDBOOK = {
    "leave.md": "# Leave\n\n## Annual leave\n\nEvery employee has 28 days of annual leave. Unused days lapse on 31 March.\n",
    "travel.md": "# Travel\n\n## Trains\n\nTrains are booked in second class. The limit for a hotel is 120 euros a night.\n",
}


@pytest.fixture(scope="module")
def handbook(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("handbook")
    for name, text in HANDBOOK.items():
        (folder / name).write_text(text)
    (folder / "broken.pdf").write_bytes(b"%PDF-1.7 this is not one")
    return folder


@pytest.fixture(scope="module")
def live(handbook: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with serving(tmp_path_factory.mktemp("state") / "home", handbook) as server:
        yield server


def test_help_names_every_command_without_importing_anything_heavy() -> None:
    code = (
        "import sys, app\n"
        "heavy = {'fastapi', 'mlflow', 'chromadb', 'langgraph', 'nicegui', 'onnxruntime', 'sqlalchemy', 'sklearn', 'numpy'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True, cwd=Path(__file__).parent.parent).strip() == "[]"
    shown = subprocess.check_output([sys.executable, "-m", "app", "--help"], text=True, cwd=Path(__file__).parent.parent)
    for command in ("serve", "index", "ask", "eval", "keys", "endpoints", "doctor", "journal", "grants", "finetune"):
        assert command in shown


def test_the_start_says_where_everything_is_and_its_curl_line_works(live: Live) -> None:
    assert live.told["chat"].startswith(f"{live.url}/signin?code=")
    assert live.told["console"] == f"{live.url}/console"
    assert [item["source"] for report in live.told["indexes"] for item in report["skipped"]] == ["broken.pdf"]
    printed = subprocess.run(shlex.split(live.told["curl"]), capture_output=True, text=True, timeout=100)
    assert json.loads(printed.stdout)["status"] == "completed"


def test_a_question_is_answered_with_a_citation_that_opens_the_passage(live: Live) -> None:
    with live.client() as client:
        answer = client.post("/v1/responses", json={"model": "assistant", "input": "How many days of annual leave do I have?"})
        part = answer.json()["output"][0]["content"][0]
        assert "28 days" in part["text"]
        note = part["annotations"][0]
        page = client.get(note["url"])
        assert page.status_code == 200
        assert "28 days of annual leave" in page.text.split("<mark", 1)[1].split("</mark>", 1)[0]
        rows = client.get("/api/2.0/smalti/journal", params={"limit": 50}).json()
    ids = [row["databricks_request_id"] for row in rows.get("rows", rows.get("data", []))]
    assert answer.headers["x-request-id"] in ids


def test_what_is_not_in_the_documents_is_declined(live: Live) -> None:
    with live.client() as client:
        body = {"model": "assistant", "input": "What is the boiling point of tungsten?"}
        answer = client.post("/v1/responses", json=body).json()
    assert answer["custom_outputs"]["abstained"] is True
    assert not answer["output"][0]["content"][0]["annotations"]


def test_commands_reach_the_running_server(live: Live) -> None:
    asked = smalti("ask", "How many days of annual leave do I have?", "--json", home=live.home)
    assert "28 days" in json.loads(asked.stdout)["output"][0]["content"][0]["text"]
    told = smalti("ask", "What is the limit for a hotel?", home=live.home)
    assert "120 euros" in told.stdout
    assert "[1] travel.md" in told.stdout
    found = json.loads(smalti("index", "query", "docs", "hotel", "--json", home=live.home).stdout)
    assert {"id", "source", "text"} <= set(found[0])
    assert (found[0]["source"], found[0]["dense"], found[0]["lexical"]) == ("travel.md", 1, 1), "its places in both rankings"
    names = [row["name"] for row in json.loads(smalti("endpoints", "--json", home=live.home).stdout)]
    assert "assistant" in names


def test_names_of_principals_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    """`:robot:` between colons is a picture to the library that draws tables."""
    rows = [{"change": "service_principal:robot: none [bold]"}]
    Workspace(None, lambda *_: FastAPI()).print_rows(rows, {"change": "Change"}, as_json=False, empty="")
    assert "service_principal:robot: none [bold]" in capsys.readouterr().out


def test_an_index_is_added_synced_and_dropped(live: Live, tmp_path: Path) -> None:
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "a.md").write_text("# Bees\n\nBees dance to tell where flowers are.\n")
    added = smalti("index", "add", "notes", str(folder), "--json", home=live.home)
    assert added.returncode == 0, added.stderr
    assert json.loads(added.stdout)["index"] == "main.default.notes"
    (folder / "empty.md").write_text("")
    again = smalti("index", "sync", "notes", "--json", home=live.home)
    report = json.loads(again.stdout)
    assert again.returncode == 3
    assert report["embedded"] == 0
    assert [item["source"] for item in report["skipped"]] == ["empty.md"]
    assert "notes" in smalti("index", "list", home=live.home).stdout
    out = tmp_path / "notes.jsonl"
    told = smalti("index", "export", "notes", str(out), home=live.home)
    assert (told.returncode, "1 rows exported" in told.stderr) == (0, True), told.stderr
    row = json.loads(out.read_text())
    assert (row["source"], row["text"][: row["end"] - row["start"]]) == ("a.md", row["text"])
    assert json.loads(smalti("index", "export", "notes", home=live.home).stdout) == row
    assert smalti("index", "drop", "notes", home=live.home).returncode == 0
    assert "main.default.notes" not in smalti("index", "list", "--json", home=live.home).stdout


def test_an_index_is_made_of_a_table_and_shown_by_group(live: Live, tmp_path: Path) -> None:
    table = tmp_path / "products.jsonl"
    rows = [{"id": "1", "text": "a blue glass tile", "team": "sales"}, {"id": "2", "text": "a bag of grout", "team": "hr"}]
    table.write_text("\n".join(json.dumps(row) for row in [*rows, {"id": None, "text": "no key"}]))
    made = smalti("index", "add", "products", str(table), "--key", "id", home=live.home)
    assert (made.returncode, "2 added" in made.stdout, "row 3 has no primary key" in made.stdout) == (3, True, True), made.stderr
    again = smalti("index", "add", "products", str(table), "--key", "id", home=live.home)
    assert "2 unchanged, 0 embedded" in again.stdout
    assert "made otherwise" in smalti("index", "add", "products", str(table), "--key", "text", home=live.home).stderr
    found = json.loads(smalti("index", "query", "products", "mosaic tiles", "--json", home=live.home).stdout)
    assert (found[0]["id"], len(found)) == ("1", 2)
    assert "in 'team'" in smalti("index", "restrict", "products", "team", home=live.home).stdout
    key = json.loads(smalti("keys", "create", "lea", "--json", home=live.home).stdout)["key"]
    assert smalti("grants", "add", "user:lea", "index:main.default.products", home=live.home).returncode == 0
    body = {"columns": ["id"], "query_text": "tiles", "num_results": 9}
    with live.client() as client:
        path, headers = "/api/2.0/vector-search/indexes/main.default.products/query", {"authorization": f"Bearer {key}"}
        assert client.post(path, json=body, headers=headers).json()["result"]["row_count"] == 0, "lea is in no group"
    assert smalti("index", "drop", "products", home=live.home).returncode == 0
    assert smalti("index", "status", "products", home=live.home).returncode == 1


def test_a_new_user_may_do_nothing_until_it_is_granted_and_nothing_once_revoked(live: Live) -> None:
    made = json.loads(smalti("keys", "create", "alice", "--json", home=live.home).stdout)
    body = {"model": "assistant", "input": "How many days of annual leave do I have?"}
    with live.client() as client:
        headers = {"Authorization": f"Bearer {made['key']}"}
        refused = client.post("/v1/responses", json=body, headers=headers)
        assert refused.status_code == 403
        assert "smalti grants add user:alice endpoint:assistant" in refused.json()["error"]["message"]
        misspelt = smalti("grants", "add", "user:alice", "endpoint:asistant", home=live.home)
        assert misspelt.returncode == 0
        assert "Did you mean 'assistant'?" in misspelt.stderr
        granted = json.loads(smalti("grants", "add", "user:alice", "endpoint:assistant", "--json", home=live.home).stdout)
        assert {row["securable"] for row in granted} == {"endpoint:assistant", "index:main.default.docs"}
        assert client.post("/v1/responses", json=body, headers=headers).json()["custom_outputs"]["abstained"] is False
        assert smalti("keys", "revoke", made["id"], home=live.home).returncode == 0
        assert client.post("/v1/responses", json=body, headers=headers).status_code == 401
    assert made["id"] not in smalti("keys", "list", "--json", home=live.home).stdout
    listed = smalti("keys", "list", "--all", "--json", home=live.home).stdout
    assert made["id"] in listed
    assert made["key"] not in listed


def test_the_journal_is_exported_a_row_a_line(live: Live) -> None:
    with live.client() as client:
        answer = client.post("/v1/responses", json={"model": "assistant", "input": "hello"})
        client.post("/v1/responses", json={"model": "assistant", "input": "hello"}, headers={"Authorization": "Bearer no"})
    lines = smalti("journal", "export", "--json", home=live.home).stdout.splitlines()
    rows = {row["databricks_request_id"]: row for row in map(json.loads, lines)}
    row = rows[answer.headers["x-request-id"]]
    assert (row["status_code"], row["requester"], row["endpoint_name"]) == (200, "admin", "assistant")
    assert 401 in {row["status_code"] for row in rows.values()}
    assert KEY not in "".join(lines)


def test_an_evaluation_gates_by_its_exit_code(live: Live, tmp_path: Path) -> None:
    data = tmp_path / "questions.jsonl"
    rows = [
        {"question": "How many days of annual leave?", "expected_facts": ["28 days"], "expected_sources": ["leave.md"]},
        {"question": "Who won the chess world championship in 1972?", "unanswerable": True},
    ]
    data.write_text("\n".join(map(json.dumps, rows)))
    good = smalti("eval", "assistant", "--data", str(data), "--json", "--min", "hit@5=0.9", home=live.home)
    assert good.returncode == 0, good.stderr
    told = json.loads(good.stdout)
    assert (told["rows"], told["hit@5"], told["abstention_recall"]) == (2, 1.0, 1.0)
    bad = smalti("eval", "assistant", "--data", str(data), "--json", "--min", "f1=1", home=live.home)
    assert bad.returncode == 1
    assert smalti("eval", "assistant", "--data", str(data), "--min", "hits=1", home=live.home).returncode == 2


def test_a_second_server_on_the_same_state_is_refused(live: Live, handbook: Path) -> None:
    second = smalti("serve", "--docs", str(handbook), "--port", "0", home=live.home)
    assert second.returncode == 2
    assert f"in use by process {live.process.pid}, serving {live.url}" in second.stderr
    assert "Traceback" not in second.stderr


def test_a_taken_port_is_refused(handbook: Path, tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        refused = smalti("serve", "--docs", str(handbook), "--port", str(port), home=tmp_path / "home")
    assert refused.returncode == 2
    assert f"Port {port} on 127.0.0.1 is taken" in refused.stderr


@pytest.mark.parametrize("case", ["missing", "empty", "unreadable"])
def test_a_folder_without_documents_is_refused(case: str, tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    if case != "missing":
        folder.mkdir()
    if case == "unreadable":
        (folder / "noise.md").write_bytes(bytes(range(256)) * 10)
    refused = smalti("serve", "--docs", str(folder), "--port", "0", home=tmp_path / "home", SMALTI_ADMIN_KEY="")
    assert refused.returncode == 2
    assert str(folder) in refused.stderr
    assert "Traceback" not in refused.stderr
    if case == "empty":  # the admin's key is made by the start that shows it
        with contextlib.closing(sqlite3.connect(tmp_path / "home" / "smalti.db")) as state:
            assert state.execute("SELECT count(*) FROM api_keys").fetchone() == (0,)


def test_commands_work_without_a_server(handbook: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    added = smalti("index", "add", "docs", str(handbook), "--json", home=home)
    assert added.returncode == 3  # the broken PDF was skipped
    asked = smalti("ask", "How many days of annual leave do I have?", home=home)
    assert "28 days" in asked.stdout
    checked = smalti("doctor", "--json", home=home)
    assert json.loads(checked.stdout)["ok"] is True, checked.stdout
    (shared,) = [each for each in json.loads(checked.stdout)["checks"] if each["name"] == "shared"]
    assert shared["detail"].startswith("nothing")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("prot: 9000\n", "smalti.yaml:1: prot: no such key; accepted here: "),
        ("port: high\n", "smalti.yaml:1: port: "),
        ("docs: a\nendpoints:\n  - name: x\n    config: {}\n", "smalti.yaml:4: endpoints.0.config.served_entities"),
        ("port: [\n", "smalti.yaml:2: not valid YAML"),
        ("grants:\n- {principal: alice, securable: endpoint:a}\n", "smalti.yaml:2: grants.0.principal"),
    ],
)
def test_a_mistake_in_the_settings_file_is_named_with_its_line(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "smalti.yaml").write_text(text)
    command = [sys.executable, "-m", "app", "serve"]
    env = environment(tmp_path / "home") | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["keys", "revoke", "nope"], "there is no key with id 'nope'"),
        (["grants", "add", "alice", "endpoint:assistant"], "user:NAME"),
        (["finetune", "run", "nope.yaml"], "nope.yaml"),
        (["eval", "assistant", "--data", "nope.jsonl"], "nope.jsonl"),
        (["--config", "nope.yaml", "doctor"], "nope.yaml"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(arguments: list[str], said: str, tmp_path: Path) -> None:
    done = smalti(*arguments, home=tmp_path / "home")
    assert done.returncode != 0
    assert said in done.stderr + done.stdout
    assert "Traceback" not in done.stderr


def test_a_damaged_database_is_named_with_what_to_do(tmp_path: Path) -> None:
    home = tmp_path / "home"
    assert smalti("index", "list", home=home).returncode == 0
    with (home / "smalti.db").open("r+b") as database:
        database.seek(8192)
        database.write(b"\xa5" * 81_920)
    for name in ("smalti.db-wal", "smalti.db-shm"):
        (home / name).unlink(missing_ok=True)
    done = smalti("index", "list", home=home)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "It is damaged: stop Smalti and restore the state folder from a copy." in done.stderr


def test_an_admin_key_that_is_too_short_is_refused(handbook: Path, tmp_path: Path) -> None:
    refused = smalti("serve", "--docs", str(handbook), "--port", "0", home=tmp_path / "home", SMALTI_ADMIN_KEY="short")
    assert refused.returncode == 2
    assert "at least 8 characters" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_an_agent_that_does_not_import_does_not_stop_the_server(handbook: Path, tmp_path: Path) -> None:
    (tmp_path / "smalti.yaml").write_text(
        "endpoints:\n- name: broken\n  config:\n    served_entities:\n    - agent: {builder: './agent.py:build'}\n"
    )
    (tmp_path / "agent.py").write_text("import no_such_package\n")
    command = [sys.executable, "-m", "app", "serve", "--json", "--port", "0", "--docs", str(handbook)]
    env = environment(tmp_path / "home") | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    with subprocess.Popen(
        command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        server = Live(told["url"], tmp_path / "home", process, told)
        try:
            with server.client() as client:
                refused = client.post("/v1/responses", json={"model": "broken", "input": "hi"})
                answered = client.post("/v1/responses", json={"model": "assistant", "input": "hi"})
        finally:
            stop(server)
    assert refused.status_code == 503
    assert "no_such_package" in refused.json()["error"]["message"]
    assert answered.status_code == 200


def test_a_changed_document_is_found_after_a_restart(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "price.md").write_text("# Price\n\nThe membership costs 40 euros a year.\n")
    (docs / "other.md").write_text("# Hours\n\nThe office opens at nine in the morning.\n")
    server = start(tmp_path / "home", docs)
    server.kill()
    (docs / "price.md").write_text("# Price\n\nThe membership costs 55 euros a year.\n")
    with serving(tmp_path / "home", docs) as again, again.client() as client:
        report = again.told["indexes"][0]
        answer = client.post("/v1/responses", json={"model": "assistant", "input": "What does the membership cost?"}).json()
    assert (report["changed"], report["unchanged"], report["embedded"]) == (1, 1, 1)
    assert "55 euros" in answer["output"][0]["content"][0]["text"]
