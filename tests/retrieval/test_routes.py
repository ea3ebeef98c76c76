"""Indexes over HTTP: what is shown to whom, and that every query goes by the gateway it was handed."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from retrieval import Indexes, RetrievalError, router
from retrieval.ask import QUERY_TYPES
from tests.retrieval.conftest import Who

pytestmark = pytest.mark.anyio
ROOT = "/api/2.0/vector-search/indexes"


class House:
    """An application around the router; `calls` is what went through the gateway."""

    def __init__(self, indexes: Indexes) -> None:
        self.calls: list[tuple[str, str, Mapping[str, Any]]] = []
        app = FastAPI()

        def caller(request: Request) -> Who:
            name = request.headers.get("authorization", "").removeprefix("Bearer ")
            if not name:
                raise RetrievalError("no key", 401, "UNAUTHENTICATED")
            return Who(name, name == "root")

        async def invoke(request: Request, index: str, task: str, payload: Mapping[str, Any]) -> Mapping[str, Any]:
            caller(request)
            self.calls.append((index, task, payload))
            return await indexes.answer(index, payload)

        def manage(who: Who, index: str) -> None:
            if not who.admin:
                raise RetrievalError(f"{who.name} may not change {index}", 403, "PERMISSION_DENIED")

        async def failed(_: Request, error: Exception) -> JSONResponse:
            assert isinstance(error, RetrievalError)
            return JSONResponse({"error_code": error.code, "message": error.message}, error.status)

        app.add_exception_handler(RetrievalError, failed)
        visible = lambda who, name: who.admin or name.endswith(".docs")  # noqa: E731
        app.include_router(router(indexes, caller=caller, invoke=invoke, visible=visible, manage=manage))
        self.transport = httpx.ASGITransport(app)

    def client(self, name: str = "root") -> httpx.AsyncClient:
        headers = {"authorization": f"Bearer {name}"} if name else {}
        return httpx.AsyncClient(transport=self.transport, base_url="http://smalti", headers=headers)


@pytest.fixture
def house(indexes: Indexes, folder: Path) -> House:
    indexes.add("docs", folder)
    indexes.sync("docs")
    indexes.add("hidden", folder / "guides")
    return House(indexes)


async def test_query_answers_in_rows_and_goes_through_the_gateway(house: House) -> None:
    async with house.client("ann") as client:
        body = {
            "columns": ["id", "source", "text"],
            "query_text": "what makes glass blue",
            "num_results": 2,
            "query_type": "hybrid",
        }
        answer = (await client.post(f"{ROOT}/main.default.docs/query", json=body)).json()
    assert answer["manifest"] == {"column_count": 4, "columns": [{"name": n} for n in ("id", "source", "text", "score")]}
    assert answer["result"]["row_count"] == 2
    first = answer["result"]["data_array"][0]
    assert first[1] == "glass.md"
    assert "Cobalt" in first[2]
    assert isinstance(first[3], float)
    ((index, task, asked),) = house.calls
    assert (index, task, asked["op"], asked["query_text"]) == ("main.default.docs", "search", "query", "what makes glass blue")


@pytest.mark.parametrize(("kind", "mode"), [("ANN", "dense"), ("ann", "dense"), ("Full_Text", "lexical"), (None, "dense")])
async def test_query_types_in_any_case(house: House, kind: str | None, mode: str) -> None:
    async with house.client() as client:
        answer = await client.post(f"{ROOT}/docs/query", json={"query_text": "bread", "query_type": kind, "filters_json": None})
    assert answer.status_code == 200
    assert QUERY_TYPES[house.calls[0][2]["query_type"]] == mode


async def test_score_threshold(house: House) -> None:
    async with house.client() as client:
        answer = await client.post(f"{ROOT}/docs/query", json={"query_text": "bread", "score_threshold": 10})
    assert answer.json()["result"] == {"row_count": 0, "data_array": []}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"query_text": "x", "columns": ["id", "author"]}, "unknown column 'author': accepted are id,"),
        ({"query_text": "x", "columns": "id"}, "'columns' must be a list"),
        ({"query_text": "x", "columns": [{"a": 1}]}, "unknown column"),
        ({"query_text": "x", "query_type": "FUZZY"}, "accepted are HYBRID, ANN, FULL_TEXT"),
        ({"query_text": "x", "num_results": 0}, "'num_results' must be between 1 and 1000"),
        ({"query_text": "x", "num_results": True}, "'num_results' must be a whole number"),
        ({"query_text": "x", "num_results": "5"}, "'num_results' must be a whole number"),
        ({"query_text": 7}, "'query_text' must be a string"),
        ({"query_text": " "}, "'query_text' must be the text"),
        ({}, "'query_text' must be the text"),
        ({"query_text": "x", "filters_json": "[1"}, "'filters_json' must be a JSON object"),
        ({"query_text": "x", "facet": ["a"]}, "'facet' is not supported"),
        ([1], "must be a JSON object"),
    ],
)
async def test_a_wrong_query_names_the_field(house: House, body: Any, words: str) -> None:
    async with house.client() as client:
        answer = await client.post(f"{ROOT}/docs/query", json=body)
    assert (answer.status_code, answer.json()["error_code"]) == (400, "INVALID_PARAMETER_VALUE")
    assert words in answer.json()["message"]


async def test_malformed_and_oversized_bodies(house: House) -> None:
    async with house.client() as client:
        for body in (b"{", b"\xff\xfe", b"[" * 100_000, b'{"query_text": "' + b"x" * 2_000_000 + b'"}'):
            answer = await client.post(f"{ROOT}/docs/query", content=body)
            assert answer.status_code == 400
    assert not house.calls


async def test_only_the_visible_is_shown(house: House) -> None:
    async with house.client("ann") as client:
        listed = (await client.get(ROOT)).json()["vector_indexes"]
        assert [i["name"] for i in listed] == ["main.default.docs"]
        assert listed[0]["primary_key"] == "id"
        hidden, missing = await client.get(f"{ROOT}/main.default.hidden"), await client.get(f"{ROOT}/main.default.nothing")
        assert hidden.status_code == missing.status_code == 404
        assert hidden.json()["message"].replace("hidden", "nothing") == missing.json()["message"]
        bad = await client.get(f"{ROOT}/a.b.c.d")
        assert bad.status_code == 400
    async with house.client() as client:
        assert len((await client.get(ROOT)).json()["vector_indexes"]) == 2
    async with house.client("") as client:
        for path in (ROOT, f"{ROOT}/docs"):
            assert (await client.get(path)).status_code == 401
        assert (await client.post(f"{ROOT}/docs/query", json={"query_text": "x"})).status_code == 401


async def test_status_and_sync(house: House, folder: Path) -> None:
    (folder / "empty.md").touch()
    async with house.client("ann") as client:
        assert (await client.post(f"{ROOT}/docs/sync")).status_code == 403
    async with house.client() as client:
        status = (await client.get(f"{ROOT}/hidden")).json()["status"]
        assert (status["ready"], status["detailed_state"]) == (False, "PROVISIONING")
        assert (await client.post(f"{ROOT}/docs/sync")).json() == {}
        deadline = time.monotonic() + 60
        while not (status := (await client.get(f"{ROOT}/docs")).json()["status"])["skipped"]:
            assert time.monotonic() < deadline
        assert status["skipped"] == [{"source": "empty.md", "reason": "empty"}]
        assert (status["ready"], status["indexed_row_count"], status["documents"]) == (True, 5, 3)


async def test_a_failed_sync_is_told(house: House, folder: Path) -> None:
    for file in folder.glob("guides/*"):
        file.unlink()
    async with house.client() as client:
        assert (await client.post(f"{ROOT}/hidden/sync")).status_code == 200
        deadline = time.monotonic() + 60
        while "holds no documents" not in (await client.get(f"{ROOT}/hidden")).json()["status"]["message"]:
            assert time.monotonic() < deadline
