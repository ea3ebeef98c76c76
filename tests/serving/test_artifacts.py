from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from governance.call import CallError
from serving.files.artifacts import Artifacts, for_databricks, from_databricks
from serving.registry import Registry

PAIRS = [
    ("mlflow-artifacts:/7", "dbfs:/databricks/mlflow-tracking/7"),
    ("mlflow-artifacts:/7/0a1b/artifacts", "dbfs:/databricks/mlflow-tracking/7/0a1b/artifacts"),
    ("mlflow-artifacts:/7/models/m-1/artifacts", "dbfs:/databricks/mlflow-tracking/7/logged_models/m-1/artifacts"),
    ("mlflow-artifacts:/7/traces/tr-1/artifacts", "dbfs:/databricks/mlflow-tracking/7/tr-1/artifacts"),
]


@pytest.mark.parametrize(("own", "theirs"), PAIRS)
@pytest.mark.parametrize(
    "shape", ['{"artifact_uri": "%s"}', '{"tags":{"mlflow.artifactLocation":"%s"}}', '{"source" : "%s", "x": 1}',
              '{"tags": [{"key": "mlflow.artifactLocation", "value": "%s"}]}'],
)  # fmt: skip
def test_a_location_has_two_names(own: str, theirs: str, shape: str) -> None:
    assert for_databricks((shape % own).encode()).decode() == shape % theirs
    assert from_databricks((shape % theirs).encode()).decode() == shape % own


@pytest.mark.parametrize(
    "body", [{"value": "mlflow-artifacts:/7/x"}, {"content": json.dumps({"artifact_uri": "mlflow-artifacts:/7/x"})},
             {"artifact_uri": "s3://bucket/mlflow-artifacts:/7"}, {"artifact_uri": "mlflow-artifacts:/own/place"}],
)  # fmt: skip
def test_other_text_stays_as_it_is(body: dict[str, str]) -> None:
    raw = json.dumps(body).encode()
    assert for_databricks(raw) == raw


def test_a_trace_of_mlflow_2_is_told_from_a_run() -> None:
    named = "0123456789abcdef" * 2
    tag = b'{"tags": [{"key": "mlflow.artifactLocation", "value": "%s"}]}'
    own, theirs = f"mlflow-artifacts:/7/traces/{named}/artifacts", f"dbfs:/databricks/mlflow-tracking/7/{named}/artifacts"
    assert for_databricks(tag % own.encode()) == tag % theirs.encode()
    assert from_databricks(tag % theirs.encode()) == tag % own.encode()
    run = b'{"artifact_uri": "%s"}'
    assert from_databricks(run % theirs.encode()) == run % f"mlflow-artifacts:/7/{named}/artifacts".encode()


def test_places_are_below_the_store(tmp_path: Path) -> None:
    artifacts = Artifacts(tmp_path, Registry(tmp_path))
    run = "/WorkspaceInternal/Mlflow/Artifacts/7/Runs/abc/artifacts"
    assert artifacts.place(f"{run}/a b/ü.txt") == artifacts.root / "7/abc/artifacts/a b/ü.txt"
    model = "/WorkspaceInternal/Mlflow/Artifacts/7/LoggedModels/m-1/artifacts/MLmodel"
    assert artifacts.place(model) == artifacts.root / "7/models/m-1/artifacts/MLmodel"
    (artifacts.root / "7/abc/artifacts").mkdir(parents=True)
    os.symlink(tmp_path, artifacts.root / "7/abc/artifacts/out")
    for path in (f"{run}/../../../../pepper", f"{run}/out/pepper", f"{run}/a\0b", run.replace("/7/", "/../"), f"{run}/a\\b"):
        with pytest.raises(CallError) as refused:
            artifacts.place(path)
        assert refused.value.status in (400, 404)
    for path in ("", "/", "/Volumes/a", "/Models/main/default/x", "/Models/main/default/none/1/MLmodel"):
        with pytest.raises(CallError) as refused:
            artifacts.place(path)
        assert refused.value.status == 404
