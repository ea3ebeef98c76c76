"""Sealing a dataset: its manifest is written, once for each version."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evals.data import load_dataset
from evals.errors import DatasetError
from evals.manifest import manifest_path, read


def seal(dataset: Path, *, version: str, licence: str = "", lineage: Sequence[str] = (), description: str = "") -> dict[str, Any]:
    """Write the manifest of a dataset; gives it.

    Parameters
    ----------
    version: what this content is called; a version that is sealed keeps its content.
    licence: under which it may be used.
    lineage: what it was made from: files, addresses, other datasets.

    Raises
    ------
    DatasetError: the dataset cannot be used, or this version of it is sealed with other content or another licence, lineage or
        description.
    """
    loaded = load_dataset(dataset, sealed=False)
    path, held = manifest_path(dataset), read(dataset)
    before = [] if held is None else [each for each in held.get("lineage", ()) if each.startswith(f"{dataset.name}@")]
    if held is not None and held["version"] == version and held["sha256"] == loaded.sha256:
        for key, value in {"licence": licence, "lineage": set(lineage), "description": description}.items():
            if value and value != held.get(key) and not (isinstance(value, set) and value <= set(held.get(key) or ())):
                raise DatasetError(dataset, f"version {version} is sealed with another {key}", "give it a new --version")
        return held
    if held is not None:
        before.append(f"{dataset.name}@{held['version']} sha256:{held['sha256']}")
    if any(each.startswith(f"{dataset.name}@{version} sha256:") and not each.endswith(loaded.sha256) for each in before):
        raise DatasetError(dataset, f"version {version} is sealed with other content", "give the edited file a new --version")
    made = {
        "file": dataset.name,
        "sha256": loaded.sha256,
        "rows": len(loaded),
        "version": version,
        "licence": licence,
        "lineage": [*lineage, *before],
        "description": description,
        "sealed": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(made, indent=2, ensure_ascii=False) + "\n", "utf-8")
    partial.chmod(0o444)
    os.replace(partial, path)
    return made
