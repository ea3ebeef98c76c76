from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from governance.call import CallError
from serving.registry import Registry
from tests.serving.models import small

Add = Callable[..., None]


@pytest.fixture
def add(tmp_path: Path) -> Add:
    """Registers a version of `m.s.small`."""
    with sqlite3.connect(tmp_path / "mlflow.db") as made:
        made.execute("CREATE TABLE registered_models (name TEXT)")
        made.execute("INSERT INTO registered_models VALUES ('m.s.small')")
        columns = "name TEXT, version INT, source TEXT, storage_location TEXT, status TEXT, current_stage TEXT"
        made.execute(f"CREATE TABLE model_versions ({columns})")
        made.execute("CREATE TABLE registered_model_aliases (name TEXT, alias TEXT, version INT)")
    made.close()

    def registered(version: int, source: str, *, status: str = "READY", alias: str | None = None) -> None:
        with sqlite3.connect(tmp_path / "mlflow.db") as database:
            database.execute("INSERT INTO model_versions VALUES ('m.s.small', ?, ?, NULL, ?, 'None')", (version, source, status))
            if alias:
                database.execute("INSERT INTO registered_model_aliases VALUES ('m.s.small', ?, ?)", (alias, version))
        database.close()

    return registered


def test_a_version_or_an_alias_finds_the_model(tmp_path: Path, add: Add) -> None:
    folder = small(tmp_path / "mlartifacts" / "a b")
    add(1, "mlflow-artifacts:/a%20b", alias="champion")
    add(2, folder.as_uri())
    registry = Registry(tmp_path)
    for version in ("1", "v1", "champion", "@champion", "Champion"):
        found = registry.find("m.s.small", version)
        assert (found.version, found.path, found.task, found.loader) == ("1", folder, None, "small_model")
    assert registry.find("m.s.small", "2").path == folder
    assert [column["name"] for column in found.inputs] == ["word"]


def test_what_cannot_be_served_is_refused_with_what_there_is(tmp_path: Path, add: Add) -> None:
    registry = Registry(tmp_path)
    add(1, (tmp_path / "mlartifacts" / "nothing").as_uri())
    add(2, "/etc")
    add(3, "s3://bucket/model")
    add(4, (tmp_path / "x").as_uri(), status="PENDING_REGISTRATION")
    add(5, f"{tmp_path.as_uri()}/mlartifacts/../../outside")
    (tmp_path / "mlartifacts" / "plain").mkdir(parents=True)
    (tmp_path / "mlartifacts" / "plain" / "MLmodel").write_text("flavors: {sklearn: {}}")
    add(6, (tmp_path / "mlartifacts" / "plain").as_uri())
    expected = {
        "1": "no readable MLmodel",
        "2": "own artifact store only",
        "3": "own artifact store only",
        "4": "is PENDING_REGISTRATION",
        "5": "own artifact store only",
        "6": "no python_function flavor",
        "7": "has no version or alias '7'. It has 1, 2, 3, 4, 5, 6",
        "best": "has no version or alias 'best'",
    }
    for version, message in expected.items():
        with pytest.raises(CallError, match=message):
            registry.find("m.s.small", version)
    with pytest.raises(CallError, match=r"no registered model 'm\.s\.other'"):
        registry.find("m.s.other", "1")
    with pytest.raises(CallError, match="no registered model"):
        Registry(tmp_path / "empty").find("m.s.small", "1")
