"""A dataset as an MLflow evaluation dataset (https://mlflow.org/docs/latest/genai/datasets/), tagged with its hash."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from evals.data import Dataset, load_dataset
from evals.errors import DatasetError

TAG = "smalti.sha256"


def mirror(
    path: Path,
    tracking_uri: str,
    *,
    experiment: str = "smalti",
    name: str | None = None,
    artifact_root: Path | None = None,
) -> dict[str, Any]:
    """Make an MLflow dataset of a file's rows, once: a second time gives the one that is there.

    Parameters
    ----------
    tracking_uri: MLflow's. experiment: that it belongs to; made if need be.
    artifact_root: where a new experiment keeps its files.
    name: default: the file's stem and the version it is sealed with, else the first twelve digits of its hash.

    Raises
    ------
    DatasetError: the file is no dataset, the name is taken by another one, or MLflow kept fewer rows.
    """
    import mlflow
    from mlflow.genai import datasets

    from evals.export import experiment_of
    from evals.manifest import read

    dataset, held = load_dataset(path), read(path)
    name = name or f"{path.stem}@{held['version'] if held else dataset.sha256[:12]}"
    mlflow.set_tracking_uri(tracking_uri)
    client = mlflow.MlflowClient()
    experiment_id = experiment_of(client, experiment, str(artifact_root) if artifact_root else None)
    quoted = name.replace("'", "''")
    existing = list(client.search_datasets(filter_string=f"name = '{quoted}'"))
    if any((each.tags or {}).get(TAG) != dataset.sha256 for each in existing):
        raise DatasetError(path, f"MLflow has other content under {name!r}", "seal it as a new version, or give --name")
    rows = records(dataset)
    if existing:
        kept = datasets.get_dataset(dataset_id=existing[0].dataset_id)
    else:
        tags = {TAG: dataset.sha256, "smalti.rows": str(len(dataset))}
        if held:
            tags |= {f"smalti.{key}": str(held[key]) for key in ("version", "licence") if held.get(key)}
        kept = datasets.create_dataset(name=name, experiment_id=experiment_id, tags=tags)
    if len(kept.to_df()) < len(rows):  # a mirror that was cut off is finished
        kept = kept.merge_records(rows)
    if (count := len(kept.to_df())) != len(rows):
        raise DatasetError(path, f"MLflow kept {count} of {len(rows)} rows", "mirror it under another --name")
    return {"dataset_id": kept.dataset_id, "name": name, "rows": count, "sha256": dataset.sha256}


def records(dataset: Dataset) -> list[dict[str, Any]]:
    """MLflow's records. It tells them apart by their inputs, so rows that ask the same also name themselves there."""
    asked = [str(row.asked) for row in dataset]
    times = Counter(asked)
    found = []
    for row, text in zip(dataset, asked, strict=True):
        inputs = {"question": row.question} if row.inputs is None else dict(row.inputs)
        if times[text] > 1:
            inputs["row_id"] = row.id
        expected = {"expected_response" if key == "expected_answer" else key: value for key, value in row.expectations().items()}
        expected = {key: list(value) if isinstance(value, tuple) else value for key, value in expected.items()}
        found.append({"inputs": inputs, "expectations": expected, "tags": {"row_id": row.id}})
    return found
