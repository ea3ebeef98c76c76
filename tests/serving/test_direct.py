from __future__ import annotations

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from governance.call import bad_request
from serving.direct import Direct


@pytest.fixture
def client() -> TestClient:
    async def fixed(request: Request) -> PlainTextResponse:
        return PlainTextResponse("fixed")

    async def named(request: Request) -> PlainTextResponse:
        if request.path_params["name"] == "bad":
            raise bad_request("Field 'x' is missing.", "x")
        return PlainTextResponse(request.path_params["name"])

    async def other(request: Request) -> PlainTextResponse:
        return PlainTextResponse("the application")

    routes = [
        Route("/v1/fixed", fixed, methods=["POST"]),
        Route("/serving-endpoints/{name}/invocations", named, methods=["POST"]),
        Route("/v1/listed", fixed, methods=["GET"]),
    ]
    app = Starlette(routes=[Route("/{path:path}", other, methods=["GET", "POST"])])
    return TestClient(Direct(app, routes))


def test_posts_to_its_routes_are_answered_and_all_else_goes_on(client: TestClient) -> None:
    assert client.post("/v1/fixed").text == "fixed"
    assert client.post("/serving-endpoints/my.model/invocations").text == "my.model"
    for method, path in (
        ("GET", "/v1/fixed"),
        ("POST", "/v1/listed"),
        ("POST", "/serving-endpoints/a/b/invocations"),
        ("POST", "/"),
    ):
        assert client.request(method, path).text == "the application"


def test_an_error_has_its_face_s_shape(client: TestClient) -> None:
    answer = client.post("/serving-endpoints/bad/invocations")
    assert answer.status_code == 400
    assert answer.json()["message"] == "Field 'x' is missing."


def test_a_path_asked_again_and_a_very_long_one_reach_their_endpoint(client: TestClient) -> None:
    for name in ("a", "b", "a", "x" * 5_000):
        assert client.post(f"/serving-endpoints/{name}/invocations").text == name
