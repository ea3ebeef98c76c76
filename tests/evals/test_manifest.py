from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from app import cli
from evals.data import load_dataset
from evals.errors import DatasetError
from evals.manifest import manifest_path, read
from evals.seal import seal

ROW = '{"question": "Where is the state kept?"}\n'


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "questions.jsonl"
    path.write_text(ROW)
    return path


def test_a_dataset_edited_after_its_manifest_is_refused(data: Path) -> None:
    made = seal(data, version="1", licence="CC-BY-4.0", lineage=["interviews.csv"])
    assert (made["rows"], made["sha256"]) == (1, load_dataset(data).sha256)
    data.write_text(ROW * 2)
    with pytest.raises(DatasetError, match="was edited after version 1 was sealed"):
        load_dataset(data)
    with pytest.raises(DatasetError, match="version 1 is sealed with other content"):
        seal(data, version="1")
    second = seal(data, version="2", lineage=["more interviews"])
    assert second["lineage"] == ["more interviews", f"questions.jsonl@1 sha256:{made['sha256']}"]
    assert len(load_dataset(data)) == 2
    data.write_text(ROW * 3)
    with pytest.raises(DatasetError, match="version 1 is sealed with other content"):
        seal(data, version="1")
    third = seal(data, version="3")
    assert [each.partition(" ")[0] for each in third["lineage"]] == ["questions.jsonl@1", "questions.jsonl@2"]


def test_what_was_sealed_stays(data: Path) -> None:
    made = seal(data, version="1", licence="CC-BY-4.0", lineage=["interviews.csv"])
    assert seal(data, version="1") == made
    assert seal(data, version="1", licence="CC-BY-4.0", lineage=["interviews.csv"]) == made
    with pytest.raises(DatasetError, match="sealed with another licence; give it a new --version"):
        seal(data, version="1", licence="CC0-1.0")
    with pytest.raises(DatasetError, match="another lineage"):
        seal(data, version="1", lineage=["elsewhere"])
    assert manifest_path(data).stat().st_mode & 0o222 == 0


def test_a_broken_manifest_is_no_manifest_and_none_is_fine(data: Path) -> None:
    assert read(data) is None
    for wrong in ("{", "[]", '{"sha256": 1, "version": "1"}'):
        manifest_path(data).write_text(wrong)
        with pytest.raises(DatasetError, match="seal the dataset again"):
            load_dataset(data)


def test_the_commands_seal_and_check(data: Path) -> None:
    run = CliRunner().invoke
    assert run(cli, ["dataset", "seal", str(data), "--version", "1"]).exit_code == 0
    told = run(cli, ["dataset", "check", str(data), "--json"])
    assert json.loads(told.stdout)["manifest"]["version"] == "1"
    data.write_text(ROW * 2)
    assert run(cli, ["dataset", "check", str(data)]).exit_code == 2
