"""HTTP connections as databricks-sdk uses them: declared by owners, asked below their address only, governed and recorded."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote_plus

import pytest
from databricks.sdk import WorkspaceClient
from databricks.sdk.config import Config
from databricks.sdk.errors import BadRequest, InvalidState, NotFound, PermissionDenied, ResourceAlreadyExists
from databricks.sdk.service.catalog import ConnectionType, CredentialType, PermissionsChange, Privilege
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
SECRET = "svc-secret-91/+"
SIGN_IN = {"client_id": "robot", "client_secret": SECRET, "token_endpoint": "http://127.0.0.1/token"}
HTTP = ConnectionType.HTTP


class Service:
    """Answers with what it was asked; the path's last word says how else."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, dict[str, str], str]] = []
        self.good: list[str] = []
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
                if word.startswith("token"):
                    return self.token(word, headers, body)
                bearer = headers.get("authorization", "").removeprefix("Bearer ")
                if bearer.startswith("good-") and bearer not in service.good:
                    word = "denied"
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

            def token(self, word: str, headers: dict[str, str], body: str) -> None:
                """A token that lives as long as the path says, where id and secret are the right ones."""
                time.sleep(0.05)  # who comes meanwhile waits
                pair = base64.b64decode(headers.get("authorization", "").removeprefix("Basic ")).decode().split(":")
                form = {name: values[0] for name, values in parse_qs(body).items()}
                given = (form.get("client_id") or unquote_plus(pair[0]), form.get("client_secret") or unquote_plus(pair[-1]))
                told: dict[str, Any] = {"error": "invalid_client", "error_description": f"not {given}"}
                status = 302 if word == "token-moved" else 401
                if status == 401 and given == ("robot", SECRET) and form["grant_type"] == "client_credentials":
                    service.good.append(f"good-{len(service.good)}")
                    told = {"access_token": service.good[-1], "token_type": "Bearer", "expires_in": int(word[5:] or 3600)}
                    status = 200
                raw = json.dumps(told).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(raw)))
                self.send_header("location", "http://127.0.0.1/elsewhere")
                self.end_headers()
                self.wfile.write(raw)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.port = str(self.server.server_port)
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def signing_in(self, path: str = "token", **more: str) -> dict[str, str]:
        return {**self.options, **SIGN_IN, "token_endpoint": f"http://127.0.0.1:{self.port}/{path}", **more}

    def signed_in(self) -> list[tuple[dict[str, str], str]]:
        """Headers and bodies of the requests for tokens."""
        return [(headers, body) for _, path, headers, body in self.asked if path.startswith("/token")]

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
    assert {"crm", "declared", "other"} <= {each.name for each in w.connections.list(max_results=1)}
    w.connections.delete("other")
    with pytest.raises(NotFound):
        w.connections.get("other")
    assert site.house.grants.list("connection:other") == []


def test_a_connection_signs_in_once_for_all_who_come_and_holds_its_token(w: WorkspaceClient, site: Site) -> None:
    service, ask = site.service, w.serving_endpoints.http_request
    made = w.connections.create("oauth", HTTP, service.signing_in(oauth_scope="read write"))
    assert (made.credential_type, (made.options or {})["client_id"]) == (CredentialType.OAUTH_M2M, "robot")
    service.asked.clear()
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda place: ask("oauth", Method.POST, f"/x{place}").json(), range(16)))
    assert {each["authorization"] for each in answers} == {"Bearer ***"}
    ((headers, body),) = service.signed_in()
    assert parse_qs(body)["scope"] == ["read write"]
    assert headers["content-type"] == "application/x-www-form-urlencoded"
    assert {each[2]["authorization"] for each in service.asked if each[1].startswith("/v1/")} == {f"Bearer {service.good[-1]}"}

    service.good.clear()  # called back: one more is fetched, and what was refused is sent once more
    assert ask("oauth", Method.POST, "/again").status_code == 200
    assert [path for _, path, *_ in service.asked[-3:]] == ["/v1/again", "/token", "/v1/again"]
    service.asked.clear()
    with pytest.raises(InvalidState, match="Check the client_id and client_secret of connection oauth"):
        ask("oauth", Method.GET, "denied")
    assert [path for _, path, *_ in service.asked] == ["/v1/denied", "/token", "/v1/denied"]
    with site.database.connect() as connection:
        kept = str(connection.exec_driver_sql("SELECT * FROM connections").fetchall())
    for told in (kept, str(w.connections.get("oauth").as_dict()), str(site.house.rows())):
        assert SECRET not in told
        assert "good-" not in told


