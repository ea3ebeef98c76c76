from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient
from sqlalchemy import create_engine
from starlette.responses import JSONResponse

from evals.agreement import with_people
from evals.data import Prediction, Row, RowResult, load_dataset
from evals.review import Queue, Reviews, kappa, readable
from evals.review_commands import _of_run
from evals.review_routes import PREFIX, router
from governance.call import Caller, CallError

LABELS = [
    {"name": "correct", "input": {"type": "boolean"}},
    {"name": "expected_facts", "type": "expectation", "required": False, "input": {"type": "text_list"}},
    {"name": "tone", "required": False, "input": {"type": "categorical", "options": ["kind", "rude"]}},
    {"name": "stars", "required": False, "input": {"type": "numeric", "min": 1, "max": 5}},
]
QUEUE = {
    "name": "first",
    "endpoint": "assistant",
    "labels": LABELS,
    "reviewers": ["user:ann", "group:team"],
    "reviews_per_item": 2,
}


@pytest.fixture
def queues(tmp_path: Path) -> Iterator[Reviews]:
    engine = create_engine(f"sqlite:///{tmp_path / 'state.db'}")
    found = Reviews(engine)
    found.create(Queue.parse(QUEUE), "boss")
    found.add("first", [{"id": str(number), "question": f"Q{number}?", "answer": f"A{number}"} for number in range(4)])
    yield found
    engine.dispose()


def test_an_item_needs_two_reviews_where_two_may_review() -> None:
    free = {key: value for key, value in QUEUE.items() if key != "reviews_per_item"}
    for reviewers, wanted in (
        ([], 1),
        (["user:ann"], 1),
        (["user:ann", "user:ann"], 1),
        (["user:ann", "user:bob"], 2),
        (["group:t"], 2),
    ):
        assert Queue.parse({**free, "reviewers": reviewers}).reviews_per_item == wanted
    assert Queue.parse({**QUEUE, "reviews_per_item": 1}).reviews_per_item == 1
    for wrong in ("ann", [7], 7):
        with pytest.raises(CallError, match="reviewers"):
            Queue.parse({**free, "reviewers": wrong})


def test_what_is_too_long_to_be_read_keeps_nothing_else_out(queues: Reviews) -> None:
    items = [{"id": "long", "question": "Why? " * 100_000}, {"id": "short", "question": "Why?"}]
    with pytest.raises(CallError, match="Item 0 has more than"):
        queues.add("first", items)
    assert queues.add("first", readable(items)) == 1


