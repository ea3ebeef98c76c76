"""MLflow's own client and a browser against the tracking server behind Smalti's keys."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest
import uvicorn
from fastapi import FastAPI
from playwright.sync_api import Browser
from sqlalchemy import create_engine
from starlette.requests import Request

from governance.call import Caller, unauthenticated
from governance.grants import Grants
from serving.registry import Registry
from serving.tracking.access import ModelAccess
from serving.tracking.routes import router
from serving.tracking.server import MlflowServer
from serving.ui.console.finetuning import mlflow_url
from tests.live import wait_until

CALLERS = {"key-alice": Caller("alice"), "key-admin": Caller("admin", admin=True)}


def authorize(request: Request) -> Caller:
    key = request.headers.get("authorization", "").removeprefix("Bearer ") or request.cookies.get("smalti_session")
    if key not in CALLERS:
        raise unauthenticated("No valid key: send Authorization: Bearer KEY.")
    return CALLERS[key]


@dataclass
class Site:
    url: str
    server: MlflowServer
    home: Path


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The real thing on a loopback port: an app with the router, and the child."""
    home = tmp_path_factory.mktemp("home")
    up, server = threading.Event(), MlflowServer(home)
    listener = socket.create_server(("127.0.0.1", 0))
    app = FastAPI()
    grants = Grants(create_engine(f"sqlite:///{home}/smalti.db"))
    grants.grant("user:alice", "model:*", "CAN_MANAGE")
    app.include_router(router(server, authorize, ModelAccess(grants, Registry(home)), sign_in="/sign-in"))
    web = uvicorn.Server(uvicorn.Config(app, log_level="warning"))

    async def run() -> None:
        await server.start()
        up.set()
        await web.serve(sockets=[listener])
        await server.stop()

    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    assert up.wait(60)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    early = httpx.get(f"{url}/api/2.0/mlflow/experiments/get?experiment_id=0", headers={"Authorization": "Bearer key-alice"})
    if not server.ready.is_set():  # it was asked before the child can answer
        assert early.status_code == 503
        assert early.headers["retry-after"] == "2"
    assert server.wait_ready(60), server.log.read_text()
    yield Site(url, server, home)
    web.should_exit = True
    thread.join(20)
    assert not server.socket.exists()


@pytest.fixture
def alice(site: Site) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=site.url, headers={"Authorization": "Bearer key-alice"}, timeout=30) as client:
        yield client


def test_the_mlflow_client_works_unmodified(site: Site, tmp_path: Path) -> None:
    script = """
import mlflow, pathlib, sys
from mlflow import MlflowClient
mlflow.set_experiment("mine")
with mlflow.start_run() as run:
    mlflow.log_param("depth", 3)
    mlflow.log_metric("loss", 0.5, step=1)
    pathlib.Path("note.txt").write_text("hello " * 200_000)
    mlflow.log_artifact("note.txt")
    mlflow.log_dict({"a": 1}, "nested/a.json")
client = MlflowClient()
found = client.search_runs([run.info.experiment_id])[0]
assert found.data.metrics == {"loss": 0.5} and found.data.params == {"depth": "3"}
assert found.info.artifact_uri.startswith("mlflow-artifacts:/")
down = mlflow.artifacts.download_artifacts(run_id=run.info.run_id, artifact_path="note.txt", dst_path="down")
assert pathlib.Path(down).read_text() == pathlib.Path("note.txt").read_text()
assert [a.path for a in client.list_artifacts(run.info.run_id, "nested")] == ["nested/a.json"]
with mlflow.start_span("work") as span:
    span.set_inputs({"q": 1})
mlflow.flush_trace_async_logging()
assert len(mlflow.search_traces(locations=[run.info.experiment_id], return_type="list")) == 1
client.create_registered_model("main.default.m")
print("done")
"""
    environment = {
        **os.environ,
        "MLFLOW_TRACKING_URI": site.url,
        "MLFLOW_TRACKING_TOKEN": "key-alice",
        "PYTHONWARNINGS": "ignore",
    }
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip().endswith("done"), done.stderr


@pytest.mark.parametrize(
    "path", ["/api/2.0/mlflow/experiments/search", "/api/3.0/mlflow/traces/search", "/v1/traces", "/mlflow/graphql",
             "/mlflow/ajax-api/2.0/mlflow/runs/search", "/api/2.0/mlflow-artifacts/artifacts/x"],
)  # fmt: skip
def test_nothing_answers_without_a_key(site: Site, path: str) -> None:
    for headers in ({}, {"Authorization": "Bearer wrong"}):
        answer = httpx.post(site.url + path, json={}, headers=headers)
        assert answer.status_code == 401
        assert answer.json()["error_code"] == "UNAUTHENTICATED"


