"""Unmodified clients against a running server: what each asks for on the paths that only it uses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from databricks.sdk import WorkspaceClient
from databricks.sdk.errors import BadRequest, NotFound, ResourceAlreadyExists, ResourceConflict
from databricks.sdk.service import serving, vectorsearch
from pydantic import SecretStr

from tests.live import Live
from tests.live import serving as running

NAME = "main.default.things"
EMBEDDER = "all-minilm-l6-v2"
FACES = ("/v1", "/serving-endpoints", "/ai-gateway/mlflow/v1", "/ai-gateway/openai/v1")


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    docs = tmp_path_factory.mktemp("docs")
    (docs / "bridge.md").write_text("# Bridge\n\nThe bridge is 314 metres long.\n")
    with running(tmp_path_factory.mktemp("state") / "home", docs) as server:
        yield server


@pytest.fixture(scope="module")
def w(live: Live) -> WorkspaceClient:
    return WorkspaceClient(host=live.url, token=live.key)


@pytest.fixture(scope="module")
def index(w: WorkspaceClient) -> str:
    w.vector_search_endpoints.create_endpoint_and_wait("search", vectorsearch.EndpointType.STANDARD)
    schema = {"id": "string", "text": "string", "kind": "string", "n": "int"}
    source = vectorsearch.EmbeddingSourceColumn(name="text", embedding_model_endpoint_name=EMBEDDER)
    spec = vectorsearch.DirectAccessVectorIndexSpec(schema_json=json.dumps(schema), embedding_source_columns=[source])
    kind = vectorsearch.VectorIndexType.DIRECT_ACCESS
    w.vector_search_indexes.create_index(NAME, "search", "id", kind, direct_access_index_spec=spec)
    texts = ["how to bake bread", "glass turns blue by cobalt", "a bridge over the river"]
    rows = [{"id": str(i), "text": text, "kind": "even" if i % 2 == 0 else "odd", "n": i} for i, text in enumerate(texts)]
    w.vector_search_indexes.upsert_data_vector_index(NAME, json.dumps(rows))
    return NAME


def test_a_conversation_is_begun_read_and_deleted(live: Live) -> None:
    with live.client() as http:
        stranger = http.post("/api/2.0/smalti/keys", json={"name": "stranger"}).json()["key"]
    client = openai.OpenAI(base_url=live.url + "/v1", api_key=live.key, max_retries=0)
    made = client.conversations.create(metadata={"topic": "bridges"})
    assert list(client.conversations.items.list(made.id)) == []
    client.responses.create(model="assistant", input="How long is the bridge?", conversation=made.id)
    client.responses.create(model="assistant", input="Who built it?", conversation=made.id)
    items: list[Any] = list(client.conversations.items.list(made.id, order="asc", limit=1))
    assert [item.role for item in items] == ["user", "assistant"] * 2
    assert (items[0].content[0].text, "314" in items[1].content[0].text) == ("How long is the bridge?", True)
    assert client.conversations.items.list(made.id).data[0].id == items[3].id
    assert client.conversations.items.retrieve(items[2].id, conversation_id=made.id).id == items[2].id
    assert client.conversations.update(made.id, metadata={"river": "Po"}).metadata == {"topic": "bridges", "river": "Po"}
    with pytest.raises(openai.NotFoundError, match=r"no conversation .* of yours"):
        openai.OpenAI(base_url=live.url + "/v1", api_key=stranger, max_retries=0).conversations.retrieve(made.id)
    assert client.conversations.delete(made.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.conversations.items.list(made.id)


def test_a_conversation_begins_with_items_and_takes_and_loses_others(live: Live) -> None:
    client = openai.OpenAI(base_url=live.url + "/v1", api_key=live.key, max_retries=0)
    stranger = openai.OpenAI(base_url=live.url + "/v1", api_key="smk_nobody", max_retries=0)
    items = client.conversations.items
    begun: Any = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "input_text", "text": "We speak of the bridge."}]},
        {"type": "message", "role": "assistant", "content": "Very well."},
    ]
    made = client.conversations.create(items=begun[:2], metadata={"topic": "bridges"})
    assert made.metadata == {"topic": "bridges"}
    (added,) = items.create(made.id, items=begun[2:]).data
    wrong = items.create(made.id, items=[{"role": "user", "content": "a slip"}]).data[0]
    with pytest.raises(openai.AuthenticationError):
        stranger.conversations.items.delete(wrong.id or "", conversation_id=made.id)
    assert items.delete(wrong.id or "", conversation_id=made.id).id == made.id

    def texts() -> list[tuple[str | None, str, str]]:
        told: list[Any] = list(items.list(made.id, order="asc"))
        return [(each.id, each.role, each.content[0].text) for each in told]

    before = texts()
    assert [(role, text) for _, role, text in before] == [
        ("developer", "Be brief."), ("user", "We speak of the bridge."), ("assistant", "Very well."),
    ]  # fmt: skip
    assert before[2][0] == added.id
    answer = client.responses.create(model="assistant", input="How long is it?", conversation=made.id)
    after = texts()
    assert [each for each, *_ in after[:3]] == [each for each, *_ in before]  # they keep their ids
    assert [(role, text) for _, role, text in after[3:]] == [("user", "How long is it?"), ("assistant", answer.output_text)]

    late: Any = items.create(made.id, items=[{"role": "user", "content": "Speak of its builder too."}]).data[0]
    assert items.retrieve(late.id, conversation_id=made.id).id == late.id
    assert items.delete(added.id or "", conversation_id=made.id).id == made.id
    assert [each for each, *_ in texts()] == [*(each for each, *_ in [*after[:2], *after[3:]]), late.id]
    with pytest.raises(openai.NotFoundError, match="no item"):
        items.delete(added.id or "", conversation_id=made.id)
    client.responses.create(model="assistant", input="Who built it?", conversation=made.id)
    assert [text for _, _, text in texts()[-3:-1]] == ["Speak of its builder too.", "Who built it?"]
    for wrong_item, what in (({"role": "king", "content": "x"}, r"items\[0\].role"), ({"type": "reasoning"}, "one of message")):
        with pytest.raises(openai.BadRequestError, match=what):
            items.create(made.id, items=[wrong_item])  # type: ignore[list-item]
    assert client.conversations.delete(made.id).deleted
    with pytest.raises(openai.NotFoundError):
        items.create(made.id, items=begun)


@pytest.mark.parametrize("face", FACES)
def test_openai_on_every_face(live: Live, face: str) -> None:
    client = openai.OpenAI(base_url=live.url + face, api_key=live.key, max_retries=0)
    assert client.models.retrieve("assistant").id == "assistant"
    assert "314" in client.responses.create(model="assistant", input="How long is the bridge?").output_text
    assert len(client.embeddings.create(model=EMBEDDER, input="a").data[0].embedding) == 384
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("none")


@pytest.mark.parametrize("responses", [False, True])
def test_langchain_streams_with_usage(live: Live, responses: bool) -> None:
    from langchain_openai import ChatOpenAI

    model = ChatOpenAI(
        model="assistant", base_url=live.url + "/v1", api_key=SecretStr(live.key), use_responses_api=responses, stream_usage=True
    )
    whole: Any = None
    for chunk in model.stream("How long is the bridge?"):
        whole = chunk if whole is None else whole + chunk
    assert "314" in whole.text
    assert whole.usage_metadata["total_tokens"] > 0


def test_the_sdk_searches_with_facets_reranker_and_sorting(w: WorkspaceClient, index: str) -> None:
    api = w.vector_search_indexes
    config = vectorsearch.RerankerConfig(
        model="databricks_reranker", parameters=vectorsearch.RerankerConfigRerankerParameters(columns_to_rerank=["text"])
    )
    found = api.query_index(index, ["id"], query_text="what makes glass blue", facets=["kind"], reranker=config, num_results=1)
    assert found.result
    assert found.result.data_array
    assert found.result.data_array[0][0] == "1"
    assert found.facet_result
    assert found.facet_result.facet_array == [["kind", "even", 2], ["kind", "odd", 1]]
    listed = api.query_index(index, ["n"], query_text="x", sort_columns=["n DESC"]).result
    assert listed
    assert [row[0] for row in listed.data_array or ()] == [2, 1, 0]


def test_the_sdk_manages_search_endpoints(w: WorkspaceClient) -> None:
    api = w.vector_search_endpoints
    made = api.create_endpoint_and_wait("managed", vectorsearch.EndpointType.STANDARD)
    assert made.id
    with pytest.raises(ResourceAlreadyExists):
        api.create_endpoint("managed", vectorsearch.EndpointType.STANDARD)
    entry = vectorsearch.VectorSearchEndpointAccessControlRequest(
        user_name="ann", permission_level=vectorsearch.VectorSearchEndpointPermissionLevel.CAN_USE
    )
    held = api.update_permissions(made.id, access_control_list=[entry]).access_control_list or []
    assert held[0].all_permissions
    assert held[0].all_permissions[0].permission_level == entry.permission_level
    levels = api.get_permission_levels(made.id).permission_levels or []
    assert [level.permission_level.value for level in levels if level.permission_level] == ["CAN_USE", "CAN_MANAGE"]
    assert api.patch_endpoint("managed", target_qps=7).scaling_info
    assert [each.metric.name for each in api.retrieve_user_visible_metrics("managed").metric_values or () if each.metric] == [
        "requests_per_second", "error_rate", "request_latency", "request_latency",
    ]  # fmt: skip
    api.stop_endpoint("managed")
    stopped = api.get_endpoint("managed").endpoint_status
    assert stopped
    assert stopped.state == vectorsearch.EndpointStatusState.STOPPED
    api.delete_endpoint("managed")
    with pytest.raises(NotFound):
        api.get_endpoint("managed")


def test_the_sdk_speaks_ai_search(w: WorkspaceClient, index: str) -> None:
    found = w.ai_search.query_index(f"workspaces/1/endpoints/search/indexes/{index}", ["id"], query_text="bread", max_results=1)
    assert found.result
    assert found.result.data_array
    assert found.result.data_array[0][0] == "0"
    assert any(each.name == "workspaces/1/endpoints/search" for each in w.ai_search.list_endpoints("workspaces/1"))


def test_an_index_is_a_table_too(w: WorkspaceClient, index: str) -> None:
    table = w.tables.get(index)
    assert {column.name: column.type_name.value for column in table.columns or () if column.type_name}["n"] == "INT"


def test_a_grant_on_an_index_opens_it_to_a_vector_search_client(w: WorkspaceClient, live: Live, index: str) -> None:
    """Such a client reads the index, then the endpoint that embeds for it, and asks by GET with a JSON body."""
    with live.client() as admin:
        secret = admin.post("/api/2.0/smalti/keys", json={"name": "ann"}).json()["key"]
        entry = {"user_name": "ann", "permission_level": "CAN_QUERY"}
        at = f"/api/2.0/permissions/vector-search-indexes/{index}"
        assert admin.patch(at, json={"access_control_list": [entry]}).status_code == 200
        headers = {"authorization": f"Bearer {secret}"}
        shown = admin.get(f"/api/2.0/vector-search/endpoints/search/indexes/{index}", headers=headers).json()
        model = shown["direct_access_index_spec"]["embedding_source_columns"][0]["embedding_model_endpoint_name"]
        assert admin.get(f"/api/2.0/serving-endpoints/{model}", headers=headers).status_code == 200
        body = {"columns": ["id"], "query_text": "bread", "filters_json": None, "filter_string": None, "debug_level": 0}
        found = admin.request("GET", shown["status"]["index_url"] + "/query", json=body, headers=headers)
        assert found.json()["result"]["data_array"][0][0] == "0"
        gone = admin.request(
            "DELETE", shown["status"]["index_url"] + "/delete-data", json={"primary_keys": ["0"]}, headers=headers
        )
        assert gone.status_code == 403


def test_serving_errors_are_the_sdks_exceptions(w: WorkspaceClient) -> None:
    api = w.serving_endpoints
    entity = serving.ServedEntityInput(entity_name="a.b.c", entity_version="1")
    for missing in (api.get, api.delete, api.get_open_api, api.export_metrics, api.get_permissions):
        with pytest.raises(NotFound):
            missing("none")
    with pytest.raises(NotFound):
        api.logs("assistant", "none")
    with pytest.raises(NotFound):
        api.create("new", config=serving.EndpointCoreConfigInput(name="new", served_entities=[entity]))
    with pytest.raises(BadRequest):
        api.create("a b", config=serving.EndpointCoreConfigInput(name="a b", served_entities=[entity]))
    with pytest.raises(ResourceConflict):
        api.update_config("assistant", served_entities=[entity])


def test_a_declared_agent_is_described(w: WorkspaceClient) -> None:
    api = w.serving_endpoints
    config = api.get("assistant").config
    assert config
    assert config.served_entities
    name = str(config.served_entities[0].name)
    assert "within the server" in api.logs("assistant", name).logs
    assert api.build_logs("assistant", name).logs
    contents = api.get_open_api("assistant").contents
    assert contents
    call = json.loads(contents.read())["paths"]["/invocations"]["post"]
    schema = call["requestBody"]["content"]["application/json"]["schema"]["properties"]
    assert {"input", "messages", "custom_inputs", "context"} <= schema.keys()
