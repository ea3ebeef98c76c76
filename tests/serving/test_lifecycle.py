"""Endpoints through their whole life on a real server, by the real databricks-sdk, with real MLflow models."""

from __future__ import annotations

import datetime
import gzip
import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from databricks.sdk import WorkspaceClient
from databricks.sdk.config import Config
from databricks.sdk.errors import BadRequest, NotFound, PermissionDenied, ResourceAlreadyExists, ResourceConflict
from databricks.sdk.service import serving as s
from openai import OpenAI

from tests.live import ROOT, Live, environment, mlflow_store, serving, start, wait_until
from tests.programs import Programs
from tests.serving import models

SOON = datetime.timedelta(seconds=120)
ROW = s.DataframeSplitInput(columns=["a", "b", "c"], data=[[1.0, 2.0, 3.0]], index=[0])


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory, programs: Programs) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("state")
    docs = folder / "docs"
    docs.mkdir()
    (docs / "bridge.md").write_text("# Bridge\n\nThe bridge is 314 metres long.\n")
    home = folder / "home"
    mlflow_store(home)
    for name in ("chat", "agent", "chatagent", "dying"):
        (home / f"{name}.py").write_text(getattr(models, name.upper()))
    named = ("chat", "agent", "chatagent", "dying")
    made = programs.run(models.REGISTER, str(home), *named, folder=ROOT, environment=environment(home))
    assert made.returncode == 0, made.stderr
    assert '"main.default.tiny_tabular"' in made.stdout
    with serving(home, docs) as running:
        w = workspace(running)  # all at once: their models are loaded side by side, while the first tests run
        w.serving_endpoints.create("rows", config=config(entity("tiny_tabular")))
        w.serving_endpoints.create("mortal", config=config(entity("dying", version="champion")))
        for name in ("chat", "agent", "chatagent"):
            w.serving_endpoints.create(f"my-{name}", config=config(entity(name)))
        yield running


def workspace(live: Live, **credentials: Any) -> WorkspaceClient:
    return WorkspaceClient(config=Config(host=live.url, retry_timeout_seconds=5, **(credentials or {"token": live.key})))


def config(*entities: s.ServedEntityInput, **shares: int) -> s.EndpointCoreConfigInput:
    routes = [s.Route(served_model_name=name, traffic_percentage=share) for name, share in shares.items()]
    traffic = s.TrafficConfig(routes=routes) if routes else None
    return s.EndpointCoreConfigInput(name="", served_entities=list(entities), traffic_config=traffic)


def entity(model: str, name: str = "a", version: str = "1") -> s.ServedEntityInput:
    return s.ServedEntityInput(name=name, entity_name=f"main.default.{model}", entity_version=version)


@pytest.fixture(scope="module")
def rows(live: Live) -> WorkspaceClient:
    """A workspace with the endpoint `rows`."""
    w = workspace(live)
    w.serving_endpoints.wait_get_serving_endpoint_not_updating("rows", timeout=SOON)
    return w


def test_an_endpoint_of_rows_answers_in_every_format(rows: WorkspaceClient) -> None:
    query = rows.serving_endpoints.query
    record = {"a": 1.0, "b": 2.0, "c": 3.0}
    expected = pytest.approx([2.0])
    assert query("rows", dataframe_split=ROW).predictions == expected
    assert query("rows", dataframe_records=[record]).predictions == expected
    assert query("rows", instances=[[1, 2, 3]]).predictions == expected
    assert query("rows", inputs={"a": [1.0], "b": [2.0], "c": [3.0]}).predictions == expected
    with pytest.raises(BadRequest, match="Column 'c' is missing"):
        query("rows", dataframe_records=[{"a": 1.0, "b": 2.0}])
    with pytest.raises(BadRequest, match="Column 'b' takes numbers; row 0 has 'x'"):
        query("rows", dataframe_records=[record | {"b": "x"}])
    with pytest.raises(BadRequest, match="has task predict"):
        _chat(rows)


def _chat(w: WorkspaceClient) -> None:
    w.api_client.do(
        "POST", "/serving-endpoints/chat/completions", body={"model": "rows", "messages": [{"role": "user", "content": "x"}]}
    )


