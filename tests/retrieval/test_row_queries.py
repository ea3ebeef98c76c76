"""What clients ask of a query beyond nearest rows: facets, sorting over pages, columns to search, reranking."""

from __future__ import annotations

import gzip
import json
from typing import Any

import httpx
import numpy as np
import pytest

from retrieval import Indexes
from retrieval.rows import facets
from tests.retrieval.test_rows import NAME, ROOT, direct, ids, thing, upsert

pytestmark = pytest.mark.anyio
NEAR = {"query_vector": [0, 1.0, 0, 0]}


@pytest.fixture
async def filled(api: Any) -> Any:
    await direct(api)
    await upsert(api, [thing(i) for i in range(12)])
    return api


async def ask(api: Any, **body: Any) -> dict[str, Any]:
    answer = await api.post(f"{ROOT}/indexes/{NAME}/query", json={"columns": ["id"], "num_results": 3, **body})
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_facets_count_what_matches_not_what_is_shown(filled: Any) -> None:
    found = await ask(filled, **NEAR, facets=["lang top 1", "n BUCKETS [[0, 3], [4, 100]]"], filters_json='{"n <": 11}')
    assert found["facet_result"] == {
        "facet_row_count": 3,
        "facet_array": [["lang", "en", 6], ["n", "[0,3]", 4], ["n", "[4,100]", 7]],
    }
    assert found["manifest"]["facet_column_count"] == 3
    worded = await ask(filled, query_text="t7 t8", query_type="FULL_TEXT", facets=["lang"])
    assert worded["facet_result"]["facet_array"] == [["lang", "de", 1], ["lang", "en", 1]]
    assert "facet_result" not in await ask(filled, **NEAR)


@pytest.mark.parametrize(
    "given",
    [
        ["zz"],
        ["n TOP 0"],
        ["n BUCKETS 3"],
        ["n BUCKETS []"],
        ["n BUCKETS [[1]]"],
        ["n", "n TOP 2"],
        [7],
        ["n BUCKETS [[NaN, 1]]"],
    ],
)
async def test_a_facet_that_cannot_be_read_is_refused(filled: Any, given: list[Any]) -> None:
    answer = await filled.post(f"{ROOT}/indexes/{NAME}/query", json={**NEAR, "facets": given})
    assert (answer.status_code, answer.json()["error_code"]) == (400, "INVALID_PARAMETER_VALUE")


def test_a_column_may_be_called_like_a_word_of_the_grammar() -> None:
    assert facets.parse(["top TOP 3", "my column"]) == [facets.Facet("top", 3), facets.Facet("my column")]


