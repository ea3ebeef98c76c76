"""Hooks on the model registry: made with databricks-sdk, told of changes, and where they may not reach."""

from __future__ import annotations

import hashlib
import hmac
import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from databricks.sdk import WorkspaceClient
from databricks.sdk.config import Config
from databricks.sdk.errors import BadRequest, NotFound, PermissionDenied
from databricks.sdk.service.ml import HttpUrlSpec, JobSpec, RegistryWebhookEvent, RegistryWebhookStatus
from fastapi import FastAPI
from sqlalchemy import Engine, create_engine, text
from starlette.requests import Request

from governance import audit
from governance.call import Caller
from governance.grants import Grants
from governance.tables import metadata as governance
from serving import errors
from serving.registry import Registry
from serving.tables import metadata
from serving.tracking import webhook_routes as registry_webhook_routes
from serving.tracking import webhooks as registry_webhooks
from serving.tracking.access import Change, ModelAccess
from serving.tracking.webhooks import Webhooks
from tests.live import wait_until

ADMIN, ANN, EVE = Caller("root", admin=True), Caller("ann"), Caller("eve")
CALLERS = {"key-root": ADMIN, "key-ann": ANN, "key-eve": EVE}
SECRET = "between-the-two-of-us"
Event = RegistryWebhookEvent


class Known(Registry):
    def known(self, name: str) -> bool:
        return name in ("shared", "other")


class Receiver:
    """Keeps what it is sent; answers with the statuses it was given, then with 200."""

    def __init__(self) -> None:
        self.got: list[tuple[str, dict[str, str], bytes]] = []
        self.answers: list[int] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                receiver.got.append((self.path, {key.lower(): value for key, value in self.headers.items()}, body))
                status = receiver.answers.pop(0) if receiver.answers else 200
                self.send_response(status)
                if status == 302:
                    self.send_header("location", f"http://127.0.0.1:{receiver.port}/redirected")
                self.send_header("content-length", "4")
                self.end_headers()
                self.wfile.write(b"seen")

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05})
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


class Site:
    def __init__(self, folder: Path) -> None:
        (folder / "pepper").write_bytes(b"p" * 32)
        self.engine: Engine = create_engine(f"sqlite:///{folder / 'smalti.db'}")
        for each in (governance, metadata):
            each.create_all(self.engine)
        self.grants = Grants(self.engine)
        self.grants.grant("user:ann", "model:shared", "CAN_MANAGE")
        self.access = ModelAccess(self.grants, Known(folder))
        self.holders = {caller.name: caller for caller in CALLERS.values()}
        self.hooks = Webhooks(
            self.engine, folder / "pepper", self.access, hosts=["127.0.0.1"], holder=lambda name: self.holders.get(name)
        )
        app = FastAPI()
        errors.install(app)

        async def authorize(request: Request) -> Caller:
            return CALLERS[request.headers["authorization"].removeprefix("Bearer ")]

        app.include_router(registry_webhook_routes.router(self.hooks, authorize))
        listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self.web = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        self.thread = threading.Thread(target=self.web.run, kwargs={"sockets": [listener]})
        self.thread.start()

    def of(self, key: str) -> Any:
        made = WorkspaceClient(config=Config(host=self.url, token=key, auth_type="pat", retry_timeout_seconds=2))
        return made.model_registry

    def close(self) -> None:
        self.web.should_exit = True
        self.thread.join()
        self.hooks.close()
        self.engine.dispose()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.close()


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    monkeypatch.setattr(registry_webhooks, "PAUSES", (0.01, 0.01))
    made = Receiver()
    yield made
    made.close()


def created(who: Caller, name: str = "shared", version: str = "3") -> Change:
    return Change(who, "model-versions", "create", name, version, fields={"name": name, "source": "models:/m-1", "run_id": "r"})


