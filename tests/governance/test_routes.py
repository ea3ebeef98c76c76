from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import uvicorn
from databricks.sdk import WorkspaceClient
from databricks.sdk.config import Config
from databricks.sdk.errors import NotFound, PermissionDenied, ResourceConflict
from databricks.sdk.service import iam, serving
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from governance.call import Caller, CallError
from governance.routes import router

from .conftest import House, answering

KNOWN = {"endpoint:assistant", "index:main.default.docs"}


@pytest.fixture
def app(house: House) -> FastAPI:
    app = FastAPI()

    def caller(request: Request) -> Caller:
        return house.identity.authenticate(request.headers.get("authorization", "").removeprefix("Bearer ") or None)

    @app.exception_handler(CallError)
    async def _(_: Request, error: CallError) -> JSONResponse:
        return JSONResponse({"error_code": error.code, "message": error.message}, error.status)

    routes = router(house.identity, house.grants, house.policies, house.journal, caller=caller, exists=KNOWN.__contains__)
    app.include_router(routes)
    return app


@pytest.fixture
def client(app: FastAPI) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://smalti")


async def ask(client: httpx.AsyncClient, method: str, path: str, key: str | None, body: Any = None) -> httpx.Response:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    if isinstance(body, bytes):
        return await client.request(method, path, headers=headers, content=body)
    return await client.request(method, path, headers=headers, json=body)


KEYS = "/api/2.0/smalti/keys"
PERMISSIONS = "/api/2.0/permissions/serving-endpoints/assistant"


@pytest.mark.anyio
async def test_keys_are_made_listed_and_revoked(house: House, client: httpx.AsyncClient) -> None:
    made = (
        await ask(client, "POST", KEYS, house.admin, {"name": "carol", "groups": ["ops"], "ttl": 60, "label": "laptop"})
    ).json()
    assert house.identity.authenticate(made["key"]).groups == {"ops"}
    listed = (await ask(client, "GET", f"{KEYS}?name=carol", house.admin)).json()["keys"]
    assert [key["id"] for key in listed] == [made["id"]]
    assert "key" not in listed[0]
    assert made["key"] not in str(listed)
    changed = await ask(client, "PUT", "/api/2.0/smalti/principals/carol/groups", house.admin, {"groups": ["x"]})
    assert changed.json()["groups"] == ["x"]
    assert house.identity.authenticate(made["key"]).groups == {"x"}
    assert (await ask(client, "DELETE", f"{KEYS}/{made['id']}", house.admin)).json()["revoked"]
    assert (await ask(client, "GET", KEYS, made["key"])).status_code == 401
    assert (await ask(client, "DELETE", f"{KEYS}/none", house.admin)).status_code == 404


@pytest.mark.anyio
async def test_every_route_needs_a_key_and_the_right_to_it(house: House, client: httpx.AsyncClient, app: FastAPI) -> None:
    _, stranger = house.identity.create_key("stranger")
    tried = 0
    for path, methods in app.openapi()["paths"].items():
        if not path.startswith("/api/"):
            continue
        for method in methods:
            at = path.replace("{name}", "assistant").replace("{key_id}", "x")
            assert (await ask(client, method.upper(), at, None, {})).status_code == 401
            if not path.endswith("/Me"):
                assert (await ask(client, method.upper(), at, stranger, {})).status_code == 403
            tried += 1
    assert tried >= 14


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("method", "path", "body", "message"),
    [
        ("POST", KEYS, {"nam": "x"}, "name: field required"),
        ("POST", KEYS, {"name": "x", "grups": []}, "grups: unknown key; accepted: name, kind, groups, admin, ttl, label"),
        ("POST", KEYS, {"name": "x", "ttl": -1}, "ttl: input should be greater than 0"),
        ("POST", KEYS, {"name": "x", "kind": "robot"}, "kind: input should be 'user' or 'service_principal'"),
        ("POST", KEYS, {"name": "a\nb"}, "printable"),
        ("POST", KEYS, b"{nonsense", "the body is no JSON"),
        ("POST", KEYS, [], "the body: must be an object"),
        (
            "PATCH",
            PERMISSIONS,
            {"access_control_list": [{"user_name": "x"}]},
            "list.0.permission_level: field required",
        ),
        ("PATCH", PERMISSIONS, {"access_control_list": [{"permission_level": "CAN_QUERY"}]}, "name exactly one of user_name"),
        ("PUT", PERMISSIONS, {"access_control_list": [{"user_name": "a\nb", "permission_level": "CAN_QUERY"}]}, "no principal"),
        ("PUT", "/api/2.0/serving-endpoints/assistant/ai-gateway", {"rate_limit": []}, "rate_limit: unknown key"),
        ("GET", "/api/2.0/smalti/journal?since=yesterday", None, "is no time"),
    ],
)
async def test_bad_bodies_are_told_by_their_key(
    house: House, client: httpx.AsyncClient, method: str, path: str, body: Any, message: str
) -> None:
    answer = await ask(client, method, path, house.admin, body)
    assert answer.status_code == 400
    assert answer.json()["error_code"] == "BAD_REQUEST"
    assert message in answer.json()["message"]


