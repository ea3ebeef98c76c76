"""Predictions kept by what made them, so that a rerun asks again only what changed.

What makes a prediction: the `identity` of what is asked (code, model, prompt, index, as the caller of `Cache` names them) and the
input of the row. Expectations are no part of it: correcting a dataset's facts asks nothing again. Each identity has a file of
JSON lines; a prediction is one write, so that a `kill -9` loses only what had not been answered yet. Errors are never kept.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from evals.data import Prediction, Row


def digest(value: Any) -> str:
    """The SHA-256 of a value's JSON, whatever the order of its keys; that of a set's members differs from process to process."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=_plain)
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


def _plain(value: Any) -> Any:
    return sorted(map(str, value)) if isinstance(value, set | frozenset) else str(value)


def code_digest(folders: Mapping[str, Path]) -> str:
    """The SHA-256 of all Python and JSON files below the folders: what changes when the code does."""
    found = hashlib.sha256()
    for name, folder in sorted(folders.items()):
        for path in sorted((*folder.rglob("*.py"), *folder.rglob("*.json"))):
            found.update(f"{name}/{path.relative_to(folder).as_posix()}\0".encode())
            found.update(path.read_bytes())
    return found.hexdigest()


class Cache:
    """Values by content, in `folder`, of one identity.

    Raises
    ------
    OSError: the folder cannot be written.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.path = Path(folder) / f"{digest(identity)[:32]}.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._values: dict[str, Any] = {}
        self._handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        data = self.path.read_bytes()
        for line in data.split(b"\n"):
            try:
                entry = json.loads(line)
                self._values[entry["key"]] = entry["value"]
            except (ValueError, KeyError, TypeError):
                continue  # the first line, the empty last one, or one that a kill tore
        if not data:
            self._write({"identity": dict(identity)})
        elif not data.endswith(b"\n"):
            os.write(self._handle, b"\n")  # what follows a torn line stands on its own

    def get(self, key: Any) -> Any:
        """The value of a key (anything JSON can hold), None where there is none."""
        return self._values.get(digest(key))

    def put(self, key: Any, value: Any) -> None:
        name = digest(key)
        self._values[name] = value
        self._write({"key": name, "value": value})

    def prediction(self, row: Row) -> Prediction | None:
        """What this identity answered to the row's input."""
        kept = self.get(row.asked)
        return None if kept is None else Prediction.from_dict(kept)

    def keep(self, row: Row, prediction: Prediction) -> None:
        if prediction.error is None:
            self.put(row.asked, asdict(prediction))

    def forget(self) -> None:
        """Remove the file, where its identity does not say everything that could change."""
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        os.close(self._handle)

    def _write(self, line: Mapping[str, Any]) -> None:
        data = (json.dumps(line, ensure_ascii=False, default=str) + "\n").encode("utf-8", "replace")
        while data:
            data = data[os.write(self._handle, data) :]
