from __future__ import annotations

from pathlib import Path

import pytest

from evals.errors import DatasetError
from evals.mirror import TAG, mirror
from evals.seal import seal
from tests.live import mlflow_store

ROWS = '{"question": "A?", "expected_facts": ["x"]}\n{"question": "A?", "unanswerable": true}\n{"question": "B?"}\n'


@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")  # MLflow's own
def test_a_dataset_is_mirrored_once_with_its_hash_and_every_row(tmp_path: Path) -> None:
    from mlflow.genai import datasets

    path, uri = tmp_path / "d.jsonl", f"sqlite:///{tmp_path / 'mlflow.db'}"
    path.write_text(ROWS)
    mlflow_store(tmp_path)
    sealed = seal(path, version="1", licence="MIT")
    made = mirror(path, uri, artifact_root=tmp_path / "artifacts")
    assert (made["name"], made["rows"], made["sha256"]) == ("d@1", 3, sealed["sha256"])
    assert mirror(path, uri) == made
    kept = datasets.get_dataset(dataset_id=made["dataset_id"])
    assert kept.tags is not None
    assert kept.tags[TAG] == sealed["sha256"]
    assert kept.tags["smalti.licence"] == "MIT"
    assert {record["question"] for record in kept.to_df()["inputs"]} == {"A?", "B?"}

    path.write_text(ROWS + '{"question": "C?"}\n')
    with pytest.raises(DatasetError, match="was edited after version 1"):
        mirror(path, uri)
    seal(path, version="2")
    with pytest.raises(DatasetError, match="other content under 'd@1'"):
        mirror(path, uri, name="d@1")
    assert mirror(path, uri)["name"] == "d@2"