def test_a_hook_is_made_told_changed_and_removed(site: Site, receiver: Receiver) -> None:
    ann = site.of("key-ann")
    address = f"http://127.0.0.1:{receiver.port}/hook?x=1"
    spec = HttpUrlSpec(address, authorization="Bearer of-the-receiver", secret=SECRET)
    events = [Event.MODEL_VERSION_CREATED, Event.MODEL_VERSION_TRANSITIONED_TO_PRODUCTION]
    hook = ann.create_webhook(events, http_url_spec=spec, model_name="shared", description="tells the build").webhook
    assert hook.status == RegistryWebhookStatus.ACTIVE
    assert (hook.http_url_spec.url, hook.model_name, hook.description) == (address, "shared", "tells the build")

    site.hooks(created(EVE))
    wait_until(lambda: len(receiver.got) == 1)
    path, headers, body = receiver.got[0]
    told = json.loads(body)
    assert path == "/hook?x=1"
    assert headers["x-databricks-signature"] == hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
    assert headers["authorization"] == "Bearer of-the-receiver"
    assert headers["host"] == f"127.0.0.1:{receiver.port}"
    assert (told["event"], told["webhook_id"], told["model_name"], told["version"]) == (
        "MODEL_VERSION_CREATED", hook.id, "shared", "3",
    )  # fmt: skip
    assert "eve created registered model 'shared' version 3" in told["text"]

    site.hooks(Change(ANN, "model-versions", "transition-stage", "shared", "3", "Staging", {"from_stage": "None"}))
    site.hooks(created(ANN, "other"))
    site.hooks(Change(ANN, "model-versions", "transition-stage", "shared", "3", "Production", {"from_stage": "Staging"}))
    wait_until(lambda: len(receiver.got) == 2)
    moved = json.loads(receiver.got[1][2])
    assert (moved["event"], moved["from_stage"], moved["to_stage"]) == (
        "MODEL_VERSION_TRANSITIONED_TO_PRODUCTION", "Staging", "Production",
    )  # fmt: skip

    tried = ann.test_registry_webhook(hook.id, event=Event.COMMENT_CREATED)
    assert (tried.status_code, tried.body) == (200, "seen")
    assert json.loads(receiver.got[2][2])["event"] == "COMMENT_CREATED"
    ann.update_webhook(hook.id, status=RegistryWebhookStatus.TEST_MODE)
    site.hooks(created(EVE))
    assert ann.test_registry_webhook(hook.id).status_code == 200  # with the secret that it had
    assert len(receiver.got) == 4
    assert "x-databricks-signature" in receiver.got[3][1]
    ann.update_webhook(hook.id, status=RegistryWebhookStatus.ACTIVE, http_url_spec=HttpUrlSpec(address))
    assert ann.test_registry_webhook(hook.id).status_code == 200  # another address would not be shown the secrets of this one
    assert {"x-databricks-signature", "authorization"}.isdisjoint(receiver.got[4][1])

    assert [each.id for each in ann.list_webhooks(model_name="shared")] == [hook.id]
    assert list(ann.list_webhooks(events=[Event.COMMENT_CREATED])) == []
    with site.engine.connect() as connection:
        kept = str(connection.execute(text("SELECT * FROM registry_webhooks")).all())
    noted = audit.entries(site.engine, subject=f"webhook:{hook.id}")
    assert [each["action"] for each in noted] == ["webhook.update", "webhook.update", "webhook.create"]
    for word in (SECRET, "of-the-receiver"):
        assert word not in kept + str(noted)
    ann.delete_webhook(hook.id)
    assert list(ann.list_webhooks()) == []
    with pytest.raises(NotFound):
        ann.test_registry_webhook(hook.id)


