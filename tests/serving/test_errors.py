from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from governance.call import CallError, limit_exceeded
from serving import databricks, errors


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    app = FastAPI(openapi_url=None)

    @app.get("/v1/thing")
    async def thing() -> None:
        raise limit_exceeded("Too many calls. Wait.", 1.2)

    @app.get("/api/2.0/thing")
    async def other() -> None:
        raise limit_exceeded("Too many calls. Wait.", 0)

    @app.get("/api/2.0/crash")
    async def crash() -> None:
        raise ZeroDivisionError("secret")

    @app.get("/api/2.0/typed")
    async def typed(number: int) -> int:
        return number

    app.include_router(databricks.fallback())
    errors.install(app)
    with TestClient(app) as opened:
        yield opened


def test_openai_shape(client: TestClient) -> None:
    answer = client.get("/v1/thing")
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "2")
    error = answer.json()["error"]
    assert (error["message"], error["type"], error["code"], error["param"]) == (
        "Too many calls. Wait.", "rate_limit_error", "rate_limit_exceeded", None,
    )  # fmt: skip
    assert error["request_id"] == answer.headers["x-request-id"]


def test_databricks_shape(client: TestClient) -> None:
    answer = client.get("/api/2.0/thing")
    body = answer.json()
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
    assert (body["error_code"], body["message"]) == ("REQUEST_LIMIT_EXCEEDED", "Too many calls. Wait.")
    assert body["details"][0]["request_id"] == answer.headers["x-request-id"]


def test_the_unexpected_is_a_clean_500_with_an_id(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    answer = client.get("/api/2.0/crash")
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert answer.headers["x-request-id"] in answer.json()["message"]
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/api/2.0/none", 404, "ENDPOINT_NOT_FOUND"),
        ("DELETE", "/api/2.0/thing", 404, "ENDPOINT_NOT_FOUND"),
        ("GET", "/api/2.0/typed?number=x", 400, "BAD_REQUEST"),
        ("GET", "/nowhere", 404, "ENDPOINT_NOT_FOUND"),
    ],
)
def test_the_frameworks_own_errors(client: TestClient, method: str, path: str, status: int, code: str) -> None:
    answer = client.request(method, path)
    assert (answer.status_code, answer.json()["error_code"]) == (status, code)
    assert len(answer.headers["x-request-id"]) == 32
    assert answer.headers["x-databricks-org-id"]


def test_unknown_openai_paths(client: TestClient) -> None:
    answer = client.post("/v1/nothing")
    assert (answer.status_code, answer.json()["error"]["type"]) == (404, "not_found_error")
    assert client.post("/v1/thing").status_code == 405
    assert "GET" in client.post("/v1/thing").json()["error"]["message"]


def test_a_wrong_token_is_403_to_databricks_clients_and_none_is_401() -> None:
    refused = CallError("Wrong key.", status=401, code="UNAUTHENTICATED")
    scope = {"type": "http", "path": "/api/2.0/x", "headers": []}
    assert errors.error_response(refused, scope).status_code == 401
    scope["headers"] = [(b"authorization", b"Bearer x")]
    assert errors.error_response(refused, scope).status_code == 403
    scope["path"] = "/v1/chat/completions"
    answer = errors.error_response(refused, scope)
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")


@pytest.mark.parametrize(
    ("path", "face"),
    [
        ("/v1/chat/completions", "openai"), ("/serving-endpoints/chat/completions", "openai"),
        ("/serving-endpoints/embeddings", "openai"), ("/ai-gateway/mlflow/v1/models", "openai"),
        ("/serving-endpoints/assistant/invocations", "databricks"), ("/serving-endpoints/chat-2/invocations", "databricks"),
        ("/api/2.0/serving-endpoints", "databricks"), ("/", None), ("/v1x", None),
    ],
)  # fmt: skip
def test_faces(path: str, face: str | None) -> None:
    assert errors.face(path) == face