def _of_one(w: WorkspaceClient, name: str) -> httpx.Response:
    at = f"{w.config.host}/serving-endpoints/rows/served-models/{name}/invocations"
    return httpx.post(at, json={"dataframe_split": ROW.as_dict()}, headers=w.config.authenticate(), trust_env=False)


def test_traffic_is_split_and_an_update_that_fails_leaves_what_served(rows: WorkspaceClient) -> None:
    se = rows.serving_endpoints
    both = [entity("tiny_tabular"), entity("tiny_tabular", "b")]
    updated = se.update_config_and_wait(
        "rows", served_entities=both, traffic_config=config(a=80, b=20).traffic_config, timeout=SOON
    )
    assert updated.config is not None
    assert updated.config.config_version == 2
    served = [se.query("rows", dataframe_split=ROW).served_model_name for _ in range(50)]
    assert 8 <= served.count("b") <= 12
    alone = [_of_one(rows, "b").headers["served-model-name"] for _ in range(4)]
    assert alone == ["b"] * 4
    assert (_of_one(rows, "z").status_code, _of_one(rows, "z").json()["message"]) == (
        404,
        "Endpoint 'rows' serves no entity 'z'; it serves a, b.",
    )
    with pytest.raises(BadRequest, match="config"):  # databricks-sdk sends this one's config within the body
        rows.api_client.do("PUT", "/api/2.0/serving-endpoints/pt/rows/config", body={"served_entities": []})
    unit = s.PtServedModel(entity_name="main.default.none", provisioned_model_units=50, entity_version="1")
    with pytest.raises(NotFound, match="no registered model"):
        se.update_provisioned_throughput_endpoint_config("rows", s.PtEndpointCoreConfig(served_entities=[unit]))
    with pytest.raises(BadRequest, match="add to 100"):
        se.update_config("rows", served_entities=both, traffic_config=config(a=50, b=20).traffic_config)
    with pytest.raises(BadRequest, match="routes to 'z'"):
        se.update_config("rows", served_entities=both, traffic_config=config(a=50, z=50).traffic_config)
    with pytest.raises(NotFound, match="has no version or alias '9'"):
        se.update_config("rows", served_entities=[entity("tiny_tabular", version="9")])
    failing = s.ServedEntityInput(
        name="c", entity_name="main.default.tiny_tabular", entity_version="1", environment_vars={"PYTHONHOME": "/nowhere"}
    )
    with pytest.raises(Exception, match="UPDATE_FAILED"):
        se.update_config_and_wait("rows", served_entities=[failing], timeout=SOON)
    now = se.get("rows")
    assert now.state is not None
    assert (now.state.ready, now.state.config_update) == (s.EndpointStateReady.READY, s.EndpointStateConfigUpdate.UPDATE_FAILED)
    assert now.pending_config is not None
    assert "ended while it loaded" in str(now.pending_config.as_dict())
    assert se.query("rows", dataframe_split=ROW).predictions == pytest.approx([2.0])


def test_what_is_told_about_an_endpoint(rows: WorkspaceClient) -> None:
    se = rows.serving_endpoints
    with pytest.raises(ResourceAlreadyExists):
        se.create("rows", config=config(entity("tiny_tabular")))
    se.patch("rows", add_tags=[s.EndpointTag(key="team", value="x")])
    assert [
        tag.key for tag in se.patch("rows", add_tags=[s.EndpointTag(key="k", value="v")], delete_tags=["team"]).tags or []
    ] == ["k"]
    assert "ready after start 1" in se.build_logs("rows", "a").logs
    text = se.export_metrics("rows").contents.read().decode()  # type: ignore[union-attr]
    assert 'smalti_requests_total{endpoint="rows",served_entity="a",status="200",task="predict"}' in text
    assert 'smalti_upstream_up{endpoint="rows",served_entity="a"} 1.0' in text
    identifier = se.get("rows").id or ""
    held = se.get_permissions(identifier).access_control_list or []
    assert [each.user_name for each in held] == ["admin"]
    se.update_permissions(
        identifier,
        access_control_list=[
            s.ServingEndpointAccessControlRequest(user_name="bob", permission_level=s.ServingEndpointPermissionLevel.CAN_QUERY)
        ],
    )
    assert "bob" in [each.user_name for each in se.get_permissions(identifier).access_control_list or []]
    with pytest.raises(ResourceConflict, match="declared in the server's settings"):
        se.delete("assistant")


