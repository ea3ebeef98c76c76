"""Users, groups and service principals as databricks-sdk lists them, over HTTP."""

from __future__ import annotations

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from fastapi.testclient import TestClient

from governance import scim
from governance.call import CallError
from tests.governance.conftest import House

AT = "/api/2.0/preview/scim/v2"


@pytest.fixture
def client(house: House) -> TestClient:
    app = FastAPI()

    def caller(request: Request):
        return house.identity.authenticate(request.headers.get("authorization", "").removeprefix("Bearer ") or None)

    @app.exception_handler(CallError)
    async def refused(request: Request, error: CallError) -> JSONResponse:
        return JSONResponse({"error_code": error.code, "message": error.message}, error.status)

    app.include_router(scim.router(house.identity, caller=caller))
    _, admin = house.identity.create_key("root", admin=True)
    house.identity.create_key("ann@example.org", groups=["science", "staff"])
    house.identity.create_key("bot", kind="service_principal", groups=["staff"])
    gone, _ = house.identity.create_key("gone")
    house.identity.revoke(gone.id)
    return TestClient(app, headers={"authorization": f"Bearer {admin}"})


def names(client: TestClient, resource: str, **query: str | int) -> list[str]:
    found = client.get(f"{AT}/{resource}", params=query)
    assert found.status_code == 200, found.text
    return [each["displayName"] for each in found.json()["Resources"]]


def test_an_administrator_sees_everybody(client: TestClient) -> None:
    assert {"ann@example.org", "gone", "root"} <= set(names(client, "Users"))
    assert names(client, "ServicePrincipals") == ["bot"]
    assert {"admins", "science", "staff"} <= set(names(client, "Groups"))
    ann = client.get(f"{AT}/Users/user:ann@example.org").json()
    assert (ann["userName"], ann["active"]) == ("ann@example.org", True)
    assert ann["emails"] == [{"type": "work", "value": "ann@example.org", "primary": True}]
    assert [group["display"] for group in ann["groups"]] == ["science", "staff"]
    staff = client.get(f"{AT}/Groups/group:staff").json()
    assert [each["value"] for each in staff["members"]] == ["service_principal:bot", "user:ann@example.org"]
    assert client.get(f"{AT}/Users/user:gone").json()["active"] is False
    assert client.get(f"{AT}/Users/user:nobody").status_code == 404


def test_pages_and_filters(client: TestClient) -> None:
    whole = names(client, "Users")
    assert [*names(client, "Users", startIndex=1, count=1), *names(client, "Users", startIndex=2)] == whole
    assert names(client, "Users", startIndex=len(whole) + 1) == []
    assert names(client, "Users", filter='userName eq "ANN@example.org"') == ["ann@example.org"]
    assert names(client, "Users", filter='displayName sw "go"') == ["gone"]
    assert names(client, "Groups", filter='displayName co "cien"') == ["science"]
    assert client.get(f"{AT}/Users", params={"filter": "whoever"}).status_code == 400


def test_others_see_themselves_alone_and_nobody_changes_anything(client: TestClient, house: House) -> None:
    _, secret = house.identity.create_key("bea", groups=["staff"])
    mine = {"authorization": f"Bearer {secret}"}
    told = client.get(f"{AT}/Users", headers=mine).json()
    assert ([each["userName"] for each in told["Resources"]], told["totalResults"]) == (["bea"], 1)
    assert client.get(f"{AT}/Users/user:ann@example.org", headers=mine).status_code == 404
    assert client.get(f"{AT}/ServicePrincipals", headers=mine).json()["Resources"] == []
    (staff,) = client.get(f"{AT}/Groups", headers=mine).json()["Resources"]
    assert [each["display"] for each in staff["members"]] == ["bea"]
    assert client.get(f"{AT}/Me", headers=mine).json()["id"] == "user:bea"
    assert client.get(f"{AT}/Users", headers={"authorization": ""}).status_code == 401
    for refused in (client.post(f"{AT}/Users", json={"userName": "x"}), client.delete(f"{AT}/Groups/group:staff")):
        assert (refused.status_code, refused.json()["error_code"]) == (400, "FEATURE_DISABLED")
