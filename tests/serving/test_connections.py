"""HTTP connections as databricks-sdk uses them: declared by owners, asked below their address only, governed and recorded."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from databricks.sdk import WorkspaceClient
from databricks.sdk.config import Config
from databricks.sdk.errors import BadRequest, InvalidState, NotFound, PermissionDenied, ResourceAlreadyExists
from databricks.sdk.service.catalog import ConnectionType, PermissionsChange, Privilege
from databricks.sdk.service.serving import ExternalFunctionRequestHttpMethod as Method
from fastapi import Request
from langchain_core.messages import AIMessage
from pydantic import ValidationError
from sqlalchemy import create_engine

from agents.agent import Agent
from agents.graphs import react
from agents.models import ScriptedModel
from agents.runtime import Runtime
from governance.call import Call, Caller, CallError
from governance.limits import Policies
from serving.agent_settings import ToolDeclaration
from serving.connections import routes as connection_routes
from serving.connections.registry import Connections
from serving.declarations import ConnectionDeclaration
from serving.dispatch import Dispatcher
from serving.endpoint import Endpoint
from serving.engines.agent import agent_engine
from serving.routes import bearer
from serving.secrets.scopes import Scopes
from serving.tables import metadata
from serving.tools import make_tools
from serving.unity_catalog import grants as unity_catalog_grants
from tests.serving.upstream import House, house, serving

TOKEN = "svc-token-7c1"
HTTP = ConnectionType.HTTP


class Service:
    """Answers with what it was asked; the path's last word says how else."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, dict[str, str], str]] = []
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: Any) -> None:
                pass

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length") or 0)).decode()
                headers = {name.lower(): value for name, value in self.headers.items()}
                service.asked.append((self.command, self.path, headers, body))
                word = self.path.partition("?")[0].rpartition("/")[2]
                status = {"gone": 404, "moved": 302, "denied": 401, "taken": 409, "made": 201}.get(word, 200)
                told = b"x" * (9 << 20) if word == "huge" else bytes(range(256)) if word == "image" else None
                raw = told or json.dumps({"said": body, "authorization": headers.get("authorization")}).encode()
                self.send_response(status)
                for name, value in {
                    "content-type": "application/octet-stream" if told else "application/json",
                    "set-cookie": "session=1",
                    "www-authenticate": "Basic",
                    "mcp-session-id": "s-1",
                    "location": "http://127.0.0.1/elsewhere",
                    "content-length": str(len(raw)),
                    "connection": "close",
                }.items():
                    self.send_header(name, value)
                self.end_headers()
                try:
                    self.wfile.write(raw)
                except OSError:
                    self.close_connection = True  # who asked has had enough

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.port = str(self.server.server_port)
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def options(self) -> dict[str, str]:
        return {"host": "http://127.0.0.1", "port": self.port, "base_path": "/v1"}


class Site:
    """The rooms with connections, under a real server."""

    def __init__(self, made: House, folder: Path, service: Service) -> None:
        self.house, self.service, self.url = made, service, ""
        self.database = create_engine(f"sqlite:///{folder}/smalti.db")
        metadata.create_all(self.database)
        self.secrets = Scopes(self.database, folder / "pepper")
        declared = [
            ConnectionDeclaration(name="declared", options=dict(service.options), bearer_token_env="SERVICE_TOKEN"),  # type: ignore[arg-type]
        ]
        self.connections = Connections(self.database, folder / "pepper", made.grants, self.secrets, declared=declared)
        self.dispatcher = Dispatcher(made.gateway, made.endpoints, connections=self.connections.run)

        async def caller(request: Request) -> Caller:
            return made.identity.authenticate(bearer(request.headers))

        policies = made.gateway.limits.policies
        assert isinstance(policies, Policies)
        routes = [
            connection_routes.router(self.connections, self.dispatcher, policies, caller),
            unity_catalog_grants.router(made.grants, caller, lambda name: f"user:{name}", self.exists),
        ]
        for router in routes:
            made.app.router.routes[0:0] = router.routes  # before the answer to unknown paths
        self.opened: list[WorkspaceClient] = []

    def exists(self, securable: str) -> bool:
        kind, _, name = securable.partition(":")
        return kind == "connection" and self.connections.find(name) is not None

    def client(self, key: str | None = None) -> WorkspaceClient:
        config = Config(host=self.url, token=key or self.house.admin, retry_timeout_seconds=1)
        self.opened.append(WorkspaceClient(config=config))
        return self.opened[-1]


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    made = Service()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, service: Service) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("home")
    with house(folder) as opened:
        made = Site(opened, folder, service)
        with serving(opened.app) as made.url:
            yield made
        for client in made.opened:
            client.api_client._api_client._session.close()
        made.database.dispose()


