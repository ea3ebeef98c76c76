"""MLflow's client and databricks-sdk under `databricks` URIs: runs, files, traces, models, secrets, deployments; and who may."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from databricks.sdk import WorkspaceClient
from databricks.sdk.common.types.fieldmask import FieldMask
from databricks.sdk.config import Config
from databricks.sdk.errors import AlreadyExists, BadRequest, NotFound, PermissionDenied, ResourceAlreadyExists, ResourceConflict
from databricks.sdk.service.catalog import PermissionsChange, Privilege
from databricks.sdk.service.ml import (
    HttpUrlSpec,
    LoggedModelParameter,
    LoggedModelStatus,
    RegisteredModelAccessControlRequest,
    RegisteredModelPermissionLevel,
    RegistryWebhookEvent,
)
from databricks.sdk.service.settings import PublicTokenInfo
from databricks.sdk.service.workspace import AclPermission

from tests.live import Live, serving, smalti, wait_until
from tests.programs import Programs
from tests.serving.upstream import KEY, Upstream

MODEL = "main.default.doubler"
TRAINED = ("main.default.trained",)

TRACKED = """
import pathlib, sys
import mlflow
from mlflow import MlflowClient
client = MlflowClient()
mlflow.set_experiment("/Users/ann/work")
with mlflow.start_run() as run:
    mlflow.log_param("depth", 3)
    mlflow.log_metric("loss", 0.5, step=1)
    mlflow.set_tag("team", "blue")
    pathlib.Path("note.txt").write_text("hello " * 300_000)
    mlflow.log_artifact("note.txt")
    mlflow.log_dict({"a": 1}, "nested/a.json")
found = client.search_runs([run.info.experiment_id])[0]
assert found.data.metrics == {"loss": 0.5} and found.data.params == {"depth": "3"} and found.data.tags["team"] == "blue"
assert found.info.artifact_uri.startswith("dbfs:/databricks/mlflow-tracking/"), found.info.artifact_uri
assert sorted(a.path for a in client.list_artifacts(run.info.run_id)) == ["nested", "note.txt"]
assert [(a.path, a.file_size) for a in client.list_artifacts(run.info.run_id, "nested")] == [("nested/a.json", 12)]
down = mlflow.artifacts.download_artifacts(run_id=run.info.run_id, artifact_path="note.txt", dst_path="down")
assert pathlib.Path(down).read_text() == pathlib.Path("note.txt").read_text()
with mlflow.start_span("work") as span:
    span.set_inputs({"q": 1})
mlflow.flush_trace_async_logging()
trace = mlflow.search_traces(locations=[run.info.experiment_id], return_type="list")[0]
assert [s.name for s in trace.data.spans] == ["work"]
assert mlflow.get_trace(trace.info.trace_id).data.spans[0].inputs == {"q": 1}
mlflow.log_feedback(trace_id=trace.info.trace_id, name="good", value=True)
print(run.info.run_id, trace.info.trace_id)
"""

LOGGED = """
import os
import mlflow
import pandas as pd
from mlflow import MlflowClient

class Doubler(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input):
        return [2 * each or float(len(os.environ.get("TOKEN_FOR_TEST", ""))) for each in model_input["x"]]

name, client, rows = "main.default.doubler", MlflowClient(), pd.DataFrame({"x": [3.0]})
mlflow.set_experiment("/Users/ann/work")
with mlflow.start_run():
    info = mlflow.pyfunc.log_model(
        name="model", python_model=Doubler(), input_example=rows, pip_requirements=["mlflow"], registered_model_name=name
    )
