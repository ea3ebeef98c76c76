"""An MLflow server in a process of its own, and two Smalti servers that share it."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from databricks.sdk import WorkspaceClient
from databricks.sdk.config import Config

from serving.settings import Settings, SettingsError
from serving.tracking.remote.connection import Connection
from serving.tracking.remote.place import Place, tracking_uri
from serving.tracking.remote.traces import RemoteTraces
from tests.live import Live, mlflow_store, serving, smalti, wait_until
from tests.programs import Programs

MODEL = "main.default.tripler"
LOGGED = """
import sys
import mlflow
import pandas as pd
from mlflow import MlflowClient

class Times(mlflow.pyfunc.PythonModel):
    def __init__(self, factor):
        self.factor = factor

    def predict(self, context, model_input):
        return [self.factor * each for each in model_input["x"]]

name, client, rows = "main.default.tripler", MlflowClient(), pd.DataFrame({"x": [3.0]})
mlflow.set_experiment("shared")
with mlflow.start_run() as run:
    for factor in (3, 4):
        info = mlflow.pyfunc.log_model(
            name="model", python_model=Times(factor), input_example=rows, pip_requirements=["mlflow"], registered_model_name=name
        )
client.set_registered_model_alias(name, "champion", 1)
found = client.get_model_version(name, "1")
assert found.status == "READY" and not found.tags and found.source.startswith("models:/m-"), found
assert client.get_model_version_download_uri(name, "1").startswith("mlflow-artifacts:/registered/")
print(run.info.experiment_id, run.info.run_id)
"""
READ = """
import sys
import mlflow
import pandas as pd
from mlflow import MlflowClient
rows = pd.DataFrame({"x": [3.0]})
assert mlflow.pyfunc.load_model("models:/main.default.tripler@champion").predict(rows) == [9.0]
copied = MlflowClient().copy_model_version("models:/main.default.tripler/2", "main.default.copied")
assert mlflow.pyfunc.load_model("models:/main.default.copied/1").predict(rows) == [12.0]
print("read")
"""


@dataclass
class Mlflow:
    """A tracking server as its operator starts it."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [sys.executable, "-W", "ignore", "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--backend-store-uri", f"sqlite:///{self.folder / 'mlflow.db'}", "--workers", "1"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "_MLFLOW_", "SMALTI_"))}
        with open(self.folder / "log.txt", "ab") as log:
            self.process = subprocess.Popen(
                command, cwd=self.folder, env=clean | quiet, stdout=log, stderr=log, start_new_session=True
            )

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        os.killpg(self.process.pid, number)

    def stop(self) -> None:
        if self.process is not None:
            self.signal(signal.SIGKILL)
            self.process.wait(20)
            self.process = None


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mlflow]:
    folder = tmp_path_factory.mktemp("mlflow")
    mlflow_store(folder)
    server = Mlflow(folder, free_port())
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def pair(mlflow: Mlflow, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Live, Live]]:
    folder = tmp_path_factory.mktemp("pair")
    given = {"SMALTI_MLFLOW": "true", "SMALTI_MLFLOW_URL": mlflow.url}
    with serving(folder / "a", **given) as one, serving(folder / "b", **given) as other:
        for live in (one, other):
            wait_until(lambda live=live: experiment(live) == 200, 120)
        yield one, other


def experiment(live: Live) -> int:
    with live.client() as client:
        return client.get("/api/2.0/mlflow/experiments/get?experiment_id=0").status_code


def client_of(live: Live) -> WorkspaceClient:
    return WorkspaceClient(config=Config(host=live.url, token=live.key, auth_type="pat", retry_timeout_seconds=5))


def predict(live: Live) -> list[float]:
    with live.client() as client:
        answer = client.post("/serving-endpoints/tripled/invocations", json={"dataframe_records": [{"x": 2.0}]})
    assert answer.status_code == 200, answer.text
    return answer.json()["predictions"]


def ready(live: Live) -> bool:
    with live.client() as client:
        state = client.get("/api/2.0/serving-endpoints/tripled").json()
    assert state["state"]["config_update"] != "UPDATE_FAILED", state
    return state["state"]["ready"] == "READY"