def test_chat_and_agents_from_mlflow(live: Live) -> None:
    w = workspace(live)
    for name in ("chat", "agent", "chatagent"):
        w.serving_endpoints.wait_get_serving_endpoint_not_updating(f"my-{name}", timeout=SOON)
    client = OpenAI(base_url=f"{live.url}/v1", api_key=live.key, max_retries=0)
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    ask: Any = {"model": "my-chat", "messages": [{"role": "user", "content": "hello there"}]}
    forced = client.chat.completions.create(**ask, tools=[tool], tool_choice={"type": "function", "function": {"name": "f"}})
    assert "hello there|{" in (forced.choices[0].message.content or "")
    chunks = [chunk.choices[0].delta.content for chunk in client.chat.completions.create(**ask, stream=True) if chunk.choices]
    assert [text for text in chunks if text] == ["hello ", "there "]
    answer = client.responses.create(model="my-agent", input="a word")
    assert answer.output_text == "you said a word"
    streamed = list(client.responses.create(model="my-agent", input="a word", stream=True))
    assert "".join(event.delta for event in streamed if event.type == "response.output_text.delta") == "you said"
    assert streamed[-1].type == "response.completed"
    assert client.responses.create(model="my-chatagent", input="a word").output_text == "heard a word"
    _deployed(w, live)
    assert not list((live.home / "logs").rglob("*.db"))  # MLflow would keep traces beside each log
    for name in ("chat", "agent", "chatagent"):
        w.serving_endpoints.delete(f"my-{name}")
    with pytest.raises(NotFound):
        w.serving_endpoints.get("my-chat")


def _deployed(w: WorkspaceClient, live: Live) -> None:
    """What `databricks.agents.deploy` says after it made an endpoint, and asks afterwards."""
    at, shown = "/api/2.0/agents/deployments", w.serving_endpoints.get("my-agent").config
    assert shown is not None
    served = (shown.served_entities or [])[0]
    body = {"endpoint_name": "my-agent", "model_name": served.entity_name, "model_version": "1"}
    made: Any = w.api_client.do("POST", at, body=body)
    chain = made["deployed_chain"]
    assert (chain["model_name"], chain["model_version"], chain["served_entity_name"]) == (served.entity_name, "1", served.name)
    listed: Any = w.api_client.do("GET", at)
    assert {each["endpoint_name"] for each in listed["chain_deployments"]} == {"my-agent", "my-chat", "my-chatagent"}
    for path, found in ((f"{at}/{served.entity_name}/versions/1", [chain]), (f"{at}/{served.entity_name}/versions/2", [])):
        one: Any = w.api_client.do("GET", path)
        assert one["chain_deployments"] == found
    with pytest.raises(NotFound, match="serves no version 7"):
        w.api_client.do("POST", at, body=body | {"model_version": "7"})
    asked = httpx.post(chain["query_endpoint"], json={"input": "a word"}, auth=("token", live.key), trust_env=False)
    assert asked.json()["output"][0]["content"][0]["text"] == "you said a word"
    review = httpx.get(chain["review_app_url"], trust_env=False)
    assert review.headers["location"] == "/?agent=my-agent"
    settings = httpx.get(f"{live.url}/ml/endpoints/my-agent/?o=1", trust_env=False)
    assert settings.headers["location"] == "/console/endpoints?name=my-agent"
    w.api_client.do("PATCH", "/api/2.0/serving-endpoints/my-agent/description", body={"description": "says it again"})
    assert w.serving_endpoints.get("my-agent").description == "says it again"


