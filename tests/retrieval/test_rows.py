"""Indexes over rows, as Databricks' clients drive them; nothing is read past the gateway."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from retrieval import Indexes

pytestmark = pytest.mark.anyio
ROOT = "/api/2.0/vector-search"
NAME = "main.default.things"


SCHEMA = {"id": "string", "text": "string", "n": "int", "lang": "string", "vec": "array<float>"}


async def direct(api: Any, **more: Any) -> httpx.Response:
    spec = {"schema_json": json.dumps(SCHEMA), "embedding_vector_columns": [{"name": "vec", "embedding_dimension": 4}]}
    body = {"name": NAME, "endpoint_name": "e", "primary_key": "id", "index_type": "DIRECT_ACCESS"}
    return await api.post(f"{ROOT}/indexes", json=body | {"direct_access_index_spec": spec} | more)


def thing(i: int) -> dict[str, Any]:
    vector = [1.0 if j == i % 4 else 0.01 * i for j in range(4)]
    return {"id": str(i), "text": f"item t{i} of_kind_{i % 3}", "n": i, "lang": "de" if i % 2 else "en", "vec": vector}


async def upsert(api: Any, rows: list[Any]) -> dict[str, Any]:
    return (await api.post(f"{ROOT}/indexes/{NAME}/upsert-data", json={"inputs_json": json.dumps(rows)})).json()


async def ids(api: Any, **body: Any) -> list[str]:
    given = {"columns": ["id"], "query_vector": [0, 1.0, 0, 0], "num_results": 50, **body}
    answer = await api.post(f"{ROOT}/indexes/{NAME}/query", json=given)
    assert answer.status_code == 200, answer.text
    return [row[0] for row in answer.json()["result"]["data_array"]]


async def test_direct_access_from_create_to_delete(api: Any) -> None:
    made = (await direct(api)).json()
    assert (made["name"], made["status"]["ready"]) == (NAME, True)
    assert (await direct(api)).json()["error_code"] == "RESOURCE_ALREADY_EXISTS"
    assert (await upsert(api, [thing(i) for i in range(12)]))["status"] == "SUCCESS"
    answer = (
        await api.post(f"{ROOT}/indexes/{NAME}/query", json={"columns": ["id", "n"], "query_vector": [0, 1.0, 0, 0]})
    ).json()
    assert answer["manifest"]["columns"] == [{"name": "id"}, {"name": "n"}, {"name": "score"}]
    rows = answer["result"]["data_array"]
    assert rows[0][:2] == ["1", 1]
    distance = sum((a - b) ** 2 for a, b in zip(thing(5)["vec"], [0, 1, 0, 0], strict=True))
    assert {row[0]: row[-1] for row in rows}["5"] == pytest.approx(1 / (1 + distance), abs=1e-5)
    assert all(name == NAME and payload["op"] == "query" for name, payload in api.calls)

    assert (
        await upsert(api, [{**thing(1), "vec": [0, 0, 0, 9]}, {"id": "x", "vec": [1]}, {"n": 1}, {**thing(2), "odd": 1}])
    ) == {
        "status": "PARTIAL_SUCCESS",
        "result": {"success_row_count": 1, "failed_primary_keys": ["x", "2", "2"]},
        "message": "row x needs 4 finite numbers in 'vec'",
    }
    assert (await ids(api))[0] != "1", "a replaced row is found by what it is now"
    gone = await api.request("DELETE", f"{ROOT}/indexes/{NAME}/delete-data?primary_keys=1&primary_keys=2&primary_keys=none")
    assert gone.json()["result"]["success_row_count"] == 2
    gone = await api.request("DELETE", f"{ROOT}/endpoints/e/indexes/{NAME}/delete-data", json={"primary_keys": ["3"]})
    assert gone.json()["result"]["success_row_count"] == 1
    assert set(await ids(api)) == {"0", *map(str, range(4, 12))}
    scanned = (await api.request("GET", f"{ROOT}/endpoints/e/indexes/{NAME}/scan", json={"num_results": 3})).json()
    assert [row["fields"][0]["value"]["string_value"] for row in scanned["data"]] == ["0", "10", "11"]
    more = {"num_results": 3, "last_primary_key": scanned["last_primary_key"]}
    assert (await api.post(f"{ROOT}/indexes/{NAME}/scan", json=more)).json()["last_primary_key"] == "6"
    assert (await api.delete(f"{ROOT}/endpoints/e")).status_code == 400
    for odd in ({"n": 1 << 63}, {"vec": [10**400, 0, 0, 0]}, {"n": 10**400}):
        assert (await upsert(api, [{**thing(1), **odd}]))["result"]["failed_primary_keys"] == ["1"]
    assert (await upsert(api, [{**thing(1), "id": "\ud800"}]))["status"] == "SUCCESS"
    assert "?" in await ids(api)
    assert (await api.delete(f"{ROOT}/indexes/{NAME}")).status_code == 200
    assert (await api.get(f"{ROOT}/indexes/{NAME}")).json()["error_code"] == "RESOURCE_DOES_NOT_EXIST"
    assert (await api.delete(f"{ROOT}/endpoints/e")).status_code == 200
    assert (await api.get(f"{ROOT}/endpoints/e")).status_code == 404


async def test_rows_bring_vectors_and_an_endpoint_embeds_the_questions(api: Any, indexes: Indexes) -> None:
    asked = [{"embedding_model_endpoint_name": indexes.encoder.name.lower()}]
    for dimension in (4, 384):
        spec = {
            "schema_json": json.dumps({"id": "string", "text": "string", "vec": "array<float>"}),
            "embedding_vector_columns": [{"name": "vec", "embedding_dimension": dimension}],
            "embedding_source_columns": asked,
        }
        made = (await direct(api, direct_access_index_spec=spec)).json()
        assert made["direct_access_index_spec"]["embedding_source_columns"] == asked
        vectors = indexes.encoder.embed(["a glass tile", "a cold kiln"])[:, :dimension].tolist()
        rows = [{"id": str(i), "text": "x", "vec": vector} for i, vector in enumerate(vectors)]
        assert (await upsert(api, rows))["status"] == "SUCCESS"
        if dimension == 384:
            assert await ids(api, query_vector=None, query_text="a cold kiln") == ["1", "0"]
        else:
            told = await api.post(f"{ROOT}/indexes/{NAME}/query", json={"columns": ["id"], "query_text": "a cold kiln"})
            assert told.status_code == 400
            assert "gave 384 dimensions" in told.json()["message"]
        await api.delete(f"{ROOT}/indexes/{NAME}")


async def test_a_scan_goes_on_after_keys_of_64_bits(api: Any) -> None:
    spec = {"schema_json": json.dumps({"id": "long", "tags": "array<string>"})}
    body = {"name": NAME, "endpoint_name": "e", "primary_key": "id", "index_type": "DIRECT_ACCESS", "index_subtype": "FULL_TEXT"}
    assert (await api.post(f"{ROOT}/indexes", json=body | {"direct_access_index_spec": spec})).status_code == 200
    wanted = [(1 << 62) + i for i in range(5)]
    assert (await upsert(api, [{"id": key, "tags": ["a"]} for key in wanted]))["status"] == "SUCCESS"
    seen: list[int] = []
    asked: dict[str, Any] = {"num_results": 2}
    while rows := (found := (await api.post(f"{ROOT}/indexes/{NAME}/scan", json=asked)).json())["data"]:
        seen += [field["value"]["number_value"] for row in rows for field in row["fields"] if field["key"] == "id"]
        asked["last_primary_key"] = found["last_primary_key"]
        assert len(seen) <= 5
    assert seen == wanted
    deep: Any = "x"
    for _ in range(30):
        deep = [deep]
    for tags in (deep, [float("nan")]):
        assert (await upsert(api, [{"id": 1, "tags": tags}]))["status"] == "FAILURE"


FILTERS: list[tuple[Any, set[int]]] = [
    ({"id": ["5", "7"]}, {5, 7}),
    ({"id NOT": "5"}, set(range(12)) - {5}),
    ({"n <": 3}, {0, 1, 2}),
    ({"n <=": 3, "n >": 1}, {2, 3}),
    ({"n >=": 10.5}, {11}),
    ({"n": 4.0}, {4}),
    ({"n": True}, set()),
    ({"lang": "en", "text LIKE": "of_kind_0"}, {0, 6}),
    ({"text LIKE": "of_kind"}, set()),
    ({"id OR lang": ["5", "en"]}, {5, 0, 2, 4, 6, 8, 10}),
    ({"text NOT LIKE": "t3"}, set(range(12)) - {3}),
    ("n < 2 OR n IN (7, 9)", {0, 1, 7, 9}),
    ("NOT (lang = 'de') AND n >= 6", {6, 8, 10}),
    ("text LIKE '%t1%' and n <> 10", {1, 11}),
    ("lang IS NULL", set()),
    ("`n` != 3 AND lang NOT IN ('en')", {1, 5, 7, 9, 11}),
    ("n BETWEEN 3 AND 5 AND lang = 'de'", {3, 5}),
    ("n NOT BETWEEN 1 AND 10", {0, 11}),
    (f"n < {'9' * 5000} AND n > -{'9' * 400}", set(range(12))),
    ({"n <": 10**400, "n >": -(10**400)}, set(range(12))),
    ({"n": 10**400}, set()),
]


async def test_filters(api: Any) -> None:
    await direct(api)
    await upsert(api, [thing(i) for i in range(12)])
    for given, wanted in FILTERS:
        body = {"filter_string": given} if isinstance(given, str) else {"filters_json": json.dumps(given)}
        for more in ({}, {"query_type": "hybrid", "query_text": "item"}, {"query_type": "FULL_TEXT", "query_text": "item"}):
            assert set(map(int, await ids(api, **body, **more))) == wanted, given
    for bad in (
        {"zz": 1},
        {"n <": [1]},
        {"n": {"a": 1}},
        {"id OR lang": ["5"]},
        "n <",
        "n < 1 1",
        "(" * 80 + "n = 1",
        "'",
        "n LIKE",
        "zz = 1",
    ):
        body = {"filter_string": bad} if isinstance(bad, str) else {"filters_json": json.dumps(bad)}
        answer = await api.post(f"{ROOT}/indexes/{NAME}/query", json={"query_vector": [0, 1, 0, 0], **body})
        assert (answer.status_code, answer.json()["error_code"]) == (400, "INVALID_PARAMETER_VALUE"), bad


async def test_words_pages_and_sorting(api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    await direct(api)
    await upsert(api, [thing(i) for i in range(12)])
    assert (await ids(api, query_text="T7", query_type="full_text", query_vector=None))[0] == "7"
    assert "7" in (await ids(api, query_text="t7", query_type="HYBRID"))[:5]
    assert await ids(api, num_results=3, sort_columns=["n DESC"]) == ["9", "5", "1"]
    assert await ids(api, score_threshold=0.97) == ["1", "5", "9"]
    monkeypatch.setattr("retrieval.ask.MAX_PAGE", 5)
    whole = (
        await api.post(f"{ROOT}/indexes/{NAME}/query", json={"columns": ["id"], "query_vector": [0, 1, 0, 0], "num_results": 12})
    ).json()
    found = whole["result"]["data_array"]
    while "next_page_token" in whole:
        body = {"page_token": whole["next_page_token"], "endpoint_name": "e"}
        whole = (await api.request("GET", f"{ROOT}/indexes/{NAME}/query-next-page", json=body)).json()
        found += whole["result"]["data_array"]
    assert sorted(int(row[0]) for row in found) == list(range(12))
    assert [row[-1] for row in found] == sorted((row[-1] for row in found), reverse=True)
    for token in ("", "x", "e30=", None):
        answer = await api.post(f"{ROOT}/indexes/{NAME}/query-next-page", json={"page_token": token})
        assert answer.status_code == 400


async def test_delta_sync_follows_its_table(api: Any, indexes: Indexes, tmp_path: Path) -> None:
    table = tmp_path / "docs.jsonl"
    table.write_text("\n".join(json.dumps({"id": i, "text": f"row {i}", "tag": "a"}) for i in range(1, 9)))
    assert indexes.over_rows.tables.add("main.default.source", str(table)) == 8
    embedded: list[str] = []

    async def embed(endpoint: str, texts: Any, caller: Any) -> np.ndarray:
        assert endpoint == "their-model"
        embedded.extend(texts)
        return await indexes.encoder.aembed(texts)

    indexes.embed_with = embed
    spec = {
        "source_table": "main.default.source",
        "pipeline_type": "TRIGGERED",
        "embedding_source_columns": [{"name": "text", "embedding_model_endpoint_name": "their-model"}],
    }
    body = {"name": NAME, "primary_key": "id", "index_type": "DELTA_SYNC", "delta_sync_index_spec": spec}

    async def settled(state: str = "ONLINE_NO_PENDING_UPDATE") -> dict[str, Any]:
        status: dict[str, Any] = {}
        for _ in range(3000):
            status = (await api.get(f"{ROOT}/indexes/{NAME}")).json()["status"]
            if status["ready"] and status["detailed_state"] == state:
                return status
            await asyncio.sleep(0.02)
        raise AssertionError(status)

    made = await api.post(f"{ROOT}/endpoints/e/indexes", json=body)
    assert made.json()["delta_sync_index_spec"]["pipeline_id"]
    assert (await settled())["indexed_row_count"] == 8
    assert len(embedded) == 8
    table.write_text("\n".join(json.dumps({"id": i, "text": f"row {i}", "tag": "b"}) for i in range(3, 10)))
    await api.post(f"{ROOT}/indexes/{NAME}/sync")
    assert (await settled())["indexed_row_count"] == 7
    assert embedded[8:] == ["row 9"], "what is unchanged is not embedded again"
    answer = await api.post(
        f"{ROOT}/indexes/{NAME}/query", json={"query_text": "row 9", "num_results": 1, "query_type": "HYBRID"}
    )
    assert answer.json()["result"]["data_array"][0][:3] == [9, "row 9", "b"]
    assert (await upsert(api, [{"id": 1}]))["error_code"] == "INVALID_PARAMETER_VALUE"
    table.write_text('{"id": 1, "text": "x"}\nnot json\n')
    await api.post(f"{ROOT}/indexes/{NAME}/sync")
    status = await settled("ONLINE_PIPELINE_FAILED")
    assert "near row 2" in status["message"]
    assert status["indexed_row_count"] == 7, "a failed sync leaves what was there"


async def test_only_owners_make_and_change(api: Any) -> None:
    await direct(api)
    ann = {"authorization": "Bearer ann"}
    for method, path in (
        ("POST", f"{ROOT}/endpoints"),
        ("POST", f"{ROOT}/indexes"),
        ("DELETE", f"{ROOT}/endpoints/e"),
        ("POST", f"{ROOT}/indexes/{NAME}/upsert-data"),
        ("DELETE", f"{ROOT}/indexes/{NAME}/delete-data?primary_keys=1"),
        ("DELETE", f"{ROOT}/indexes/{NAME}"),
    ):
        body = {"name": "main.default.new", "inputs_json": "[]"}
        assert (await api.request(method, path, json=body, headers=ann)).status_code in (403, 404), path
    assert (await api.get(f"{ROOT}/indexes/{NAME}")).status_code == 200
    assert not api.calls


async def test_an_index_that_was_asked_before_its_first_row_takes_rows(api: Any) -> None:
    """Until the first row is embedded nobody knows how long the vectors are."""
    columns = [{"name": "text", "embedding_model_endpoint_name": "all-minilm-l6-v2"}]
    spec = {"schema_json": '{"id": "string", "text": "string"}', "embedding_source_columns": columns}
    assert (await direct(api, direct_access_index_spec=spec)).status_code == 200
    asked = {"query_text": "glass tile", "query_vector": None, "query_type": "HYBRID"}
    assert await ids(api, **asked) == []
    assert (await upsert(api, [{"id": "1", "text": "a blue glass tile"}]))["status"] == "SUCCESS"
    for kind in ("HYBRID", "ANN", "FULL_TEXT"):
        assert await ids(api, **asked | {"query_type": kind}) == ["1"]


async def test_what_no_database_stores_is_refused_by_the_row(api: Any) -> None:
    await direct(api)
    answer = await upsert(api, [thing(1), thing(2) | {"id": "nul\0key"}, thing(3) | {"text": "nul\0text"}])
    assert (answer["result"]["success_row_count"], "NUL" in answer["message"]) == (2, True)
    gone = await api.request("DELETE", f"{ROOT}/indexes/{NAME}/delete-data", json={"primary_keys": ["nul\0key", "3"]})
    assert gone.json()["result"]["success_row_count"] == 1
    for path, body in (("query", {"query_vector": [1e39, 0, 0, 0]}), ("scan", {"last_primary_key": ["1"]})):
        assert (await api.post(f"{ROOT}/indexes/{NAME}/{path}", json=body)).json()["error_code"] == "INVALID_PARAMETER_VALUE"


async def test_vectors_whose_distance_is_no_number_are_refused(api: Any) -> None:
    await direct(api)
    huge = [1e38, 1e38, 0, 0]
    assert (await upsert(api, [{**thing(1), "vec": huge}, thing(2)]))["result"]["failed_primary_keys"] == ["1"]
    asked = await api.post(f"{ROOT}/indexes/{NAME}/query", json={"columns": ["id"], "query_vector": huge})
    assert (asked.status_code, asked.json()["error_code"]) == (400, "INVALID_PARAMETER_VALUE")