@pytest.fixture(scope="module")
def w(site: Site) -> WorkspaceClient:
    made = site.client()
    made.connections.create("crm", HTTP, {**site.service.options, "bearer_token": TOKEN}, comment="Customers.")
    return made


def test_a_request_reaches_the_service_below_its_path_with_the_server_s_credential(w: WorkspaceClient, service: Service) -> None:
    asked = {"params": {"q": "a b&c"}, "headers": {"X-Trace": "t"}, "json": {"name": "Zoë"}}
    answer = w.serving_endpoints.http_request("crm", Method.POST, "/people", **asked)  # type: ignore[arg-type]
    method, path, headers, body = service.asked[-1]
    assert (method, path, json.loads(body)) == ("POST", "/v1/people?q=a+b%26c", {"name": "Zoë"})
    assert (headers["authorization"], headers["x-trace"]) == (f"Bearer {TOKEN}", "t")
    assert json.loads(answer.json()["said"]) == {"name": "Zoë"}
    assert answer.json()["authorization"] == "Bearer ***", "a service that repeats it tells nobody"
    assert answer.headers["mcp-session-id"] == "s-1"
    w.serving_endpoints.http_request("crm", Method.GET, "search?all=1", params={"page": "2"})
    assert service.asked[-1][1] == "/v1/search?all=1&page=2"
    assert w.serving_endpoints.http_request("crm", Method.GET, "image").content == bytes(range(256))


def test_the_service_s_own_headers_stay_behind(w: WorkspaceClient, site: Site) -> None:
    raw: Any = w.api_client.do(
        "POST",
        "/api/2.0/external-function",
        body={"connection_name": "crm", "method": "GET", "path": "/made"},
        raw=True,
        response_headers=["set-cookie", "www-authenticate", "location", "content-type", "content-security-policy"],
    )
    held = {name: raw.get(name) for name in ("set-cookie", "www-authenticate", "location")}
    assert set(held.values()) == {None}
    assert (raw["content-type"], raw["content-security-policy"]) == ("application/json", "sandbox")


@pytest.mark.parametrize(
    "path",
    [
        "../secret",
        "a/../../b",
        "%2e%2e/b",
        "%252e%252e/b",
        "/..;/b",
        "http://elsewhere/",
        "//elsewhere/",
        "a\\b",
        "a#b",
        "a%0d%0ab",
    ],
)
def test_a_path_does_not_lead_out(w: WorkspaceClient, service: Service, path: str) -> None:
    before = len(service.asked)
    with pytest.raises(BadRequest, match="path"):
        w.serving_endpoints.http_request("crm", Method.GET, path)
    assert len(service.asked) == before


@pytest.mark.parametrize("headers", [{"Authorization": "x"}, {"host": "x"}, {"Cookie": "x"}, {"X-A": "a\r\nb: c"}, {"a b": "c"}])
def test_headers_say_neither_who_asks_nor_where(w: WorkspaceClient, headers: dict[str, str]) -> None:
    with pytest.raises(BadRequest, match="header"):
        w.serving_endpoints.http_request("crm", Method.GET, "/", headers=headers)