def test_no_other_user_can_open_the_socket(site: Site) -> None:
    assert site.server.socket.stat().st_mode & 0o077 == 0
    assert (site.home / "mlflow.db").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    "path", ["/mlflow/ajax-api/3.0/mlflow/assistant/providers", "/api/3.0/mlflow/gateway/secrets/list",
             "/api/2.0/mlflow/webhooks", "/mlflow/ajax-api/3.0/mlflow/jobs/x", "/mlflow/gateway/x/mlflow/invocations",
             "/mlflow/ajax-api/3.0/mlflow/scorer/invoke",
             "/api/3.0//mlflow/gateway/secrets/list", "/mlflow/api/3.0/mlflow/traces/%2e%2e/gateway/secrets/list"],
)  # fmt: skip
def test_what_runs_code_or_holds_keys_stays_shut(alice: httpx.Client, path: str) -> None:
    assert alice.get(path).status_code in (400, 404)


@pytest.mark.parametrize("name", ["artifact_location", "artifactLocation", "artifact\\u005flocation"])
def test_only_an_admin_places_artifacts(site: Site, alice: httpx.Client, name: str) -> None:
    body = f'{{"name": "{uuid.uuid4().hex}", "{name}": "{site.home}"}}'
    refused = alice.post("/api/2.0/mlflow/experiments/create", content=body, headers={"content-type": "application/json"})
    assert refused.status_code == 403
    assert "artifact_location" in refused.json()["message"]
    plain = alice.post("/api/2.0/mlflow/experiments/create", json={"name": uuid.uuid4().hex})
    assert plain.status_code == 200


def test_a_session_cookie_writes_from_this_host_only(site: Site) -> None:
    url, cookie = f"{site.url}/mlflow/ajax-api/2.0/mlflow/experiments/create", {"Cookie": "smalti_session=key-alice"}
    assert httpx.post(url, json={"name": "csrf"}, headers=cookie).status_code == 403
    assert httpx.post(url, json={"name": "csrf"}, headers={**cookie, "Origin": "http://evil.example"}).status_code == 403
    assert httpx.post(url, json={"name": "csrf"}, headers={**cookie, "Origin": site.url}).status_code == 200