@pytest.mark.timeout(300)
def test_what_one_server_is_told_the_other_knows(
    mlflow: Mlflow, pair: tuple[Live, Live], programs: Programs, tmp_path: Path
) -> None:
    one, other = pair
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "DATABRICKS_", "SMALTI_"))}

    def run(script: str, live: Live, **more: str) -> list[str]:
        uris = {"MLFLOW_TRACKING_URI": live.url, "MLFLOW_TRACKING_TOKEN": live.key, "PYTHONWARNINGS": "ignore"}
        done = programs.run(script, folder=tmp_path, environment=clean | uris | more)
        assert done.returncode == 0, done.stdout + done.stderr
        return [line for line in done.stdout.splitlines() if "://" not in line][-1].split()

    number, run_id = run(LOGGED, one)
    there = {"DATABRICKS_HOST": other.url, "DATABRICKS_TOKEN": other.key, "MLFLOW_TRACKING_URI": "databricks"}
    assert run(READ, other, **there, MLFLOW_REGISTRY_URI="databricks-uc") == ["read"]

    # files: up at one, down at the other; those of a registered model are nobody's to change
    mine, theirs = client_of(one), client_of(other)
    place = f"/WorkspaceInternal/Mlflow/Artifacts/{number}/Runs/{run_id}/artifacts/odd name é"
    mine.files.upload(f"{place}/a+b %.bin", io.BytesIO(b"0123456789" * 100_000))
    assert theirs.files.get_metadata(f"{place}/a+b %.bin").content_length == 1_000_000
    assert theirs.files.download(f"{place}/a+b %.bin").contents.read() == b"0123456789" * 100_000
    assert [each.name for each in theirs.files.list_directory_contents(place)] == ["a+b %.bin"]
    theirs.files.delete(f"{place}/a+b %.bin")
    assert list(mine.files.list_directory_contents(place)) == []
    mine.files.delete_directory(place)
    assert list(theirs.files.list_directory_contents(place.rpartition("/")[0])) == []
    with one.client() as client:
        key = client.post("/api/2.0/smalti/keys", json={"name": "ann"}).json()["key"]
        uri = client.get(f"/api/2.0/mlflow/model-versions/get-download-uri?name={MODEL}&version=1").json()["artifact_uri"]
        path = uri.removeprefix("mlflow-artifacts:/")
        written = client.put(f"/api/2.0/mlflow-artifacts/artifacts/{path}/MLmodel", content=b"changed")
        assert written.status_code == 403, written.text
        tag = {"name": MODEL, "version": "1", "key": "smalti.files", "value": f"mlflow-artifacts:/{number}/elsewhere"}
        assert client.post("/api/2.0/mlflow/model-versions/set-tag", json=tag).status_code == 400
    ann = {"Authorization": f"Bearer {key}"}
    read = httpx.get(f"{one.url}/api/2.0/mlflow-artifacts/artifacts/{path}/MLmodel", headers=ann, trust_env=False)
    assert read.status_code == 403, read.text

    # served at the other one, by an alias
    with other.client() as client:
        entity = {"name": "m", "entity_name": MODEL, "entity_version": "champion", "scale_to_zero_enabled": False}
        made = client.post(
            "/api/2.0/serving-endpoints",
            json={"name": "tripled", "config": {"served_entities": [entity | {"workload_size": "Small"}]}},
        )
        assert made.status_code == 200, made.text
    wait_until(lambda: ready(other), 120)
    assert predict(other) == [6.0]
    mine.registered_models.set_alias(MODEL, "champion", 2)
    assert theirs.model_versions.get_by_alias(MODEL, "champion").version == 2
    assert theirs.registered_models.get(MODEL).full_name == MODEL

    # an answer of the other, its trace and a thumb on it
    with other.client() as client, one.client() as first:
        answer = client.post("/v1/responses", json={"model": "assistant", "input": "What is this about?"})
        identifier = answer.headers["x-request-id"]
        wait_until(lambda: first.get(f"/api/3.0/mlflow/traces/tr-{identifier}").status_code == 200, 60)
        thumb = first.post("/api/2.0/smalti/feedback", json={"request_id": identifier, "value": False, "comment": "no"})
        assert thumb.status_code == 200, thumb.text
    traces = RemoteTraces(Connection(Place(mlflow.url)))
    assert [(event.request_id, event.value) for event in traces.events(0)] == [(identifier, 0.0)]
    assert [(thumb["helpful"], thumb["endpoint"]) for thumb in traces.thumbs(0)] == [(False, "assistant")]
    assert traces.url(identifier, "").endswith(f"traces?selectedEvaluationId=tr-{identifier}")


@pytest.mark.timeout(300)
def test_a_server_that_hangs_or_is_gone_takes_no_model_with_it(mlflow: Mlflow, pair: tuple[Live, Live]) -> None:
    _, other = pair
    mlflow.signal(signal.SIGSTOP)
    try:
        with other.client() as client:
            wait_until(lambda: client.get("/api/2.0/mlflow/experiments/get?experiment_id=0").status_code == 503, 60)
            told = client.get("/api/2.0/mlflow/experiments/get?experiment_id=0")
            assert "no answer" in told.json()["message"]
            assert mlflow.url in told.json()["message"]
            assert client.get("/health").status_code == 200
        assert predict(other) == [6.0]
    finally:
        mlflow.signal(signal.SIGCONT)
    wait_until(lambda: experiment(other) == 200, 60)
    mlflow.stop()
    wait_until(lambda: experiment(other) == 503, 60)
    assert predict(other) == [6.0]
    other.kill()
    given = {"SMALTI_MLFLOW": "true", "SMALTI_MLFLOW_URL": mlflow.url}
    with serving(other.home, **given) as again:  # started while the registry is away: from what was downloaded
        wait_until(lambda: ready(again), 120)
        # the alias was moved before the registry went, and this server has not seen that
        assert predict(again) == [6.0]
        mlflow.start()
        wait_until(lambda: experiment(again) == 200, 120)
        doctor = smalti("doctor", "--json", home=other.home, **given)
        assert f'"{mlflow.url}, with artifacts behind it"' in doctor.stdout, doctor.stdout + doctor.stderr