def test_what_the_service_refuses_keeps_its_meaning(w: WorkspaceClient) -> None:
    ask = w.serving_endpoints.http_request
    with pytest.raises(NotFound, match="answered with HTTP 404"):
        ask("crm", Method.GET, "gone")
    with pytest.raises(InvalidState, match="redirects, which is not followed"):
        ask("crm", Method.GET, "moved")
    with pytest.raises(InvalidState, match=r"refuses the server's credential. Check the bearer_token of connection crm"):
        ask("crm", Method.GET, "denied")
    with pytest.raises(Exception, match="cannot be read"):
        ask("crm", Method.GET, "huge")
    with pytest.raises(NotFound, match="no connection 'nobody'"):
        ask("nobody", Method.GET, "/")


def test_only_who_is_granted_may_ask_and_every_request_has_its_row(w: WorkspaceClient, site: Site) -> None:
    ann = site.client(site.house.key("ann"))
    with pytest.raises(PermissionDenied, match="user:ann may not call connection:crm"):
        ann.serving_endpoints.http_request("crm", Method.GET, "/")
    with pytest.raises(PermissionDenied):
        ann.connections.create("mine", HTTP, site.service.options)
    with pytest.raises(PermissionDenied):
        ann.grants.get("connection", "crm")
    assert list(ann.connections.list()) == []
    w.grants.update("CONNECTION", "crm", changes=[PermissionsChange(principal="ann", add=[Privilege.USE_CONNECTION])])
    assert ann.serving_endpoints.http_request("crm", Method.GET, "/x", headers={"X-Api-Key": "of-ann"}).status_code == 200
    assert [each.name for each in ann.connections.list()] == ["crm"]
    with pytest.raises(PermissionDenied):
        ann.connections.update("crm", {"host": "http://127.0.0.2", "bearer_token": ""})
    rows = [row for row in site.house.rows() if row["requester"] == "ann" and row["endpoint_name"] == "connection:crm"]
    assert sorted(row["status_code"] for row in rows) == [200, 403]
    assert json.loads(rows[-1]["request"]) == {"method": "GET", "path": "/x", "headers": {"X-Api-Key": "[redacted]"}}
    assert TOKEN not in str(site.house.rows())
    assert w.grants.get_effective("connection", "crm", principal="ann").privilege_assignments[0].principal == "ann"  # type: ignore[index]


def test_a_connection_is_listed_changed_and_deleted_and_its_credential_never_read(w: WorkspaceClient, site: Site) -> None:
    scope = Caller("admin", admin=True)
    site.secrets.create(scope, "svc")
    site.secrets.put(scope, "svc", "token", b"from-the-scope")
    held = w.connections.create("tmp", HTTP, {**site.service.options, "bearer_token": "{{secrets/svc/token}}"})
    assert (held.options or {})["bearer_token"] == "{{secrets/svc/token}}"
    w.serving_endpoints.http_request("tmp", Method.GET, "/")
    assert site.service.asked[-1][2]["authorization"] == "Bearer from-the-scope"
    assert TOKEN not in str(w.connections.get("crm").as_dict())
    with site.database.connect() as connection:
        assert TOKEN not in str(connection.exec_driver_sql("SELECT * FROM connections").fetchall())
    with pytest.raises(BadRequest, match="lead elsewhere"):
        w.connections.update("tmp", {"host": "http://127.0.0.2"})
    assert w.connections.update("tmp", {"base_path": "/v2"}, new_name="other").url.endswith("/v2")  # type: ignore[union-attr]
    w.serving_endpoints.http_request("other", Method.GET, "/")
    assert site.service.asked[-1][1] == "/v2/"
    assert {each.name for each in w.connections.list(max_results=1)} == {"crm", "declared", "other"}
    w.connections.delete("other")
    with pytest.raises(NotFound):
        w.connections.get("other")
    assert site.house.grants.list("connection:other") == []


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"host": "http://10.0.0.1"}, "private network"),
        ({"host": "http://169.254.169.254", "private_network": "true"}, "private network"),
        ({"host": "ftp://x"}, "is an address"),
        ({"host": "https://user:word@x"}, "is an address"),
        ({"host": "http://127.0.0.1", "port": "99999"}, "port"),
        ({"host": "http://127.0.0.1", "base_path": "/a/../b"}, "base_path"),
        ({"host": "http://127.0.0.1", "client_secret": "x"}, "no option 'client_secret'"),
        ({"host": "http://127.0.0.1", "bearer_token": "a b"}, "bearer_token"),
    ],
)
def test_an_address_that_may_not_be_is_refused(w: WorkspaceClient, options: dict[str, str], says: str) -> None:
    with pytest.raises(BadRequest, match=says):
        w.connections.create("bad", HTTP, options)


