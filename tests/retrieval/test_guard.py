"""Rows shown by group: whoever asks, by whatever way, is shown what their groups may see and nothing else."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request

from governance.call import Call, CallError
from retrieval import Indexes, RetrievalError, router
from serving import errors
from serving.engines.index import refused
from serving.indexes import router as managing
from serving.routes import bearer
from tests.serving.upstream import House, house

pytestmark = pytest.mark.anyio
ROOT = "/api/2.0/vector-search"
DOCS, ROWS = "main.default.docs", "main.default.notes"
SECRET = "zanzibar"
"""A word that only what is hidden holds."""


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    root = tmp_path / "shared"
    for folder, text in {"hr": f"The salary of {SECRET} is secret.", "sales": "The price of glass tiles rose."}.items():
        (root / folder).mkdir(parents=True)
        (root / folder / f"{folder}.md").write_text(f"# {folder}\n\n{text}\n")
    (root / "top.md").write_text(f"# Top\n\nNo group owns this, says {SECRET}.\n")
    return root


@pytest.fixture
def made(tmp_path: Path, indexes: Indexes, shared: Path) -> Iterator[House]:
    indexes.add("docs", shared)
    indexes.sync("docs")
    with house(tmp_path, indexes=indexes) as made:

        async def caller(request: Request) -> Any:
            return await asyncio.to_thread(made.identity.authenticate, bearer(request.headers))

        async def invoke(request: Request, index: str, task: str, payload: Mapping[str, Any]) -> Mapping[str, Any]:
            asked: Any = "document" if task == "document" else "search"
            return await made.dispatcher.invoke(Call(index, asked, payload, credential=bearer(request.headers)))

        made.app = FastAPI()
        errors.install(made.app)

        @made.app.exception_handler(RetrievalError)
        async def told(request: Request, error: RetrievalError) -> Any:
            return errors.error_response(refused(error), request.scope)

        def visible(who: Any, name: str) -> bool:
            return made.grants.allowed(who, f"index:{name}", "CAN_VIEW")

        made.app.include_router(router(indexes, caller=caller, invoke=invoke, visible=visible))
        made.app.include_router(managing(indexes, made.grants, caller=caller))
        yield made


def key(made: House, name: str, *groups: str) -> str:
    secret = made.key(name, f"index:{DOCS}", f"index:{ROWS}")
    made.identity.set_groups(name, groups)
    return secret


@pytest.fixture
async def client(made: House) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=made.app)
    headers = {"authorization": f"Bearer {made.admin}"}
    async with httpx.AsyncClient(transport=transport, base_url="http://smalti", headers=headers) as client:
        spec = {
            "embedding_source_columns": [{"name": "text", "embedding_model_endpoint_name": "all-minilm-l6-v2"}],
            "schema_json": json.dumps({"id": "string", "text": "string", "team": "array<string>", "n": "int"}),
        }
        await client.post(f"{ROOT}/endpoints", json={"name": "e", "endpoint_type": "STANDARD"})
        body = {"name": ROWS, "endpoint_name": "e", "primary_key": "id", "index_type": "DIRECT_ACCESS"}
        assert (await client.post(f"{ROOT}/indexes", json=body | {"direct_access_index_spec": spec})).status_code == 200
        rows = [
            {"id": "a", "text": "glass tiles for sale", "team": ["sales", "press"], "n": 1},
            {"id": "b", "text": f"glass of {SECRET}", "team": ["hr"], "n": 2},
            {"id": "c", "text": f"nobody's {SECRET}", "team": None, "n": 3},
            {"id": "d", "text": f"empty {SECRET}", "team": [], "n": 4},
        ]
        await client.post(f"{ROOT}/indexes/{ROWS}/upsert-data", json={"inputs_json": json.dumps(rows)})
        for name, column in ((DOCS, "folder"), (ROWS, "team")):
            done = await client.put(f"/api/2.0/smalti/indexes/{name}/row-access", json={"column": column})
            assert done.json() == {"name": name, "column": column}
        yield client


def as_(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}


async def found(client: httpx.AsyncClient, secret: str, index: str, **body: Any) -> list[str]:
    column = "source" if index == DOCS else "id"
    asked = {"columns": [column], "query_text": f"glass {SECRET} salary", "query_type": "HYBRID", "num_results": 50, **body}
    answer = await client.post(f"{ROOT}/indexes/{index}/query", json=asked, headers=as_(secret))
    assert answer.status_code == 200, answer.text
    return sorted(row[0] for row in answer.json()["result"]["data_array"])


async def test_each_sees_what_their_groups_may(client: httpx.AsyncClient, made: House) -> None:
    everything = {DOCS: ["hr/hr.md", "sales/sales.md", "top.md"], ROWS: ["a", "b", "c", "d"]}
    sales, both, none = key(made, "ann", "sales"), key(made, "bob", "sales", "hr"), key(made, "cem")
    for kind in ("HYBRID", "ANN"):
        for index in (DOCS, ROWS):
            assert await found(client, made.admin, index, query_type=kind) == everything[index]
            assert await found(client, sales, index, query_type=kind) == [everything[index][1 if index == DOCS else 0]]
            assert await found(client, both, index, query_type=kind) == everything[index][:2]
            assert await found(client, none, index, query_type=kind) == [], "without a group there is nothing"
    made.identity.set_groups("cem", ["hr"])
    assert await found(client, none, ROWS) == ["b"], "a group that is given counts at once"
    made.identity.set_groups("cem", [])
    assert await found(client, none, ROWS) == [], "and one that is taken away, too"


@pytest.mark.parametrize(
    "attempt",
    [
        {"filters_json": '{"id NOT": "zzz"}'},
        {"filters_json": '{"team": ["hr", null]}'},
        {"filters_json": '{"id OR n": ["b", 3]}'},
        {"filter_string": "n > 0 OR n IS NULL OR NOT (n = 0)"},
        {"filter_string": "team IS NULL OR id LIKE '%'"},
        {"query_type": "FULL_TEXT", "query_text": SECRET},
        {"query_columns": ["text"], "query_text": SECRET},
        {"sort_columns": ["n DESC"]},
        {"columns_to_rerank": ["text"]},
        {"score_threshold": -9.0},
    ],
)
async def test_no_query_goes_around_it(client: httpx.AsyncClient, made: House, attempt: dict[str, Any]) -> None:
    assert set(await found(client, key(made, "ann", "sales"), ROWS, **attempt)) <= {"a"}


async def test_counts_scans_and_pages_hold_to_it(client: httpx.AsyncClient, made: House) -> None:
    ann = as_(key(made, "ann", "sales"))
    asked = {"columns": ["id"], "query_text": "glass", "facets": ["n"], "num_results": 50}
    counted = (await client.post(f"{ROOT}/indexes/{ROWS}/query", json=asked, headers=ann)).json()
    assert sum(row[-1] for row in counted["facet_result"]["facet_array"]) == 1
    docs = {"columns": ["id"], "query_text": "glass", "facets": ["source"], "num_results": 50}
    text = (await client.post(f"{ROOT}/indexes/{DOCS}/query", json=docs, headers=ann)).text
    assert "sales/sales.md" in text
    assert "hr" not in text
    for index in (ROWS, DOCS):
        scanned = await client.post(f"{ROOT}/indexes/{index}/scan", json={"num_results": 50}, headers=ann)
        assert scanned.json()["data"], "what is theirs is scanned"
        assert SECRET not in scanned.text
    after = await client.post(f"{ROOT}/indexes/{ROWS}/scan", json={"num_results": 50, "last_primary_key": "a"}, headers=ann)
    assert after.json()["data"] == []
    hidden = (await client.post(f"{ROOT}/indexes/{DOCS}/scan", json={"num_results": 1})).json()["last_primary_key"]
    mark = await client.post(f"{ROOT}/indexes/{DOCS}/scan", json={"last_primary_key": hidden}, headers=ann)
    nothing = await client.post(f"{ROOT}/indexes/{DOCS}/scan", json={"last_primary_key": "0" * 32}, headers=ann)
    assert (mark.status_code, mark.json()["message"]) == (400, nothing.json()["message"]), "a hidden key is as no key"
    query = {"columns": ["id", "text"], "query_text": SECRET, "query_type": "FULL_TEXT", "num_results": 5}
    token = base64.urlsafe_b64encode(json.dumps({"query": query, "offset": 1}).encode()).decode()
    paged = await client.post(f"{ROOT}/indexes/{ROWS}/query-next-page", json={"page_token": token}, headers=ann)
    assert SECRET not in json.dumps(paged.json()["result"]), "an administrator's page token grants nothing"


async def test_what_is_hidden_moves_no_score(client: httpx.AsyncClient, made: House, indexes: Indexes, shared: Path) -> None:
    ann = as_(key(made, "ann", "sales"))

    async def scores() -> list[Any]:
        given = []
        for index, column in ((ROWS, "id"), (DOCS, "source")):
            for kind in ("FULL_TEXT", "HYBRID"):
                asked = {"columns": [column], "query_text": "price of glass tiles", "query_type": kind, "num_results": 9}
                answer = await client.post(f"{ROOT}/indexes/{index}/query", json=asked, headers=ann)
                given.append(answer.json()["result"]["data_array"])
        passages = await made.dispatcher.invoke(Call(DOCS, "search", {"query": "glass tiles"}, ann["authorization"][7:]))
        return [*given, [(each["source"], each["score"], each["lexical"]) for each in passages["passages"]]]

    before = await scores()
    assert all(len(found) == 1 for found in before)
    more = [{"id": f"h{i}", "text": "glass tiles at a price " * (i + 1), "team": ["hr"], "n": 9} for i in range(5)]
    await client.post(f"{ROOT}/indexes/{ROWS}/upsert-data", json={"inputs_json": json.dumps(more)})
    (shared / "hr" / "glass.md").write_text("# Glass\n\nThe price of glass tiles, long before it rose.\n")
    await asyncio.to_thread(indexes.sync, DOCS)
    assert await scores() == before, "how often a word occurs in rows of others is theirs to know"


async def test_nobody_is_told_how_many_rows_are_hidden(
    client: httpx.AsyncClient, made: House, indexes: Indexes, shared: Path
) -> None:
    (shared / "hr" / f"{SECRET}.md").write_text(" ")
    await asyncio.to_thread(indexes.sync, DOCS)
    secret = key(made, "ann", "sales")
    made.grants.grant("user:ann", f"index:{DOCS}", "CAN_MANAGE")
    ann = as_(secret)
    one, other = f"{ROOT}/indexes/{DOCS}", f"{ROOT}/indexes/{ROWS}"
    newer = f"/api/2.0/ai-search/workspaces/w/endpoints/e/indexes/{ROWS}"
    managed = f"/api/2.0/smalti/indexes/{DOCS}"
    for path, mine, all_of_them in ((one, 1, 3), (other, 1, 4), (newer, 1, 4)):
        told = [(await client.get(path, headers=headers)).json()["status"] for headers in (ann, as_(made.admin))]
        assert [status["indexed_row_count"] for status in told] == [mine, all_of_them]
        assert told[0]["message"].startswith("1 ")
        assert SECRET not in json.dumps(told[0])
    assert SECRET in (await client.get(one)).text, "an administrator is told what was skipped"
    mine = (await client.get(managed, headers=ann)).json()
    assert (mine["documents"], mine["chunks"], mine["skipped"], mine["revision"]) == (1, 1, [], "")
    synced = (await client.post("/api/2.0/smalti/indexes", json={"name": "docs"}, headers=ann)).text
    assert (SECRET in synced, '"unchanged":0' in synced) == (False, True), "who may sync learns nothing more by it"
    assert '"unchanged":3' in (await client.post("/api/2.0/smalti/indexes", json={"name": "docs"})).text
    stranger = as_(made.key("eve"))
    counts = [(await client.get(f"{ROOT}/endpoints/e", headers=who)).json()["num_indexes"] for who in (ann, stranger)]
    assert counts == [1, 0], "nor how many indexes there are that one may not see"


async def test_documents_and_agents_hold_to_it(client: httpx.AsyncClient, made: House, indexes: Indexes) -> None:
    ann = key(made, "ann", "sales")
    every = {passage.source: passage for passage in indexes.search("docs", SECRET + " glass", k=50, groups=None)}
    assert set(every) == {"hr/hr.md", "sales/sales.md", "top.md"}

    async def ask(index: str, task: Any, **payload: Any) -> Mapping[str, Any]:
        return await made.dispatcher.invoke(Call(index, task, payload, ann))

    assert "glass" in (await ask(DOCS, "document", id=every["sales/sales.md"].document_id))["document"]["text"]
    assert (await ask(ROWS, "document", id="a"))["document"]["text"] == "glass tiles for sale"
    hidden = [(DOCS, every["hr/hr.md"].document_id), (DOCS, every["top.md"].document_id), (ROWS, "b"), (ROWS, "c"), (ROWS, "x")]
    for index, identifier in hidden:
        with pytest.raises(CallError) as caught:
            await ask(index, "document", id=identifier)
        assert (caught.value.status, SECRET in str(caught.value)) == (404, False)
    for index in (DOCS, ROWS):
        passages = (await ask(index, "search", query=SECRET, k=50, groups=None, admin=True))["passages"]
        assert len(passages) == 1, "what a payload says about groups counts for nothing"
        assert SECRET not in json.dumps(passages)
    with pytest.raises(RetrievalError, match="no passage"):
        indexes.passage("docs", every["hr/hr.md"].id)


async def test_the_rule_is_an_administrators_and_outlives_the_index(
    client: httpx.AsyncClient, made: House, indexes: Indexes, shared: Path
) -> None:
    ann = as_(key(made, "ann", "sales"))
    path = f"/api/2.0/smalti/indexes/{DOCS}/row-access"
    for attempt in (client.get(path, headers=ann), client.delete(path, headers=ann), client.put(path, json={}, headers=ann)):
        assert (await attempt).status_code == 403
    assert (await client.put(path, json={"column": "source"})).status_code == 400, "an index over a folder goes by folder"
    assert "skipped" not in (await client.get(f"{ROOT}/indexes/{DOCS}", headers=ann)).json()["status"]
    spec = {"source_table": DOCS, "embedding_source_columns": [{"name": "text", "embedding_model_endpoint_name": "m"}]}
    body = {"name": "copy", "endpoint_name": "e", "primary_key": "id", "index_type": "DELTA_SYNC", "delta_sync_index_spec": spec}
    refused = await client.post(f"{ROOT}/indexes", json=body)
    assert (refused.status_code, "by group" in refused.json()["message"]) == (400, True)
    await asyncio.to_thread(indexes.drop, DOCS)
    await asyncio.to_thread(indexes.add, DOCS, shared)
    await asyncio.to_thread(indexes.sync, DOCS)
    assert await found(client, ann["authorization"][7:], DOCS) == ["sales/sales.md"]
    assert (await client.delete(path)).json()["column"] is None
    assert len(await found(client, ann["authorization"][7:], DOCS)) == 3