def test_a_model_that_dies_takes_nobody_along_and_comes_back(live: Live) -> None:
    w = workspace(live)
    se = w.serving_endpoints
    se.wait_get_serving_endpoint_not_updating("mortal", timeout=SOON)
    assert (se.get("mortal").config.served_entities or [])[0].entity_version == "1"  # type: ignore[union-attr]

    def process() -> int:
        return int((se.query("mortal", dataframe_records=[{"word": "live"}]).predictions or [])[0])

    before = process()
    with live.client() as client:
        died = client.post("/serving-endpoints/mortal/invocations", json={"dataframe_records": [{"word": "die"}]})
    assert (died.status_code, died.json()["error_code"]) == (503, "TEMPORARILY_UNAVAILABLE")
    after = process()
    os.kill(after, signal.SIGKILL)
    wait_until(
        lambda: int((se.query("mortal", dataframe_records=[{"word": "live"}]).predictions or [])[0]) not in (before, after)
    )


def test_predictions_are_streamed_guarded_and_recorded_once(live: Live) -> None:
    w = workspace(live)
    w.serving_endpoints.wait_get_serving_endpoint_not_updating("mortal", timeout=SOON)

    asked: list[str] = []

    def streamed(word: str) -> list[str]:
        body = {"dataframe_records": [{"word": word}], "stream": True}
        with live.client() as client:
            answer = client.post("/serving-endpoints/mortal/invocations", json=body)
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in answer.text.split("\n") if line]
        assert lines[-1] == "data: [DONE]"
        asked.append(answer.headers["x-request-id"])
        return [line.removeprefix("data: ") for line in lines[:-1]]

    assert [json.loads(line)["part"] for line in streamed("live")] == ["write to an", "na@example", ".org"]
    *_, error = streamed("die")
    assert json.loads(error)["error_code"] == "TEMPORARILY_UNAVAILABLE"
    mask = s.AiGatewayGuardrailParameters(pii=s.AiGatewayGuardrailPiiBehavior(s.AiGatewayGuardrailPiiBehaviorBehavior.MASK))
    w.serving_endpoints.put_ai_gateway("mortal", guardrails=s.AiGatewayGuardrails(output=mask))
    try:
        assert "".join(json.loads(line)["part"] for line in streamed("live")) == "write to [EMAIL]"
    finally:
        w.serving_endpoints.put_ai_gateway("mortal")
    with live.client() as client:
        kept = [client.get("/api/2.0/smalti/journal", params={"request_id": each}).json()["rows"] for each in asked]
    assert [[row["status_code"] for row in rows] for rows in kept] == [[200], [503], [200]]
    assert [part["part"] for part in json.loads(kept[2][0]["response"])["predictions"]] == ["write to [EMAIL]", "", ""]
    w.serving_endpoints.wait_get_serving_endpoint_not_updating("mortal", timeout=SOON)


def test_a_service_principal_signs_in_and_manages_what_it_made(live: Live) -> None:
    w = workspace(live, client_id="sp", client_secret="secret")
    assert w.config.auth_type == "oauth-m2m"
    assert w.current_user.me().user_name == "sp"
    with pytest.raises(PermissionDenied):
        w.serving_endpoints.get("assistant")
    made = w.serving_endpoints.create_and_wait("fast", config=config(entity("tiny_tabular")), route_optimized=True, timeout=SOON)
    assert made.permission_level == s.ServingEndpointDetailedPermissionLevel.CAN_MANAGE
    assert w.serving_endpoints_data_plane.query("fast", dataframe_split=ROW).predictions == pytest.approx([2.0])
    w.serving_endpoints.delete("fast")
    with pytest.raises(Exception, match="client id or its secret is wrong"):
        workspace(live, client_id="sp", client_secret="wrong").current_user.me()


def test_an_external_model_keeps_its_key_to_itself(live: Live) -> None:
    w = workspace(live)

    def external(url: str) -> s.EndpointCoreConfigInput:
        key = s.BearerTokenAuth(token_plaintext=live.key)
        provider = s.CustomProviderConfig(custom_provider_url=url, bearer_token_auth=key)
        model = s.ExternalModel(
            name="all", provider=s.ExternalModelProvider.CUSTOM, task="llm/v1/chat", custom_provider_config=provider
        )
        return config(s.ServedEntityInput(name="x", external_model=model))

    made = w.serving_endpoints.create_and_wait("outside", config=external(f"{live.url}/v1/chat/completions"), timeout=SOON)
    assert live.key not in str(made.as_dict())
    assert live.key not in str(w.api_client.do("GET", "/api/2.0/serving-endpoints/outside"))
    assert live.key.encode() not in b"".join(path.read_bytes() for path in live.home.glob("smalti.db*"))
    with pytest.raises(BadRequest, match="private network"):
        w.serving_endpoints.create("inside", config=external("http://10.0.0.1/v1"))