def test_a_declared_connection_has_its_credential_from_the_environment(
    w: WorkspaceClient, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InvalidState, match="set SERVICE_TOKEN"):
        w.serving_endpoints.http_request("declared", Method.GET, "/")
    monkeypatch.setenv("SERVICE_TOKEN", "from-outside")
    assert "BEARER_TOKEN" in str(w.connections.get("declared").credential_type)
    w.serving_endpoints.http_request("declared", Method.GET, "/")
    assert site.service.asked[-1][2]["authorization"] == "Bearer from-outside"
    with pytest.raises(Exception, match="declared in the server's settings"):
        w.connections.delete("declared")
    with pytest.raises(ResourceAlreadyExists):
        w.connections.create("declared", HTTP, site.service.options)
    for wrong in ({"host": "x", "bearer_token": "plain"}, {"host": "ftp://x"}):
        with pytest.raises(ValidationError):
            ConnectionDeclaration(name="x", options=wrong)  # type: ignore[arg-type]


@pytest.mark.anyio
async def test_an_agent_s_tool_asks_through_a_connection(tmp_path: Path, service: Service) -> None:
    with house(tmp_path) as made:
        site = Site(made, tmp_path, service)
        site.connections.create(Caller("admin", admin=True), "crm", {**service.options, "bearer_token": TOKEN})
        calls = [{"name": "crm", "args": args, "id": "c1"} for args in ({"path": "/people/7"}, {"path": "../x"})]
        replies = [part for call in calls for part in (AIMessage("", tool_calls=[call]), "done")]
        model = ScriptedModel(replies=replies)
        tools = make_tools("clerk", [ToolDeclaration(connection="crm")], site.dispatcher, lambda name: ())
        runtime = Runtime(site.database, tmp_path / "checkpoints.db")
        engine = agent_engine(runtime, Agent("clerk", react.build, model, None, tools=tools))
        made.endpoints.register(Endpoint("clerk", "agent/v1/responses", engine))
        key = made.key("ann", "endpoint:clerk", "connection:crm")
        payload = {"input": [{"type": "message", "role": "user", "content": "who is 7?"}]}
        heard = []
        for _ in calls:
            call = Call("clerk", "agent", payload, credential=key, stream=True)
            assert [event async for event in site.dispatcher.stream(call)][-1].type == "response.completed"
            heard.append(next(message.content for message in model.calls[-1] if message.type == "tool"))
        assert service.asked[-1][:2] == ("GET", "/v1/people/7")
        assert "***" in heard[0]
        assert "may not have '.' and '..'" in heard[1]
        with pytest.raises(CallError, match="may not call connection:crm"):
            await site.dispatcher.invoke(Call("connection:crm", "http", {"method": "GET"}, credential=made.key("bob")))
        await runtime.close()
        await site.connections.close()
        site.database.dispose()
    with pytest.raises(ValidationError, match="names methods"):
        ToolDeclaration(connection="crm", only=["TRACE"])
