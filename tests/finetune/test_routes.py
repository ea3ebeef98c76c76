"""Runs over HTTP: begun, followed, cancelled and seen by those who may, and by nobody else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.finetune.tiny import bert_unbuilt, reviews, tracking
from tests.live import Live, serving, smalti, wait_until

RUNS = "/api/2.0/smalti/finetune/runs"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("http")
    bert_unbuilt(folder / "base")
    reviews(folder / "train.jsonl", 80, 1)
    reviews(folder / "eval.jsonl", 20, 2)
    return folder


@pytest.fixture(scope="module")
def live(made: Path) -> Iterator[Live]:
    tracking(made / "home")
    with serving(made / "home") as server:
        yield server


def recipe(made: Path, **changes: Any) -> dict[str, Any]:
    given = {"task": "classify", "method": "full", "name": "reviews", "base_model": str(made / "base"), "threads": 1}
    data = {"train": str(made / "train.jsonl"), "eval": str(made / "eval.jsonl")}
    return given | {"data": data, "max_length": 32, "training_duration": "2ba"} | changes


def events(client: httpx.Client, run: str, **headers: str) -> list[tuple[int, str, dict[str, Any]]]:
    with client.stream("GET", f"{RUNS}/{run}/events", headers=headers) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        frames = [frame for frame in "".join(answer.iter_text()).split("\n\n") if frame.startswith("id:")]
    fields = [dict(line.split(": ", 1) for line in frame.splitlines()) for frame in frames]
    return [(int(each["id"]), each["event"], json.loads(each["data"])) for each in fields]


def user(live: Live, name: str) -> httpx.Client:
    with live.client() as admin:
        key = admin.post("/api/2.0/smalti/keys", json={"name": name}).raise_for_status().json()["key"]
    return httpx.Client(base_url=live.url, headers={"Authorization": f"Bearer {key}"}, timeout=60, trust_env=False)


@pytest.mark.timeout(400)
def test_a_run_from_its_recipe_to_its_last_event(live: Live, made: Path) -> None:
    with live.client() as client, user(live, "eve") as eve:
        asked = {"recipe": recipe(made), "overrides": ["training_duration=3ba"]}
        begun = client.post(RUNS, json=asked).raise_for_status().json()
        assert begun["recipe"]["training_duration"] == "3ba"
        assert begun["created_by"] == "user:admin"
        told = events(client, begun["id"])
        kinds = [kind for _, kind, _ in told]
        assert kinds[-1] == "completed"
        assert sum(kind in ("completed", "failed", "canceled") for kind in kinds) == 1
        assert [number for number, *_ in told] == list(range(len(told)))
        assert [data["step"] for _, kind, data in told if kind == "progress"] == [1, 3]
        assert events(client, begun["id"], **{"last-event-id": str(len(told) - 2)}) == told[-1:]
        assert len(client.get(f"{RUNS}/{begun['id']}/events", params={"follow": False}).json()["events"]) == len(told)

        wait_until(lambda: client.get(f"{RUNS}/{begun['id']}").json()["status"] == "COMPLETED", 100)
        shown = client.get(f"{RUNS}/{begun['id']}").json()
        assert shown["result"]["metrics"].keys() == shown["result"]["baseline"].keys()
        assert [row["id"] for row in client.get(RUNS).json()["runs"]] == [begun["id"]]
        refused = client.post(f"{RUNS}/{begun['id']}/cancel")
        assert refused.status_code == 409
        assert "nothing to cancel" in refused.json()["message"]

        assert eve.get(RUNS).json() == {"runs": []}
        for path in (begun["id"], f"{begun['id']}/events", "none"):
            assert eve.get(f"{RUNS}/{path}").status_code == 404
        assert shown["registrable"]  # the recipe named no model; it may be named yet
        assert eve.post(f"{RUNS}/{begun['id']}/register", json={"name": "main.default.hers"}).status_code == 404
        wrong = client.post(f"{RUNS}/{begun['id']}/register", json={"name": "no name"})
        assert (wrong.status_code, "register_to" in wrong.json()["message"]) == (400, True)


@pytest.mark.timeout(400)
def test_a_user_trains_what_the_grants_allow_on_files_of_their_own(live: Live, made: Path) -> None:
    rows = (made / "train.jsonl").read_text()
    own = recipe(made, base_model="all-MiniLM-L6-v2", data={"train": "rows.jsonl"}, register_to="main.default.reviews")
    with user(live, "anna") as anna:
        nothing = anna.post(RUNS, json={"recipe": own, "files": {"rows.jsonl": rows}})
        assert nothing.status_code == 403
        granted = smalti("grants", "add", "user:anna", "model:main.default.reviews", "CAN_MANAGE", home=live.home)
        assert granted.returncode == 0, granted.stderr
        for foreign in (
            {"recipe": recipe(made, register_to="main.default.reviews")},
            {"recipe": own},
            {"recipe": {**own, "register_to": "main.default.other"}, "files": {"rows.jsonl": rows}},
            {"recipe": {**own, "register_to": None}, "files": {"rows.jsonl": rows}},
        ):
            assert anna.post(RUNS, json=foreign).status_code == 403
        report = anna.post("/api/2.0/smalti/finetune/validate", json={"recipe": own, "files": {"rows.jsonl": "{}"}}).json()
        assert (report["ok"], report["counts"]) == (False, {"missing_key": 2})
        assert {problem["file"] for problem in report["problems"]} == {"rows.jsonl"}

        long = {"recipe": {**own, "training_duration": "100ep"}, "files": {"rows.jsonl": rows}}
        begun = anna.post(RUNS, json=long).raise_for_status().json()
        assert begun["created_by"] == "user:anna"
        anna.post(f"{RUNS}/{begun['id']}/cancel").raise_for_status()
        assert [kind for _, kind, _ in events(anna, begun["id"])][-1] == "canceled"
        early = anna.post(f"{RUNS}/{begun['id']}/register", json={"name": "main.default.reviews"})
        assert (early.status_code, "gave no model" in early.json()["message"]) == (409, True)
        other = anna.post(f"{RUNS}/{begun['id']}/register", json={"name": "main.default.other"})
        assert other.status_code == 403


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({}, "recipe: Field required"),
        ({"recipe": {"task": "dance"}}, "'dance' is not one of classify"),
        ({"recipe": {"name": "x", "data": {"train": "a"}, "colour": 1}}, "colour is not a key of it"),
        ({"recipe": {}, "files": {"../x": ""}}, "files"),
        ({"recipe": {"name": "x", "data": {"train": "a.jsonl"}}}, "smalti finetune run"),
        ({"recipe": {"task": "cpt", "name": "x", "base_model": "./none", "data": {"train": "a"}}}, "base_model"),
    ],
)
def test_what_cannot_be_run_is_told(live: Live, body: Any, says: str) -> None:
    with live.client() as client:
        answer = client.post(RUNS, json=body)
    assert answer.status_code == 400
    assert answer.json()["error_code"] == "BAD_REQUEST"
    assert says in answer.json()["message"]


def test_forms_are_told_the_recipes(live: Live) -> None:
    with live.client() as client:
        assert httpx.post(live.url + RUNS, json={}, trust_env=False).status_code == 401
        found = client.get("/api/2.0/smalti/finetune/recipes").json()["recipes"]
    known = {(each["task"], each["method"]): each["schema"]["properties"] for each in found}
    assert known["sft-chat", "lora"]["context_length"]["default"] == 512