def test_reviewers_get_what_needs_them_most_and_their_majority_becomes_a_dataset(queues: Reviews, tmp_path: Path) -> None:
    assert queues.add("first", [{"id": "0", "question": "Q0?"}, {"id": "4", "question": "Q4?"}]) == 1
    for reviewer in ("ann", "bob"):
        said = {"correct": True, "expected_facts": ["x"], "tone": "kind" if reviewer == "ann" else "rude", "stars": 3}
        queues.label("first", "0", reviewer, said)
    following = queues.next("first", "cleo")
    assert following is not None
    assert following["id"] == "1", "the first has its two reviews"
    queues.label("first", "1", "ann", {"correct": True})
    queues.label("first", "1", "ann", {"correct": False}, "on second thought")
    assert queues.get("first") | {"created": ""} == {
        **Queue.parse(QUEUE).model_dump(), "creator": "boss", "created": "", "items": 5, "done": 1,
        "reviews_by": {"ann": 2, "bob": 1},
    }  # fmt: skip
    shown = queues.items("first", "bob", limit=2)
    assert [set(item["labels"]) for item in shown] == [{"bob"}, set()], "nobody sees what others said"
    assert [set(item["labels"]) for item in queues.items("first", None, everything=True, limit=1)] == [{"ann", "bob"}]

    rows, disputed = queues.dataset("first")
    assert disputed == 1, "the tone"
    path = tmp_path / "d.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, second = load_dataset(path)
    assert (first.id, first.expected_facts, first.metadata["labels"]) == ("0", ("x",), {"correct": True, "stars": 3})
    assert second.metadata == {"answer": "A1", "labels": {"correct": False}}
    while (item := queues.next("first", "cleo")) is not None:
        queues.label("first", item["id"], "cleo", {"correct": True})
    assert queues.items("first", "cleo", state="pending") == queues.items("first", "cleo", state="all", limit=1)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({}, "'correct' is missing"),
        ({"correct": "yes"}, "true or false"),
        ({"correct": True, "tone": "meh"}, "one of kind, rude"),
        ({"correct": True, "stars": 6}, "a number from 1 to 5"),
        ({"correct": True, "stars": float("nan")}, "a number from 1 to 5"),
        ({"correct": True, "expected_facts": [1]}, "a list of strings"),
        ({"wrong": True}, "no label 'wrong'"),
    ],
)
def test_what_does_not_fit_the_schema_is_refused(queues: Reviews, values: dict[str, Any], says: str) -> None:
    with pytest.raises(CallError, match=says):
        queues.label("first", "0", "ann", values)
    assert queues.get("first")["reviews_by"] == {}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"labels": []}, "labels"),
        ({"labels": [LABELS[0], LABELS[0]]}, "same name"),
        ({"labels": [{"name": "a", "input": {"type": "categorical", "options": ["x"]}}]}, "two options"),
        ({"labels": [{"name": "a", "type": "expectation", "input": {"type": "text"}}]}, "expected_facts"),
        ({"reviewers": ["ann"]}, "reviewers.0"),
        ({"name": "../x"}, "name"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_a_queue_that_cannot_be_is_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(CallError, match=says):
        Queue.parse({**QUEUE, **change})


def test_kappa_is_cohens_and_nothing_where_it_is_not_defined() -> None:
    yes, no = True, False
    first = [yes] * 25 + [no] * 25
    second = [yes] * 20 + [no] * 5 + [yes] * 10 + [no] * 15  # the textbook's: observed 0.7, by chance 0.5
    assert kappa(first, second) == {"n": 50, "agreement": 0.7, "kappa": pytest.approx(0.4)}
    assert kappa([yes] * 3, [yes] * 3) == {"n": 3, "agreement": 1.0, "kappa": None}
    assert kappa([], []) == {"n": 0, "agreement": None, "kappa": None}
    near, far = kappa([1, 2, 5, 4], [2, 1, 5, 4], ordered=True), kappa([1, 2, 5, 4], [5, 2, 1, 4], ordered=True)
    assert near["kappa"] > 0.6 > far["kappa"]


def test_scorers_are_held_against_what_most_people_said(queues: Reviews, tmp_path: Path) -> None:
    from evals.journal import Evaluation

    said = [{"judge": {"value": "yes" if n < 2 else "no"}, "flat": {"value": 1}} for n in range(4)]
    results = [RowResult(Row(str(n), f"Q{n}?"), Prediction(f"A{n}"), judged=judged) for n, judged in enumerate(said)]
    results.append(RowResult(Row("0", "Q0?"), Prediction("another answer"), judged={"judge": {"value": "no"}}))
    evaluation = Evaluation("assistant", "d.jsonl", "", 5, tuple(results), {}, tmp_path / "j.jsonl")
    queue = queues.create(Queue.parse({**QUEUE, "name": "run", "labels": LABELS[:1]}), "boss")["name"]
    items = [_of_run(result) for result in results[:4]]
    queues.add(queue, items)
    for item, correct in zip(items, (True, True, False, True), strict=True):
        queues.label(queue, item["id"], "ann", {"correct": correct})
    flat, judge = with_people(queues, queue, evaluation)
    assert judge == {
        "label": "correct", "between": "people – judge", "n": 4, "agreement": 0.75, "kappa": pytest.approx(0.5),
        "auroc": pytest.approx(5 / 6),
    }  # fmt: skip
    assert flat["agreement"] == 0.75
    assert flat["kappa"] == 0.0


@pytest.fixture
def http(queues: Reviews) -> Iterator[TestClient]:
    people = {name: Caller(name) for name in ("ann", "eve")}
    people |= {"boss": Caller("boss", admin=True), "tom": Caller("tom", groups=frozenset({"team"}))}
    calls = [
        {
            "databricks_request_id": f"{n:032x}", "endpoint_name": "assistant", "status_code": 200, "requester": "zoe",
            "request_time": f"2026-01-0{n + 1}", "request": json.dumps({"input": f"Asked {n}?"}), "parent_request_id": None,
            "response": json.dumps({"choices": [{"message": {"content": "Said."}}]}),
        }
        for n in range(3)
    ]  # fmt: skip
    app = FastAPI()

    @app.exception_handler(CallError)
    async def told(_: Request, error: CallError) -> JSONResponse:
        return JSONResponse({"error_code": error.code, "message": error.message}, status_code=error.status)

    async def caller(request: Request) -> Caller:
        return people[request.headers["who"]]

    routes = router(queues, caller=caller, manages=lambda who, endpoint: who.admin, rows=lambda endpoint, since: calls)
    app.include_router(routes)
    with TestClient(app) as client:
        yield client


def test_the_api_shows_each_their_own(http: TestClient) -> None:
    def ask(who: str, method: str, path: str, body: Any = None) -> Any:
        return http.request(method, PREFIX + path, json=body, headers={"who": who})

    assert ask("boss", "POST", "/first/items", {"journal": {"request_ids": [f"{1:032x}"]}}).json() == {"added": 1, "too_long": 0}
    item = ask("boss", "GET", "/first/items?after=3").json()["items"][0]
    assert item["content"]["trace_id"] == f"tr-{1:032x}"
    assert "zoe" not in json.dumps(item)
    said = ask("ann", "POST", "/first/items/0/labels", {"labels": {"correct": True}, "comment": "right"}).json()
    assert said["item"]["id"] == "1"
    assert ask("tom", "POST", "/first/items/0/labels", {"labels": {"correct": False}}).status_code == 200
    assert list(ask("tom", "GET", "/first/items?limit=1").json()["items"][0]["labels"]) == ["tom"]
    assert ask("tom", "GET", "/first").json()["reviewers"] == []
    assert ask("boss", "GET", "/first/agreement").json()["agreement"][0]["reviewers"] == ["ann", "tom"]
    made = ask("boss", "GET", "/first/dataset")
    assert (made.text, made.headers["x-smalti-disputed"]) == ("", "1")
    assert ask("boss", "GET", "").json()["queues"][0]["reviews_by"] == {"ann": 1, "tom": 1}
    assert [queue["manages"] for queue in ask("ann", "GET", "").json()["queues"]] == [False]

    for who, method, path, body, status in (
        ("eve", "GET", "/first", None, 404), ("eve", "POST", "/first/items/0/labels", {"labels": {}}, 404),
        ("ann", "GET", "/first/agreement", None, 403), ("ann", "DELETE", "/first", None, 403), ("ann", "POST", "", QUEUE, 403),
        ("boss", "POST", "", QUEUE, 409), ("boss", "POST", "", {"name": 1}, 400), ("boss", "GET", "/none", None, 404),
        ("boss", "POST", "/first/items", {"journal": {"sample": "x"}}, 400),
        ("boss", "POST", "/first/items", {"items": [{}]}, 400),
        ("boss", "POST", "/first/items", {"journal": {"match": "("}}, 400), ("boss", "POST", "/first/items", {"x": 1}, 400),
        ("ann", "POST", "/first/items/9/labels", {"labels": {"correct": True}}, 404),
        ("ann", "GET", "/first/items?state=x", None, 400),
        ("ann", "POST", "/first/items/0/labels", {"labels": []}, 400), ("ann", "POST", "/first/items/0/labels", [], 400),
    ):  # fmt: skip
        answer = ask(who, method, path, body)
        assert (answer.status_code, bool(answer.json()["message"])) == (status, True), (who, method, path, answer.text)
    assert ask("eve", "GET", "").json() == {"queues": []}
    assert ask("boss", "DELETE", "/first").status_code == 200
    assert ask("boss", "GET", "/first").status_code == 404
