"""A dataset's manifest: what it is, as a file beside it, so that numbers of one version are never taken for those of another.

`questions.jsonl` is sealed by `questions.jsonl.manifest.json`. A dataset that was edited since is refused. What was sealed
stays: a manifest is written once, read-only, and its lineage lists the versions before it.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from evals.errors import DatasetError


def manifest_path(dataset: Path) -> Path:
    return dataset.with_name(dataset.name + ".manifest.json")


def read(dataset: Path) -> dict[str, Any] | None:
    """The manifest of a dataset; None without one. Raises `DatasetError` for one that cannot be read."""
    path = manifest_path(dataset)
    try:
        told = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DatasetError(path, f"cannot be read ({error})", "seal the dataset again") from None
    if not isinstance(told, dict) or not all(isinstance(told.get(key), str) for key in ("sha256", "version")):
        raise DatasetError(path, "is no manifest", "seal the dataset again")
    return told


def check(dataset: Path, data: bytes) -> None:
    """Raises `DatasetError` where the dataset's bytes are not those that were sealed."""
    held = read(dataset)
    if held is not None and hashlib.sha256(data).hexdigest() != held["sha256"]:
        raise DatasetError(
            dataset,
            f"was edited after version {held['version']} was sealed",
            f"undo the edit, or seal it as a new version: smalti dataset seal {dataset.name} --version …",
        )