# -- what is no server to be used ----------------------------------------------------------------------------------------


class Odd(BaseHTTPRequestHandler):
    """A server that answers `/version` as its path's first word says."""

    def do_GET(self) -> None:
        kind = self.path.split("/")[1]
        seen = self.headers.get("authorization")
        if kind == "slow":
            time.sleep(3)
        status, body = {
            "old": (200, "2.9.2"),
            "page": (200, "<html>nothing</html>"),
            "gone": (404, "not here"),
            "broken": (502, "bad gateway"),
            "closed": (401, "You are not authenticated"),
            "host": (403, "Invalid Host header - possible DNS rebinding attack detected"),
            "key": (200, "3.17.2") if seen == "Bearer the-token" else (401, "no"),
            "basic": (200, "3.17.2") if seen == "Basic YW5uOnNlY3JldC13b3Jk" else (401, "no"),
            "slow": (200, "3.17.2"),
        }[kind]
        if status == 200 and not self.path.endswith("/version"):
            body = '{"experiment": {"artifact_location": "s3://bucket/x"}}'
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def odd() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Odd) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def look(place: Place, home: Path) -> str | None:
    async def looked() -> str | None:
        server = Connection(place)
        try:
            return await server.look()
        finally:
            await server.stop()

    return asyncio.run(looked())


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("old", "it is MLflow 2.9.2, and at least 3.17 is needed"),
        ("page", "it is no MLflow server"),
        ("gone", "it is no MLflow server"),
        ("broken", "it is no MLflow server (HTTP 502 at /version)"),
        ("closed", "refuses the credentials"),
        ("host", "--allowed-hosts"),
        ("slow", "it gave no answer within 0.5 seconds"),
        ("key", "refuses the credentials"),
    ],
)
def test_what_is_wrong_is_said(odd: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, told: str) -> None:
    if kind == "slow":
        monkeypatch.setattr("serving.tracking.remote.connection.PATIENCE", 0.5)
    problem = look(Place(f"{odd}/{kind}"), tmp_path)
    assert problem is not None
    assert told in problem


def test_nobody_there(tmp_path: Path) -> None:
    assert look(Place(f"http://127.0.0.1:{free_port()}"), tmp_path) == "it gave no answer (ConnectError)"


def test_credentials_are_shown_and_never_told(odd: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    settings = Settings(mlflow_url=f"{odd.replace('//', '//ann:secret-word@')}/basic")
    place = Place.of(settings)
    assert place is not None
    assert look(place, tmp_path) is None
    assert "secret-word" not in repr(place) + repr(settings) + str(settings) + place.url
    assert tracking_uri(settings, tmp_path) == f"{odd}/basic"  # what is kept with a training run
    assert (os.environ.pop("MLFLOW_TRACKING_USERNAME"), os.environ.pop("MLFLOW_TRACKING_PASSWORD")) == ("ann", "secret-word")
    token = Place.of(Settings(mlflow_url=f"{odd}/key"), {"MLFLOW_TRACKING_TOKEN": "the-token"})
    assert token is not None
    assert look(token, tmp_path) is None
    assert "the-token" not in repr(token)
    away = look(Place(f"{odd}/basic", "ann", "wrong-word"), tmp_path)
    assert away is not None
    assert "wrong-word" not in away


def test_an_address_that_is_none_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "smalti.yaml"
    for address in ("mlflow:5000", "ftp://host", "http://", "http://host?x=1"):
        file.write_text(f"port: 8001\nmlflow_url: {address}\n")
        with pytest.raises(SettingsError, match=r"smalti.yaml:2: mlflow_url: .*http://mlflow:5000"):
            Settings.load(file)


def test_doctor_says_where_artifacts_must_be(odd: str, tmp_path: Path) -> None:
    done = smalti("doctor", home=tmp_path / "home", SMALTI_MLFLOW_URL=f"{odd}/key", MLFLOW_TRACKING_TOKEN="the-token")
    assert "FAIL mlflow" in done.stdout
    assert "keeps artifacts at s3://bucket/x" in done.stdout
    assert "the-token" not in done.stdout + done.stderr