assert int(info.registered_model_version) == 1
assert mlflow.get_logged_model(info.model_id).artifact_location.startswith("dbfs:/databricks/mlflow-tracking/")
client.set_registered_model_alias(name, "champion", 1)
client.set_registered_model_tag(name, "team", "blue")
client.set_model_version_tag(name, "1", "checked", "yes")
client.update_registered_model(name, description="doubles")
found = client.get_model_version_by_alias(name, "champion")
assert (found.version, found.status, found.aliases, found.tags) == ("1", "READY", ["champion"], {"checked": "yes"}), found
assert found.model_id == info.model_id and found.run_id == info.run_id
model = client.get_registered_model(name)
assert (model.aliases, model.tags, model.description) == ({"champion": "1"}, {"team": "blue"}, "doubles"), model
assert [each.name for each in client.search_registered_models()] == [name]
assert [each.version for each in client.search_model_versions(f"name='{name}'")] == ["1"]
assert mlflow.pyfunc.load_model(f"models:/{name}@champion").predict(rows) == [6.0]
assert mlflow.pyfunc.load_model(info.model_uri).predict(rows) == [6.0]
second = client.copy_model_version(f"models:/{name}/1", "main.default.copy")
client.rename_registered_model("main.default.copy", "main.default.renamed")
assert mlflow.pyfunc.load_model("models:/main.default.renamed/1").predict(rows) == [6.0]
client.delete_model_version("main.default.renamed", "1")
client.delete_registered_model("main.default.renamed")
print(info.model_id, info.run_id)
"""

PROMPTED = """
import mlflow
from mlflow import MlflowClient
client, name = MlflowClient(), "main.default.greeting"
made = mlflow.genai.register_prompt(name=name, template="Hello {{who}}", commit_message="first", tags={"team": "blue"})
assert made.version == 1
chat = [{"role": "user", "content": "Hi {{who}}"}]
assert mlflow.genai.register_prompt(name=name, template=chat).version == 2
assert mlflow.genai.load_prompt(f"prompts:/{name}/1").format(who="Ann") == "Hello Ann"
assert mlflow.genai.load_prompt(f"prompts:/{name}/2").template == chat
mlflow.genai.set_prompt_alias(name, "prod", 1)
found = mlflow.genai.load_prompt(f"prompts:/{name}@prod")
assert (found.version, found.commit_message, found.aliases, found.tags["team"]) == (1, "first", ["prod"], "blue"), found
client.set_prompt_version_tag(name, 1, "checked", "yes")
assert client.get_prompt_version(name, 1).tags["checked"] == "yes"
assert [each.name for each in mlflow.genai.search_prompts("catalog = 'main' AND schema = 'default'")] == [name]
assert list(mlflow.genai.search_prompts("catalog = 'main' AND schema = 'other'")) == []
assert sorted(int(each.version) for each in client.search_prompt_versions(name)) == [1, 2]
assert name not in [each.name for each in client.search_registered_models()]
mlflow.genai.delete_prompt_alias(name, "prod")
client.delete_prompt_version(name, "2")
print("prompted")
"""

READ = """
import mlflow
assert mlflow.genai.load_prompt("prompts:/main.default.greeting/1").format(who="Bob") == "Hello Bob"
print("read")
"""
OPEN = """
import sys
import mlflow
import pandas as pd
from mlflow import MlflowClient
client, (run, trace), rows = MlflowClient(), sys.argv[1:], pd.DataFrame({"x": [3.0]})
assert client.get_run(run).info.artifact_uri.startswith("mlflow-artifacts:/")
assert mlflow.artifacts.load_text(f"runs:/{run}/note.txt").startswith("hello hello")
assert mlflow.get_trace(trace).data.spans[0].inputs == {"q": 1}
assert mlflow.pyfunc.load_model("models:/main.default.doubler@champion").predict(rows) == [6.0]
with mlflow.start_run(experiment_id=client.get_run(run).info.experiment_id) as own:
    mlflow.log_text("from the other side", "other.txt")
    with mlflow.start_span("other") as span:
        span.set_inputs({"q": 2})
mlflow.flush_trace_async_logging()
found = mlflow.search_traces(locations=[own.info.experiment_id], filter_string="trace.name = 'other'", return_type="list")
version = mlflow.register_model("models:/main.default.doubler/1", "main.default.doubler")
print(own.info.run_id, found[0].info.trace_id, version.version)
"""

BACK = """
import sys
import mlflow
import pandas as pd
(run, trace, version), rows = sys.argv[1:], pd.DataFrame({"x": [3.0]})
assert mlflow.artifacts.load_text(f"runs:/{run}/other.txt") == "from the other side"
assert mlflow.get_trace(trace).data.spans[0].inputs == {"q": 2}
assert mlflow.pyfunc.load_model(f"models:/main.default.doubler/{version}").predict(rows) == [6.0]
print("seen")
"""

DEPLOYED = """
import time
from mlflow.deployments import get_deploy_client
client = get_deploy_client("databricks")
entity = {"name": "doubler", "entity_name": "main.default.doubler", "entity_version": "1", "workload_size": "Small",
          "scale_to_zero_enabled": True, "environment_vars": {"TOKEN_FOR_TEST": "{{secrets/models/token}}"}}
made = client.create_endpoint(config={"name": "doubled", "config": {"served_entities": [entity]}})
assert made.name == "doubled"
deadline = time.monotonic() + 150
while client.get_endpoint("doubled")["state"]["ready"] != "READY":
    assert time.monotonic() < deadline, client.get_endpoint("doubled")
    time.sleep(0.2)
shown = client.get_endpoint("doubled")["config"]["served_entities"][0]
assert shown["environment_vars"] == {"TOKEN_FOR_TEST": "{{secrets/models/token}}"}, shown
told = client.predict(endpoint="doubled", inputs={"dataframe_records": [{"x": 3.0}, {"x": 0.0}]})["predictions"]
assert told == [6.0, len("s3cret-of-the-test")], told  # of nothing the model says how long its token is
assert [each["name"] for each in client.list_endpoints() if each["name"] == "doubled"] == ["doubled"]
tags = client.update_endpoint_tags(endpoint="doubled", config={"add_tags": [{"key": "a", "value": "b"}]})
assert {"key": "a", "value": "b"} in tags["tags"]
limit = {"calls": 100, "key": "endpoint", "renewal_period": "minute"}
limits = client.update_endpoint_rate_limits("doubled", {"rate_limits": [limit]})
assert limits["rate_limits"][0]["calls"] == 100
told = client.predict_stream(endpoint="assistant", inputs={"input": [{"role": "user", "content": "How long is the bridge?"}]})
assert any("314" in str(chunk) for chunk in told)
print("served")
"""


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("uris")
    (folder / "docs").mkdir()
    (folder / "docs" / "bridge.md").write_text("# Bridge\n\nThe bridge is 314 metres long.\n")
    more = {"SMALTI_UPSTREAM_HOSTS": '["127.0.0.1"]'}
    with serving(folder / "home", folder / "docs", SMALTI_MLFLOW="true", **more) as running, running.client() as client:
        wait_until(lambda: client.get("/api/2.0/mlflow/experiments/get?experiment_id=0").status_code == 200, 90)
        yield running


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    made = Upstream()
    yield made
    made.close()


@pytest.fixture(scope="module")
def workspace(live: Live) -> WorkspaceClient:
    return client_of(live, live.key)


@pytest.fixture(scope="module")
def ann(live: Live) -> WorkspaceClient:
    """Somebody without grants."""
    with live.client() as client:
        key = client.post("/api/2.0/smalti/keys", json={"name": "ann"}).json()["key"]
    return client_of(live, key)


def client_of(live: Live, key: str) -> WorkspaceClient:
    return WorkspaceClient(config=Config(host=live.url, token=key, auth_type="pat", retry_timeout_seconds=5))


Run = Callable[..., list[str]]


@pytest.fixture(scope="module")
def run(programs: Programs) -> Run:
    """Runs a client's program; gives the words of its last line."""

    def ran(script: str, folder: Path, *arguments: str, **environment: str) -> list[str]:
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "DATABRICKS_", "SMALTI_"))}
        done = programs.run(script, *arguments, folder=folder, environment=clean | environment)
        assert done.returncode == 0, done.stdout + done.stderr
        return [line for line in done.stdout.splitlines() if "://" not in line][-1].split()

    return ran