@pytest.mark.parametrize("how", ["header_only", "body_only"])
def test_a_token_that_ends_at_once_is_fetched_anew_by_the_way_that_is_set(w: WorkspaceClient, site: Site, how: str) -> None:
    w.connections.create(f"brief-{how}", HTTP, site.service.signing_in("token0", oauth_credential_exchange_method=how))
    site.service.asked.clear()
    for _ in range(2):
        w.serving_endpoints.http_request(f"brief-{how}", Method.GET, "/")
    (headers, body), _ = site.service.signed_in()
    assert ("authorization" in headers, "client_secret" in body) == (how == "header_only", how == "body_only")


def test_a_secret_goes_nowhere_else_and_what_refuses_it_is_told_without_it(w: WorkspaceClient, site: Site) -> None:
    ask, options = w.serving_endpoints.http_request, site.service.signing_in()
    w.connections.create("wrong", HTTP, {**options, "client_secret": "of-somebody"})
    with pytest.raises(InvalidState, match=r"refuses connection wrong \(invalid_client\). Check its client_id") as refused:
        ask("wrong", Method.GET, "/")
    assert "of-somebody" not in str(refused.value)
    with pytest.raises(BadRequest, match="send its 'client_secret' again"):
        w.connections.update("wrong", {"token_endpoint": "http://127.0.0.1:1/token"})
    w.connections.update(
        "wrong", {"token_endpoint": f"http://127.0.0.1:{site.service.port}/token-moved", "client_secret": SECRET}
    )
    with pytest.raises(InvalidState, match="redirects, which is not followed"):
        ask("wrong", Method.GET, "/")
    w.connections.update("wrong", {"token_endpoint": options["token_endpoint"], "client_secret": SECRET})
    assert ask("wrong", Method.GET, "/").status_code == 200
    plain = {**dict.fromkeys(SIGN_IN, ""), "bearer_token": TOKEN}
    assert "BEARER_TOKEN" in str(w.connections.update("wrong", plain).credential_type)
    ask("wrong", Method.GET, "/")
    assert site.service.asked[-1][2]["authorization"] == f"Bearer {TOKEN}"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"host": "http://10.0.0.1"}, "private network"),
        ({"host": "http://169.254.169.254", "private_network": "true"}, "private network"),
        ({"host": "ftp://x"}, "is an address"),
        ({"host": "https://user:word@x"}, "is an address"),
        ({"host": "http://127.0.0.1", "port": "99999"}, "port"),
        ({"host": "http://127.0.0.1", "base_path": "/a/../b"}, "base_path"),
        ({"host": "http://127.0.0.1", "authorization_code": "x"}, "no option 'authorization_code'"),
        ({"host": "http://127.0.0.1", "client_secret": "x"}, "'client_id' is missing"),
        ({"host": "http://127.0.0.1", "client_id": "a", "client_secret": "x"}, "'token_endpoint' is missing"),
        ({"host": "http://127.0.0.1", "client_id": "a", "token_endpoint": "http://127.0.0.1/t"}, "'client_secret' is missing"),
        ({"host": "http://127.0.0.1", **SIGN_IN, "token_endpoint": "127.0.0.1/t"}, "token_endpoint"),
        ({"host": "http://127.0.0.1", **SIGN_IN, "token_endpoint": "http://10.0.0.1/t"}, "private network"),
        ({"host": "http://127.0.0.1", **SIGN_IN, "token_endpoint": "http://127.0.0.1/t?x=1"}, "token_endpoint"),
        ({"host": "http://127.0.0.1", **SIGN_IN, "bearer_token": "x"}, "one of them empty"),
        ({"host": "http://127.0.0.1", **SIGN_IN, "oauth_credential_exchange_method": "x"}, "header_and_body"),
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
    signs_in = {"host": "x", "client_id": "a", "token_endpoint": "https://x/token"}
    ConnectionDeclaration(name="x", options=signs_in, client_secret_env="X")  # type: ignore[arg-type]
    unfit = ({"client_secret": "plain"}, {"bearer_token": "{{secrets/a/b}}"}, {})
    for wrong in ({"host": "x", "bearer_token": "plain"}, {"host": "ftp://x"}, *({**signs_in, **each} for each in unfit)):
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