def test_who_manages_a_model_may_hook_it(site: Site, receiver: Receiver) -> None:
    spec = HttpUrlSpec(f"http://127.0.0.1:{receiver.port}")
    ann, eve, root = (site.of(f"key-{name}") for name in ("ann", "eve", "root"))
    for client, model in ((eve, "shared"), (eve, None), (ann, None), (ann, "other")):
        with pytest.raises(PermissionDenied):
            client.create_webhook([Event.MODEL_VERSION_CREATED], http_url_spec=spec, model_name=model)
    every = root.create_webhook([Event.REGISTERED_MODEL_CREATED], http_url_spec=spec).webhook
    one = ann.create_webhook([Event.MODEL_VERSION_CREATED], http_url_spec=spec, model_name="shared").webhook
    assert [each.id for each in ann.list_webhooks()] == [one.id]
    assert {each.id for each in root.list_webhooks()} == {every.id, one.id}
    for change in (lambda: ann.update_webhook(every.id, description="mine"), lambda: eve.delete_webhook(one.id)):
        with pytest.raises(NotFound):
            change()
    # who may no longer manage the model is no longer told of it
    site.grants.forget("model:shared")
    site.hooks(created(EVE))
    wait_until(lambda: audit.entries(site.engine, subject=f"webhook:{one.id}")[0]["action"] == "webhook.failed")
    assert receiver.got == []
    site.hooks(Change(ANN, "registered-models", "create", "fresh"))
    wait_until(lambda: len(receiver.got) == 1)
    assert json.loads(receiver.got[0][2])["model_name"] == "fresh"
    prompt = {"tags": [{"key": "mlflow.prompt.is_prompt", "value": "true"}]}
    site.hooks(Change(ANN, "registered-models", "create", "greeting", fields=prompt))
    site.hooks.follow("shared", "renamed")
    assert {each.model_name for each in root.list_webhooks()} == {"renamed", None}
    site.hooks.follow("renamed", None)
    assert [each.id for each in root.list_webhooks()] == [every.id]
    assert len(receiver.got) == 1


def test_a_hook_that_fails_is_tried_three_times(site: Site, receiver: Receiver) -> None:
    spec = HttpUrlSpec(f"http://127.0.0.1:{receiver.port}/hook")
    hook = site.of("key-root").create_webhook([Event.MODEL_VERSION_CREATED], http_url_spec=spec).webhook

    def failures() -> list[Any]:
        return [each["after"] for each in audit.entries(site.engine, subject=f"webhook:{hook.id}") if "failed" in each["action"]]

    receiver.answers = [500, 503]
    site.hooks(created(ANN))
    wait_until(lambda: len(receiver.got) == 3)
    assert len({body for *_, body in receiver.got}) == 1
    receiver.answers = [500, 500, 500]
    site.hooks(created(ANN))
    wait_until(lambda: failures() == ["it answered HTTP 500"])
    assert len(receiver.got) == 6
    receiver.answers = [302]  # followed, a hook could be sent anywhere
    site.hooks(created(ANN))
    wait_until(lambda: len(failures()) == 2)
    assert [path for path, *_ in receiver.got] == ["/hook"] * 7


@pytest.mark.parametrize(
    "address",
    [
        "http://169.254.169.254/latest/meta-data", "http://10.0.0.8/", "http://[::1]:80/", "http://localhost:9/",
        "ftp://127.0.0.1/", "file:///etc/passwd", "http://ann:word@127.0.0.1/", "http://", "", "http://[::ffff:169.254.169.254]/",
    ],
)  # fmt: skip
def test_no_hook_reaches_into_the_network(site: Site, address: str) -> None:
    registry = site.of("key-root")
    with pytest.raises(BadRequest) as caught:
        registry.create_webhook([Event.MODEL_VERSION_CREATED], http_url_spec=HttpUrlSpec(address))
    assert "http_url_spec" in str(caught.value)


def test_what_cannot_be_used_is_refused(site: Site) -> None:
    registry, spec = site.of("key-root"), HttpUrlSpec("http://127.0.0.1:9/")
    create = registry.create_webhook
    with pytest.raises(BadRequest, match="no jobs here"):
        create([Event.MODEL_VERSION_CREATED], job_spec=JobSpec("1", "token"))
    with pytest.raises(BadRequest, match="for a webhook on all models"):
        create([Event.REGISTERED_MODEL_CREATED], http_url_spec=spec, model_name="shared")
    with pytest.raises(BadRequest, match="'events'"):
        create([], http_url_spec=spec)
    with pytest.raises(BadRequest, match="'http_url_spec'"):
        create([Event.MODEL_VERSION_CREATED])
    with pytest.raises(BadRequest, match=r"http_url_spec.secret"):
        create([Event.MODEL_VERSION_CREATED], http_url_spec=HttpUrlSpec("http://127.0.0.1:9/", secret="two\nlines"))
    with pytest.raises(NotFound):
        create([Event.MODEL_VERSION_CREATED], http_url_spec=spec, model_name="none")
    hook = create([Event.MODEL_VERSION_CREATED], http_url_spec=spec).webhook
    with pytest.raises(BadRequest, match="cannot be reached"):
        registry.test_registry_webhook(hook.id)