async def test_sorted_pages_neither_repeat_nor_leave_out_a_row(filled: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retrieval.ask.MAX_PAGE", 5)
    page = await ask(filled, **NEAR, columns=["n"], num_results=12, sort_columns=["lang ASC", "n DESC"])
    rows = page["result"]["data_array"]
    while "next_page_token" in page:
        token = {"page_token": page["next_page_token"]}
        page = (await filled.post(f"{ROOT}/indexes/{NAME}/query-next-page", json=token)).json()
        rows += page["result"]["data_array"]
    assert [row[0] for row in rows] == [11, 9, 7, 5, 3, 1, 10, 8, 6, 4, 2, 0]
    answer = await filled.post(f"{ROOT}/indexes/{NAME}/query", json={**NEAR, "sort_columns": ["zz ASC"]})
    assert answer.status_code == 400


async def test_words_are_searched_in_the_columns_named(filled: Any) -> None:
    worded = {"query_text": "t7", "query_type": "FULL_TEXT", "query_vector": None}
    assert await ids(filled, **worded, query_columns=["text"]) == ["7"]
    assert await ids(filled, **worded, query_columns=["lang"]) == []
    answer = await filled.post(f"{ROOT}/indexes/{NAME}/query", json={**worded, "query_columns": ["n"]})
    assert "text columns are text, lang" in answer.json()["message"]


async def test_reranking_puts_the_row_that_answers_first(filled: Any) -> None:
    rows = [{**thing(i), "text": text} for i, text in ((2, "How to bake bread in an oven"), (6, "How glass becomes blue"))]
    await upsert(filled, rows)
    asked = {**NEAR, "query_text": "what makes glass blue", "num_results": 2, "debug_level": 1}
    config = {"model": "databricks_reranker", "parameters": {"columns_to_rerank": ["text"]}}
    for more in ({"reranker": config}, {"columns_to_rerank": ["text"]}):
        found = await ask(filled, **asked, **more)
        assert found["result"]["data_array"][0][0] == "6"
        assert found["debug_info"]["reranker_time"] > 0
    assert (await ask(filled, **asked))["result"]["data_array"][0][0] != "6"


async def test_a_reranker_that_fails_leaves_the_answer_and_a_warning(filled: Any, indexes: Indexes) -> None:
    asked = {**NEAR, "query_text": "bread", "debug_level": 1}
    config = {"model": "theirs", "model_type": "MODEL_TYPE_FINETUNED", "parameters": {"columns_to_rerank": ["text"]}}
    found = await ask(filled, **asked, reranker=config)
    assert len(found["result"]["data_array"]) == 3
    assert "'theirs' does not exist" in found["debug_info"]["warnings"][0]

    async def last_first(model: str, query: str, texts: Any) -> np.ndarray:
        assert (model, query) == ("theirs", "bread")
        return np.arange(len(texts))

    indexes.rerank_with = last_first
    plain = await ids(filled, **NEAR)
    assert (await ask(filled, **asked, reranker=config))["result"]["data_array"][0][0] == plain[-1]

    async def wrong(model: str, query: str, texts: Any) -> np.ndarray:
        return np.array([1.0])

    indexes.rerank_with = wrong
    assert "gave 1 scores" in (await ask(filled, **asked, reranker=config))["debug_info"]["warnings"][0]


async def test_an_index_over_a_folder_takes_the_same_questions(api: Any, indexes: Indexes, folder: Any) -> None:
    indexes.add("docs", folder)
    indexes.sync("docs")
    body = {"columns": ["source"], "query_text": "what makes glass blue", "num_results": 9, "facets": ["source TOP 5"]}
    more = {"columns_to_rerank": ["text"], "sort_columns": ["source DESC"], "query_type": "HYBRID"}
    found = (await api.post(f"{ROOT}/indexes/main.default.docs/query", json=body | more)).json()
    sources = [row[0] for row in found["result"]["data_array"]]
    assert sources == sorted(sources, reverse=True)
    assert sum(count for _, _, count in found["facet_result"]["facet_array"]) == 5
    assert api.calls[-1][0] == "main.default.docs"
    table = (await api.get("/api/2.1/unity-catalog/tables/main.default.docs")).json()
    assert {"source", "text"} <= {column["name"] for column in table["columns"]}


async def test_bodies_may_be_packed(filled: Any) -> None:
    packed = gzip.compress(json.dumps({**NEAR, "columns": ["id"]}).encode())
    at, headers = f"{ROOT}/indexes/{NAME}/query", {"content-encoding": "gzip"}
    assert (await filled.post(at, content=packed, headers=headers)).json()["result"]["row_count"] == 10
    assert (await filled.post(at, content=b"no", headers=headers)).status_code == 400
    bomb = gzip.compress(b'{"query_text": "' + b"x" * 3_000_000 + b'"}')
    assert (await filled.post(at, content=bomb, headers=headers)).status_code == 400
    assert (await filled.post(at, content=b"{}", headers={"content-encoding": "br"})).status_code == 400


async def test_endpoints_keep_settings_and_can_be_stopped(filled: Any) -> None:
    at = f"{ROOT}/endpoints/e"
    assert (await filled.patch(at, json={"target_qps": 40})).json()["scaling_info"]["requested_target_qps"] == 40
    assert (await filled.patch(at, json={"target_qps": 0})).status_code == 400
    assert (await filled.patch(at + "/tags", json={"custom_tags": [{"key": "team", "value": "x"}]})).status_code == 200
    assert (await filled.patch(at + "/budget-policy", json={"budget_policy_id": "p"})).json()["effective_budget_policy_id"] == "p"
    assert (await filled.post(at + "/stop")).json()["endpoint_status"]["state"] == "STOPPED"
    refused: httpx.Response = await filled.post(f"{ROOT}/indexes/{NAME}/query", json=NEAR)
    assert (refused.status_code, refused.json()["error_code"]) == (400, "INVALID_STATE")
    started = (await filled.post(at + "/start")).json()
    assert (started["endpoint_status"]["state"], started["custom_tags"][0]["key"]) == ("ONLINE", "team")
    assert len(await ids(filled, **NEAR)) == 12
    assert (await filled.get(f"{ROOT}/endpoints/other/indexes/{NAME}")).status_code == 404


async def test_the_resource_paths_are_the_same_indexes(filled: Any) -> None:
    root = "/api/2.0/ai-search/workspaces/1/endpoints"
    at = f"{root}/e/indexes/{NAME}"
    shown = (await filled.get(at)).json()
    assert (shown["name"], shown["endpoint"]) == (f"workspaces/1/endpoints/e/indexes/{NAME}", "workspaces/1/endpoints/e")
    found = (await filled.post(at + ":query", json={**NEAR, "columns": ["id"], "max_results": 2})).json()
    assert found["result"]["row_count"] == 2
    assert "next_page_token" not in found
    page = (await filled.post(at + ":scan", json={"page_size": 7})).json()
    rest = (await filled.post(at + ":scan", json={"page_size": 7, "page_token": page["next_page_token"]})).json()
    assert [len(page["data"]), len(rest["data"]), page["data"][0]["lang"]] == [7, 5, "en"]
    assert "next_page_token" not in rest
    assert (await filled.post(at + ":upsertData", json={"inputs_json": json.dumps([thing(99)])})).json()["status"] == "SUCCESS"
    assert (await filled.post(at + ":removeData", json={"primary_keys": ["99"]})).json()["result"]["success_row_count"] == 1
    assert (await filled.post(at + ":sync")).status_code == 400
    listed = (await filled.get(f"{root}/e/indexes")).json()["indexes"]
    assert [index["primary_key"] for index in listed] == ["id"]
    made = await filled.post(root, params={"endpoint_id": "f"}, json={"endpoint_type": "STANDARD", "target_qps": 3})
    assert (made.json()["name"], made.json()["target_qps"]) == ("workspaces/1/endpoints/f", 3)
    masked = {"endpoint_type": "STANDARD", "target_qps": 4, "budget_policy_id": "p"}
    changed = (await filled.patch(f"{root}/f", params={"update_mask": "targetQps"}, json=masked)).json()
    assert changed["target_qps"] == 4
    assert "budget_policy_id" not in changed
    assert (await filled.delete(f"{root}/f")).status_code == 200
    assert (await filled.delete(at)).status_code == 200
    assert (await filled.get(at)).json()["error_code"] == "RESOURCE_DOES_NOT_EXIST"