def test_bad_rows_are_refused_in_one_line_and_good_ones_may_be_packed(live: Live, rows: WorkspaceClient) -> None:
    good = {"dataframe_split": {"columns": ["a", "b", "c"], "data": [[1, 2, 3]]}}
    bad: list[tuple[bytes, int, str]] = [
        (
            b'{"dataframe_split": {"columns": ["a", "b", "c"], "data": [[1, 2]]}}',
            400,
            "Row 0 of 'dataframe_split.data' has 2 values",
        ),
        (b'{"instances": [[1, 2, 3], [1, 2]]}', 400, "Row 1 of 'instances' has 2 values for 3 columns"),
        (b'{"instances": [[1, 2, [3]]]}', 400, "Column 'c' takes numbers; row 0 has [3]"),
        (b'{"instances": [[1, 2, NaN]]}', 400, "JSON"),
        (b'{"instances": [[1, 2, Infinity]]}', 400, "Send null for a number that is missing"),
        (b'{"instances": [[1, 2, 3], [1, null, 3]]}', 400, "Column 'b' has no value in row 1, and the model needs one"),
        (b'{"instances": [[1, 2, 3]], "inputs": {"a": [1]}}', 400, "instances and inputs"),
        (b'{"inputs": {"a": [1], "b": [1, 2], "c": [1]}}', 400, "differ in length"),
        (b'{"dataframe_records": 3}', 400, "must be an array of rows"),
        (b'{"instances": [[1, 2, 3]], "params": [1]}', 400, "params"),
        (b'{"instances": [[1, 2, ' + b"[" * 900 + b"]" * 900 + b"]]}", 400, "nested too deeply"),
        (b"{}", 400, "exactly one of"),
        (b"", 400, "JSON"),
    ]
    with live.client() as client:
        at = "/serving-endpoints/rows/invocations"
        for body, status, message in bad:
            answer = client.post(at, content=body)
            assert (answer.status_code, message in answer.json()["message"]) == (status, True), answer.text
        large = client.post(at, content=(b" " * (1 << 20) for _ in range(100)))
        assert (large.status_code, large.json()["error_code"]) == (413, "REQUEST_TOO_LARGE")
        packed = client.post(at, content=gzip.compress(json.dumps(good).encode()), headers={"content-encoding": "gzip"})
        assert packed.json() == {"predictions": pytest.approx([2.0])}
        assert client.post(at, json={"instances": []}).status_code < 500


def test_endpoints_survive_the_end_of_the_server_and_running_answers_are_given(live: Live, rows: WorkspaceClient) -> None:
    port = int(live.url.rpartition(":")[2])
    live.kill()
    again = start(live.home, live.home.parent / "docs", port=port)
    live.process = again.process
    answer = rows.serving_endpoints.query("rows", dataframe_split=ROW)  # waits for the model
    assert answer.predictions == pytest.approx([2.0])
    kept = rows.serving_endpoints.get("rows")
    assert [tag.key for tag in kept.tags or []] == ["k"]
    assert kept.config is not None
    assert kept.config.config_version == 2

    with live.client() as client, ThreadPoolExecutor(1) as pool:
        ask: Any = {"url": "/serving-endpoints/mortal/invocations", "json": {"dataframe_records": [{"word": "wait"}]}}
        warm = client.post(ask["url"], json={"dataframe_records": [{"word": "hello"}]})
        assert warm.status_code == 200  # the model is there
        running = pool.submit(client.post, **ask)
        wait_until(lambda: "smalti_in_flight 1.0" in client.get("/metrics").text)
        live.process.send_signal(signal.SIGTERM)
        assert running.result().status_code == 200
        live.process.wait(60)
