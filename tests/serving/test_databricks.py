from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from databricks.sdk import WorkspaceClient
from databricks.sdk.config import Config
from databricks.sdk.errors import NotFound, PermissionDenied
from databricks.sdk.service.serving import ChatMessage, ChatMessageRole, EndpointStateReady

from tests.serving.upstream import House, house, serving


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with house(tmp_path_factory.mktemp("state")) as built:
        yield built


@pytest.fixture(scope="module")
def url(made: House) -> Iterator[str]:
    with serving(made.app) as base:
        yield base


def workspace(url: str, token: str) -> WorkspaceClient:
    return WorkspaceClient(config=Config(host=url, token=token, auth_type="pat", retry_timeout_seconds=2))


def test_discovery_is_open(url: str) -> None:
    body = httpx.get(f"{url}/.well-known/databricks-config", trust_env=False).json()
    assert body["oidc_endpoint"] == f"{url}/oidc"
    assert body["workspace_id"]


def test_sdk_lists_and_gets(made: House, url: str) -> None:
    client = workspace(url, made.admin)
    assert {endpoint.name for endpoint in client.serving_endpoints.list()} >= {"agent", "echo", "vectors"}
    got = client.serving_endpoints.get("agent")
    assert (got.name, got.task) == ("agent", "agent/v1/responses")
    assert got.state is not None
    assert got.state.ready == EndpointStateReady.READY
    with pytest.raises(NotFound, match="Did you mean 'agent'"):
        client.serving_endpoints.get("agnt")


def test_one_sees_what_one_may(made: House, url: str) -> None:
    client = workspace(url, made.key("ann", "endpoint:agent"))
    assert [endpoint.name for endpoint in client.serving_endpoints.list()] == ["agent"]
    level = client.serving_endpoints.get("agent").permission_level
    assert level is not None
    assert level.value == "CAN_QUERY"
    with pytest.raises(PermissionDenied):
        client.serving_endpoints.get("echo")
    with pytest.raises(NotFound) as caught:
        client.serving_endpoints.get("ech")
    assert "'echo'" not in str(caught.value)


def test_sdk_queries(made: House, url: str) -> None:
    client = workspace(url, made.admin)
    message = ChatMessage(role=ChatMessageRole.USER, content="hello there")
    answer = client.serving_endpoints.query(
        "echo", messages=[message], max_tokens=5, client_request_id="c", usage_context={"a": "b"}
    )
    assert answer.choices is not None
    assert answer.choices[0].message is not None
    assert answer.choices[0].message.content == "hello there"
    assert answer.served_model_name == "echo-1"
    assert answer.usage is not None
    assert answer.usage.total_tokens == 8
    embedded = client.serving_endpoints.query("vectors", input=["abc", "a"])
    assert embedded.data is not None
    assert embedded.data[0].embedding == [3.0, 0.5, -1.0]
    with pytest.raises(NotFound):
        client.serving_endpoints.query("none", messages=[message])


def test_wrong_and_missing_tokens(url: str) -> None:
    with pytest.raises(PermissionDenied):
        workspace(url, "wrong").serving_endpoints.get("agent")
    refused = httpx.get(f"{url}/api/2.0/serving-endpoints", trust_env=False)
    assert (refused.status_code, refused.json()["error_code"]) == (401, "UNAUTHENTICATED")


def test_a_slash_at_the_end_is_passed_over(made: House, url: str) -> None:
    bearer = {"authorization": f"Bearer {made.admin}"}
    for path in ("/serving-endpoints/agent/invocations", "/v1/chat/completions"):
        asked = {"model": "agent", "messages": [{"role": "user", "content": "hi"}]}
        once, slashed = (httpx.post(url + path + end, json=asked, headers=bearer, trust_env=False) for end in ("", "/"))
        assert (slashed.status_code, slashed.json()["choices"]) == (200, once.json()["choices"]), path
    answer = httpx.get(f"{url}/api/2.0/serving-endpoints/", headers=bearer, trust_env=False)
    assert answer.json()["endpoints"]
    answer = httpx.post(f"{url}/api/2.0/nothing/", headers=bearer, trust_env=False)
    assert (answer.status_code, answer.json()["error_code"]) == (404, "ENDPOINT_NOT_FOUND")