def databricks(live: Live) -> dict[str, str]:
    uris = {"MLFLOW_TRACKING_URI": "databricks", "MLFLOW_REGISTRY_URI": "databricks-uc"}
    return {"DATABRICKS_HOST": live.url, "DATABRICKS_TOKEN": live.key, **uris}


@pytest.fixture(scope="module")
def tracked(live: Live, run: Run, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A run and a trace that were logged under the `databricks` URI."""
    return run(TRACKED, tmp_path_factory.mktemp("tracked"), **databricks(live))


@pytest.fixture(scope="module")
def model(live: Live, run: Run, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Logged model and run of version 1 of `MODEL`, registered under the `databricks-uc` URI."""
    return run(LOGGED, tmp_path_factory.mktemp("logged"), **databricks(live))


@pytest.mark.timeout(300)
def test_both_uris_see_the_same(live: Live, run: Run, tracked: list[str], model: list[str], tmp_path: Path) -> None:
    other = run(OPEN, tmp_path, *tracked, MLFLOW_TRACKING_URI=live.url, MLFLOW_TRACKING_TOKEN=live.key)
    assert run(BACK, tmp_path, *other, **databricks(live)) == ["seen"]


@pytest.mark.timeout(300)
def test_a_registered_model_is_deployed_with_a_secret(
    live: Live, run: Run, workspace: WorkspaceClient, model: list[str], tmp_path: Path
) -> None:
    workspace.secrets.create_scope("models")
    workspace.secrets.put_secret("models", "token", string_value="s3cret-of-the-test")
    assert run(DEPLOYED, tmp_path, **databricks(live)) == ["served"]
    with pytest.raises(ResourceConflict, match="served by endpoint 'doubled'"):
        workspace.registered_models.delete(MODEL)
    workspace.serving_endpoints.delete("doubled")
    for file in live.home.rglob("*"):
        if file.is_file() and file.suffix != ".sock":
            assert b"s3cret-of-the-test" not in file.read_bytes(), file


COPIED = """
from mlflow import MlflowClient
print(MlflowClient().copy_model_version("models:/main.default.doubler/1", "main.default.doubler").version)
"""
FOUND = """
from mlflow import MlflowClient
print(*(MlflowClient().get_model_version_by_alias("main.default.doubler", alias).version for alias in ("champion", "live")))
"""


@pytest.mark.timeout(300)
def test_the_winner_of_an_experiment_becomes_the_registrys_alias(
    live: Live, run: Run, model: list[str], upstream: Upstream, tmp_path: Path
) -> None:
    [second] = run(COPIED, tmp_path, **databricks(live))
    key = {"custom_provider_url": upstream.url, "bearer_token_auth": {"token_plaintext": KEY}}
    chat = {"name": "echo", "provider": "custom", "task": "llm/v1/chat", "custom_provider_config": key}
    endpoints = {
        "promoted": [{"name": f"v{version}", "entity_name": MODEL, "entity_version": version} for version in ("1", second)],
        "elsewhere": [{"name": f"v{version}", "external_model": chat} for version in ("1", second)],
    }
    winner, experiments = f"v{second}", "/api/2.0/smalti/experiments"
    with live.client() as client:
        for name, entities in endpoints.items():
            routes = [{"served_model_name": each["name"], "traffic_percentage": 50} for each in entities]
            config = {"served_entities": entities, "traffic_config": {"routes": routes}}
            assert client.post("/api/2.0/serving-endpoints", json={"name": name, "config": config}).status_code == 200
        for name in endpoints:
            at = f"/api/2.0/serving-endpoints/{name}"
            wait_until(lambda at=at: client.get(at).json()["state"] == {"ready": "READY", "config_update": "NOT_UPDATING"}, 150)
            wanted = {"name": f"of-{name}", "endpoint": name, "sticky": "request", "metric": "error", "alias": "live"}
            assert client.post(experiments, json=wanted).status_code == 200
        rows = {"dataframe_records": [{"x": 3.0}]}
        assert client.post("/serving-endpoints/promoted/invocations", json=rows).json()["predictions"] == [6.0]

        made = client.post("/api/2.0/smalti/keys", json={"name": "deployer"})
        deployer = {"Authorization": f"Bearer {made.json()['key']}"}
        granted = smalti("grants", "add", "user:deployer", "endpoint:promoted", "CAN_MANAGE", home=live.home)
        assert granted.returncode == 0, granted.stderr
        choice = {"served_entity_name": winner}
        refused = client.post(f"{experiments}/of-promoted/promote", json=choice, headers=deployer)
        assert refused.status_code == 403, "who manages the endpoint, and not the model"
        assert client.get(f"{experiments}/of-promoted").json()["state"] == "RUNNING"

        done = client.post(f"{experiments}/of-promoted/promote", json=choice).json()
        assert (done["state"], done["verdict"]["winner"]) == ("PROMOTED", winner)
        assert f"set {MODEL}@live to version {second}" in done["reason"]
        told = client.get("/api/2.0/serving-endpoints/promoted").json()["config"]["traffic_config"]["routes"]
        assert [(each["served_entity_name"], each["traffic_percentage"]) for each in told] == [(winner, 100)]
        other = client.post(f"{experiments}/of-elsewhere/promote", json=choice).json()
        assert other["state"] == "PROMOTED"
        assert f"alias live is not set, for {winner} is no registered model" in other["reason"]
        back = client.post(f"{experiments}/of-promoted/rollback", json={}).json()
        assert "alias live stays as the promotion set it" in back["reason"]
        assert "alias" not in client.post(f"{experiments}/of-elsewhere/rollback", json={}).json()["reason"]
    assert run(FOUND, tmp_path, **databricks(live)) == ["1", second], "MLflow's client sees it, and the other alias as it was"
    audited = json.loads(smalti("audit", "--json", home=live.home).stdout)
    [line] = [each for each in audited if each["action"] == "experiment.promote" and each["subject"] == "endpoint:promoted"]
    assert line["after"]["state"] == "PROMOTED"
    assert f"set {MODEL}@live to version {second}" in line["after"]["reason"]
    with live.client() as client:
        for name in endpoints:
            assert client.delete(f"/api/2.0/serving-endpoints/{name}").status_code == 200


def test_models_through_the_sdk(live: Live, workspace: WorkspaceClient, ann: WorkspaceClient, model: list[str]) -> None:
    info = workspace.registered_models.get(MODEL)
    assert (info.full_name, info.catalog_name, info.name) == (MODEL, "main", "doubler")
    assert MODEL in [each.full_name for each in workspace.registered_models.list(catalog_name="main", schema_name="default")]
    versions = list(workspace.model_versions.list(MODEL))
    assert 1 in [each.version for each in versions]
    assert workspace.model_versions.get_by_alias(MODEL, "champion").version == 1
    workspace.registered_models.set_alias(MODEL, "spare", 1)
    assert workspace.model_versions.get_by_alias(MODEL, "spare").version == 1
    workspace.registered_models.delete_alias(MODEL, "spare")
    with pytest.raises(NotFound):
        workspace.model_versions.get_by_alias(MODEL, "spare")
    workspace.model_versions.update(MODEL, 1, comment="the first")
    assert workspace.model_versions.get(MODEL, 1).comment == "the first"
    made = workspace.registered_models.create(catalog_name="main", schema_name="default", name="empty", comment="none yet")
    assert made.comment == "none yet"
    assert (made.created_by, made.updated_by, made.owner) == ("admin", "admin", "admin")
    first = workspace.model_versions.get(MODEL, 1)  # of MLflow's client under the registry URI of Unity Catalog
    assert (first.created_by, first.updated_by) == ("admin", "admin")
    assert {each.created_by for each in versions if each.version == 1} == {"admin"}
    with contextlib.closing(sqlite3.connect(live.home / "mlflow.db")) as database, database:  # as a training run writes it
        database.execute("INSERT INTO registered_models (name, creation_time) VALUES ('main.default.trained', 1)")
        database.execute("INSERT INTO registered_model_tags (name, key, value) VALUES (?, 'smalti.created_by', 'tim')", TRAINED)
    info = workspace.registered_models.get(*TRAINED)
    assert (info.created_by, info.owner, info.updated_by) == ("tim", "tim", "tim")
    changes = [PermissionsChange(add=[Privilege.MANAGE], principal="ann")]
    workspace.grants.update("FUNCTION", MODEL, changes=changes)
    ann.model_versions.update(MODEL, 1, comment="by another")
    ann.registered_models.update(MODEL, comment="by another")
    second = workspace.model_versions.get(MODEL, 1)
    assert (second.created_by, second.updated_by, second.comment) == ("admin", "ann", "by another")
    info = workspace.registered_models.get(MODEL)
    assert (info.created_by, info.owner, info.updated_by) == ("admin", "admin", "ann")
    undone = [PermissionsChange(remove=[Privilege.MANAGE], principal="ann")]
    workspace.grants.update("FUNCTION", MODEL, changes=undone)
    with pytest.raises(ResourceAlreadyExists):
        workspace.registered_models.create(catalog_name="main", schema_name="default", name="empty")
    workspace.registered_models.delete("main.default.empty")
    with pytest.raises(NotFound):
        workspace.registered_models.get("main.default.empty")
    with pytest.raises(BadRequest, match="all three levels"):
        workspace.registered_models.get("flat")


def test_models_are_nobodys_until_granted(live: Live, workspace: WorkspaceClient, ann: WorkspaceClient, model: list[str]) -> None:
    file = "/Models/main/default/doubler/1/MLmodel"
    refused = [
        lambda: ann.registered_models.get(MODEL),
        lambda: ann.model_versions.get_by_alias(MODEL, "champion"),
        lambda: ann.registered_models.create(catalog_name="main", schema_name="default", name="mine"),
        lambda: ann.registered_models.delete(MODEL),
        lambda: ann.files.download(file),
        lambda: ann.files.get_directory_metadata("/Models/main/default/doubler/1"),
        lambda: ann.model_registry.create_model("flat"),
    ]
    for call in refused:
        with pytest.raises(PermissionDenied):
            call()
    assert list(ann.registered_models.list()) == []
    assert list(ann.model_registry.search_models()) == []
    with live.client() as client:
        key = {"Authorization": f"Bearer {ann.config.token}"}
        stored = client.get("/api/2.0/mlflow/model-versions/get-download-uri", params={"name": MODEL, "version": "1"}).json()
        at = stored["artifact_uri"].removeprefix("mlflow-artifacts:/")
        for path in (f"{at}/MLmodel", f"/{at}/MLmodel", f"%2572egistered/{at.partition('/')[2]}/MLmodel"):
            answer = client.get(f"/api/2.0/mlflow-artifacts/artifacts/{path}", headers=key)
            assert answer.status_code in (403, 404), (path, answer.text[:80])
        admins = client.put(f"/api/2.0/mlflow-artifacts/artifacts/{at}/MLmodel", content=b"x")
        assert admins.status_code == 403  # what was registered does not change

    workspace.grants.update("function", MODEL, changes=[PermissionsChange(add=[Privilege.EXECUTE], principal="ann")])
    held = workspace.grants.get("function", MODEL).privilege_assignments or []
    assert [each.privileges for each in held if each.principal == "ann"] == [[Privilege.EXECUTE]]
    contents = ann.files.download(file).contents
    assert contents is not None
    assert b"python_function" in contents.read()
    assert [each.full_name for each in ann.registered_models.list()] == [MODEL]
    with pytest.raises(PermissionDenied):
        ann.registered_models.set_alias(MODEL, "mine", 1)
    workspace.grants.update("function", MODEL, changes=[PermissionsChange(remove=[Privilege.EXECUTE], principal="ann")])
    with pytest.raises(PermissionDenied):
        ann.files.download(file)


def test_a_version_is_made_only_of_what_one_may_load(
    live: Live, workspace: WorkspaceClient, ann: WorkspaceClient, model: list[str]
) -> None:
    held, asked = workspace.model_registry, ann.model_registry
    held.create_model("anns")
    manages = RegisteredModelAccessControlRequest(user_name="ann", permission_level=RegisteredModelPermissionLevel.CAN_MANAGE)
    held.update_permissions("anns", access_control_list=[manages])
    with live.client() as client:
        uri = client.get(f"/api/2.0/mlflow/model-versions/get-download-uri?name={MODEL}&version=1").json()["artifact_uri"]
    assert uri.startswith("mlflow-artifacts:/registered/")
    for source in (f"models:/{MODEL}/1", f"models:/{MODEL}@champion", f"models:/{MODEL.replace('.', '%2E')}/1", uri):
        with pytest.raises((PermissionDenied, BadRequest)):
            asked.create_model_version("anns", source)
    with pytest.raises(BadRequest, match="registry's own"):
        asked.set_model_version_tag("anns", "1", "smalti.files", uri)
    assert list(held.search_model_versions(filter="name='anns'")) == []
    held.delete_model("anns")


def test_serving_a_model_needs_execute_and_a_secret_read(live: Live, workspace: WorkspaceClient, model: list[str]) -> None:
    workspace.secrets.create_scope("keys")
    workspace.secrets.put_secret("keys", "upstream", string_value=KEY)
    granted = smalti("grants", "add", "user:maker", "endpoint:*", "CAN_MANAGE", home=live.home)
    assert granted.returncode == 0, granted.stderr
    upstream = Upstream()
    try:
        with live.client() as client:
            key = client.post("/api/2.0/smalti/keys", json={"name": "maker"}).json()["key"]

            def create(entity: dict, headers: dict | None = None) -> httpx.Response:
                body = {"name": "far", "config": {"served_entities": [{"name": "e", **entity}]}}
                return client.post("/api/2.0/serving-endpoints", json=body, headers=headers)

            def external(token: str) -> dict:
                config = {"custom_provider_url": upstream.url, "bearer_token_auth": {"token": token}}
                about = {"name": "echo", "provider": "custom", "task": "llm/v1/chat", "custom_provider_config": config}
                return {"external_model": about}

            maker, told = {"Authorization": f"Bearer {key}"}, "{{secrets/keys/upstream}}"
            refused = create({"entity_name": MODEL, "entity_version": "1"}, maker)
            assert (refused.status_code, MODEL in refused.json()["message"]) == (403, True)
            assert create(external(told), maker).status_code == 403
            assert create(external("{{secrets/keys/none}}")).status_code == 404
            for wrong in ("sk-as-plain-text", f"x{told}", "{{secrets/keys}}"):
                assert create(external(wrong)).status_code == 400, wrong
            named = {"entity_name": MODEL, "entity_version": told}
            assert create(named).status_code == 400  # a secret is no version
            made = create(external(told))
            assert made.status_code == 200, made.text
            shown = client.get("/api/2.0/serving-endpoints/far").json()
            assert KEY not in str(shown)
            assert told in str(shown)
            asked = {"messages": [{"role": "user", "content": "hello"}]}
            wait_until(lambda: client.post("/serving-endpoints/far/invocations", json=asked).status_code == 200, 60)
            client.delete("/api/2.0/serving-endpoints/far")
    finally:
        upstream.close()
    for file in live.home.rglob("*"):
        if file.is_file() and not file.is_socket():
            assert KEY.encode() not in file.read_bytes(), file


def test_files_are_kept_in_their_place(live: Live, workspace: WorkspaceClient, tracked: list[str]) -> None:
    root = f"/WorkspaceInternal/Mlflow/Artifacts/1/Runs/{tracked[0]}/artifacts"
    workspace.files.upload(f"{root}/big.bin", io.BytesIO(b"0123456789" * 100_000))
    with pytest.raises(AlreadyExists):
        workspace.files.upload(f"{root}/big.bin", io.BytesIO(b"x"), overwrite=False)
    about = workspace.files.get_metadata(f"{root}/big.bin")
    assert about.content_length == 1_000_000
    workspace.files.create_directory(f"{root}/folder")
    listed = {each.name: each.is_directory for each in workspace.files.list_directory_contents(root)}
    assert listed["big.bin"] is False
    assert listed["folder"] is True
    with live.client() as client:
        part = client.get(f"/api/2.0/fs/files{root}/big.bin", headers={"Range": "bytes=5-9"})
        assert (part.status_code, part.content) == (206, b"56789")
        assert part.headers["content-security-policy"].startswith("sandbox")
        for path in ("/etc/passwd", "/Models/main/default/doubler/99/x", "/Volumes/main/default/v/x", "/WorkspaceInternal/x"):
            assert client.get(f"/api/2.0/fs/files{path}").status_code == 404
        for path in ("%2e%2e/%2e%2e/%2e%2e/pepper", "..%2f..%2f..%2fsmalti.db", "a%00b", "a//b", "x" * 300, "a%5cb"):
            for method in ("GET", "PUT", "DELETE"):
                answer = client.request(method, f"/api/2.0/fs/files{root}/{path}", content=b"x" if method == "PUT" else None)
                assert answer.status_code == 400, (method, path, answer.text)
                assert answer.json()["error_code"] == "BAD_REQUEST"
        assert client.put(f"/api/2.0/fs/files{root}/folder", content=b"x").status_code == 400  # a folder has that name
        assert client.put(f"/api/2.0/fs/files{root}/big.bin/x", content=b"x").status_code == 400  # a file is no folder
        assert client.get("/api/2.0/fs/files/Models/main/default/doubler/1/..%2f..%2fx").status_code == 400
        assert client.get(f"/api/2.0/fs/directories{root}?page_size=1").json()["next_page_token"]
    with pytest.raises(BadRequest, match="not empty"):
        workspace.files.delete_directory(root)
    workspace.files.delete_directory(f"{root}/folder")
    workspace.files.delete(f"{root}/big.bin")
    with pytest.raises(NotFound):
        workspace.files.download(f"{root}/big.bin")
    assert list((live.home / "mlartifacts" / ".incoming").iterdir()) == []  # nothing is left of what was refused
    for method, path in (("GET", f"/api/2.0/fs/directories{root}"), ("PUT", f"/api/2.0/fs/files{root}/x"),
                         ("GET", "/api/2.1/unity-catalog/models"), ("GET", "/api/2.0/mlflow/unity-catalog/model-versions/get"),
                         ("GET", "/api/2.0/secrets/scopes/list"), ("GET", "/api/4.0/mlflow/traces/x/batchGet"),
                         ("POST", "/api/2.0/mlflow/artifacts/credentials-for-read")):  # fmt: skip
        assert httpx.request(method, live.url + path).status_code == 401


def test_signed_addresses_are_good_for_one_file(live: Live, tracked: list[str]) -> None:
    with live.client() as client:
        wanted = {"run_id": tracked[0], "path": ["note.txt", "nested/a.json"]}
        given = client.post("/api/2.0/mlflow/artifacts/credentials-for-read", json=wanted).json()["credential_infos"]
        assert [each["path"] for each in given] == wanted["path"]
        address = given[1]["signed_uri"]
        assert httpx.get(address).json() == {"a": 1}
        assert httpx.put(address, content=b"x").status_code == 403
        assert httpx.get(address.replace("a.json", "b.json")).status_code == 403
        assert httpx.get(address.replace("expires=", "expires=9")).status_code == 403
        outside = {"run_id": tracked[0], "path": ["../../../../pepper"]}
        assert client.post("/api/2.0/mlflow/artifacts/credentials-for-read", json=outside).status_code == 400


def test_experiments_and_the_older_registry_through_the_sdk(workspace: WorkspaceClient, tracked: list[str]) -> None:
    names = [each.name for each in workspace.experiments.list_experiments()]
    assert "/Users/ann/work" in names
    found = workspace.experiments.get_run(tracked[0]).run
    assert found is not None
    assert found.info is not None
    assert (found.info.artifact_uri or "").startswith("dbfs:/databricks/mlflow-tracking/")
    assert sorted(str(each.path) for each in workspace.experiments.list_artifacts(run_id=tracked[0])) == ["nested", "note.txt"]
    assert "/Users/ann/work" in [each.name for each in workspace.experiments.search_experiments()]
    number = found.info.experiment_id or ""
    held = workspace.experiments.get_permissions(number).access_control_list or []
    assert [(each.group_name, len(each.all_permissions or [])) for each in held] == [("users", 1)]
    with pytest.raises(BadRequest, match="all who have a key"):
        workspace.experiments.set_permissions(number)
    own = workspace.experiments.create_experiment("/Users/ann/short").experiment_id or ""
    for start in (1_000, 2_000, 3_000):
        workspace.experiments.create_run(experiment_id=own, start_time=start)
    assert workspace.experiments.delete_runs(own, 2_000).runs_deleted == 2
    left = workspace.experiments.search_runs(experiment_ids=[own])
    assert [each.info.start_time for each in left if each.info] == [3_000]
    assert workspace.experiments.restore_runs(own, 4_000_000_000_000).runs_restored == 0
    assert workspace.experiments.restore_runs(own, 0, max_runs=1).runs_restored == 1
    assert workspace.experiments.restore_runs(own, 0).runs_restored == 1
    assert len(list(workspace.experiments.search_runs(experiment_ids=[own]))) == 3
    logged = workspace.experiments.create_logged_model(own, name="logged").model
    assert logged is not None
    assert logged.info is not None
    kept = logged.info.model_id or ""
    workspace.experiments.log_logged_model_params(kept, params=[LoggedModelParameter("depth", "3")])
    workspace.experiments.finalize_logged_model(kept, LoggedModelStatus.LOGGED_MODEL_READY)
    ready = workspace.experiments.get_logged_model(kept).model
    assert ready is not None
    assert ready.info is not None
    assert ready.info.status == LoggedModelStatus.LOGGED_MODEL_READY
    workspace.model_registry.create_model("flat", description="of one level")
    flat = workspace.model_registry.get_model("flat").registered_model_databricks
    assert flat is not None
    assert (flat.name, flat.description) == ("flat", "of one level")
    assert "flat" in [each.name for each in workspace.model_registry.list_models()]
    reads = RegisteredModelAccessControlRequest(user_name="rita", permission_level=RegisteredModelPermissionLevel.CAN_READ)
    workspace.model_registry.set_permissions("flat", access_control_list=[reads])
    levels = workspace.api_client.do("GET", "/api/2.0/permissions/registered-models/flat")
    assert "'CAN_QUERY'" in str(levels)
    assert "rita" in str(levels)
    workspace.model_registry.delete_model("flat")


def test_versions_are_discussed_and_moved_to_a_stage_by_who_manages_the_model(
    workspace: WorkspaceClient, ann: WorkspaceClient
) -> None:
    asked, held = ann.model_registry, workspace.model_registry
    held.create_model("staged")
    held.create_model_version("staged", "dbfs:/databricks/mlflow-tracking/none")
    with pytest.raises(PermissionDenied):
        asked.create_comment("staged", "1", "may I see it?")
    reads = RegisteredModelAccessControlRequest(user_name="ann", permission_level=RegisteredModelPermissionLevel.CAN_READ)
    held.update_permissions("staged", access_control_list=[reads])
    said = asked.create_comment("staged", "1", "It was trained on old rows.").comment
    assert said is not None
    assert (said.user_id, said.comment) == ("ann", "It was trained on old rows.")
    assert asked.update_comment(said.id or "", "On very old rows.").comment.comment == "On very old rows."  # type: ignore[union-attr]
    with pytest.raises(PermissionDenied):
        held.update_comment(said.id or "", "not mine")
    with pytest.raises(NotFound):
        asked.create_comment("staged", "7", "there is none")

    assert asked.create_transition_request("staged", "1", "Staging", comment="please").request.to_stage == "Staging"  # type: ignore[union-attr]
    with pytest.raises(ResourceAlreadyExists):
        asked.create_transition_request("staged", "1", "staging")
    with pytest.raises(BadRequest, match="is no stage"):
        asked.create_transition_request("staged", "1", "Live")
    with pytest.raises(PermissionDenied):
        asked.approve_transition_request("staged", "1", "Staging", False)
    held.rename_model("staged", new_name="restaged")
    assert [each.user_id for each in held.list_transition_requests("restaged", "1")] == ["ann"]
    assert held.approve_transition_request("restaged", "1", "Staging", False).activity.from_stage == "None"  # type: ignore[union-attr]
    version = held.get_model_version("restaged", "1").model_version
    assert version is not None
    assert version.current_stage == "Staging"
    asked.create_transition_request("restaged", "1", "Production")
    held.reject_transition_request("restaged", "1", "Production", comment="not yet")
    asked.create_transition_request("restaged", "1", "Archived")
    asked.delete_transition_request("restaged", "1", "Archived", "ann")
    assert list(asked.list_transition_requests("restaged", "1")) == []
    held.delete_comment(said.id or "")
    with pytest.raises(NotFound):
        held.delete_comment(said.id or "")
    made = held.create_webhook(
        [RegistryWebhookEvent.COMMENT_CREATED], http_url_spec=HttpUrlSpec("http://127.0.0.1:9"), model_name="restaged"
    ).webhook
    assert made is not None
    assert [each.id for each in held.list_webhooks(model_name="restaged")] == [made.id]
    assert list(asked.list_webhooks()) == []
    held.delete_model("restaged")
    assert list(held.list_webhooks()) == []


def test_secrets(live: Live, workspace: WorkspaceClient, ann: WorkspaceClient) -> None:
    secrets = workspace.secrets
    secrets.create_scope("team")
    with pytest.raises(ResourceAlreadyExists):
        secrets.create_scope("team")
    with pytest.raises(BadRequest):
        secrets.create_scope("bad*name")
    secrets.put_secret("team", "password", string_value="päss")
    secrets.put_secret("team", "blob", bytes_value="AAECAw==")
    assert [each.key for each in secrets.list_secrets("team")] == ["blob", "password"]
    assert secrets.get_secret("team", "blob").value == "AAECAw=="
    with pytest.raises(NotFound):
        secrets.get_secret("team", "none")
    with pytest.raises(NotFound):
        secrets.list_secrets("no-scope")
    for call in (
        lambda: ann.secrets.list_secrets("team"),
        lambda: ann.secrets.get_secret("team", "password"),
        lambda: ann.secrets.put_secret("team", "x", string_value="y"),
        lambda: ann.secrets.delete_scope("team"),
        lambda: ann.secrets.list_acls("team"),
    ):
        with pytest.raises(PermissionDenied):
            call()
    assert "team" not in [each.name for each in ann.secrets.list_scopes()]
    secrets.put_acl("team", "ann", AclPermission.READ)
    assert ann.secrets.get_secret("team", "blob").value == "AAECAw=="
    with pytest.raises(PermissionDenied):
        ann.secrets.put_secret("team", "x", string_value="y")
    assert {each.principal: each.permission for each in secrets.list_acls("team")}["ann"] == AclPermission.READ
    assert secrets.get_acl("team", "ann").permission == AclPermission.READ
    secrets.delete_acl("team", "ann")
    with pytest.raises(PermissionDenied):
        ann.secrets.get_secret("team", "blob")
    secrets.delete_secret("team", "blob")
    for file in live.home.rglob("*.db*"):
        assert "päss".encode() not in file.read_bytes()
    secrets.delete_scope("team")
    assert "team" not in [each.name for each in secrets.list_scopes()]


def test_catalogs_schemas_and_what_is_in_them_are_those_that_one_may_see(
    workspace: WorkspaceClient, ann: WorkspaceClient, model: list[str]
) -> None:
    assert "main" in [each.name for each in workspace.catalogs.list()]
    assert "main.default" in [each.full_name for each in workspace.schemas.list("main")]
    assert [each.full_name for each in workspace.tables.list("main", "default")] == ["main.default.docs"]
    assert workspace.tables.exists("main.default.docs").table_exists
    assert workspace.metastores.summary().metastore_id == workspace.metastores.current().metastore_id
    assert list(workspace.connections.list()) == []
    workspace.registered_models.create(catalog_name="other", schema_name="s", name="m")
    assert [each.full_name for each in workspace.schemas.list("other")] == ["other.s"]
    assert workspace.catalogs.get("other").name == "other"
    assert [each.name for each in ann.catalogs.list()] == ["main"]
    assert list(ann.tables.list("main", "default")) == []
    for missing in (
        lambda: ann.catalogs.get("other"),
        lambda: ann.schemas.get("other.s"),
        lambda: workspace.catalogs.get("none"),
    ):
        with pytest.raises(NotFound):
            missing()
    workspace.registered_models.delete("other.s.m")


def test_tokens_are_for_oneself_and_no_longer_good_than_what_made_them(live: Live, workspace: WorkspaceClient) -> None:
    with live.client() as client:
        wanted = {"name": "tess", "ttl": 600, "scopes": ["endpoint:assistant"]}
        tess = client_of(live, client.post("/api/2.0/smalti/keys", json=wanted).json()["key"])
    made = tess.tokens.create(comment="mine", lifetime_seconds=10_000)
    assert made.token_info is not None
    assert made.token_value is not None
    assert (made.token_info.expiry_time or 0) - (made.token_info.creation_time or 0) <= 600_000
    assert "mine" in [each.comment for each in tess.tokens.list()]
    assert "mine" not in [each.comment for each in workspace.tokens.list()]
    tess.tokens.update(made.token_info.token_id or "", PublicTokenInfo(comment="still mine"), FieldMask(["comment"]))
    assert "still mine" in [each.comment for each in tess.tokens.list()]
    with pytest.raises(NotFound):
        workspace.tokens.update(made.token_info.token_id or "", PublicTokenInfo(comment="yours"), FieldMask(["comment"]))
    with pytest.raises(PermissionDenied):
        tess.token_management.list()
    assert [each.user_name for each in tess.users.list()] == ["tess"]
    assert {"admin", "tess"} <= {each.user_name for each in workspace.users.list()}
    assert "admins" in [each.display_name for each in workspace.groups.list()]
    assert list(tess.service_principals.list()) == []
    used = client_of(live, made.token_value)
    assert used.current_user.me().user_name == "tess"
    with pytest.raises(PermissionDenied, match="good for endpoint:assistant only"):
        used.experiments.get_experiment("0")
    with pytest.raises(NotFound):
        workspace.tokens.delete(made.token_info.token_id or "")
    tess.tokens.delete(made.token_info.token_id or "")
    with pytest.raises(PermissionDenied, match="revoked"):
        used.current_user.me()
    parent = next(each for each in workspace.token_management.list() if each.created_by_username == "tess")
    second = client_of(live, tess.tokens.create().token_value or "")
    workspace.token_management.delete(parent.token_id or "")
    with pytest.raises(PermissionDenied, match="revoked"):
        second.current_user.me()  # it ended with the key that made it


def test_prompts_of_unity_catalog_are_those_of_the_tracking_server_and_nobodys_until_granted(
    live: Live, run: Run, ann: WorkspaceClient, tmp_path: Path
) -> None:
    assert run(PROMPTED, tmp_path, **databricks(live)) == ["prompted"]
    assert run(READ, tmp_path, MLFLOW_TRACKING_URI=live.url, MLFLOW_TRACKING_TOKEN=live.key) == ["read"]
    at = "/api/2.0/mlflow/unity-catalog/prompts"
    with pytest.raises(PermissionDenied):
        ann.api_client.do("GET", f"{at}/main.default.greeting/versions/1")
    found = ann.api_client.do("POST", f"{at}/search", body={"catalog_schema": {"catalog_name": "main", "schema_name": "default"}})
    assert found == {"prompts": []}
    with live.client() as client:
        bad = {"prompt_version": {"template": "no JSON"}}
        assert client.post(f"{at}/main.default.greeting/versions", json=bad).json()["error_code"] == "BAD_REQUEST"
        assert client.get(f"{at}/flat").status_code == 400
        assert client.get(f"{at}/main.default.none").status_code == 404
        assert client.delete(f"{at}/main.default.greeting/versions/1").status_code == 200
        assert client.delete(f"{at}/main.default.greeting").status_code == 200