def test_an_endless_body_is_cut(alice: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.tracking.routes.MAX_BODY", 10_000)
    answer = alice.post("/api/2.0/mlflow/runs/log-batch", content=(b"x" * 4_000 for _ in range(5)))
    assert answer.status_code == 413
    assert alice.post("/api/2.0/mlflow/runs/log-batch", content=b"x" * 20_000).status_code == 413


def test_a_browser_without_a_session_is_sent_to_sign_in(site: Site) -> None:
    answer = httpx.get(f"{site.url}/mlflow/", headers={"Accept": "text/html"})
    assert answer.status_code == 303
    assert answer.headers["location"] == "/sign-in?next=/mlflow/"


def test_uploads_cannot_run_as_a_page_of_this_host(alice: httpx.Client) -> None:
    path = "/api/2.0/mlflow-artifacts/artifacts/0/page.html"
    assert alice.put(path, content=b"<script>alert(1)</script>").status_code == 200
    answer = alice.get(path)
    assert answer.text == "<script>alert(1)</script>"
    assert answer.headers["content-security-policy"].startswith("sandbox")


def test_what_was_registered_does_not_change_with_its_run(site: Site, alice: httpx.Client) -> None:
    def post(path: str, **body: str) -> dict:
        answer = alice.post(f"/api/2.0/mlflow/{path}", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    experiment = post("experiments/create", name=uuid.uuid4().hex)["experiment_id"]
    run = post("runs/create", experiment_id=experiment)["run"]["info"]
    inside = f"/api/2.0/mlflow-artifacts/artifacts/{experiment}/{run['run_id']}/artifacts/model/MLmodel"
    assert alice.put(inside, content=b"first").status_code == 200
    post("registered-models/create", name="main.default.kept")
    made = {"name": "main.default.kept", "source": f"{run['artifact_uri']}/model", "run_id": run["run_id"]}
    assert post("model-versions/create", **made)["model_version"]["status"] == "READY"
    assert alice.put(inside, content=b"second").status_code == 200
    wanted = {"name": "main.default.kept", "version": "1"}
    at = alice.get("/api/2.0/mlflow/model-versions/get-download-uri", params=wanted).json()["artifact_uri"]
    kept = f"/api/2.0/mlflow-artifacts/artifacts/{at.removeprefix('mlflow-artifacts:/')}/MLmodel"
    assert alice.get(kept).content == b"first"
    for path in (kept, kept.replace("/registered", "//registered"), kept.replace("/registered", "/./registered"),
                 kept.replace("registered", "%2572egistered")):  # fmt: skip
        assert alice.put(path, content=b"third").status_code in (400, 403), path
    assert alice.put("/api/2.0/mlflow-artifacts/artifacts/elsewhere/x", content=b"x").status_code == 403
    twice = "/api/2.0/mlflow/model-versions/get-download-uri?name=main.default.kept&name=other&version=1"
    assert alice.get(twice).status_code == 400
    assert alice.request("DELETE", "/api/2.0/mlflow/registered-models/delete", json={"name": wanted["name"]}).status_code == 200
    assert list((site.home / "mlartifacts" / "registered").iterdir()) == []


@pytest.mark.browser
def test_the_page_works_in_a_browser(site: Site, alice: httpx.Client, chromium: Browser) -> None:
    made = alice.post("/api/2.0/mlflow/experiments/create", json={"name": "seen in the page"}).json()["experiment_id"]
    run = alice.post("/api/2.0/mlflow/runs/create", json={"experiment_id": made, "run_name": "films-7"}).json()["run"]["info"][
        "run_id"
    ]
    context = chromium.new_context()
    context.add_cookies([{"name": "smalti_session", "value": "key-alice", "url": site.url}])
    page = context.new_page()
    failed: list[str] = []
    page.on("response", lambda response: failed.append(f"{response.status} {response.url}") if response.status >= 500 else None)
    asked: set[str] = set()
    page.on(
        "request",
        lambda request: asked.add(request.url) if not request.url.startswith((site.url, "data:", "blob:")) else None,
    )
    page.goto(f"{site.url}/mlflow/#/experiments")
    page.get_by_text("seen in the page").first.wait_for(timeout=30_000)
    for experiment in (made, None):  # the console's link to a run, also where the run does not know its experiment
        page.goto(site.url + mlflow_url({"mlflow_run_id": run, "mlflow_experiment_id": experiment}))
        page.get_by_text("films-7").first.wait_for(timeout=30_000)
        page.goto(f"{site.url}/mlflow/#/experiments")
    context.close()
    assert failed == []
    assert asked == set()  # nothing is fetched from outside


def test_a_header_that_is_no_ascii_is_passed_on(alice: httpx.Client) -> None:
    answer = alice.post("/v1/traces", headers={"x-mlflow-experiment-id": b"\xfed"}, json=None)
    assert answer.json().get("error_code") == "TEMPORARILY_UNAVAILABLE" or answer.status_code < 500, answer.text


def test_a_killed_child_comes_back(site: Site, alice: httpx.Client) -> None:
    starts, pid = site.server.starts, site.server.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while site.server.starts == starts or not site.server.ready.is_set():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert alice.get("/api/2.0/mlflow/experiments/get?experiment_id=0").status_code == 200


def test_the_child_ends_with_a_killed_parent(tmp_path: Path) -> None:
    code = (
        "import asyncio, pathlib, sys\nfrom serving.tracking.server import MlflowServer\n"
        "async def main():\n  s = MlflowServer(pathlib.Path(sys.argv[1]))\n  await s.start()\n"
        "  while not s.pid: await asyncio.sleep(.01)\n  print(s.pid, flush=True)\n  await asyncio.sleep(60)\nasyncio.run(main())"
    )
    root = str(Path(__file__).parents[2])
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=root, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        time.sleep(0.5)
        parent.kill()
        parent.wait()

    def over() -> bool:
        try:
            return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    wait_until(over, 60)


def test_a_long_state_folder_gets_a_short_socket(tmp_path: Path) -> None:
    server = MlflowServer(tmp_path / ("long" * 40))
    assert len(str(server.socket)) < 100
    assert server.socket.parent.stat().st_mode & 0o077 == 0
    server.socket.parent.rmdir()


def test_a_start_killed_while_making_tables_harms_nothing(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db.new").write_bytes(b"torn")
    (tmp_path / "mlflow.db.new-journal").write_bytes(b"torn")
    code = "import sys; from serving.tracking.child import prepare; prepare(sys.argv[1]); prepare(sys.argv[1])"
    command = [sys.executable, "-W", "ignore", "-c", code, f"sqlite:///{tmp_path}/mlflow.db"]
    subprocess.run(command, cwd=Path(__file__).parents[2], check=True, capture_output=True, timeout=60)
    assert {file.name for file in tmp_path.iterdir()} == {"mlflow.db", "mlflow.db.lock"}
    with contextlib.closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
        assert database.execute("pragma integrity_check").fetchone() == ("ok",)
        assert database.execute("select count(*) from alembic_version").fetchone() == (1,)