def test_unknown_apis_say_so(made: House, url: str) -> None:
    answer = httpx.post(f"{url}/api/4.0/mlflow/traces", headers={"authorization": f"Bearer {made.admin}"}, trust_env=False)
    assert (answer.status_code, answer.json()["error_code"]) == (404, "ENDPOINT_NOT_FOUND")
    for body in ({"input": ["x"]}, {"messages": []}, {"inputs": [[1]]}):  # whatever it would have taken
        at, bearer = f"{url}/serving-endpoints/nope/invocations", {"authorization": f"Bearer {made.admin}"}
        answer = httpx.post(at, json=body, headers=bearer, trust_env=False)
        assert (answer.status_code, answer.json()["error_code"]) == (404, "RESOURCE_DOES_NOT_EXIST")
    answer = httpx.delete(f"{url}/v1/chat/completions", trust_env=False)
    assert answer.status_code == 405
    assert "POST" in answer.json()["error"]["message"]


def test_mlflow_deployments(made: House, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.deployments import get_deploy_client

    monkeypatch.setenv("DATABRICKS_HOST", url)
    monkeypatch.setenv("DATABRICKS_TOKEN", made.admin)
    client: Any = get_deploy_client("databricks")
    asked = {"messages": [{"role": "user", "content": "hello there"}]}
    assert client.predict(endpoint="echo", inputs=asked)["choices"][0]["message"]["content"] == "hello there"
    chunks = list(client.predict_stream(endpoint="echo", inputs=asked))
    assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks) == "hello there"
    assert chunks[-1]["usage"]["total_tokens"] == 8


def test_mlflow_types_accept_an_agents_answers(made: House, url: str) -> None:
    with warnings.catch_warnings():  # MLflow warns about its own type hints when it is imported
        warnings.simplefilter("ignore")
        from mlflow.types.responses import ResponsesAgentRequest, ResponsesAgentResponse, ResponsesAgentStreamEvent

    request = ResponsesAgentRequest.model_validate(
        {"input": [{"role": "user", "content": "a b"}], "custom_inputs": {"thread_id": "t9"}}
    )
    body = request.model_dump(exclude_none=True)
    headers = {"authorization": f"Bearer {made.admin}"}
    path = f"{url}/serving-endpoints/agent/invocations"
    answer = ResponsesAgentResponse.model_validate(httpx.post(path, json=body, headers=headers, trust_env=False).json())
    assert answer.model_dump()["output"][0]["content"][0]["text"] == "a b"
    assert answer.custom_outputs is not None
    assert answer.custom_outputs["thread_id"] == "t9"
    assert answer.usage is not None
    with httpx.stream("POST", path, json={**body, "stream": True}, headers=headers, trust_env=False) as streamed:
        lines = [line.removeprefix("data: ") for line in streamed.iter_lines() if line]
    events = [ResponsesAgentStreamEvent.model_validate_json(line) for line in lines[:-1]]
    assert [event.type for event in events if event.type == "response.output_item.done"] == ["response.output_item.done"]
    assert events[-1].type == "response.completed"


@pytest.mark.parametrize("responses", [False, True])
def test_langchain(made: House, url: str, responses: bool) -> None:
    from langchain_openai import ChatOpenAI
    from pydantic import BaseModel, Field, SecretStr

    class GetWeather(BaseModel):
        """Weather of a city."""

        city: str = Field(description="c")

    model = ChatOpenAI(
        model="echo",
        base_url=f"{url}/v1",
        api_key=SecretStr(made.admin),
        use_responses_api=responses,
        max_retries=0,
        stream_usage=True,
    )
    answer = model.invoke([("system", "s"), ("human", "hello there")])
    assert answer.text == "hello there"
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["total_tokens"] == 8
    chunks = list(model.stream("hello there"))
    whole: Any = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    assert whole.text == "hello there"
    assert whole.usage_metadata["total_tokens"] == 8
    bound = model.bind_tools([GetWeather], tool_choice="GetWeather")
    call = bound.invoke("weather?").tool_calls[0]
    assert (call["name"], call["args"]) == ("GetWeather", {"city": "Rome"})
    streamed: Any = None
    for chunk in bound.stream("weather?"):
        streamed = chunk if streamed is None else streamed + chunk
    assert streamed.tool_calls[0]["args"] == {"city": "Rome"}
    history: Any = [("human", "weather?"), answer, ("human", "again")]
    assert model.invoke(history).text == "again"