@pytest.mark.anyio
async def test_a_body_without_end_is_refused(house: House, client: httpx.AsyncClient) -> None:
    assert (await ask(client, "POST", KEYS, house.admin, b" " * (2 << 20))).status_code == 413


@pytest.mark.anyio
async def test_the_journal_is_for_admins_and_managers(house: House, client: httpx.AsyncClient) -> None:
    for _ in range(3):
        await house.gateway.invoke(house.call(), answering)
    at = "/api/2.0/smalti/journal"
    rows = (await ask(client, "GET", f"{at}?limit=2", house.admin)).json()["rows"]
    assert len(rows) == 2
    assert rows[0]["request_time"] >= rows[1]["request_time"]
    assert (await ask(client, "GET", f"{at}?endpoint=assistant", house.alice)).status_code == 403
    house.grants.grant("user:alice", "endpoint:assistant", "CAN_MANAGE")
    assert len((await ask(client, "GET", f"{at}?endpoint=assistant", house.alice)).json()["rows"]) == 3
    assert (await ask(client, "GET", at, house.alice)).status_code == 403
    wanted = f"{at}?request_id={rows[0]['databricks_request_id']}"
    assert (await ask(client, "GET", wanted, house.admin)).json()["rows"] == rows[:1]


@pytest.mark.anyio
async def test_a_manager_gives_others_access_and_no_one_else_does(house: House, client: httpx.AsyncClient) -> None:
    body = {"access_control_list": [{"group_name": "ops", "permission_level": "CAN_QUERY"}]}
    assert (await ask(client, "PATCH", PERMISSIONS, house.alice, body)).status_code == 403
    house.grants.grant("user:alice", "endpoint:assistant", "CAN_MANAGE")
    answer = (await ask(client, "PATCH", PERMISSIONS, house.alice, body)).json()
    assert {"group_name": "ops"}.items() <= answer["access_control_list"][0].items()
    at = "/api/2.0/permissions/vector-search-indexes/main.default.docs"
    assert (await ask(client, "PUT", at, house.alice, body)).status_code == 403
    answer = (await ask(client, "PUT", at, house.admin, body)).json()
    assert (answer["object_type"], answer["object_id"]) == ("vector-search-index", "/vector-search-indexes/main.default.docs")
    assert house.grants.allowed(Caller("x", groups=frozenset({"ops"})), "index:main.default.docs")
    assert (await ask(client, "GET", "/api/2.0/permissions/serving-endpoints/none", house.admin)).status_code == 404


@pytest.fixture
def host(app: FastAPI) -> Iterator[str]:
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="critical", ws="none", lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            thread.join(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)


def test_databricks_sdk_manages_it_unmodified(house: House, host: str) -> None:
    admin = WorkspaceClient(config=Config(host=host, token=house.admin, retry_timeout_seconds=1))
    me = admin.current_user.me()
    assert me.user_name == "admin"
    assert me.groups
    assert [group.display for group in me.groups] == ["admins"]

    request = serving.ServingEndpointAccessControlRequest(
        service_principal_name="nightly", permission_level=serving.ServingEndpointPermissionLevel.CAN_QUERY
    )
    held = admin.serving_endpoints.update_permissions("assistant", access_control_list=[request]).access_control_list or []
    assert {(each.user_name, each.service_principal_name) for each in held} == {("alice", None), (None, "nightly")}
    held = admin.serving_endpoints.set_permissions("assistant", access_control_list=[request]).access_control_list or []
    assert [each.service_principal_name for each in held] == ["nightly"]
    assert held[0].all_permissions
    assert held[0].all_permissions[0].permission_level == serving.ServingEndpointPermissionLevel.CAN_QUERY
    assert not house.grants.allowed(house.identity.authenticate(house.alice), "endpoint:assistant")
    levels = admin.serving_endpoints.get_permission_levels("assistant").permission_levels or []
    assert len(levels) == 3
    generic = admin.permissions.update(
        "vector-search-indexes",
        "main.default.docs",
        access_control_list=[iam.AccessControlRequest(user_name="alice", permission_level=iam.PermissionLevel.CAN_QUERY)],
    )
    assert generic.access_control_list
    assert house.grants.allowed(house.identity.authenticate(house.alice), "index:main.default.docs")

    limit = serving.AiGatewayRateLimit(
        calls=7, key=serving.AiGatewayRateLimitKey.USER, renewal_period=serving.AiGatewayRateLimitRenewalPeriod.MINUTE
    )
    answer = admin.serving_endpoints.put_ai_gateway("assistant", rate_limits=[limit])
    assert answer.rate_limits == [limit]
    policy = house.policies.get("assistant")
    assert policy is not None
    assert policy.rate_limits[0].calls == 7
    house.policies.declare({"assistant": {}})
    with pytest.raises(ResourceConflict, match=r"smalti\.yaml"):
        admin.serving_endpoints.put_ai_gateway("assistant", rate_limits=[limit])
    with pytest.raises(NotFound):
        admin.serving_endpoints.put_ai_gateway("none", rate_limits=[limit])
    alice = WorkspaceClient(config=Config(host=host, token=house.alice, retry_timeout_seconds=1))
    with pytest.raises(PermissionDenied, match="CAN_MANAGE"):
        alice.serving_endpoints.put_ai_gateway("assistant", rate_limits=[limit])
